"""Decoders whose logits are known, and an ONNX graph with a cache behind the same protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.generator import Finish, Piece, Sampling
from optimizer.types import JSON


class Texts:
    """Greedy texts, of whatever can score: the whole is scored again for each token."""

    context: int
    answers = 0
    end_tokens: tuple[int, ...]
    facts: dict[str, JSON]

    def score(self, tokens: Any, read: Any = None) -> Any:
        raise NotImplementedError

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        owner = self

        class Text:
            def __iter__(self) -> Iterator[Piece]:
                whole = list(prompt)
                for _ in range(min(sampling.max_tokens, owner.context - len(prompt))):
                    logits = owner.score(np.array([whole]))[0, -1].copy()
                    if len(whole) - len(prompt) < sampling.min_tokens:
                        logits[list(owner.end_tokens)] = -np.inf
                    token = int(logits.argmax())
                    if token in owner.end_tokens:
                        yield Piece((), Finish.STOP)
                        return
                    whole.append(token)
                    yield Piece((token,))
                yield Piece((), Finish.LENGTH)

            def cancel(self) -> None: ...

        return Text()

    def close(self) -> None: ...


class Planted(Texts):
    """Logits by a rule.

    Args:
        rule: of the token before and its place in the window, logits ``[vocabulary]``.
    """

    def __init__(self, rule: Callable[[int, int], Any], vocabulary: int = 8, context: int = 16) -> None:
        self.rule, self.vocabulary, self.context = rule, vocabulary, context
        self.end_tokens, self.facts = (), {"runtime": "planted"}
        self.seen: list[list[int]] = []

    def score(self, tokens: Any, read: Any = None) -> Any:
        self.seen += tokens.tolist()
        assert tokens.shape[1] <= self.context
        rows = [[self.rule(int(token), place) for place, token in enumerate(row)] for row in tokens]
        return np.asarray(rows, np.float32)


class Graph(Texts):
    """A graph of onnxruntime-genai's builder, run by ONNX Runtime with an empty cache."""

    def __init__(self, folder: Path) -> None:
        import json

        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        model = json.loads((folder / "genai_config.json").read_text())["model"]
        self.size = model["decoder"]["head_size"]
        ends = model["eos_token_id"]
        self.vocabulary, self.context = model["vocab_size"], model["context_length"]
        self.end_tokens = (ends,) if isinstance(ends, int) else tuple(ends)
        self.facts = {"runtime": "onnxruntime"}

    def score(self, tokens: Any, read: Any = None) -> Any:
        rows, length = tokens.shape
        feeds: dict[str, Any] = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        for each in self.session.get_inputs():
            if each.name.startswith("past_key_values"):
                feeds[each.name] = np.zeros((rows, each.shape[1], 0, self.size), np.float32)
            elif each.name == "position_ids":
                feeds[each.name] = np.tile(np.arange(length), (rows, 1))
        return self.session.run(["logits"], feeds)[0]
