"""bench from references to report, with real processes and a model small enough to wait for."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benching.small import add, small_store

from optimizer.benching.report import BenchReport, Doubt
from optimizer.check import get_check
from optimizer.checks.bench import Bench
from optimizer.cli.output import Output
from optimizer.cli.reports import render_bench
from optimizer.errors import BadInput, UnknownName
from optimizer.stage import silent
from optimizer.store import Store

__all__ = ["small_store"]

QUICK = {"duration": 0.08, "min_samples": 8, "rounds": 4, "threads": 1, "timeout": 30.0, "roofline": False}


def bench(store, *refs, **options):
    return get_check("bench").run(refs, Bench.from_mapping({**QUICK, **options}), store, silent)


@pytest.fixture
def fake(tmp_path):
    def make(name, **model):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(model))
        return f"fake:{path}"

    return make


def test_two_variants_are_measured_and_compared(small_store, tmp_path):
    out, table = tmp_path / "r.json", tmp_path / "r.md"
    report = bench(small_store, "small:fp32", "small:noisy", shape=("1x4", "3x8"), report=(out, table))
    assert report.exit_code == 0
    assert report.baseline == "small:fp32"
    assert report.inputs["timed"] == "golden"
    base, noisy = report.rows
    assert [cell.shape for cell in base.cells] == ["1x4", "3x8"]
    assert base.cells[0].speedup is None
    assert base.agreement is None
    assert noisy.cells[1].speedup is not None
    assert noisy.agreement is not None
    assert noisy.agreement.rows == 2
    assert 0.5 < noisy.agreement.cosine_worst < 0.9999
    assert base.bytes == small_store.get("small:fp32").model_file.stat().st_size
    assert base.facts["nodes"] == {"cpu": base.facts["nodes"]["cpu"]}
    assert base.peak_rss > 20_000_000
    assert base.load_s > 0
    assert BenchReport.read(out).rows == report.rows
    assert "small:noisy" in table.read_text()


def test_every_cell_is_under_this_machines_roofs(usual_roofs, small_store, tmp_path):
    out, table = tmp_path / "r.json", tmp_path / "r.md"
    report = bench(small_store, "small:fp32", shape=("1x4", "3x8"), roofline=True, report=(out, table))
    assert [(peak.provider, peak.arithmetic, peak.error) for peak in report.roofline.peaks] == [("cpu", "fp32", "")]
    small, large = (cell.position for cell in report.rows[0].cells)
    assert (small.flops, large.flops) == (2 * 4 * 8 * 8, 2 * 24 * 8 * 8)
    assert small.peak_share == pytest.approx(small.gflops / report.roofline.peaks[0].gflops)
    assert small.bound in ("compute", "memory")
    assert BenchReport.read(out).roofline == report.roofline
    assert BenchReport.read(out).rows == report.rows
    assert "| % of GEMM peak | bound by |" in table.read_text()
    assert "Measured here: fp32 on cpu" in table.read_text()


def test_what_has_no_graph_is_under_no_roof(tmp_path, fake):
    report = bench(Store(tmp_path / "empty"), fake("planted"), shape=("2x4",), roofline=True)
    assert report.exit_code == 0
    assert report.roofline.peaks == ()
    assert [cell.position for cell in report.rows[0].cells] == [None]


def test_a_report_is_kept_with_the_version(small_store):
    report = bench(small_store, "small:fp32", shape=("1x4",))
    path = Path(report.path)
    assert path.parent == small_store.reports_folder("small", 1)
    assert BenchReport.read(path) == report
    assert small_store.variants("small", 1) == ["fp32", "noisy"]


def test_planted_speed_error_and_death_are_all_found(tmp_path, fake):
    report = bench(
        Store(tmp_path / "empty"),
        fake("slow", latency_s=0.02, wait="sleep"),
        fake("fast", latency_s=0.01, wait="sleep"),
        fake("wrong", offset=0.7),
        fake("nan", nan=True),
        fake("wide", wrong_shape=True),
        fake("dead", die_after=20),
        shape=("2x4",),
    )
    slow, fast, wrong, nan, wide, dead = report.rows
    ratio = fast.cells[0].speedup
    assert ratio.value == pytest.approx(2.0, rel=0.25)
    assert ratio.low <= ratio.value <= ratio.high
    assert slow.cells[0].summary.p50_ms == pytest.approx(20, rel=0.2)
    assert fast.agreement.cosine_worst == pytest.approx(1.0)
    assert wrong.agreement.cosine_worst < 0.99
    assert [c.about for c in report.cautions if c.doubt is Doubt.DIFFERENT] == [wrong.label]
    assert "NaN" in nan.error
    assert "shape 2 × 5" in wide.error
    assert "SIGKILL" in dead.error
    assert not dead.cells
    assert report.exit_code == 1
    assert report.path == ""


def test_a_file_whose_dimensions_have_no_names_gets_the_same_inputs(small_store, tmp_path):
    import onnx

    model = onnx.load(small_store.get("small:fp32").model_file)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "s0"
        value.type.tensor_type.shape.dim[1].dim_param = "s1"
    path = tmp_path / "other.onnx"
    onnx.save(model, path)
    report = bench(small_store, str(path), "small:fp32", shape=("2x9",))
    assert report.exit_code == 0
    assert report.inputs["timed"] == "golden"
    assert report.rows[1].agreement.cosine_worst == pytest.approx(1.0)


def test_against_names_the_baseline(small_store, fake):
    report = bench(small_store, "small:fp32", shape=("1x4",), against="small:noisy")
    assert report.baseline == "small:noisy"
    assert [row.label for row in report.rows] == ["small:noisy", "small:fp32"]


def test_a_provider_that_cannot_load_is_a_row_that_says_so(small_store):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    report = bench(small_store, "small:fp32", shape=("1x4",), provider=("cpu", "cuda"))
    good, bad = report.rows
    assert good.cells
    assert "ml-opt[gpu]" in bad.hint
    assert report.exit_code == 1


def test_pytorch_is_the_baseline_where_the_source_is_there(tmp_path):
    """A real module as source: its own answers are what the ONNX file is compared with."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    source = tmp_path / "bert"
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(source)
    store = Store(tmp_path / "store")
    add(store, "fp32", source)
    report = bench(store, "small:fp32", shape=("1x4",), roofline=True)
    assert report.baseline == "source"
    assert [row.label for row in report.rows] == ["source", "small:fp32"]
    assert report.exit_code == 0, [row.error for row in report.rows]
    assert report.rows[0].facts["class"] == "BertModel"
    source, small = (row.cells[0].position for row in report.rows)
    assert source.flops == small.flops  # counted from the export, as PyTorch has no graph
    assert source.bytes is None
    assert report.rows[1].agreement.cosine_worst < 0.99  # they are not the same model


