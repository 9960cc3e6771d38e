"""Verdicts on models that are no text models: a vision transformer on digits, and an ONNX file that somebody made."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search.test_resume import two_layers

import optimizer
from benchmarks.cases import head
from benchmarks.file_types import features, file_rows, magika_file
from benchmarks.vit import ROOT, mnist_vit, split
from optimizer.search import run

QUICK = {"duration": 0.05, "rounds": 3, "threads": 1}

#: A worker whose every call takes a while longer than the model does.
SLOW = """
import time
from optimizer.benching.worker import main


def opened(candidate, threads):
    session = candidate.open(threads)
    bind = session.bind

    def slower(feeds):
        call = bind(feeds)
        return lambda: (time.sleep(0.02), call())

    session.bind = slower
    return session


main(opened)
"""


@pytest.fixture(scope="module")
def vit() -> Path:
    """A ViT that saw every training digit four times, kept in .cache until its recipe changes."""
    return mnist_vit(ROOT / ".cache" / "vit-4-epochs", epochs=4)


@pytest.fixture
def slow_but_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every candidate but the plain export answers as it does, and takes longer."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    make = run.make

    def planted(idea: Any, *rest: Any) -> Any:
        entrant = make(idea, *rest)
        if idea.name == "fp32":
            return entrant
        return replace(entrant, candidate=replace(entrant.candidate, command=(sys.executable, str(script))))

    monkeypatch.setattr(run, "make", planted)


def test_digits_get_a_verdict(vit: Path, tmp_path: Path) -> None:
    rows = head(vit / "test.npz", 200, tmp_path)
    report = optimizer.optimize(
        str(vit), eval=rows, max_drop=0.05, precision=("fp32,int8",), name="vit",
        target=("ort",), store=tmp_path / "models", **QUICK,
    )  # fmt: skip
    assert report.verdict == "PASS"
    # Images have no length: one of them is timed, and the shape says nothing of a sequence.
    assert report.shape == "1"
    assert report.bench["rows"][0]["cells"][0]["batch"] == 1
    made = json.loads((vit / "made.json").read_text())
    assert made["accuracy"] > 0.5
    assert report.original.accuracy.value == pytest.approx(made["accuracy"], abs=0.06)
    by_name = {candidate.name: candidate for candidate in report.candidates}
    assert by_name["fp32"].cosine["worst"] > 0.9999
    assert by_name["int8-dynamic"].cosine["worst"] < 0.99999, "it is not the float model under another name"
    assert report.data["eval"]["rows"] == 200
    assert len(report.data["eval"]["labels"]) == 10


def test_digits_are_prepared_as_they_were_trained_on(vit: Path) -> None:
    """What the saved processor makes of the test rows is what accuracy was computed on when the model was made."""
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_rows

    inputs = [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 1, 28, 28]}]
    rows = read_rows(vit / "test.npz", limit=5)
    pixels = Preprocessor.open(vit, {"inputs": inputs}).feeds(rows)["pixel_values"]
    images, labels = split()[1]
    assert np.allclose(pixels[:, 0], (images[:5] / 255 - 0.1307) / 0.3081, atol=1e-5)
    assert [row.values["label"].item() for row in rows] == labels[:5].tolist()


def test_where_nothing_is_faster_fp32_is_kept(slow_but_fp32: None, tmp_path: Path) -> None:
    report = optimizer.optimize(
        str(magika_file()), eval=head(file_rows()[0], 80, tmp_path), min_agreement=0.5, precision=("fp32,int8",),
        target=("ort",), name="magika", store=tmp_path / "models", **QUICK,
    )  # fmt: skip
    assert report.verdict == "PASS"
    assert report.best == "magika@1:fp32"
    assert (report.provider, report.shape) == ("cpu", "1")
    assert any("keep fp32" in note for note in report.notes)
    slower = [candidate for candidate in report.candidates if candidate.name != "fp32" and candidate.speed]
    assert slower
    assert all(candidate.speed.ratio.high < 1 for candidate in slower)


def test_kin_of_int8_that_is_slower_than_fp32_are_left_out_with_the_reason(slow_but_fp32: None, tmp_path: Path) -> None:
    two_layers(tmp_path)
    report = optimizer.optimize(
        str(tmp_path / "net.onnx"), eval=tmp_path / "eval.npz", calib=tmp_path / "calib.npz", min_cosine=0.99999,
        precision=("fp32,int8",), target=("ort",), store=tmp_path / "models", **QUICK,
    )  # fmt: skip
    assert report.best == "net@1:fp32"
    assert not [c.name for c in report.candidates if "entropy" in c.name or "mixed" in c.name]
    (reason,) = (e["reason"] for e in report.left_out if e["name"] == "int8-static-entropy and -mixed-N")
    assert re.fullmatch(r"int8-static\S* itself takes [\d.]+ times as long as fp32, which keeps the budgets", reason)
    assert report.sensitivity == (), "no ranking was made for them"


def test_rows_of_files_are_laid_out_as_magika_does_it() -> None:
    from magika import Magika
    from magika.types.seekable import Seekable

    contents = (b"  \n short \t", b"x" * 1500, bytes(range(256)) * 40, b" " * 5000 + b"end", b"head" + b"\n" * 9000)
    for content in contents:
        theirs = Magika._extract_features_from_seekable(Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False)
        assert list(features(content)) == [*theirs.beg, *theirs.end]
