"""Times under planted roofs."""

import json
from dataclasses import replace

import pytest

from optimizer.benching import position
from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Lane
from optimizer.benching.position import Counted, Position, count, place
from optimizer.benching.report import Cell, Doubt, Row
from optimizer.benching.roofline import Bandwidth, Peak, Roofline, Run
from optimizer.benching.roofs import Roofs
from optimizer.benching.stats import summarize
from optimizer.graph.cost import Cost, Uncounted
from optimizer.runtime import Candidate, Provider

CPU = Provider("cpu")
#: 100 GFLOP/s in fp32 and 400 in int8; 50 GB/s up to 16 MiB and 10 GB/s beyond.
ROOFS = Roofline(
    (
        Peak("cpu", "fp32", 8, (Run(1, 300_000, [[4000, 4000], [2000]]), Run(2, 500_000, [[5000], [5000]]))),
        Peak("cpu", "int8", 8, (Run(1, 400_000, [[1000]]),)),
        Peak("cpu", "bf16", 8, error="no kernel"),
    ),
    (Bandwidth("cpu", (Run(16, 50_000, [[1000]]), Run(256, 10_000, [[1000]]))),),
)


def counted(cost, **keys):
    return Counted(cost, {name: (CPU, keys.get(name, name)) for name in cost.arithmetic}, True, CPU)


def test_a_peak_is_the_best_median_of_its_sizes():
    assert ROOFS.peak((CPU, "fp32")) == pytest.approx(100)
    assert ROOFS.peaks[0].runs[0].rate == pytest.approx(75)
    assert ROOFS.peak((CPU, "bf16")) is None
    assert ROOFS.peak((Provider("cuda"), "fp32")) is None


def test_bandwidth_is_that_of_the_memory_that_so_many_bytes_lie_in():
    assert ROOFS.bandwidth(CPU, 20 * 2**20) == 50
    assert ROOFS.bandwidth(CPU, 2**20) == 50
    assert ROOFS.bandwidth(CPU, 256 * 2**20) == 10
    assert ROOFS.bandwidth(Provider("cuda"), 1) is None


def test_a_product_below_the_peak():
    at = place(counted(Cost({"fp32": 10**9}, weight_bytes=10**7)), ROOFS, median_ms=20.0)
    assert at.gflops == pytest.approx(50)
    assert at.peak_share == pytest.approx(0.5)
    assert at.intensity == pytest.approx(100)
    assert at.bound == "compute"
    assert at.roof_share == pytest.approx(0.5)


def test_little_arithmetic_on_many_bytes_is_bound_by_memory():
    at = place(counted(Cost({"fp32": 10**6}, weight_bytes=10**9)), ROOFS, median_ms=200.0)
    assert at.bound == "memory"
    assert at.gb_per_s == 10
    assert at.roof_share == pytest.approx(0.5)  # 10⁹ bytes at 10 GB/s are 100 ms
    assert at.peak_share == pytest.approx(1e6 / 1e11 / 0.2)


def test_what_stays_in_caches_does_not_count_as_moved():
    whole = Cost({"fp32": 10**9}, weight_bytes=10**7, activation_bytes=10**12)
    at = place(counted(whole), ROOFS, median_ms=20.0)
    assert (at.bytes, at.least_bytes, at.bound) == (10**12 + 10**7, 10**7, "compute")


def test_two_arithmetics_take_the_time_of_both():
    at = place(counted(Cost({"fp32": 10**9, "int8": 4 * 10**9})), ROOFS, median_ms=40.0)
    assert at.peak_share == pytest.approx((0.01 + 0.01) / 0.04)
    assert at.peak_gflops == pytest.approx(5 / 0.02)


def test_arithmetic_is_named_as_it_is_computed():
    at = place(counted(Cost({"fp16": 10**9, "fp32": 10**9}), fp16="fp32"), ROOFS, median_ms=40.0)
    assert at.arithmetic == {"fp32": 2 * 10**9}
    assert at.peak_share == pytest.approx(0.5)


