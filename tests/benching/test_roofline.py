"""Roofs measured for real; how high they are is nobody's business here."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from optimizer.benching import position, roofline
from optimizer.benching.copying import copier, reader
from optimizer.benching.gemm import ARITHMETICS, copy_graph, gemm_feeds, gemm_graph
from optimizer.benching.measure import Plan
from optimizer.benching.position import _key
from optimizer.benching.roofline import (
    Bandwidth,
    Run,
    _gpu_copies,
    _working_sets,
    measure_bandwidths,
    measure_roofline,
)
from optimizer.benching.shape import Shape
from optimizer.environment import last_cache_bytes
from optimizer.runtime import Provider
from optimizer.stage import silent

CPU = Provider("cpu")
PLAN = Plan((Shape(1),), threads=1, timeout=60.0)


@pytest.fixture
def small(monkeypatch):
    """Smaller products and copies than a peak needs, as only their structure is looked at."""
    monkeypatch.setattr(roofline, "_GEMMS", {False: ((16, 32), 64)})
    monkeypatch.setattr(roofline, "_SETS", (1, 2))
    monkeypatch.setattr(roofline, "last_cache_bytes", lambda: 0)
    monkeypatch.setattr(roofline, "_SECONDS", 0.03)
    monkeypatch.setattr(roofline, "_WARM_S", 0.05)


def test_roofs_keep_their_samples(small, tmp_path):
    keys = [(CPU, "fp32"), (CPU, "int8"), (Provider("cpu", "none"), "fp32")]
    found = measure_roofline(keys, PLAN, tmp_path, silent)
    fp32, int8, broken = found.peaks
    for peak in (fp32, int8):
        assert peak.error == ""
        assert [(run.size, run.work) for run in peak.runs] == [(16, 2 * 16 * 64 * 64), (32, 2 * 32 * 64 * 64)]
        assert all(len(run.rounds_ns) == 3 and all(run.rounds_ns) for run in peak.runs)
        assert peak.gflops == max(run.rate for run in peak.runs) > 0
    assert broken.gflops is None
    assert "none" in broken.error
    (copies,) = found.bandwidths
    assert [run.size for run in copies.runs] == [1, 2, 8]
    assert copies.runs[0].work == 2**20
    assert all(run.rate > 0 for run in copies.runs)
    assert found.peak((CPU, "int8")) == int8.gflops
    assert len(found.sentences()) == 4


def test_what_only_reads_is_measured_beside_copies(small, tmp_path):
    (found,) = measure_bandwidths([CPU], PLAN, tmp_path, silent, reading=True)
    assert [run.size for run in found.reads] == [run.size for run in found.runs] == [1, 2, 8]
    assert [run.work for run in found.reads] == [run.size * 2**20 for run in found.reads]
    assert all(len(run.rounds_ns) == 3 and all(run.rounds_ns) and run.rate > 0 for run in found.reads)
    assert Bandwidth.from_json(found.to_json()) == found
    older = {name: each for name, each in found.to_json().items() if name != "reads"}
    assert Bandwidth.from_json(older) == replace(found, reads=())


def test_a_roof_for_what_reads_is_the_faster_of_both():
    copies = (Run(1, 4000, [[1000]]), Run(64, 1000, [[1000]]))
    reads = (Run(1, 3000, [[1000]]), Run(64, 2000, [[1000]]))
    found = Bandwidth("cpu", copies, reads=reads)
    assert [found.read_gb_per_s(size * 2**20) for size in (1, 63, 64)] == [4.0, 4.0, 2.0]
    assert [found.gb_per_s(size * 2**20) for size in (1, 64)] == [4.0, 1.0], "what writes too is held to copies"
    assert Bandwidth("cpu", copies).read_gb_per_s(2**26) == 1.0
    assert Bandwidth("cpu").read_gb_per_s(1) is None


def test_copies_on_a_gpu_are_measured_by_its_provider(small, tmp_path, monkeypatch):
    """The same code, on the processor's provider, as there may be no GPU here."""
    monkeypatch.setattr(roofline, "_GPU_SETS", (1, 2))
    found = _gpu_copies(CPU, PLAN, tmp_path, silent)
    assert found.error == ""
    assert [(run.size, run.work) for run in found.runs] == [(1, 2**20), (2, 2**21)]


