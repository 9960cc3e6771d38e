"""Every format of a report: what it says, that others can read it, and that a change of it is seen in review."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from golden.write import HERE, wanted

from optimizer.benching.formats.csv import COLUMNS, to_csv
from optimizer.benching.formats.junit import to_junit
from optimizer.benching.formats.markdown import to_markdown
from optimizer.benching.formats.smaller import to_smaller
from optimizer.benching.gates import Outcome
from optimizer.benching.report import BenchReport
from optimizer.benching.writing import format_of, formats, write_copies
from optimizer.errors import UnknownName

ODD = 'mini@1:<odd> & "slow" | %'


@pytest.fixture(scope="module")
def report():
    return BenchReport.read(HERE / "bench-3.json")


@pytest.mark.parametrize("path", wanted(), ids=lambda path: path.name)
def test_a_format_is_as_it_was(path):
    assert path.read_text(encoding="utf-8") == wanted()[path], "if this is meant, run: python tests/golden/write.py"


@pytest.mark.parametrize("name", ["bench-1.json", "bench-3.json"])
@pytest.mark.parametrize("suffix", [".json", ".csv", ".html", ".md", ".xml", ".smaller.json"])
def test_every_schema_is_written_in_every_format(name, suffix, tmp_path):
    read = BenchReport.read(HERE / name)
    out = tmp_path / "deep" / f"out{suffix}"
    write_copies(read, [out])
    for row in read.rows:
        if not row.error:
            assert row.label.split(":")[0] in out.read_text()


@pytest.mark.parametrize("suffix", [".csv", ".html", ".md", ".xml", ".smaller.json"])
def test_the_environment_is_in_all_of_them(report, suffix):
    text = formats()[suffix].bench(report)
    for fact in ("A Processor", "amx_int8", "performance", "A GPU", "570.1", "onnxruntime 1.32.0", "3.11.7"):
        assert fact in text, fact


def test_a_format_is_found_by_the_longest_suffix():
    assert format_of(Path("a.smaller.json")).name == ".smaller.json"
    assert format_of(Path("a.b.json")).name == ".json"
    assert format_of(Path("smaller.json")).name == ".json"
    for name in ("a.pdf", "report", ".json"):
        with pytest.raises(UnknownName, match="report format"):
            format_of(Path(name))


def test_json_knows_where_it_lies(report, tmp_path):
    write_copies(report, [tmp_path / "r.json"])
    assert BenchReport.read(tmp_path / "r.json") == replace(report, path=str(tmp_path / "r.json"))


def test_csv_holds_every_cell_in_full(report):
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [(line["candidate"], line["shape"]) for line in lines] == [
        (row.label, shape) for row in report.rows for shape in ("1x16", "8x128")
    ]
    for line, cell in zip(lines, [cell for row in report.rows for cell in row.cells], strict=False):
        assert float(line["p50_ms"]) == cell.summary.p50_ms
        assert float(line["rows_per_s"]) == cell.rows_per_s
        assert line["p99_ms"] == ""  # too few samples
        assert [float(line[n]) for n in ("speedup", "speedup_low", "speedup_high") if line[n]] == (
            [cell.speedup.value, cell.speedup.low, cell.speedup.high] if cell.speedup else []
        )
    int8 = lines[2]
    assert (int8["cosine_worst"], int8["top1"], int8["metric"], int8["drop_high"]) == (
        "0.97",
        "0.98",
        "accuracy",
        "0.014",
    )
    assert int8["noise_floor"] == "0.012"
    assert lines[3]["noise_floor"] == ""
    assert lines[-1]["error"].startswith("its process was ended")
    assert lines[-1]["p50_ms"] == ""


def test_csv_says_the_worst_outcome_of_a_line(report):
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [line["outcome"] for line in lines] == [
        *("", ""), *("INCONCLUSIVE", "INCONCLUSIVE"), *("REGRESSION", "REGRESSION"), *("", "")
    ]  # fmt: skip
    assert lines[5]["gates"] == "slower=INCONCLUSIVE; larger=REGRESSION"


def test_the_columns_of_csv_are_never_renamed():
    assert COLUMNS[:12] == (
        "created", "scenario", "baseline", "candidate", "provider", "key", "shape", "batch", "batching", "samples",
        "mean_ms", "p50_ms",
    )  # fmt: skip
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_junit_has_the_common_shape(report):
    root = ET.fromstring(to_junit(report))
    assert root.tag == "testsuites"
    (suite,) = root
    assert [child.tag for child in suite][:1] == ["properties"]
    cases = suite.findall("testcase")
    assert set(suite.attrib) >= {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
    for each in (root, suite):
        assert int(each.get("tests")) == len(cases)
        assert int(each.get("failures")) == len(suite.findall("testcase/failure"))
        assert int(each.get("errors")) == len(suite.findall("testcase/error"))
        assert int(each.get("skipped")) == len(suite.findall("testcase/skipped"))
    for case in cases:
        assert set(case.attrib) == {"name", "classname", "time"}
        assert len(case) <= 1
        assert float(case.get("time")) >= 0
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)


def test_junit_has_a_case_for_every_gate_and_candidate(report):
    suite = ET.fromstring(to_junit(report))[0]
    cases = {(case.get("classname"), case.get("name")): case for case in suite.findall("testcase")}
    assert len(cases) == len(report.rows) + len(report.gates)
    assert cases[ODD, "slower at 1x16"].find("failure").get("message").startswith("+16.0%")
    assert cases[ODD, "slower at 8x128"].find("skipped").get("message").startswith("INCONCLUSIVE: +2.9%")
    assert len(cases["mini@1:int8", "slower at 8x128"]) == 0
    assert cases["dead.onnx", "measured"].find("error").get("message") == "its process was ended by SIGKILL"
    assert len(cases["mini@1:fp32", "measured"]) == 0


def test_junit_survives_words_that_xml_forbids(report):
    dead = replace(report.rows[-1], error="ended by \x1b[31m\x00 and \ud800")
    text = to_junit(replace(report, rows=(dead,), gates=()))
    (case,) = ET.fromstring(text)[0].findall("testcase")
    assert case.find("error").get("message") == "ended by �[31m� and �"


def test_a_gate_that_says_measured_is_not_said_twice(report):
    gate = replace(report.gates[0], name="measured", about="dead.onnx", shape="", outcome=Outcome.REGRESSION)
    suite = ET.fromstring(to_junit(replace(report, gates=(gate,))))[0]
    assert len(suite.findall("testcase")) == len(report.rows)


def test_smaller_is_what_the_action_takes(report):
    entries = json.loads(to_smaller(report))
    assert all({"name", "unit", "value"} <= set(e) <= {"name", "unit", "value", "range", "extra"} for e in entries)
    assert all(isinstance(e["value"], (int, float)) for e in entries)
    assert len({e["name"] for e in entries}) == len(entries)
    by_name = {e["name"]: e for e in entries}
    assert by_name["mini@1:int8 at 1x16"]["value"] == report.rows[1].cells[0].summary.p50_ms
    assert by_name["mini@1:int8: size"] == {**by_name["mini@1:int8: size"], "value": 23.0, "unit": "MB"}
    assert not any("dead" in e["name"] for e in entries)


def test_markdown_begins_with_the_verdict_and_the_worst_gates(report):
    lines = to_markdown(report).splitlines()
    assert lines[0] == "# Benchmark: REGRESSION"
    outcomes = [line.split("**")[1] for line in lines if line.startswith("| **")]
    assert outcomes == ["REGRESSION"] * 2 + ["INCONCLUSIVE"] * 2 + ["PASS"] * 2
    assert "| `mini@1:int8` | 0.9150 | 600 | +0.0050 | -0.0040 to +0.0140 |" in lines
    assert "| 1 × 16 | `mini@1:fp32` | 1.002 × | 0.990 to 1.012 | 1.2% |" in lines
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("| `mini") and "slower" in line}
    assert widths <= {5}


def test_markdown_without_gates_has_no_verdict(report):
    assert to_markdown(replace(report, gates=())).splitlines()[0] == "# Benchmark"


@pytest.mark.parametrize("suffix", formats())
def test_a_noise_floor_that_is_not_known_is_no_number(report, suffix):
    floor = replace(report.floors[0], low=None, high=None, share=None)
    text = formats()[suffix].bench(replace(report, floors=(floor,)))
    assert "None" not in text
    if suffix == ".md":
        assert "| 1.002 × | not known | unknown |" in text


def test_every_column_is_documented():
    text = (HERE.parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in text] == []
