"""Accuracy beside the times of a benchmark, on tiny classifiers whose right answers are the first one's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_bert, write

import optimizer
from optimizer.benching.gates import Outcome
from optimizer.benching.report import BenchReport
from optimizer.cli.main import run
from optimizer.errors import BadInput

QUICK = {"duration": 0.05, "rounds": 3, "threads": 1, "roofline": False, "shape": ("1x8",)}
NAMES = ("low", "mid", "high")
ROWS = 150


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers of the same classes and other weights, and rows labelled by the first."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("right", "wrong")):
        made = tiny_bert(folder / name, "BertForSequenceClassification", id2label=dict(enumerate(NAMES)), seed=seed)
        optimizer.export_onnx(str(made), name=name, store=folder / "models")
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=drawn.randint(2, 20))) for _ in range(ROWS)]
    tokenizer = AutoTokenizer.from_pretrained(folder / "right")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "right").eval()
    with torch.inference_mode():
        answers = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    assert len(set(answers)) > 1
    write(folder / "labelled.jsonl", [{"text": t, "label": NAMES[a]} for t, a in zip(texts, answers, strict=True)])
    write(folder / "bare.jsonl", [{"text": text} for text in texts[:20]])
    optimizer.ort_optimize("right:fp32", variant="fused", store=folder / "models")
    return folder


def bench(home: Path, *refs: str, **options: Any) -> BenchReport:
    found = optimizer.bench(*refs, against="right:fp32", store=home / "models", **{**QUICK, **options})
    assert isinstance(found, BenchReport)
    return found


def test_accuracy_stands_beside_every_time(home: Path) -> None:
    base, fused, wrong = bench(home, "right:fused", "wrong:fp32", data=home / "labelled.jsonl").rows
    assert (base.accuracy.value, base.accuracy.rows, base.accuracy.drop) == (1.0, ROWS, None)
    assert (fused.accuracy.value, fused.accuracy.drop) == (1.0, 0.0)
    assert fused.accuracy.low <= 0 <= fused.accuracy.high < 0.05
    assert wrong.accuracy.value < 0.8
    assert wrong.accuracy.drop == pytest.approx(1 - wrong.accuracy.value)
    assert wrong.accuracy.low > 0.1


def test_what_loses_accuracy_fails_and_what_keeps_it_passes(home: Path) -> None:
    report = bench(home, "right:fused", "wrong:fp32", data=home / "labelled.jsonl", fail_if_worse="5pt")
    assert [(gate.name, gate.about, gate.outcome) for gate in report.gates] == [
        ("worse", "right:fused", Outcome.PASS),
        ("worse", "wrong:fp32", Outcome.REGRESSION),
    ]
    assert report.exit_code == 1
    assert "accuracy falls by" in report.gates[1].says
    assert BenchReport.read(Path(report.path)) == report


def test_too_few_rows_are_inconclusive(home: Path) -> None:
    report = bench(home, "right:fused", data=home / "labelled.jsonl", fail_if_worse="0.1pt")
    assert [gate.outcome for gate in report.gates] == [Outcome.INCONCLUSIVE]
    assert report.exit_code == 3


def test_rows_without_labels_are_compared_only_unless_accuracy_is_asked_for(home: Path) -> None:
    report = bench(home, "right:fused", data=home / "bare.jsonl")
    assert [row.accuracy for row in report.rows] == [None, None]
    assert report.rows[1].agreement.rows == 20
    for asked in ({"fail_if_worse": "1pt"}, {"metric": "accuracy"}):
        with pytest.raises(BadInput, match="label"):
            bench(home, "right:fused", data=home / "bare.jsonl", **asked)


def test_the_terminal_shows_accuracy_beside_the_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "wrong:fp32", "--against", "right:fp32", "--data", str(home / "labelled.jsonl"), "--no-roofline"]
    quick = ["--shape", "1x8", "--duration", "0.05", "--rounds", "3", "-q"]
    assert run([*words, *quick, "--store", str(home / "models")]) == 0
    said = capsys.readouterr().out
    head = next(line for line in said.splitlines() if "accuracy" in line)
    (base,) = (line for line in said.splitlines() if line.split()[:1] == ["right:fp32"])
    assert head.index("accuracy") < head.index("worst cosine")
    assert "1.0000" in base
