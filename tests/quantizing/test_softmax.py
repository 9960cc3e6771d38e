"""Softmax in 8 bits: ONNX Runtime's kernel and the Q/DQ pair around it say the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.quantizing.softmax import exact_scale, exact_softmax


def rounded_softmax(scale: float, signed: bool) -> onnx.ModelProto:
    """``x`` through 8 bits, softmax, 8 bits, and a product that reads them twice."""
    dtype = np.int8 if signed else np.uint8
    arrays = {
        "x_scale": np.float32(0.05),
        "x_zero": dtype(0 if signed else 128),
        "y_scale": np.float32(scale),
        "y_zero": dtype(-128 if signed else 0),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        node("Softmax", ["xd"], ["s"], axis=-1),
        node("QuantizeLinear", ["s", "y_scale", "y_zero"], ["sq"]),
        node("DequantizeLinear", ["sq", "y_scale", "y_zero"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "n"]) for name in "xy"]
    graph = helper.make_graph(nodes, "softmax", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answers(model: onnx.ModelProto, x: NDArray[np.float32], *, fused: bool) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    (found,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    return np.asarray(found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("scale", [1 / 255, 1 / 251.6, 1 / 200.9])
def test_the_kernel_and_the_pair_round_to_the_same_levels(scale: float, signed: bool) -> None:
    x = np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32) * 2
    model = rounded_softmax(scale, signed)
    # What it is for: as it is, the kernel rounds some answers otherwise.
    assert (answers(model, x, fused=True) != answers(model, x, fused=False)).mean() > 0.005
    assert exact_softmax(model) == 1
    np.testing.assert_array_equal(answers(model, x, fused=True), answers(model, x, fused=False))
    assert exact_softmax(model) == 0


def test_the_scale_is_the_nearest_that_is_whole() -> None:
    for scale in (1 / 255, 1 / 100.4, 1 / 100.6, 0.9, 5.0):
        whole = 1 / exact_scale(scale)
        assert np.floor(np.float32(1) / np.float32(exact_scale(scale))) == round(whole)
        assert abs(round(whole) - max(1, 1 / scale)) <= 0.5


def test_a_scale_that_others_use_too_stays() -> None:
    model = rounded_softmax(1 / 255, signed=False)
    model.graph.node[0].input[1] = model.graph.node[1].input[1] = "y_scale"
    assert exact_softmax(model) == 0


def test_graphs_with_every_operator_in_8_bits_have_such_scales(tmp_path: Path) -> None:
    from serving import artifacts

    import optimizer
    from optimizer.store import Store

    store = Store(tmp_path / "models")
    artifacts.put(store, "classes")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{text}"}}\n' for text in ("a bad cab", "fed", "egg decade", "cab fade") * 8))
    made = optimizer.quantize_static("classes", calib=rows, op_types=("all",), store=store).artifact
    graph = onnx.load(str(made.path / "model.onnx")).graph
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    (rounding,) = (
        node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == softmax.output[0]
    )
    inverse = np.float32(1) / scales[rounding.input[1]]
    assert 0 < inverse - np.floor(inverse) < 0.01
