"""Text generators in a store, for tests that are not about how one is made: a tiny decoder, its weights a little off.

What opens them here is PyTorch, under the name of the provider that artifacts have by themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stores import commit

from optimizer import generator
from optimizer.artifact import Artifact
from optimizer.generator import GeneratorOptions, GeneratorRuntime
from optimizer.source import resolve_source
from optimizer.store import Store
from optimizer.types import Kind


def put_generator(store: Store, folder: Path, variant: str = "fp32", off: float = 0.0, bits: int = 0) -> Artifact:
    """Commit a generator.

    Args:
        store: where to.
        folder: of the decoder that it is made from.
        variant: its name in the version.
        off: standard deviation of what is added to each weight, in those of its matrix.
        bits: what its blocks are said to have.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight += off * weight.std() * torch.randn_like(weight)
    with store.scratch() as scratch:
        model.save_pretrained(scratch.path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (scratch.path / name).write_bytes((folder / name).read_bytes())
        (scratch.path / "genai_config.json").write_text("{}")
        source = resolve_source(str(folder)).to_json()
        return commit(
            store,
            scratch,
            "tiny",
            source,
            variant,
            f"{variant:0<64}",
            kind=Kind.GENERATOR,
            model={"task": "text-generation", "source": source},
            facts={"weights": {"float32": 1}, "blocks": {"bits": [bits] if bits else []}},
        )


def opened_by_torch(patch: pytest.MonkeyPatch) -> None:
    """Let generators be opened by PyTorch where nobody names another provider."""
    torch = generator.discover()["torch"]

    def opens(folder: Path, options: GeneratorOptions) -> Any:
        return torch.open(folder, dataclasses.replace(options, provider="torch"))

    toy = GeneratorRuntime("toy", "PyTorch under another name.", ("cpu",), (), opens, 0)
    known: Mapping[str, GeneratorRuntime] = {"toy": toy, "torch": torch}
    patch.setattr(generator, "discover", lambda: known)
