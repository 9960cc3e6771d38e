"""Cells of tables: what is known of a candidate, of a time and of a change, once for every format and the terminal."""

from dataclasses import replace

import pytest
from golden.write import HERE, pair

from optimizer.benching.cells import about, arrivals, at_shapes, changed, filled, place_of, times, worst_first
from optimizer.benching.comparing import compare_reports
from optimizer.benching.formats.html import to_html
from optimizer.benching.formats.markdown import to_markdown
from optimizer.benching.openloop import OpenLoop
from optimizer.benching.report import BenchReport
from optimizer.cli.output import Output
from optimizer.cli.reports import render_bench, render_comparison

LOOP = OpenLoop(100.0, 99.5, 50.25, 64, {"p50": 0.1, "p99": 9.0, "max": 20.0}, 40, load=0.7, reason="overloaded")


@pytest.fixture(scope="module")
def report():
    return BenchReport.read(HERE / "bench-3.json")


def test_what_is_not_known_is_empty(report):
    first, second, *_, dead = report.rows
    assert {head for head, text in about(first).items() if not text} == {
        "GPU MB", "worst cosine", "mean cosine", "top-1", "rows compared", "drop", "bounds of the drop",
    }  # fmt: skip
    assert about(second)["bounds of the drop"] == "-0.0040 to +0.0140"
    assert (about(second)["worst cosine"], about(second)["top-1"]) == ("0.97000", "98.00%")
    assert at_shapes(dead, report) == [None, None]
    assert times(first.cells[1])["p99"] == ""  # too few calls


def test_a_column_is_drawn_where_any_line_fills_it():
    assert filled([{"a": "", "b": "", "c": "1"}, {"b": "2", "c": "", "d": ""}]) == ["b", "c"]
    assert filled([]) == []


def test_gates_are_read_from_the_worst_on(report):
    outcomes = [gate.outcome.value for gate in worst_first(report.gates)]
    assert outcomes == ["REGRESSION"] * 2 + ["INCONCLUSIVE"] * 2 + ["PASS"] * 2


def test_every_table_says_the_same_of_an_open_loop(report, capsys):
    row = report.rows[1]
    cell = replace(row.cells[0], open_loop=LOOP)
    looped = replace(report, rows=(report.rows[0], replace(row, cells=(cell, *row.cells[1:]))))
    said = arrivals(LOOP)
    assert " ".join(said.values()) == "100 99.5 50.25 70% 40 0.100 9.000 20.000 INVALID: overloaded"
    assert f"| `{row.label}` | 1 × 16 | " + " | ".join(said.values()) + " |" in to_markdown(looped)
    assert ">INVALID: overloaded<" in to_html(looped)
    render_bench(looped, Output())
    out = capsys.readouterr().out
    assert f"{row.label} at {place_of(cell)}, p90 " in out
    assert ": asked 100/s, answered 50.25/s, load 70%, queue up to 40, lag p50 0.100, p99 9.000, max 20.000 ms" in out
    assert "; INVALID, overloaded" in out


def test_a_change_is_said_with_its_interval_and_outcome(report, capsys):
    found = compare_reports(*pair(report), tolerance=0.05)
    render_comparison(found, Output(quiet=True))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "mini@1:int8" in line]
    said = [changed(change, "{:.4g}".format) for change in found.changes if change.label == "mini@1:int8"]
    assert lines == [["mini@1:int8", *" ".join(cells.values()).split(), "REGRESSION"] for cells in said]
    assert said[0]["before ms"] == "1.993"
    assert changed(found.changes[0])["before ms"] == "1.99"
