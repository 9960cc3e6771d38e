import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.benching.agreement import Agreement
from optimizer.benching.formats.markdown import to_markdown
from optimizer.benching.position import Position
from optimizer.benching.report import SCHEMA, BenchReport, Caution, Cell, Doubt, Row
from optimizer.benching.roofline import Bandwidth, Peak, Roofline, Run
from optimizer.benching.stats import Ratio, speedup, summarize
from optimizer.environment import describe
from optimizer.errors import BadInput

SLOW = [[4_000_000] * 20] * 3
FAST = [[2_000_000] * 20] * 3


def cell(rounds, ratio):
    return Cell("2x16", 2, 0.5, [2_000_000], rounds, summarize(rounds), ratio)


def made(**changed):
    rows = (
        Row("base", "a.onnx", "cpu", "k", 10_000_000, 0.2, 50_000_000, {"threads": 2}, None, (cell(SLOW, None),)),
        Row(
            "fast|er",
            "b.onnx",
            "openvino:bf16",
            "",
            5_000_000,
            agreement=Agreement(60, 0.98, 0.99, 0.97),
            cells=(cell(FAST, speedup(SLOW, FAST)),),
        ),
        Row("dead", "c.onnx", "cpu", "", 1, error="its process was ended by SIGKILL", hint="less"),
    )
    values = {
        "created": "2026-01-01T00:00:00+00:00",
        "settings": {"shapes": ["2x16"], "threads": 2, "rounds": 3, "seconds": 1.0, "samples": 60, "seed": 0},
        "inputs": {"timed": "golden", "compared": "golden"},
        "environment": describe(),
        "baseline": "base",
        "rows": rows,
        "cautions": (Caution(Doubt.DIFFERENT, "fast|er", "worst cosine 0.9800"), Caution(Doubt.LOAD, detail="load 9")),
    }
    return BenchReport(**{**values, **changed})


def test_the_report_is_its_json():
    report = made()
    text = json.dumps(report.to_json(), allow_nan=False)
    assert BenchReport.from_json(json.loads(text)) == report
    data = json.loads(text)
    assert data["report"] == "bench"
    assert data["schema"] == SCHEMA
    assert data["rows"][1]["cells"][0]["rounds_ns"] == FAST
    assert data["rows"][1]["cells"][0]["rows_per_s"] == pytest.approx(1000)
    assert data["cautions"][0]["advice"].startswith("answers differ")


def under_roofs():
    at = Position(
        9_000_000, {"fp32": 1_000_000, "int8": 8_000_000}, 30, 20, 4.5, 90.0, 0.05, 4e5, 12.0, "compute", 0.05
    )
    base, fast, dead = made().rows
    base = replace(base, cells=(replace(base.cells[0], position=at),))
    roofs = Roofline(
        (Peak("cpu", "int8", 8, (Run(1, 400_000, [[1000]]),)),), (Bandwidth("cpu", (Run(64, 12_000, [[1000]]),)),), 1.5
    )
    return made(rows=(base, fast, dead), roofline=roofs)


def test_roofs_survive_json_and_are_shown():
    report = under_roofs()
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    text = to_markdown(report)
    assert "| `base` | 2 × 16 | 0.009 | 11% fp32 + 89% int8 | 2e-05 | 4.5 | 5% | compute |" in text
    assert "Measured here: int8 on cpu 400 GFLOP/s; copy of 64 MiB on cpu 12.0 GB/s." in text


def test_a_report_of_the_first_schema_is_still_read():
    """As ml-opt wrote it before there were roofs."""
    data = json.loads((Path(__file__).parents[1] / "golden" / "bench-1.json").read_text())
    assert data["schema"] == 1
    report = BenchReport.from_json(data)
    assert report.roofline is None
    assert [cell.position for row in report.rows for cell in row.cells] == [None, None]
    assert "% of GEMM peak" not in to_markdown(report)


def test_an_open_interval_survives_json():
    row = Row("a", "a", "cpu", "", 1, cells=(cell(FAST, Ratio(2.0, 0.0, math.inf)),))
    report = made(rows=(row,))
    text = json.dumps(report.to_json(), allow_nan=False)
    assert BenchReport.from_json(json.loads(text)) == report


def test_a_failed_row_fails_the_command():
    assert made().exit_code == 1
    assert made(rows=made().rows[:2]).exit_code == 0


def test_it_is_written_and_read_again(tmp_path):
    path = tmp_path / "deep" / "r.json"
    written = made().written(path)
    assert written.path == str(path)
    assert BenchReport.read(path) == written


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is not a bench report"),
        ({"report": "verify", "schema": 1}, "is not a bench report"),
        ({"report": "bench", "schema": 1}, "is not a bench report: KeyError"),
        ({"report": "bench", "schema": SCHEMA + 1}, f"schema {SCHEMA + 1}; this ml-opt reads up to {SCHEMA}"),
    ],
)
def test_what_is_no_report_is_refused(data, message):
    with pytest.raises(BadInput, match=message):
        BenchReport.from_json(data)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(BadInput, match=r"r\.json cannot be read"):
        BenchReport.read(tmp_path / "r.json")


def test_every_doubt_has_advice():
    assert all(doubt.advice for doubt in Doubt)


def test_markdown_shows_speed_agreement_failures_and_doubts():
    text = to_markdown(made())
    assert "| `base` | cpu | 10.0 | 0.20 | 500.0 | 50 | baseline |  |" in text
    assert "| `fast\\|er` | openvino:bf16 | 5.0 | 0.00 | 500.0 |  | 0.98000 / 0.99000 | 0.9700 |" in text
    assert "| `base` | 4 |" in text
    assert "| `fast\\|er` | 2 (2.00 ×, 2.00 to 2.00) |" in text
    assert "| `dead` | failed |" in text
    assert "- `dead`: its process was ended by SIGKILL (try: less)" in text
    assert "- **load**: something else kept the machine busy" in text
    assert "(fast|er, worst cosine 0.9800)" in text


def test_percentiles_without_enough_samples_stay_empty_in_markdown():
    text = to_markdown(made())
    (line,) = [line for line in text.splitlines() if line.startswith("| `base` | 2 × 16")]
    assert line == "| `base` | 2 × 16 | 60 | 4 | 4 | 4 |  |  | 500 |  |"
