"""optimize --allow-training, on a tiny BERT whose calibration data is nothing like what it answers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from processor import EXACT
from tiny import phrases, tiny_bert, write

import optimizer
from optimizer.errors import BadInput
from optimizer.recipe import run_recipe
from optimizer.runtime import Provider
from optimizer.search.build import build
from optimizer.search.candidates import QAT, STATIC, Idea, StepOf
from optimizer.search.machine import Machine
from optimizer.search.options import Optimize
from optimizer.store import Store
from optimizer.types import Precision

QUICK = {"duration": 0.05, "rounds": 3, "threads": 1, "roofline": False, "target": ("ort",), "precision": ("int8",)}


def texts(path: Path, count: int, seed: int) -> Path:
    return write(path, [{"text": " ".join(words)} for words in phrases(count, seed)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny_bert(folder / "tiny", "BertForSequenceClassification", id2label={0: "low", 1: "mid", 2: "high"})
    texts(folder / "eval.jsonl", 150, 1)
    texts(folder / "train.jsonl", 48, 2)
    # Ranges of one short row: whatever else the model is asked is clipped.
    write(folder / "calib.jsonl", [{"text": "a"}])
    return folder


@pytest.fixture
def only_static(monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate after training, and no kin of it: what is seen is what is trained."""

    def static(data: Any, machine: Machine) -> list[Idea]:
        narrow = {"reduce_range": True} if machine.saturates else {}
        return [Idea("int8-static", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {**data, **narrow}),), "")]

    monkeypatch.setattr("optimizer.search.candidates._on_processor", static)
    monkeypatch.setattr("optimizer.search.run._kin", lambda *given: {})


def search(home: Path, **options: Any) -> Any:
    given = {"eval": home / "eval.jsonl", "allow_training": home / "train.jsonl", "store": home / "models", **QUICK}
    return optimizer.optimize(str(home / "tiny"), **{**given, **options})


def test_what_calibrating_loses_training_brings_back(home: Path, only_static: None, tmp_path: Path) -> None:
    report = search(home, calib=home / "calib.jsonl", min_cosine=0.9)
    by_name = {c.name: c for c in report.candidates}
    assert list(by_name) == ["int8-qat", "int8-static"]
    assert by_name["int8-static"].outcome == "FAIL"
    trained = by_name["int8-qat"]
    best = f"tiny@1:int8-qat{'-7bit' * bool(EXACT)}-smooth"
    assert (report.verdict, report.best, trained.seen) == ("PASS", best, 150)
    assert trained.runs["int8"] > 0
    assert report.rivals == 1, "what was cut at first look has no share of the confidence"
    assert report.data["train"]["file"] == "train.jsonl"
    # One command makes it, and a recipe of one step, from the model itself.
    (command,) = trained.commands
    assert shlex.split(command)[:4] == ["ml-opt", "quantize", "qat", str(home / "tiny")]
    recipe = Path(report.recipe).read_text()
    assert recipe.count("[[step]]") == 1
    assert 'run = "quantize-qat"' in recipe
    (step,) = run_recipe(Path(report.recipe), store=home / "models").steps
    assert (step["cached"], step["ref"]) == (True, report.best)
    # Another search finds it, as it was.
    store = Store(home / "models")
    options = {"train": str(home / "train.jsonl"), "smooth": True, **EXACT}
    found = build(store.get("tiny:fp32"), (StepOf(QAT, options),), store, tmp_path / "log", 1, 120.0)
    assert (found.ref, found.manifest.created) == (report.best, store.get(report.best).manifest.created)
    # Nothing that learned anything is judged by what it learned.
    with pytest.raises(BadInput, match="48 rows of the training data are in the evaluation data too"):
        search(home, calib=home / "calib.jsonl", eval=home / "train.jsonl", min_cosine=0.9)


def test_rows_to_train_on_are_rows_to_calibrate_on(home: Path) -> None:
    ideas = {idea.name: idea for idea in search(home, dry_run=True).plan.ideas}
    assert ideas["int8-static"].steps[0] == StepOf(STATIC, {"calib": str(home / "train.jsonl"), **EXACT})


def test_it_is_judged_on_rows_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs rows to judge on"):
        Optimize(allow_training=tmp_path / "train.jsonl", min_agreement=0.9)
