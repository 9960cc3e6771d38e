"""bench history: series from the reports of every version, one a candidate, shape and machine."""

import json
from dataclasses import replace

import numpy as np
import pytest
from benching.small import small_store
from golden.write import HERE

from optimizer.benching.history import history, sparkline
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.stats import summarize
from optimizer.cli.main import run
from optimizer.errors import BadInput, UnknownName

__all__ = ["small_store"]


@pytest.fixture
def keep(small_store):
    """Put a report of one candidate and time beside the version, as ``bench`` would."""
    golden = BenchReport.read(HERE / "bench-3.json")
    folder = small_store.reports_folder("small", 1)

    def put(number, ms, *, label="small:fp32", shape="1x16", cpu="A Processor", invalid=False, **settings):
        rounds = [[int(ms * 1e6)] * 8] * 4
        cell = Cell(shape, 1, 0.1, [1], rounds, summarize(rounds))
        environment = {**golden.environment, "cpu": {**golden.environment["cpu"], "model": cpu}}
        report = replace(golden, rows=(Row(label, "m.onnx", "cpu", "k", 1, cells=(cell,)),), environment=environment,
                         created=f"2026-01-{number:02}T00:00:00+00:00", baseline=label, gates=(), roofline=None,
                         settings={**golden.settings, **settings})  # fmt: skip
        report.written(folder / f"bench-202601{number:02}T000000{len(list(folder.glob('*'))):06}Z.json")

    return put


def test_a_series_has_every_run_in_its_order(small_store, keep):
    for number, ms in ((3, 4.0), (1, 2.0), (2, 5.0)):
        keep(number, ms)
    (series,) = history("small", small_store).series
    assert [run.ms for run in series.runs] == [2.0, 5.0, 4.0]
    assert series.last_ms == 4.0
    assert series.change == pytest.approx(-0.2)
    assert series.shift is None
    assert {run.version for run in series.runs} == {1}


def test_machines_threads_shapes_candidates_and_scenarios_are_not_mixed(small_store, keep):
    keep(1, 1.0)
    keep(2, 2.0, cpu="Another")
    keep(3, 3.0, threads=7)
    keep(4, 4.0, shape="8x16")
    keep(5, 5.0, label="small:noisy")
    keep(6, 6.0, scenario="offline")
    keep(7, 7.0, scenario="server", qps=3.0)
    assert sorted(len(each.runs) for each in history("small", small_store).series) == [1] * 7


def planted(keep, factor, count=12, **changed):
    times = np.exp(np.random.default_rng(5).normal(0, 0.01, count))
    times[count // 2 :] *= factor
    for number, ms in enumerate(times, 1):
        keep(number, float(ms), **changed)


def test_a_planted_shift_is_noted(small_store, keep, capsys):
    planted(keep, 1.3)
    (series,) = history("small", small_store).series
    assert series.shift.at == 6
    assert series.note.endswith("slower since 2026-01-07 00:00 (version 1)")
    assert float(series.note.split("%")[0]) == pytest.approx(30, abs=2)
    assert run(["bench", "history", "small", "--store", str(small_store.root)]) == 0
    out = capsys.readouterr().out
    assert "slower since" in out
    assert "A Processor, 2 cores, A GPU, 2 threads" in out


def test_noise_is_not_noted(small_store, keep):
    planted(keep, 1.0)
    (series,) = history("small", small_store).series
    assert (series.shift, series.note) == (None, "")


def test_a_machine_that_was_exchanged_is_no_shift(small_store, keep):
    """Half of the runs on one machine, and slower ones on another: two series, in which nothing happened."""
    for number in range(1, 13):
        keep(number, 1.0 + number / 1000 if number % 2 else 1.0 - number / 1000, cpu="Old" if number <= 6 else "New")
    assert [each.shift for each in history("small", small_store).series] == [None, None]


def test_the_alarm_is_shared_by_what_is_long_enough(small_store, keep):
    """Eight runs are just enough for one series: beside another one of two they still are, of eight they are not."""

    def shifts():
        return {each.shape: each.shift for each in history("small", small_store).series}

    for number in range(1, 9):
        keep(number, float(1 if number <= 4 else 2))
    assert shifts()["1x16"] is not None
    for number in (1, 2):
        keep(number, 1.0, shape="8x16")
    assert shifts()["1x16"] is not None
    for number in range(3, 9):
        keep(number, 1.0, shape="8x16")
    assert shifts() == {"1x16": None, "8x16": None}


def test_a_variant_and_a_version_choose(small_store, keep):
    keep(1, 1.0)
    keep(2, 1.0, label="small@1:noisy+openvino:bf16")
    assert [each.label for each in history("small:noisy", small_store).series] == ["small@1:noisy+openvino:bf16"]
    assert len(history("small@1", small_store).series) == 2
    with pytest.raises(UnknownName, match="version of small"):
        history("small@2", small_store)
    with pytest.raises(UnknownName):
        history("large", small_store)


def test_nothing_kept_is_said(small_store):
    with pytest.raises(BadInput, match="no report of small is kept") as refused:
        history("small", small_store)
    assert refused.value.hint == "measure it: ml-opt bench small"


def test_what_cannot_be_read_is_named_and_left_out(small_store, keep, capsys):
    keep(1, 1.0)
    folder = small_store.reports_folder("small", 1)
    (folder / "bench-20250101T000000000000Z.json").write_text("{")
    (folder / "bench-server-20260101T000000000000Z.json").write_text("{")  # of another check
    assert run(["bench", "history", "small", "--store", str(small_store.root)]) == 0
    err = capsys.readouterr().err
    assert err.count("left out") == 1
    assert "bench-20250101T000000000000Z.json cannot be read" in err


def test_what_bench_keeps_is_found(small_store, capsys):
    quick = ["--duration", "0.05", "--min-samples", "8", "--rounds", "3", "--threads", "1", "--shape", "1x4"]
    store = ["--store", str(small_store.root)]
    for _ in range(2):
        assert run(["bench", "small:fp32", *quick, "--no-roofline", *store]) == 0
    capsys.readouterr()
    assert run(["bench", "history", "small", "--json", *store]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == "bench-history"
    (series,) = document["series"]
    assert len(series["runs"]) == 2
    assert series["change"] == pytest.approx(series["runs"][1]["ms"] / series["runs"][0]["ms"] - 1)


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([1.0], "▅"),
        ([1.0, 1.005, 1.0], "▅▅▅"),
        ([1.0, 2.0, 3.0], "▁▅█"),
        ([1.0, 8.0] * 30, "▁█" * 12),
    ],
)
def test_sparklines(values, drawn):
    assert sparkline(values) == drawn
