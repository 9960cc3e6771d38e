"""The rows by which a graph is held to the trained model, and what is made of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import two_layers, write

from optimizer.data.preprocess import Preprocessor
from optimizer.evalset import EvalSet
from optimizer.stages.quantize_qat import _wrong
from optimizer.training.probe import compare, probe_batches
from optimizer.training.rows import open_rows
from optimizer.types import JSON

CLASSES: dict[str, JSON] = {"task": "text-classification", "labels": ["no", "yes"]}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_layers(tmp_path_factory.mktemp("probe") / "model")


def opened(source: Path, folder: Path, count: int) -> EvalSet:
    """Rows of 1 to 12 letters, sorted by length, as files are at times."""
    lengths = sorted(1 + place % 12 for place in range(count))
    write(folder / "rows.jsonl", [{"text": " ".join("a" * length)} for length in lengths])
    inputs = [
        {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    about: dict[str, JSON] = {
        "task": "feature-extraction", "pooling": "mean", "inputs": inputs, "max_length": 64, "labels": []
    }  # fmt: skip
    return open_rows(folder / "rows.jsonl", Preprocessor.open(source, about), about)[0]


@pytest.mark.parametrize(
    ("count", "alone", "batches"),
    [(1, 1, []), (2, 1, [1]), (9, 1, [8]), (12, 4, [8]), (24, 16, [8]), (40, 16, [8] * 3), (300, 16, [8] * 30)],
)
def test_rows_are_asked_alone_and_in_batches_of_short_and_long_ones(
    source: Path, tmp_path: Path, count: int, alone: int, batches: list[int]
) -> None:
    asked = list(probe_batches(opened(source, tmp_path, count), None))
    sizes = [len(feeds["input_ids"]) for feeds in asked]
    assert sizes == [1] * alone + batches
    for feeds in asked[alone:]:
        lengths = feeds["attention_mask"].sum(axis=1)
        assert len(lengths) == 1 or lengths.min() < lengths.max() - (3 if count >= 24 else 0)
    told = compare([(feeds, answer(feeds)) for feeds in asked], answer, CLASSES)
    assert (told["rows"], told["alone"]) == (min(count, 256), alone + batches.count(1))
    assert told["padded"] == sum(int((feeds["attention_mask"] == 0).any(axis=1).sum()) for feeds in asked)
    assert bool(told["padded"]) == (count >= 9)


def answer(feeds: Any) -> dict[str, Any]:
    """Classes by the number of tokens."""
    steps = feeds["attention_mask"].sum(axis=1).astype(np.float32)
    return {"logits": np.stack([steps, np.full_like(steps, 6.5)], axis=1)}


def test_a_difference_in_padded_rows_alone_is_seen(source: Path, tmp_path: Path) -> None:
    asked = list(probe_batches(opened(source, tmp_path, 40), None))

    def blind(feeds: Any) -> dict[str, Any]:
        """Takes padding for tokens."""
        return answer({"attention_mask": np.ones_like(feeds["attention_mask"])})

    told = compare([(feeds, answer(feeds)) for feeds in asked], blind, CLASSES)
    assert told["agreement"] is not None
    assert told["agreement"] < 0.9
    assert told["max"] > told["median"] > 0
    assert _wrong(told)


@pytest.mark.parametrize(
    ("rows", "other", "passes"),
    [(40, 0, True), (40, 1, True), (40, 2, False), (256, 1, True), (256, 2, False), (2000, 9, True), (2000, 11, False)],
)
def test_one_row_in_two_hundred_may_decide_otherwise(rows: int, other: int, passes: bool) -> None:
    wrong = _wrong({"rows": rows, "agreement": 1 - other / rows, "worst_cosine": 0.1})
    assert (wrong == "") is passes
    assert passes or f"in only {1 - other / rows:.1%} of {rows} rows" in wrong


def test_answers_that_are_no_numbers_are_wrong() -> None:
    assert _wrong({"rows": 40, "agreement": float("nan"), "worst_cosine": 1.0})
    assert _wrong({"rows": 40, "agreement": None, "worst_cosine": float("nan")})
    assert _wrong({"rows": 40, "agreement": None, "worst_cosine": 0.97})
    assert not _wrong({"rows": 40, "agreement": None, "worst_cosine": 0.99})