@pytest.mark.parametrize(
    ("refs", "options", "message"),
    [
        ((), {}, "nothing to measure"),
        (("small:fp32",), {"shape": ("1x999",)}, "longest sequence, 64"),
        (("small:fp32",), {"data": Path("no.jsonl")}, "no such file: no.jsonl"),
        (("small",), {}, "ambiguous"),
    ],
)
def test_bad_input_is_named(small_store, refs, options, message):
    with pytest.raises(BadInput, match=message):
        bench(small_store, *refs, **options)


def test_bad_options_are_named():
    with pytest.raises(BadInput, match="'8by16' is not a shape"):
        Bench(shape=("8by16",))
    with pytest.raises(UnknownName, match="report format"):
        Bench(report=(Path("r.pdf"),))


def test_ctrl_c_leaves_no_child_behind(tmp_path, fake):
    code = (
        "import sys\n"
        "from optimizer.checks.bench import CHECK, Bench\n"
        "from optimizer.store import Store\n"
        "def told(doing, done=None, total=None):\n"
        "    if doing.startswith('measuring'): print('measuring', flush=True)\n"
        "CHECK.run(tuple(sys.argv[1:]), Bench(duration=600.0, shape=('1x4',)), Store('none'), told)\n"
    )
    refs = [fake("a", latency_s=0.001), fake("b", latency_s=0.001)]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *refs], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "measuring\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    parent.send_signal(signal.SIGINT)
    parent.wait(timeout=30)
    parent.stdout.close()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, "a child is still there"
        time.sleep(0.05)


