"""verify, for text generators: judged on held-out text beside the model that they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generator_shop import opened_by_torch, put_generator

import optimizer
from benchmarks.decoders import decoder
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.store import Store


@pytest.fixture(scope="module")
def folder() -> Path:
    return decoder("llama", size="tiny")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Store]:
    """One that is what it was made from, one a little off, and one that is broken."""
    store = Store(tmp_path_factory.mktemp("generators") / "models")
    put_generator(store, folder)
    put_generator(store, folder, "int4", 0.05, bits=4)
    put_generator(store, folder, "broken", 0.8)
    with pytest.MonkeyPatch.context() as patch:
        opened_by_torch(patch)
        yield store


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The beginnings of eight modules that were held out."""
    lines = (folder / "heldout.jsonl").read_text().splitlines()[:8]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": json.loads(line)["text"][:1500]}) + "\n" for line in lines))
    return path


def verify(store: Store, variant: str, data: Path | None, **options: Any) -> Any:
    return optimizer.verify(f"tiny:{variant}", store=store, threads=1, data=data, continuations=2, **options)


def test_what_is_the_same_passes_and_is_the_same(shop: Store, text: Path) -> None:
    report = verify(shop, "fp32", text)
    assert (report.exit_code, report.failures, report.doubts) == (0, (), ())
    assert report.compared.ratio.value == pytest.approx(1, abs=1e-6)
    assert (report.compared.top1, report.compared.match_whole) == (1.0, 1.0)
    assert len(report.compared.documents) == 8


def test_what_is_broken_fails_by_every_measure(shop: Store, text: Path) -> None:
    report = verify(shop, "broken", text)
    assert report.exit_code == 1
    assert [said.split()[0] for said in report.failures] == ["perplexity", "mean", "the"]
    assert report.compared.ratio.low > 1.1


def test_the_limit_is_held_to_the_bounds(shop: Store, text: Path) -> None:
    found = verify(shop, "int4", text, max_drop="100%").compared.ratio
    assert 1 < found.low < found.value < found.high
    assert verify(shop, "int4", text, max_drop=f"{(found.high - 1) * 100 + 0.01}%").exit_code == 0
    assert verify(shop, "int4", text, max_drop=f"{(found.low - 1) * 100 - 0.01}%").exit_code == 1
    undecided = verify(shop, "int4", text, max_drop=f"{(found.value - 1) * 100}%")
    assert (undecided.exit_code, undecided.failures) == (3, ())
    assert "more documents would tell" in undecided.doubts[0]


def test_two_documents_decide_nothing(shop: Store, text: Path) -> None:
    assert verify(shop, "fp32", text, samples=2).exit_code == 3


def test_other_limits(shop: Store, text: Path) -> None:
    report = verify(shop, "int4", text, max_drop="100%", max_kl=0.0, min_top1=1.0)
    assert [said.split()[0] for said in report.failures] == ["mean", "the"]


def test_against_another_artifact(shop: Store, text: Path) -> None:
    report = verify(shop, "int4", text, against="tiny:int4")
    assert report.compared.ratio.value == 1.0
    assert report.against == "tiny:int4"


def test_windows_are_as_asked(shop: Store, text: Path) -> None:
    report = verify(shop, "fp32", text, window=32, stride=8)
    assert report.to_json()["compared"]["sliding"] == {"window": 32, "stride": 8}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_cosine": 0.9}, "--min-cosine is not for a text generator"),
        ({"max_drop": "2"}, "--max-drop"),
        ({"window": 129}, "longer than the context of 128"),
        ({"window": 8, "stride": 8}, "stride"),
    ],
)
def test_what_cannot_be_asked(shop: Store, text: Path, options: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        verify(shop, "fp32", text, **options)


def test_text_is_needed(shop: Store) -> None:
    with pytest.raises(BadInput, match="held-out text"):
        verify(shop, "fp32", None)


def test_a_session_is_not_judged_by_perplexity(stocked: Store, text: Path) -> None:
    with pytest.raises(BadInput, match=r"--max-drop is about text generators"):
        optimizer.verify("toy:fp32", store=stocked, data=text, max_drop="2%")


def test_the_command_shows_it_and_its_json_has_every_document(
    shop: Store, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "tiny:int4", "--data", str(text), "--max-drop", "100%", "--store", str(shop.root)]
    assert run([*words, "--continuations", "2"]) == 0
    shown = capsys.readouterr().out
    assert "PASS" in shown
    assert "perplexity" in shown
    assert "greedy texts are the same for" in shown
    assert "too few for an interval" in shown
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == "verify-generation"
    found = document["compared"]
    assert len(found["documents"]) == 8
    for name in ("kl", "top1"):
        bounds = found["bounds"][name]
        assert bounds["low"] < bounds["value"] == found[name] < bounds["high"]
        shape = "{:.3g} to {:.3g}" if name == "kl" else "{:.2%} to {:.2%}"
        assert shape.format(bounds["low"], bounds["high"]) in shown
    matched = found["bounds"]["match"]
    assert matched["low"] <= matched["value"] == found["match"]["median"] <= matched["high"]


def test_few_documents_are_said_and_get_no_narrow_interval(
    shop: Store, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "tiny:fp32", "--data", str(text), "--samples", "2", "--store", str(shop.root)]
    assert run([*words, "--continuations", "0"]) == 3
    shown = capsys.readouterr().out
    assert "not known from fewer than 3 of them: no intervals" in shown
    assert "nats a token;" in shown, "no interval behind the number"
    assert run([*words, "--continuations", "0", "--json"]) == 3
    bounds = json.loads(capsys.readouterr().out)["compared"]["bounds"]
    assert (bounds["kl"]["low"], bounds["kl"]["high"]) == (0.0, None)
    assert (bounds["top1"]["low"], bounds["top1"]["high"]) == (0.0, 1.0)
    assert bounds["match"] is None
