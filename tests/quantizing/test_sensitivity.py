from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from optimizer.data.preprocess import Batch
from optimizer.errors import BadInput, UnknownName
from optimizer.quantizing.choose import choose_nodes
from optimizer.quantizing.rounding import rounded, weight_levels
from optimizer.quantizing.sensitivity import rank_file, read_ranking, worst
from optimizer.stage import silent

from .planted import WIDE, graph, outlier_model, outlier_rows


def ranked(model: onnx.ModelProto, folder: Path, op_types: tuple[str, ...], rows: np.ndarray) -> tuple:
    choice = choose_nodes(model, op_types)
    onnx.save(model, folder / "named.onnx")
    halves = [Batch((0,) * 32, {"x": part}) for part in np.split(rows, 2)]
    found = rank_file(
        folder / "named.onnx", choice.chosen, halves, len(rows), symmetric=False, per_channel=True, progress=silent
    )
    return choice, found


def test_the_planted_node_is_worst_and_its_activation_is_to_blame(tmp_path: Path) -> None:
    choice, found = ranked(outlier_model(), tmp_path, ("MatMul",), outlier_rows(64))
    assert [each.node for each in found] == ["first", "second"]
    assert found[0].noise > 100 * found[1].noise
    assert found[0].activation > 10 * found[0].weight
    assert [each.node for each in worst(found, 1, choice)] == ["first"]


def test_convolutions_and_gemms_are_ranked(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="gemm", transB=1),
        helper.make_node("Reshape", ["h", "shape"], ["image"], name="reshape"),
        helper.make_node("Conv", ["image", "kernel"], ["c"], name="conv"),
        helper.make_node("Flatten", ["c"], ["y"], name="flatten"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([-1, 2, 4, 4]), "shape")
    nodes.insert(0, helper.make_node("Constant", [], ["shape"], name="shape", value=shape))
    kernel = random.normal(size=(3, 2, 2, 2))
    model = graph(nodes, {"w": random.normal(size=(32, WIDE)), "b": random.normal(size=32), "kernel": kernel})
    _, found = ranked(model, tmp_path, ("Gemm", "Conv"), random.normal(size=(64, WIDE)).astype(np.float32))
    assert {each.node for each in found} == {"gemm", "conv"}
    # Uniform rounding of well-behaved numbers: some 1e-5 to 1e-3 of the power.
    assert all(1e-6 < each.noise < 1e-2 for each in found)
    assert {each.node: each.bytes for each in found} == {"gemm": 32 * WIDE * 4, "conv": 3 * 2 * 2 * 2 * 4}


def test_rounding_is_onnxruntimes() -> None:
    import onnxruntime
    from onnx import TensorProto

    rows = np.random.default_rng(5).normal(size=(4, 50)).astype(np.float32) * 3 + 1
    low, high = float(rows.min()), float(rows.max())
    for symmetric in (False, True):
        scale = max(-low, high) / 127 if symmetric else (high - low) / 255
        kind = TensorProto.INT8 if symmetric else TensorProto.UINT8
        zero = 0 if symmetric else round(-low / scale)
        made = helper.make_graph(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            ],
            "qdq",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 50])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 50])],
            [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]), helper.make_tensor("z", kind, [], [zero])],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        exact = session.run(None, {"x": rows})[0]
        np.testing.assert_allclose(rounded(rows, low, high, symmetric=symmetric), exact, atol=1e-5)


def test_every_channel_has_its_scale() -> None:
    weight = np.array([[1.0, 100.0], [0.5, -50.0]], np.float32)
    levels, scale = weight_levels(weight, -1)
    assert levels.tolist() == [[127, 127], [64, -64]]
    np.testing.assert_allclose(scale.ravel(), [1 / 127, 100 / 127])


def test_a_ranking_of_another_graph_and_too_many_are_refused(tmp_path: Path) -> None:
    choice, found = ranked(outlier_model(), tmp_path, ("MatMul",), outlier_rows(64))
    with pytest.raises(BadInput, match="leaves nothing to quantize"):
        worst(found, 2, choice)
    with pytest.raises(BadInput, match="more nodes than are ranked: 0"):
        worst([], 1, choice)
    other = {"report": "sensitivity", "nodes": [{**vars(found[0]), "node": "frist"}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(UnknownName, match="'frist'; did you mean first"):
        worst(read_ranking(tmp_path / "other.json"), 1, choice)
    for text in ("{", '{"report": "bench"}', '{"report": "sensitivity", "nodes": [{"node": "a"}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadInput, match="no ranking"):
            read_ranking(tmp_path / "bad.json")
    with pytest.raises(BadInput, match="no ranking"):
        read_ranking(tmp_path / "none.json")


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    rows = outlier_rows(64)
    rows[3, 3] = np.nan
    with pytest.raises(BadInput, match="'x' is not finite"):
        ranked(outlier_model(), tmp_path, ("MatMul",), rows)
