"""Generators for tests: the tiny trained Llama, made by onnxruntime-genai's own builder, and what it should write.

And the tiny GPT-2, which ml-opt traces.
"""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.decoders import Family, decoder
from optimizer.artifact import Artifact
from optimizer.store import Store


def build_llama(folder: Path, precision: str = "fp32", *said: str, source: Path | None = None) -> Path:
    """The tiny Llama as a generator's folder: its graph is the builder's own, as others make it too.

    Args:
        folder: where to.
        precision: of its weights.
        said: options of the builder, ``KEY=VALUE``.
        source: another Llama's folder.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    model, out, cache = str(source or decoder("llama", size="tiny")), folder / "llama", folder / "cache"
    more = parse_extra_options(model, model, str(out), precision, "cpu", str(cache), list(said))
    create_model(model, model, str(out), precision, "cpu", str(cache), **more)
    return out


def export_gpt2(folder: Path) -> Path:
    """The tiny GPT-2 as the artifact that ``export-genai`` makes; its folder."""
    import optimizer

    source = str(decoder("gpt2", size="tiny"))
    made: Path = optimizer.export_genai(source, name="gpt2", store=Store(folder / "models")).artifact.path
    return made


def folders_of(build: Callable[[str], Any], root: Path) -> Callable[[str], Path]:
    """By a name: the folder of the model that is built of it, once, with the tiny Llama's tokenizer."""

    @functools.cache
    def folder(name: str) -> Path:
        build(name).save_pretrained(root / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(decoder("llama", size="tiny") / file, root / name / file)
        return root / name

    return folder


def exports_of(folders: Callable[[str], Path], store: Store, lengths: Mapping[str, int]) -> Any:
    """By a name and options: what ``export-genai`` makes of its folder, once; ``store`` is where.

    Args:
        folders: see :func:`folders_of`.
        store: where to.
        lengths: what ``--max-length`` is for some names: their models say of no length that it would be too long.
    """
    import optimizer

    @functools.cache
    def made(name: str, **options: Any) -> Artifact:
        if name in lengths:
            options["max_length"] = lengths[name]
        return optimizer.export_genai(str(folders(name)), name=name, store=store, **options).artifact

    made.store = store  # type: ignore[attr-defined]
    return made


def drawn_prompts(count: int = 12) -> list[list[int]]:
    """Prompts of different lengths, of tokens that mean nothing."""
    return [[3 + (37 * (place + 1) * (n + 3)) % 500 for n in range(1 + 5 * place % 31)] for place in range(count)]


def steps_on_leave(monkeypatch: pytest.MonkeyPatch, rows: type[Any]) -> threading.Semaphore:
    """Have each step of a sort of rows wait until it is let go."""
    steps, step = threading.Semaphore(0), rows.step

    def on_leave(self: Any, *given: Any) -> Any:
        steps.acquire()
        return step(self, *given)

    monkeypatch.setattr(rows, "step", on_leave)
    return steps


def prompts(count: int, longest: int = 24, family: Family = "llama") -> list[list[int]]:
    """Prompts of different lengths from modules that the model never saw."""
    tokenizer = reference(family)[1]
    rows = (decoder(family, size="tiny") / "heldout.jsonl").read_text().splitlines()
    made: list[list[int]] = []
    for row in rows:
        text = json.loads(row)["text"]
        for start in range(0, len(text) - 400, 400):
            made.append(tokenizer(text[start : start + 120])["input_ids"][: 1 + (5 * len(made) + 3) % longest])
            if len(made) == count:
                return made
    raise AssertionError("the held-out text is too short")


@functools.cache
def reference(family: Family = "llama") -> tuple[Any, Any]:
    """The same model in transformers, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = decoder(family, size="tiny")
    return AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)


def greedy(prompt: list[int], new: int, family: Family = "llama", **settings: Any) -> list[int]:
    """What ``transformers.generate`` writes with some settings, without end tokens."""
    import torch

    model = reference(family)[0]
    with torch.inference_mode():
        written = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new,
            do_sample=False,
            attention_mask=torch.ones(1, len(prompt)),
            **settings,
        )
    return [token for token in written[0].tolist()[len(prompt) :] if token != model.config.eos_token_id]
