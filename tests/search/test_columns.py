"""The table of candidates shows what is known of them, and nothing of what is not."""

from __future__ import annotations

from typing import Any

from optimizer.search.columns import COLUMNS, Column, filled

TIMED: dict[str, Any] = {
    "accuracy": {"value": 0.9, "low": 0.8, "high": 0.95},
    "agreement": None,
    "cosine": {"worst": 0.98765, "mean": 0.99},
    "seen": 1200,
    "runs": {"int8": 37, "float32": 12, "fell_back": ["a", "b"]},
    "speed": {
        "p50_ms": 1.234, "rows_per_s": 810.4, "ratio": {"value": 2.5, "low": 2.4, "high": 2.6},
        "bytes": 3 * 2**20, "load_s": 0.25, "peak_rss": 2**27,
    },
}  # fmt: skip
UNTIMED: dict[str, Any] = {"accuracy": None, "agreement": None, "cosine": {}, "seen": 0, "speed": None, "runs": None}


def test_a_cell_is_read_along_its_path() -> None:
    cells = {column.head: column.cell(TIMED) for column in COLUMNS}
    assert cells["accuracy"] == "90.00%"
    assert cells["same decision"] == ""
    assert cells["worst cosine"] == "0.98765"
    assert cells["rows seen"] == "1,200"
    assert cells["speed-up"] == "2.50 ×"
    assert cells["size"] == "3.0 MiB"
    assert cells["products ran in"] == "37 int8, 12 float32 (2 fell back)"
    assert not any(column.cell(UNTIMED) for column in COLUMNS)
    assert Column("new", ("of", "another", "kind"), str).cell(TIMED) == ""


def test_a_column_that_nobody_fills_is_not_shown() -> None:
    assert filled([UNTIMED], "accuracy") == []
    heads = [column.head for column in filled([UNTIMED, TIMED], "f1")]
    assert "same decision" not in heads
    assert heads[0] == "f1", "the metric by its name"
