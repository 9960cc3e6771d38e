"""What every peer does with texts: tokenize, pad to the longest, run the file, average over tokens, to length 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Where the model lies, and threads of a run; whoever starts a peer sets both.
FOLDER, THREADS = "PEER_MODEL", "PEER_THREADS"


class Embedder:
    """The vectors of texts, by ONNX Runtime."""

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        folder = Path(os.environ[FOLDER])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ[THREADS])
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """One for each text."""
        rows = self._tokenizer.encode_batch(list(texts))
        mask = np.array([row.attention_mask for row in rows], np.int64)
        feeds = {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
        }
        states: Any = self._session.run(None, feeds)[0]
        wide = mask[..., None].astype(np.float32)
        pooled = (states * wide).sum(1) / wide.sum(1)
        unit: list[list[float]] = (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).tolist()
        return unit
