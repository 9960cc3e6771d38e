"""Tables of measurements in the documentation are made from benchmarks/results, and copied by nobody."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import harness_overhead
from benchmarks.render import PAGE, SECTIONS, rendered


def test_the_page_says_what_the_results_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in SECTIONS:
        assert f"<!-- measured: {name} -->" in page
    assert rendered(page) == page, "run: python -m benchmarks.render"


def test_a_number_that_was_changed_by_hand_is_set_right(tmp_path: Path) -> None:
    loop = {"bare_ns": 100_400.0, "clock_ns": 84.0}
    loop |= {name: {"value": 0.0031, "low": 0.001, "high": 0.004} for name in ("overhead", "outside")}
    document = {
        "created": "2026-11-25T22:00:00+0000",
        "environment": {"cpu": {"model": "Some CPU", "cores": 2}},
        "loop": loop,
        "comparison": {"command": "ml-opt bench a --against b", "seconds": 41.2, "parent_peak_bytes": 100 * 2**20},
    }
    (tmp_path / "harness_overhead.json").write_text(json.dumps(document))
    page = "before\n<!-- measured: harness_overhead -->\n+9.99%\n<!-- end: harness_overhead -->\nafter\n"
    made = rendered(page, tmp_path)
    assert made.startswith("before\n<!-- measured: harness_overhead -->\n\nSome CPU, 2 cores, 2026-11-25.")
    assert "+0.31% (+0.10% to +0.40%) | under 2%" in made
    assert "9.99" not in made
    assert made.endswith("<!-- end: harness_overhead -->\nafter\n")
    assert rendered(made, tmp_path) == made
    assert harness_overhead.broken(document) == []
    loop["outside"] = {"value": 0.02, "low": 0.01, "high": 0.03}
    assert harness_overhead.broken(document) == ["outside is 2.00%, and 2% is promised"]


def test_what_was_never_measured_says_how_it_is(tmp_path: Path) -> None:
    page = "<!-- measured: self_check -->\n<!-- end: self_check -->\n"
    assert "Not measured yet: `python -m benchmarks.self_check`." in rendered(page, tmp_path)
