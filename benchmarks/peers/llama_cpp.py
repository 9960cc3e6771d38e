"""llama.cpp by its C functions, several texts in one batch: what its server does, without HTTP around it.

    python -m benchmarks.peers.llama_cpp prepare SOURCE FOLDER f32 bf16 q8_0 q4_0

makes GGUF files; the other words are those of :mod:`benchmarks.peers.writers`.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import writers
from benchmarks.peers.gguf_llama import end_tokens, written
from optimizer.generator import Generator, Sampling
from optimizer.runtime import Candidate
from optimizer.types import JSON

#: Texts at once; each has the whole context.
_TEXTS = 8
#: Most tokens of a step, as llama-server has it by default.
_BATCH = 2048
#: What llama.cpp calls the sorts of files (``llama_ftype``).
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}


@dataclass(eq=False)
class _Text:
    place: int
    rest: list[int]  # what is to be read: the prompt, then the last token that was written
    left: int
    read: int = 0
    tokens: list[int] = field(default_factory=list)


class LlamaEngine:
    """A GGUF file; greedy, by the largest logit that is no end token's."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._lib = llama_cpp
        made = json.loads((path.parent / "made.json").read_text(encoding="utf-8"))
        self.context, self.vocabulary = int(made["context"]), int(made["vocabulary"])
        self.end_tokens = tuple(made["end_tokens"])
        # It would write thousands of lines; what fails is told by what it returns.
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )  # fmt: skip
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self.context * _TEXTS, _TEXTS
        settings.n_batch = _BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp does not open {path.name}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._free = list(range(_TEXTS))
        self.facts: dict[str, JSON] = {
            "runtime": "llama.cpp",
            "threads": threads,
            "llama_cpp_python": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> _Text:
        """Take a place; more texts than there are places are refused."""
        if not self._free:
            raise RuntimeError(f"there are {_TEXTS} texts already")
        return _Text(self._free.pop(0), list(prompt), sampling.max_tokens)

    def step(self, texts: Sequence[_Text]) -> list[tuple[tuple[int, ...], bool]]:
        """Read the last token of texts under way, and as much of prompts as a step has room for."""
        import numpy as np

        asked: list[tuple[_Text, int]] = []
        room = _BATCH
        for text in sorted(texts, key=lambda each: len(each.rest)):
            count = min(len(text.rest), room)
            room -= count
            if count:
                asked.append((text, count))
        batch = _Batch(asked)
        if failed := self._lib.llama_decode(self._context, batch.struct):
            raise RuntimeError(f"llama_decode answered {failed}")
        for row, (text, count) in zip(np.cumsum([count for _, count in asked]) - 1, asked, strict=True):
            text.read += count
            del text.rest[:count]
            if not text.rest:
                text.tokens.append(self._likeliest(int(row)))
                text.rest, text.left = text.tokens[-1:], text.left - 1
        return [self._said(text) for text in texts]

    def _likeliest(self, row: int) -> int:
        import numpy as np

        logits = np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, row), (self.vocabulary,))
        logits[list(self.end_tokens)] = -np.inf
        return int(logits.argmax())

    def _said(self, text: _Text) -> tuple[tuple[int, ...], bool]:
        said, text.tokens = tuple(text.tokens), []
        if text.left == 0:
            self._lib.llama_memory_seq_rm(self._memory, text.place, -1, -1)
            self._free.append(text.place)
        return said, text.left == 0


class _Batch:
    """``llama_batch`` over arrays of numpy's; filling it number by number from Python would take milliseconds."""

    def __init__(self, asked: Sequence[tuple[_Text, int]]) -> None:
        import llama_cpp
        import numpy as np

        self._tokens = np.concatenate([np.array(text.rest[:count], np.int32) for text, count in asked])
        self._places = np.concatenate(
            [np.arange(text.read, text.read + count, dtype=np.int32) for text, count in asked]
        )
        self._texts = np.concatenate([np.full(count, text.place, np.int32) for text, count in asked])
        self._counts = np.ones(len(self._tokens), np.int32)
        self._pointers = self._texts.ctypes.data + 4 * np.arange(len(self._tokens), dtype=np.uint64)
        self._wanted = np.zeros(len(self._tokens), np.int8)
        ends = np.cumsum([count for _, count in asked]) - 1
        self._wanted[[end for end, (text, count) in zip(ends, asked, strict=True) if count == len(text.rest)]] = 1
        self.struct = llama_cpp.llama_batch()
        self.struct.n_tokens = len(self._tokens)
        for name, array in (
            ("token", self._tokens), ("pos", self._places), ("n_seq_id", self._counts), ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):  # fmt: skip
            kind = dict(llama_cpp.llama_batch._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))


def _open(candidate: Candidate, threads: int) -> Generator:
    return writers.SteppedGenerator(LlamaEngine(candidate.path, threads))


def _prepare(source: str, folder: str, *weights: str) -> None:
    """GGUF files of each sort of weights, and ``made.json`` with what a file without a tokenizer does not say."""
    import llama_cpp

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "f32.gguf"
    # Written anew each time: it takes a second, and is what the others are rounded from.
    config = written(Path(source), whole)
    for name in weights:
        if name != "f32":
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = _FILE_TYPES[name]
            made = out / f"{name}.gguf"
            if llama_cpp.llama_model_quantize(str(whole).encode(), str(made).encode(), ctypes.byref(settings)):
                raise RuntimeError(f"llama.cpp cannot quantize to {name}")
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    facts = {
        "context": config["max_position_embeddings"],
        "vocabulary": config["vocab_size"],
        "end_tokens": end_tokens(Path(source)),
        # Keys and values are kept in fp16; a table of tokens that is no product's matrix is not read whole.
        "cache": 4 * config["num_hidden_layers"] * heads * head,
        "weights": {path.stem: _read_each_step(path) for path in sorted(out.glob("*.gguf"))},
    }
    (out / "made.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _read_each_step(path: Path) -> int:
    """Bytes of the weights that a step reads."""
    import gguf

    stored: list[Any] = gguf.GGUFReader(path).tensors
    untied = any(tensor.name == "output.weight" for tensor in stored)
    return sum(int(tensor.n_bytes) for tensor in stored if not (untied and tensor.name == "token_embd.weight"))


if __name__ == "__main__":
    writers.main(_open, _prepare)
