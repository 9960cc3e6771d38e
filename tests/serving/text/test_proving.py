"""A generator that does not write what it should never becomes ready."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generators import prompts, reference
from served_texts import put_text
from serving.test_loopback import counted

from optimizer.data.continuations import Continuation, save_continuations
from optimizer.errors import Damaged, GateFailed
from optimizer.runtimes._ort_decoder import Decoder
from optimizer.serving.metrics import Metrics
from optimizer.serving.repository import Repository
from optimizer.serving.settings import Settings
from optimizer.serving.statistics import Statistics
from optimizer.serving.text.openai_said import Completions
from optimizer.serving.text.proving import _ahead
from optimizer.store import Store


@pytest.fixture(scope="module")
def golden() -> list[Continuation]:
    """What transformers writes, and how far each token is ahead."""
    import torch

    model, made = reference()[0], []
    for prompt in prompts(4):
        row, tokens, margins = list(prompt), [], []
        for _ in range(16):
            with torch.inference_mode():
                two = model(torch.tensor([row])).logits[0, -1].topk(2)
            tokens.append(int(two.indices[0]))
            margins.append(float(two.values[0] - two.values[1]))
            row.append(tokens[-1])
        made.append(Continuation("", tuple(prompt), tuple(tokens), tuple(margins)))
    return made


def load(tmp_path: Path, llama: Path, kept: Sequence[Continuation], verify: bool = True) -> Repository:
    folder = shutil.copytree(llama, tmp_path / "llama")
    save_continuations(folder, tuple(kept))
    return opened(tmp_path, folder, verify)


def opened(tmp_path: Path, folder: Path, verify: bool = True) -> Repository:
    store = Store(tmp_path / "models")
    put_text(store, folder, "llama")

    async def inside() -> Repository:
        repository = Repository(store, Settings(verify=verify, threads=1), Metrics())
        try:
            await repository.start(["llama"])
            assert repository.get("llama").ready
        finally:
            await repository.close()
        return repository

    return asyncio.run(inside())


def test_what_transformers_wrote_is_written_alone_and_together(
    tmp_path: Path, llama_generator: Path, golden: list[Continuation]
) -> None:
    assert sum(min(each.margins) > 1e-3 for each in golden) >= 2  # these are compared to their ends
    load(tmp_path, llama_generator, golden)


@pytest.mark.parametrize("place", [0, 9])
def test_another_token_is_found(tmp_path: Path, llama_generator: Path, golden: list[Continuation], place: int) -> None:
    kept = golden[:3]
    tokens = list(kept[2].tokens)
    tokens[place] = (tokens[place] + 1) % 512
    wrong = [*kept[:2], replace(kept[2], tokens=tuple(tokens), margins=(1.0,) * 16)]
    with pytest.raises(GateFailed, match=f"continuation 3 .* at token {place + 1} PyTorch"):
        load(tmp_path, llama_generator, wrong)
    shutil.rmtree(tmp_path)
    load(tmp_path, llama_generator, wrong, verify=False)
    shutil.rmtree(tmp_path)
    # Where two tokens were as good as equal, either is right, and what follows is another text.
    unsure = replace(wrong[2], margins=(*(1.0,) * place, 1e-6, *(1.0,) * (15 - place)))
    load(tmp_path, llama_generator, [*kept[:2], unsure])


def test_rows_that_spoil_each_other_are_found(
    tmp_path: Path, llama_generator: Path, golden: list[Continuation], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Decoder.step

    def spoilt(self: Decoder, tokens: list[int], lengths: list[int]) -> Any:
        logits = step(self, tokens, lengths)
        return logits if len(tokens) == 1 else logits[::-1]

    monkeypatch.setattr(Decoder, "step", spoilt)
    with pytest.raises(GateFailed, match="beside other texts"):
        load(tmp_path, llama_generator, golden[:3])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda whole: whole["choices"][0].update(text=whole["choices"][0]["text"] + "!"),
            "another text comes over HTTP",
        ),
        (lambda whole: whole["choices"][0].update(text=""), "another text comes over HTTP"),
        (lambda whole: whole.pop("choices"), "what comes over HTTP is no completion"),
    ],
    ids=["more", "none", "no completion"],
)
def test_a_fault_of_what_is_said_over_http_is_found(
    tmp_path: Path, llama_generator: Path, golden: list[Continuation], monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, Any]], object], said: str,
) -> None:  # fmt: skip
    whole = Completions.whole

    def spoilt(self: Completions, *given: Any) -> dict[str, Any]:
        document = whole(self, *given)
        spoil(document)
        return document

    monkeypatch.setattr(Completions, "whole", spoilt)
    with pytest.raises(GateFailed, match=said):
        load(tmp_path, llama_generator, golden[:2])


def test_nothing_of_it_is_counted(tmp_path: Path, llama_generator: Path, golden: list[Continuation]) -> None:
    folder = shutil.copytree(llama_generator, tmp_path / "llama")
    save_continuations(folder, tuple(golden[:2]))
    store, metrics = Store(tmp_path / "models"), Metrics()
    put_text(store, folder, "llama")

    async def inside() -> tuple[str, Any]:
        repository = Repository(store, Settings(threads=1), metrics)
        try:
            await repository.start(["llama"])
            return repository.get("llama").proof, repository.get("llama").statistics.to_json()
        finally:
            await repository.close()

    assert asyncio.run(inside()) == ("golden texts: 2", Statistics().to_json())
    assert {name for name in counted(metrics) if not name.startswith("ml_model_unloads")} == set()


def test_what_cannot_be_read_is_damage(tmp_path: Path, llama_generator: Path) -> None:
    folder = shutil.copytree(llama_generator, tmp_path / "llama")
    (folder / "golden_generation.json").write_text("{")
    with pytest.raises(Damaged, match="golden_generation"):
        opened(tmp_path, folder)


def test_a_generator_without_a_tokenizer_is_not_served(tmp_path: Path, llama_generator: Path) -> None:
    from optimizer.errors import BadInput

    folder = shutil.copytree(llama_generator, tmp_path / "llama")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        opened(tmp_path, folder)


def test_how_far_a_token_was_ahead_minds_none_that_never_comes() -> None:
    """A model's own padding may be the likeliest of all by its logits."""
    top = ((9, -0.1), (4, -0.5), (7, -2.0), (8, -3.0))
    assert _ahead(9, -0.1, top) == pytest.approx(0.4)
    assert _ahead(4, -0.5, top) == pytest.approx(1.5)
    assert _ahead(8, -3.0, top) == _ahead(3, -9.0, top) == 0.0
