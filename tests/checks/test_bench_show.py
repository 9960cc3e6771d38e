"""bench show: everything that bench wrote can be made again from the JSON alone."""

import json
from dataclasses import replace

import pytest
from benching.small import small_store
from golden.write import HERE

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
