"""bench show: everything that bench wrote can be made again from the JSON alone."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from benching.small import small_store
from golden.write import HERE, pair

from optimizer.benching.comparison import Comparison, read_report
from optimizer.benching.report import SCHEMA, BenchReport
from optimizer.benching.writing import formats
from optimizer.cli.main import run

__all__ = ["small_store"]

QUICK = ["--duration", "0.05", "--min-samples", "8", "--rounds", "3", "--threads", "1", "--shape", "1x4"]


def flags(folder):
    return [word for suffix in formats() for word in ("--report", str(folder / f"out{suffix}"))]


def test_every_format_is_made_again_to_the_byte(small_store, tmp_path, capsys, monkeypatch):
    first, again = tmp_path / "first", tmp_path / "again"
    store = ["--store", str(small_store.root)]
    first.mkdir()
    monkeypatch.chdir(first)
    assert run(["bench", "small:fp32", "small:noisy", *QUICK, *flags(first), *store]) == 0
    table = capsys.readouterr().out
    made = {path.name: path.read_bytes() for path in first.iterdir()}
    assert len(made) == len(formats())
    source = tmp_path / "elsewhere.json"
    source.write_bytes(made["out.json"])
    assert run(["bench", "show", str(source), *flags(first)]) == 0
    shown = capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in first.iterdir()} == made
    # The table too, but for the path of the report in its last line.
    assert shown.splitlines()[:-1] == table.splitlines()[:-1]
    assert run(["bench", "show", str(source), *flags(again)]) == 0
    assert {path.name: path.read_bytes() for path in again.iterdir() if path.name != "out.json"} == {
        name: text for name, text in made.items() if name != "out.json"
    }


@pytest.mark.parametrize("slower", ["5%", None])
def test_every_format_of_a_comparison_is_made_again_to_the_byte(slower, tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("base.json", "head.json")]
    for path, report in zip(paths, pair(BenchReport.read(HERE / "bench-3.json")), strict=True):
        report.written(Path(path))
    first, again = tmp_path / "first", tmp_path / "again"
    asked = ["--fail-if-slower", slower] if slower else []
    assert run(["bench", "compare", *paths, *asked, *flags(first)]) == 1
    table = capsys.readouterr()
    made = {path.name: path.read_bytes() for path in first.iterdir()}
    assert len(made) == len(formats())
    source = str(first / "out.json")
    assert run(["bench", "show", source, *flags(again)]) == 1
    assert capsys.readouterr() == table
    shown = {path.name: path.read_bytes() for path in again.iterdir()}
    assert shown.pop("out.json") == made.pop("out.json").replace(str(first).encode(), str(again).encode())
    assert shown == made
    assert run(["bench", "show", source, "--json"]) == 1
    assert Comparison.from_json(json.loads(capsys.readouterr().out)) == read_report(Path(source))


def test_a_comparison_that_names_only_what_failed_is_still_drawn(tmp_path, capsys):
    document = json.loads((HERE / "bench-comparison-1.json").read_text())
    del document["measured"]
    for side in ("base", "head"):
        del document[side]["baseline"], document[side]["inputs"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert run(["bench", "show", str(tmp_path / "old.json"), *flags(tmp_path)]) == 1
    cases = [case.get("classname") for case in ET.parse(tmp_path / "out.xml").iter("testcase")]
    assert cases[:3] == ["mini@1:int8", 'mini@1:<odd> & "slow" | %', "dead.onnx"]
    assert "inputs" not in (tmp_path / "out.html").read_text().partition("How the second was measured")[2]


def test_json_is_the_report(capsys):
    path = HERE / "bench-3.json"
    assert run(["bench", "show", str(path), "--json"]) == 1  # as the gates in it say
    assert BenchReport.from_json(json.loads(capsys.readouterr().out)) == BenchReport.read(path)


@pytest.mark.parametrize("name", ["bench-1.json", "bench-3.json"])
def test_every_schema_is_shown(name, capsys):
    report = BenchReport.read(HERE / name)
    assert run(["bench", "show", str(HERE / name)]) == report.exit_code
    out = capsys.readouterr().out
    assert all(row.label in out for row in report.rows)


def test_an_undecided_report_still_exits_with_three(tmp_path, capsys):
    report = BenchReport.read(HERE / "bench-3.json")
    kept = tuple(gate for gate in report.gates if gate.outcome.value != "REGRESSION")
    replace(report, gates=kept, rows=report.rows[:-1]).written(tmp_path / "r.json")
    assert run(["bench", "show", str(tmp_path / "r.json")]) == 3


def test_a_newer_schema_and_a_missing_file_are_refused(tmp_path, capsys):
    data = json.loads((HERE / "bench-3.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps({**data, "schema": SCHEMA + 1}))
    assert run(["bench", "show", str(tmp_path / "new.json")]) == 2
    assert f"schema {SCHEMA + 1}" in capsys.readouterr().err
    compared = json.loads((HERE / "bench-comparison-1.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps({**compared, "schema": 2}))
    assert run(["bench", "show", str(tmp_path / "new.json")]) == 2
    assert "schema 2; this ml-opt reads up to 1" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text(json.dumps({**compared, "gates": [{}]}))
    assert run(["bench", "show", str(tmp_path / "broken.json")]) == 2
    assert "broken.json is not a comparison" in capsys.readouterr().err
    assert run(["bench", "show", str(tmp_path / "none.json"), "--json"]) == 2
    assert "none.json cannot be read" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_github_gets_its_summary_and_annotations(tmp_path, monkeypatch, capsys):
    path = str(HERE / "bench-3.json")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    # Before anything is measured or written.
    early = ["--github", "--report", str(tmp_path / "r.md")]
    for words in (["show", path], ["compare", path, path], ["fake:none.json"]):
        assert run(["bench", *words, *early]) == 2
        assert "GITHUB_STEP_SUMMARY" in capsys.readouterr().err
    assert not (tmp_path / "r.md").exists()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run(["bench", "show", path, "--github"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("::")] == (
        ["::error"] * 2 + ["::warning"] * 2 + ["::error"]
    )
    assert (tmp_path / "summary.md").read_text().startswith("# Benchmark: REGRESSION")
    # Under --json stdout is one document, and the runner reads stderr as well.
    assert run(["bench", "show", path, "--github", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["report"] == "bench"
    assert err.count("::error") == 3
