from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.errors import BadInput, GateFailed
from optimizer.quantizing.folds import Way
from optimizer.quantizing.smooth import find_sites, scales_of, smooth

from .planted import WIDE, answers, graph, outlier_model, outlier_rows

RANDOM = np.random.default_rng(3)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RANDOM.normal(size=shape) / 8 for name, shape in shapes.items()}


def smoothed(model: onnx.ModelProto, alpha: float = 0.6) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The model with scales of very unequal channels, and how they were brought in."""
    changed = copy.deepcopy(model)
    sites = find_sites(changed, [node.name for node in model.graph.node])
    peaks = {site.value: np.geomspace(0.01, 100, site.channels) for site in sites}
    return changed, smooth(changed, sites, scales_of(changed, sites, peaks, alpha))


def assert_same(model: onnx.ModelProto, changed: onnx.ModelProto) -> None:
    onnx.checker.check_model(changed)
    rows = RANDOM.normal(size=(8, WIDE)).astype(np.float32)
    exact = answers(model.SerializeToString(), rows)
    np.testing.assert_allclose(answers(changed.SerializeToString(), rows), exact, atol=1e-4 * max(1, abs(exact).max()))
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    assert any(not np.array_equal(array, after[name]) for name, array in before.items()), "nothing was changed"


def norm_chain(*, residual: bool) -> onnx.ModelProto:
    last = ("Add", ["p", "n"]) if residual else ("Relu", ["p"])
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "q"], ["a"], name="query"),
        helper.make_node("Gemm", ["n", "k", "c"], ["d"], name="key", transB=1),
        helper.make_node("Add", ["a", "d"], ["p"], name="sum"),
        helper.make_node(*last, ["y"], name="last"),
    ]
    return graph(nodes, weights(g=(WIDE,), b=(WIDE,), q=(WIDE, WIDE), k=(WIDE, WIDE), c=(WIDE,)))


def test_a_norm_takes_the_scale_of_all_its_readers_together() -> None:
    model = norm_chain(residual=False)
    (site,) = find_sites(model, ["query", "key"])
    assert (site.nodes, site.way) == (("query", "key"), Way.NORM)
    changed, counts = smoothed(model)
    assert counts == {"norm": 1}
    assert len(changed.graph.node) == len(model.graph.node)
    assert_same(model, changed)


def test_what_a_residual_reads_too_is_not_folded() -> None:
    model = norm_chain(residual=True)
    changed, counts = smoothed(model)
    assert counts == {"insert": 1}
    assert [node.op_type for node in changed.graph.node].count("Mul") == 1
    assert_same(model, changed)


@pytest.mark.parametrize("middle", ["", "Relu"])
def test_a_linear_before_is_folded_into_and_through_no_nonlinearity(middle: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("Add", ["c", "h"], ["s"], name="bias"),
        *([helper.make_node(middle, ["s"], ["r"], name="middle")] if middle else []),
        helper.make_node("MatMul", ["r" if middle else "s", "w2"], ["y"], name="two"),
    ]
    model = graph(nodes, weights(w1=(WIDE, WIDE), c=(WIDE,), w2=(WIDE, 8)))
    changed, counts = smoothed(model)
    assert counts == ({"insert": 2} if middle else {"insert": 1, "linear": 1})
    assert_same(model, changed)


def test_a_tied_weight_is_scaled_for_each_reader_by_itself() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="two"),
    ]
    model = graph(nodes, weights(w=(WIDE, WIDE)))
    assert_same(model, smoothed(model)[0])


def test_scales_are_the_papers() -> None:
    model = outlier_model()
    sites = find_sites(model, ["first"])
    seen = abs(outlier_rows(64)).max(0)
    seen[7] = 0
    rows = abs(numpy_helper.to_array(model.graph.initializer[0])).max(1)
    scale = scales_of(model, sites, {"x": seen}, 0.25)["x"]
    assert scale[7] == 1, "a channel that was never seen keeps its size"
    known = np.arange(WIDE) != 7
    np.testing.assert_allclose(scale[known], seen[known] ** 0.25 / rows[known] ** 0.75, rtol=1e-5)


def test_nothing_to_smooth() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], {})
    with pytest.raises(BadInput, match="nothing to smooth"):
        find_sites(model, ["relu"])


def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    from optimizer.data.preprocess import Batch
    from optimizer.quantizing.alpha import check_exact

    model = outlier_model()
    onnx.save(model, tmp_path / "before.onnx")
    onnx.save(smoothed(model)[0], tmp_path / "after.onnx")
    batch = [Batch((0, 1), {"x": outlier_rows(2)})]
    assert check_exact(tmp_path / "before.onnx", tmp_path / "after.onnx", batch) < 1e-5
    wrong = numpy_helper.to_array(model.graph.initializer[1]) * np.float32(1.001)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(wrong, "w2"))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(GateFailed, match="smoothing changed 'y'"):
        check_exact(tmp_path / "before.onnx", tmp_path / "wrong.onnx", batch)