def test_rows_of_a_file_are_timed_with_their_own_lengths(minilm_store, sentences, tmp_path):
    """PyTorch in sorted batches is the baseline, and its batches in the order of the data stand beside it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(sentences.read_text().splitlines()[:40]))
    report = bench(
        minilm_store, "minilm:fp32", shapes_from=rows, batching="tokens:512", rounds=3, report=(tmp_path / "b.md",)
    )
    assert report.exit_code == 0, [row.error for row in report.rows]
    source, ours = report.rows
    assert [cell.batching for cell in (*source.cells, *source.beside)] == ["sorted:32", "order:32"]
    assert source.cells[0].workload["padding"] < source.beside[0].workload["padding"]
    assert (ours.cells[0].batching, ours.cells[0].batch, ours.beside) == ("tokens:512", 40, ())
    assert set(ours.cells[0].against) == {"sorted:32", "order:32"}
    assert ours.cells[0].against["sorted:32"] == ours.cells[0].speedup
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert "40 rows of rows.jsonl in order:32" in (tmp_path / "b.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batching": "all"}, "no way to batch rows"),
        ({"shapes_from": Path("r.jsonl"), "shape": ("1x8",)}, "contradict each other"),
    ],
)
def test_bad_batches_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        Bench(**options)


def test_throughput_counts_slow_calls_and_a_median_does_not(tmp_path, fake):
    """A tenth of the calls takes twenty times as long: the same median, and a third of the throughput."""
    refs = [fake("even", latency_s=0.002, wait="sleep"), fake("spiky", latency_s=0.002, wait="sleep", spikes=[0.1, 20])]
    asked = {"shape": ("4x4",), "min_samples": 240}
    closed = bench(Store(tmp_path), *refs, **asked)
    offline = bench(Store(tmp_path), *refs, **asked, scenario="offline", report=(tmp_path / "r.json",))
    assert (closed.scenario, offline.scenario) == ("single-stream", "offline")
    assert closed.rows[1].cells[0].speedup.value > 0.8
    assert offline.rows[1].cells[0].speedup.value < 0.6
    even = offline.rows[0].cells[0]
    assert even.throughput.low <= even.rows_per_s <= even.throughput.high
    assert even.rows_per_s < 4 / 0.002
    assert BenchReport.read(tmp_path / "r.json").rows == offline.rows


def test_arrivals_at_random_wait_for_each_other(tmp_path, fake):
    ref = fake("m", latency_s=0.005, wait="sleep")
    written = out, table, sheet = [tmp_path / f"r.{suffix}" for suffix in ("json", "md", "csv")]
    asked = {"scenario": "server", "qps": 100.0, "min_samples": 120}
    report = bench(Store(tmp_path), ref, shape=("2x4",), **asked, report=written)
    (cell,) = report.rows[0].cells
    assert (report.scenario, report.settings["qps"]) == ("server", 100.0)
    assert cell.summary.samples == cell.open_loop.queries == 120
    assert cell.summary.mean_ms > 5.5  # half of the time is taken, so that some queries wait
    assert cell.rows_per_s == 2 * cell.open_loop.achieved_qps
    assert cell.open_loop.load >= 0.5
    assert BenchReport.read(out).rows == report.rows
    assert f"| 100 | {cell.open_loop.scheduled_qps:.4g} |" in table.read_text()
    (line,) = csv.DictReader(sheet.read_text().splitlines())
    assert (line["qps"], float(line["achieved_qps"])) == ("100.0", cell.open_loop.achieved_qps)


def test_more_than_it_can_answer_is_invalid(tmp_path, fake, capsys):
    ref = fake("m", latency_s=0.01, wait="sleep")
    report = bench(Store(tmp_path), ref, shape=("1x4",), scenario="server", qps=300.0, report=(tmp_path / "r.md",))
    (cell,) = report.rows[0].cells
    assert not cell.valid
    assert cell.open_loop.reason.startswith("overloaded")
    assert Doubt.INVALID in {caution.doubt for caution in report.cautions}
    assert "| INVALID |" in (tmp_path / "r.md").read_text()
    render_bench(report, Output())
    shown = capsys.readouterr().out
    assert "INVALID, overloaded: 300 queries a second are" in shown
    assert "(open loop)" in shown


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"scenario": "server"}, "needs the rate of its queries, --qps N", "70 % of what one query after another"),
        ({"qps": 3.0}, "belong to --scenario server", "leave them out"),
        ({"scenario": "offline", "streams": 2}, "belong to --scenario server", "leave them out"),
        ({"scenario": "server", "qps": 3.0, "shapes_from": Path("r.jsonl")}, "not passes over", "use --shape"),
    ],
)
def test_scenarios_that_contradict_themselves_are_refused(options, message, hint):
    with pytest.raises(BadInput, match=message) as refused:
        Bench.from_mapping(options)
    assert hint in refused.value.hint
