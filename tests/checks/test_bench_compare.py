"""bench compare, as it is typed: two files in, a verdict out, in every format."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from golden.write import HERE, pair

from optimizer.benching.report import BenchReport
from optimizer.benching.writing import formats
from optimizer.cli.main import run

BASE = str(HERE / "bench-3.json")


@pytest.fixture
def two(tmp_path):
    """The golden report and a later one with a slower candidate; one candidate died in both."""
    paths = [tmp_path / name for name in ("base.json", "head.json")]
    for path, report in zip(paths, pair(BenchReport.read(HERE / "bench-3.json")), strict=True):
        report.written(path)
    return [str(path) for path in paths]


@pytest.fixture
def alive(tmp_path):
    """Without the candidate that died: a report, a later one that only drifted, and one with a slower candidate."""
    report = BenchReport.read(HERE / "bench-3.json")
    report = replace(report, rows=report.rows[:-1])
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for path, each in zip(paths, (*pair(report, 1.0), pair(report)[1]), strict=True):
        each.written(path)
    return [str(path) for path in paths]


def test_every_format_is_written(two, tmp_path, capsys):
    flags = [word for suffix in formats() for word in ("--report", str(tmp_path / "deep" / f"out{suffix}"))]
    assert run(["bench", "compare", *two, "--fail-if-slower", "5%", *flags]) == 1
    out = capsys.readouterr().out
    assert "REGRESSION" in out
    assert "mini@1:fp32 itself took +10.0% at 1 × 16, which is taken out" in out
    made = {path.name: path.read_text() for path in (tmp_path / "deep").iterdir()}
    assert len(made) == len(formats())
    assert json.loads(made["out.json"])["verdict"] == "REGRESSION"
    lines = list(csv.DictReader(io.StringIO(made["out.csv"])))
    assert [line["outcome"] for line in lines if line["label"] == "mini@1:int8"] == ["REGRESSION"] * 2
    suite = ET.fromstring(made["out.xml"])[0]
    assert (int(suite.get("failures")), int(suite.get("errors"))) == (2, 1)
    assert made["out.md"].startswith("# Comparison: REGRESSION")
    assert {entry["unit"] for entry in json.loads(made["out.smaller.json"])} == {"% of before"}


def test_exit_codes_are_those_of_the_gates(alive, capsys):
    a, b, c = alive
    assert run(["bench", "compare", a, c]) == 0  # nothing is asked
    assert run(["bench", "compare", a, c, "--fail-if-slower", "5%"]) == 1
    assert run(["bench", "compare", a, b, "--fail-if-slower", "20%"]) == 0
    assert run(["bench", "compare", a, b, "--fail-if-slower", "0%"]) == 3


def test_json_and_github(alive, tmp_path, capsys, monkeypatch):
    a, _, c = alive
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert run(["bench", "compare", a, c, "--fail-if-slower", "5%", "--github", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["report"] == "bench-comparison"
    assert "::error title=REGRESSION%3A mini@1%3Aint8%2C slower at 1x16::" in err
    assert (tmp_path / "summary").read_text().startswith("# Comparison: REGRESSION")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([BASE], "takes two reports, and got 1"),
        ([BASE] * 3, "takes two reports, and got 3"),
        ([BASE, "none.json"], "none.json cannot be read"),
        ([BASE, BASE, "--fail-if-slower", "5"], "'5' is no number of %"),
        ([BASE, BASE, "--fail-if-slower", "-5%"], "no number of %"),
        ([BASE, BASE, "--fail-if-slower", "nan%"], "no number of %"),
        ([BASE, BASE, "--report", "x.pdf"], "unknown report format"),
    ],
)
def test_bad_input_is_named(words, says, capsys):
    assert run(["bench", "compare", *words]) == 2
    assert says in capsys.readouterr().err


def test_the_python_function_says_the_same(alive):
    import optimizer

    a, _, c = alive
    report = optimizer.bench_compare(a, c, fail_if_slower="5%")
    assert report.exit_code == 1
    assert {change.through for change in report.changes} == {"mini@1:fp32"}


def test_two_runs_are_compared_through_the_source_that_both_measured(tmp_path, minilm_store):
    import optimizer

    quick = {"duration": 0.05, "min_samples": 3, "rounds": 3, "shape": ["1x4"], "roofline": False}
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        optimizer.bench("minilm:fp32", store=minilm_store, report=[path], **quick)
    found = optimizer.bench_compare(*map(str, paths))
    assert (found.reference, [change.label for change in found.changes]) == ("source", ["minilm:fp32"])
    # Another model in the same place is no reference.
    document = json.loads(paths[0].read_text())
    for row in document["rows"]:
        row["key"] = "f" * 64 if row["label"] == "source" else ""
    paths[0].write_text(json.dumps(document))
    assert optimizer.bench_compare(*map(str, paths)).reference == ""
