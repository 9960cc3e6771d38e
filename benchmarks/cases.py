"""The models that verdicts and peers are measured on, each with its rows, its budget and its shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.file_types import file_rows, magika_file
from benchmarks.sentiment import TEST, TRAIN, minilm_folder, sentiment_classifier
from benchmarks.vit import mnist_vit

__all__ = ["CASES", "Case", "head"]


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        model: makes or finds it: a Hugging Face folder or an ONNX file.
        rows: makes or finds the files of evaluation and calibration rows.
        budget: options of ``optimize`` that say what may be lost.
        shapes: what is timed.
    """

    model: Callable[[], Path]
    rows: Callable[[], tuple[Path, Path]]
    budget: Mapping[str, Any]
    shapes: tuple[str, ...]


def _sentences() -> tuple[Path, Path]:
    return TEST, TRAIN


def _digits() -> tuple[Path, Path]:
    folder = mnist_vit()
    return folder / "test.npz", folder / "calib.npz"


CASES: Mapping[str, Case] = {
    "sentiment": Case(sentiment_classifier, _sentences, {"max_drop": 0.02}, ("1x128", "8x128")),
    "minilm": Case(minilm_folder, _sentences, {"min_cosine": 0.999}, ("1x128", "8x128")),
    "vit": Case(mnist_vit, _digits, {"max_drop": 0.01}, ("1", "8")),
    "magika": Case(magika_file, file_rows, {"min_agreement": 0.98, "min_cosine": 0.99}, ("1", "8")),
}


def head(path: Path, rows: int, folder: Path) -> Path:
    """The first rows of a ``.jsonl`` or ``.npz`` file, written into a folder under the same name."""
    short = folder / path.name
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        short.write_text("".join(lines[:rows]), encoding="utf-8")
        return short
    import numpy as np

    with np.load(path) as stored:
        np.savez(short, **{name: stored[name][:rows] for name in stored.files})
    return short
