"""Markers of a traced graph, rewritten to the form that runtimes take."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from optimizer.errors import GateFailed
from optimizer.quantizing.marked import Levels, Range, write_quantized, write_tables

GRAPH = """
<ir_version: 10, opset_import: ["" : 20, "ml_opt" : 1]>
g (float[2, 4] x) => (float[2, 3] y, float[2, 3] z)
<float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] b = {0.5, 0.25, -1}>
{
    one = ml_opt.RoundActivation<number = 0>(x)
    two = ml_opt.RoundActivation<number = 1>(x)
    v = ml_opt.RoundWeight<name = "w">(w)
    y = Gemm<transB = 1>(one, v, b)
    t = Transpose<perm = [1, 0]>(v)
    z = MatMul(two, t)
}
"""


def written(*, round_bias: bool, scale: float = 12 / 127) -> onnx_ir.Model:
    import onnx

    model = onnx_ir.from_proto(onnx.parser.parse_model(GRAPH))
    levels = np.round(np.arange(1, 13).reshape(3, 4) / (12 / 127)).astype(np.int8)
    weight = Levels(levels, np.full(3, scale, np.float32), 0)
    ranges = {0: Range(0.1, 3, signed=False), 1: Range(0.5, 0, signed=True).unsigned()}
    write_quantized(model, ranges, {"w": weight}, round_bias=round_bias)
    return model


def answers(model: onnx_ir.Model, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), options)
    return session.run(None, {"x": x})  # type: ignore[no-any-return]


@pytest.mark.parametrize("round_bias", [True, False])
def test_two_ranges_of_one_value_stay_two(round_bias: bool) -> None:
    """Exporters merge values that are equal: their markers then stand behind one."""
    x = np.array([[0.12, 1.3, -0.2, 4.4], [0.7, -0.3, 2.2, 30.0]], np.float32)
    w = np.round(np.arange(1, 13).reshape(3, 4) / (12 / 127)) * (12 / 127)
    one = (np.clip(np.round(x / np.float32(0.1)) + 3, 0, 255) - 3) * 0.1
    two = np.clip(np.round(x / np.float32(0.5)), -128, 127) * 0.5
    y, z = answers(written(round_bias=round_bias), x)
    assert np.allclose(y, one @ w.T + np.array([0.5, 0.25, -1]), atol=0.01)
    assert np.allclose(z, two @ w.T, atol=1e-3)


def test_a_bias_beyond_int32_stays_float() -> None:
    x = np.ones((2, 4), np.float32)
    y, _ = answers(written(round_bias=True, scale=1e-20), x)
    assert np.allclose(y, [0.5, 0.25, -1])


def test_what_is_left_of_markers_is_said() -> None:
    import onnx

    text = GRAPH.replace("two = ml_opt.RoundActivation<number = 1>(x)", "two = ml_opt.Other(x)")
    model = onnx_ir.from_proto(onnx.parser.parse_model(text))
    weight = Levels(np.ones((3, 4), np.int8), np.ones(3, np.float32), 0)
    with pytest.raises(GateFailed, match="1 places that training rounded were not rewritten"):
        write_quantized(model, {0: Range(0.1, 0, signed=True)}, {"w": weight}, round_bias=False)


TABLE = """
<ir_version: 10, opset_import: ["" : 20, "ml_opt" : 1]>
g (int64[2, 2] x) => (float[2, 2, 4] y)
<float[3, 4] w = {1, 2, 3, 4, 50, 60, 70, 80, 0.9, 0.1, 0.1, 0}>
{
    v = ml_opt.RoundWeight<name = "w">(w)
    rows = Gather<axis = 0>(v, x)
    y = Neg(rows)
}
"""


@pytest.mark.parametrize("unsigned", [True, False])
def test_rows_of_a_table_come_back_by_their_own_scales(unsigned: bool) -> None:
    import onnx

    model = onnx_ir.from_proto(onnx.parser.parse_model(TABLE))
    w = np.array([[1, 2, 3, 4], [50, 60, 70, 80], [0.9, 0.1, 0.1, 0]], np.float32)
    scale = np.abs(w).max(axis=1) / np.float32(127)
    levels = Levels(np.round(w / scale[:, None]).astype(np.int8), scale, 0)
    assert len(write_tables(model, {"w": levels.unsigned() if unsigned else levels})) == 1
    rows = np.array([[2, 0], [1, 1]])
    (y,) = answers(model, rows)
    assert np.array_equal(y, -(levels.levels * scale[:, None])[rows])
    # What is stored: levels of 8 bits, and a number a row.
    read = [value.const_value for value in model.graph.initializers.values() if value.uses()]
    assert {each.dtype.name for each in read if each.size > 3} == {"UINT8" if unsigned else "INT8"}


def test_a_table_that_something_else_reads_is_refused() -> None:
    import onnx

    model = onnx_ir.from_proto(onnx.parser.parse_model(TABLE.replace("Neg(rows)", "Neg(v)")))
    with pytest.raises(GateFailed, match=r"Neg\) reads the table w, and is no lookup"):
        write_tables(model, {"w": Levels(np.ones((3, 4), np.int8), np.ones(3, np.float32), 0)})
