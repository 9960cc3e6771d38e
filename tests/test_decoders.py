"""The decoders that text generation is tested on: they have learned, and anyone gets the same ones."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decoders
from benchmarks.decoders import SIZES, decoder
from benchmarks.stdlib import corpus
from optimizer.digest import digest_file

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    "config.json", "generation_config.json", "heldout.jsonl", "made.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "train-sample.jsonl",
}  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest) -> Path:
    """A tiny decoder of each family, kept in .cache until its recipe or Python changes."""
    return decoder(request.param, size="tiny")


def test_it_has_learned(tiny: Path) -> None:
    """Modules that it never saw surprise it far less than one that only knows how frequent tokens are."""
    heldout = json.loads((tiny / "made.json").read_text())["heldout"]
    assert heldout["perplexity"] < heldout["unigram_perplexity"] / 3


def test_its_perplexity_is_what_transformers_computes(tiny: Path) -> None:
    """The number in made.json, again from what lies in the folder: its rows, its tokenizer and its weights."""
    import math

    import torch

    tokenizer, model = _loaded(tiny)
    context = SIZES["tiny"].context
    nats = tokens = 0.0
    for text in _texts(tiny / "heldout.jsonl"):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for first in range(0, len(ids) - 1, context - 1):
            window = torch.tensor([ids[first : first + context]])
            with torch.inference_mode():
                nats += model(input_ids=window, labels=window).loss.item() * (window.shape[1] - 1)
            tokens += window.shape[1] - 1
    stated = json.loads((tiny / "made.json").read_text())["heldout"]
    assert tokens == stated["tokens"]
    assert math.exp(nats / tokens) == pytest.approx(stated["perplexity"], rel=1e-3)


def test_the_folder_is_one_of_hugging_face(tiny: Path) -> None:
    assert {file.name for file in tiny.iterdir()} == FILES
    tokenizer, model = _loaded(tiny)
    assert model.config.model_type in tiny.name
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.bos_token_id == model.config.bos_token_id == tokenizer.bos_token_id
    prompt = tokenizer("class Queue:\n    def ", return_tensors="pt")
    assert (prompt.input_ids[0, 0] == tokenizer.bos_token_id) == (model.config.model_type == "llama")
    written = [
        model.generate(**prompt, max_new_tokens=24, do_sample=False, use_cache=cache)[0].tolist()
        for cache in (True, False)
    ]
    assert written[0] == written[1], "what the cache of keys and values leads to is what no cache leads to"
    assert len(set(written[0])) > 8


def test_its_tokenizer_loses_nothing(tiny: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer, _ = _loaded(tiny)
    text = "def naïve(x):\n\treturn x  # ½ 日本 🐍\n\n\n    pass \r\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids == Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text).ids


def test_what_is_held_out_is_not_trained_on(tiny: Path) -> None:
    whole = corpus(limit=SIZES["tiny"].characters)
    assert _texts(tiny / "heldout.jsonl") == list(whole.heldout.values())
    together = "\n".join(whole.train.values())
    samples = _texts(tiny / "train-sample.jsonl")
    assert len(samples) == decoders.SAMPLES
    assert all(sample in together for sample in samples)
    families = [{name.split("/")[0].strip("_") for name in part} for part in (whole.train, whole.heldout)]
    assert not families[0] & families[1]


def test_the_same_recipe_gives_the_same_model_and_is_followed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], steps=10, characters=100_000))
    one, two = (decoder("llama", tmp_path / name, "tiny") for name in ("one", "two"))
    made = (one / "made.json").stat().st_mtime_ns
    assert decoder("llama", one, "tiny") == one
    assert (one / "made.json").stat().st_mtime_ns == made
    for name in FILES - {"made.json"}:
        assert digest_file(one / name) == digest_file(two / name), name


def test_another_library_is_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / f"m{number}.py").write_text(f"x = {number}\n")
    for name in ("test/test_x.py", "json/tests/a.py", "site-packages/b.py", "_sysconfigdata_x.py", "empty.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.py" else "y = 1\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    first = corpus()
    assert sorted(first.train | first.heldout) == sorted(f"m{number}.py" for number in range(40))
    assert corpus().digest == first.digest
    (tmp_path / "m7.py").write_text("x = 8\n")
    assert corpus().digest != first.digest
    assert list(corpus().heldout) == list(first.heldout)


def test_a_library_without_sources_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match="no sources"):
        corpus()


def _loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