@pytest.mark.parametrize("arithmetic", [each for each in ARITHMETICS if each != "bf16"])
def test_the_graph_multiplies(arithmetic, tmp_path):
    path = tmp_path / "m.onnx"
    gemm_graph(arithmetic, 64, path)
    feeds = gemm_feeds([arithmetic], 8, 64)
    answer = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    weight = np.random.default_rng(0).standard_normal((64, 64), np.float32) / 8
    x = np.random.default_rng(1).standard_normal((8, 64), np.float32)
    assert np.allclose(answer, x @ weight, atol=0.15)
    assert np.corrcoef(answer.ravel(), (x @ weight).ravel())[0, 1] > 0.999


def test_the_int8_graph_is_run_as_an_integer_product(tmp_path):
    """What would be multiplied in float, behind two DequantizeLinear, is no int8 peak."""
    gemm_graph("int8", 64, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    from optimizer.graph.facts import model_facts

    assert model_facts(tmp_path / "optimized.onnx")["ops"] == {"com.microsoft.MatMulIntegerToFloat": 1}


def test_bf16_is_a_bf16_product_between_casts(tmp_path):
    from optimizer.graph.cost import model_cost

    gemm_graph("bf16", 64, tmp_path / "m.onnx")
    assert model_cost(tmp_path / "m.onnx", [{"bf16": (8, 64)}]).arithmetic == {"bf16": 2 * 8 * 64 * 64}


def test_a_copy_graph_reads_and_writes_every_number(tmp_path):
    copy_graph(16, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    fed = np.arange(32, dtype=np.float32).reshape(2, 16)
    assert np.array_equal(session.run(None, {"copy": fed})[0], -fed)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_is_copied(threads, monkeypatch):
    made = []
    zeros = np.zeros
    monkeypatch.setattr(np, "zeros", lambda count: made.append(zeros(count)) or made[-1])
    copier(1, threads)()
    (target,) = made
    assert target.nbytes == 2**19
    assert (target == 1).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_is_read(threads, monkeypatch):
    seen = []
    monkeypatch.setattr(np, "max", lambda part: seen.append((part.__array_interface__["data"][0], part.nbytes)))
    reader(1, threads)()
    seen.sort()
    assert len(seen) == threads
    assert sum(size for _, size in seen) == 2**20
    assert [at + size for at, size in seen[:-1]] == [at for at, _ in seen[1:]], "one after another, none twice"


def test_working_sets_reach_beyond_the_last_cache(usual_roofs):
    assert _working_sets(32 * 2**20, 64 * 2**30) == [2, 16, 64, 256]
    assert _working_sets(105 * 2**20, 64 * 2**30)[-1] == 840
    assert _working_sets(105 * 2**20, 2 * 2**30)[-1] == 256  # an eighth of memory
    assert last_cache_bytes() >= 0


@pytest.mark.parametrize(
    ("provider", "written", "key"),
    [
        ("cpu", "fp32", ("cpu", "fp32")),
        ("cpu", "fp16", ("cpu", "fp32")),
        ("cpu", "int8", ("cpu", "int8")),
        ("openvino:bf16", "fp32", ("openvino:bf16", "bf16")),
        ("openvino:fp32", "bf16", ("openvino:fp32", "fp32")),
        ("openvino:bf16", "int8", ("openvino:bf16", "int8")),
        ("cuda", "fp16", ("cuda", "fp16")),
        ("torch:fp32", "int8", ("cpu", "fp32")),
        ("torch:bf16", "fp32", ("openvino:bf16", "bf16")),
    ],
)
def test_which_peak_stands_for_what(provider, written, key, monkeypatch):
    monkeypatch.setattr(position, "openvino_here", lambda: "openvino")
    found, arithmetic = _key(Provider.parse(provider), written)
    assert (str(found), arithmetic) == key