def test_without_a_peak_there_is_no_share():
    at = place(counted(Cost({"bf16": 10**9}, weight_bytes=1)), ROOFS, median_ms=1.0)
    assert at.gflops == pytest.approx(1000)
    assert (at.peak_share, at.bound) == (None, "")


def test_a_model_without_a_graph_has_no_bytes():
    at = place(replace(counted(Cost({"fp32": 10**9}, weight_bytes=5)), has_graph=False), ROOFS, median_ms=20.0)
    assert (at.bytes, at.least_bytes, at.bound) == (None, None, "")
    assert at.peak_share == pytest.approx(0.5)


def test_a_position_survives_json():
    unknown = (Uncounted("n", "own.Op", "operator unknown", True),)
    at = place(counted(Cost({"fp32": 10**9}, 3, 4, 5, unknown)), ROOFS, median_ms=20.0)
    assert at.is_lower_bound
    assert Position.from_json(json.loads(json.dumps(at.to_json()))) == at
    assert Roofline.from_json(json.loads(json.dumps(ROOFS.to_json()))) == ROOFS


@pytest.mark.parametrize("here", ["openvino", "openvino-native"])
def test_floats_on_openvino_are_computed_as_it_was_opened_whichever_way_it_comes(monkeypatch, tmp_path, here):
    """The fp32 products of a file in bf16, and int8 as int8; PyTorch's bf16 by the OpenVINO that works here."""
    monkeypatch.setattr(position, "openvino_here", lambda: here)
    monkeypatch.setattr(position, "model_cost", lambda path, shapes: Cost({"fp32": 10**9, "int8": 10**9}))

    def keys(provider, precision, device="cpu"):
        entrant = Entrant(Candidate("a", tmp_path / "a.onnx", provider))
        lane = Lane(entrant.candidate, opened={"facts": {"precision": precision, "device": device}})
        return count(entrant, lane, []).keys

    in_bf16 = Provider(here, "bf16")
    assert keys(Provider(here), "bf16") == {"fp32": (in_bf16, "bf16"), "int8": (in_bf16, "int8")}
    assert set(keys(Provider("torch"), "bf16").values()) == {(in_bf16, "bf16")}
    assert set(keys(Provider("torch"), "fp32").values()) == {(CPU, "fp32")}
    on_gpu = keys(Provider("torch", "cuda-fp16"), "fp16", device="cuda")
    assert set(on_gpu.values()) == {(Provider("cuda"), "fp16")}, "a GPU's roofs are not the processor's"


def row(label, ms):
    rounds = [[int(ms * 1e6)] * 3] * 3
    return Row(label, "m.onnx", "cpu", "", 1, cells=(Cell("1x4", 1, 0.1, [], rounds, summarize(rounds)),))


def test_what_is_doubtful_is_said():
    unknown = (Uncounted("n", "own.Op", "operator unknown", True), Uncounted("m", "NonZero", "shape unknown", False))
    made = {
        ("fast", "1x4"): counted(Cost({"fp32": 10**9})),
        ("odd", "1x4"): counted(Cost({"fp32": 10**9}, uncounted=unknown)),
    }
    roofs = Roofs(ROOFS, made, {"broken": "it cannot be read"})
    fast, odd, planted = roofs.over([row("fast", 5.0), row("odd", 20.0), row("planted", 1.0)])
    assert fast.cells[0].position.peak_share == pytest.approx(2.0)
    assert planted.cells[0].position is None
    said = [(c.doubt, c.about, c.detail) for c in roofs.cautions([fast, odd, planted])]
    assert said == [
        (Doubt.ABOVE_PEAK, "fast at 1x4", "200%"),
        (Doubt.UNCOUNTED, "odd", "own.Op (1)"),
        (Doubt.UNCOUNTED, "broken", "it cannot be read"),
        (Doubt.NO_PEAK, "bf16 on cpu", "no kernel"),
    ]
