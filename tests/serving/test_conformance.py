"""Judges that we did not write, a bounded number of questions each; `make conformance` asks them longer."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving.conftest import ROOT, Process


def test_schemathesis_finds_no_fault_in_what_the_document_promises(server: Process, tmp_path: Path) -> None:
    """Bodies made from /openapi.json, those that fit it and those that do not: none is 500, none is taken wrongly."""
    pytest.importorskip("schemathesis")
    config = ROOT / "benchmarks" / "serving" / "schemathesis.toml"
    words = [
        "--config-file", str(config), "run", f"{server.url}/openapi.json",
        # Loading and unloading are others' models here; that our schema is looser than the server is meant.
        "--exclude-path-regex", "repository/models", "--exclude-checks", "positive_data_acceptance",
        "--phases", "coverage,fuzzing", "-n", "2", "--max-time", "6", "--request-timeout", "30", "--seed", "1",
        "--warnings", "off", "--no-color",
    ]  # fmt: skip
    code = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 Internal Server Error" not in done.stdout


def test_metrics_are_as_prometheus_wants_them(server: Process) -> None:
    """What `promtool check metrics` complains of: no help, a counter without _total, units that are no base units."""
    from prometheus_client.parser import text_string_to_metric_families

    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    families = list(text_string_to_metric_families(text))
    assert len(families) >= 15
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert not family.name.endswith(("_milliseconds", "_ms", "_microseconds", "_kilobytes", "_percent")), (
            family.name
        )
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert f"{family.name}_total" in names or not names, family.name
        else:
            assert not family.name.endswith(("_total", "_count", "_sum")), family.name
        if family.type == "histogram" and names:
            assert {f"{family.name}_bucket", f"{family.name}_sum", f"{family.name}_count"} <= names
        for sample in family.samples:
            assert not {"job", "instance"} & set(sample.labels), sample


def test_whatever_comes_is_answered_and_never_with_500(server: Process) -> None:
    """The bodies of `make conformance`, fewer of them; `failing` is 500 by its own plan."""
    from benchmarks.serving.fuzz import fuzz_grpc, fuzz_http

    statuses = fuzz_http(server.address, 150, but=("failing", "slow"))
    assert {"200", "400"} <= set(statuses), statuses
    if "grpc" in server.ready:
        codes = fuzz_grpc(server.ready["grpc"], server.address, 100, but=("failing", "slow"))
        assert {"OK", "INVALID_ARGUMENT"} <= set(codes), codes


def _has(file: str, test: str, cut: bool = False) -> bool:
    """Whether a file of tests here has a test, or one whose name begins so."""
    path = ROOT / "tests" / "serving" / file
    return path.is_file() and bool(re.search(rf"^def {test}{'' if cut else '[(]'}", path.read_text("utf-8"), re.M))


def _page() -> str:
    return (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_every_case_that_the_tables_name_is_there() -> None:
    """Each of Triton's cases has a test of ours that exists, or words on why there is none."""
    text = _page().partition("## Triton's own protocol tests")[2]
    headings = re.findall(r"^### (\w+)$", text, re.M)
    assert headings == ["L0_http", "L0_input_validation", "L0_batcher", "L0_lifecycle"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    cases = [row for row in rows if row[0] not in ("Triton's", "---")]
    assert len(cases) > 55
    for row in cases:
        theirs, ours, words = row
        assert theirs
        if not ours:
            assert words, f"{theirs}: no test of ours, and no words on why"
            continue
        file, named = "", 0
        for where, test, cut in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+)(…?))?`", ours):
            file = where or file
            if not test:  # the same name as Triton's
                assert "same name" in ours, f"{theirs}: {where} names no test"
                (test,) = re.findall(r"`(test_\w+)`", theirs)
            assert _has(file, test, bool(cut)), f"{theirs}: there is no {file}::{test}"
            named += 1
        assert named == ours.count("`") / 2, f"{theirs}: {ours} is not read whole"


def test_every_judge_that_was_asked_is_in_the_table() -> None:
    """With what it is recorded to have said: passed, or not run."""
    judges = json.loads((ROOT / "benchmarks" / "results" / "judges.json").read_text(encoding="utf-8"))["judges"]
    table = _page().partition("## Judges")[2].partition("\n## ")[0]
    for name, found in judges.items():
        (line,) = [line for line in table.splitlines() if line.startswith(f"| `{name}")]
        result = line.strip("|").split("|")[-1].strip()
        assert result.startswith({"passed": "passed", "not installed": "not run"}[found["verdict"]]), name
