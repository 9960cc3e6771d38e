"""int8 products take in the biases that are added behind them, and answer what they answered before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantizing.graphs import WIDTH, graph, node, value, weight

import optimizer
from optimizer.errors import BadInput
from optimizer.graph.fuse_int8 import fuse_int8_biases
from optimizer.graph.io import load, save
from optimizer.runtime import Candidate, Provider
from optimizer.store import Store

#: Of two dimensions ONNX Runtime makes a Gemm of product and addition, which it computes in float.
X, Y = (value(name, ["batch", "steps", WIDTH]) for name in "xy")
FUSED = "com.microsoft.MatMulIntegerToFloat"


@pytest.fixture(scope="module")
def static(minilm_store: Store, train_sentences: Path) -> Any:
    made = optimizer.quantize_static("minilm:fp32", calib=str(train_sentences), samples=24, store=minilm_store)
    return made.artifact


def test_every_product_of_minilm_takes_its_bias_in_and_no_answer_changes(static: Any, minilm_store: Store) -> None:
    made = optimizer.ort_optimize(static.ref, store=minilm_store).artifact
    facts = made.manifest.facts
    assert made.variant == f"{static.variant}-ort"
    assert facts["fused"] == {"int8_bias": 36}
    assert facts["ops"][FUSED] == 36
    assert facts["quantized"]["qlinear"] == 36
    assert facts["quantized"]["total"] == static.manifest.facts["quantized"]["total"]
    assert facts["ops"]["Add"] == static.manifest.facts["ops"]["Add"] - 36
    before, after = (Candidate(each.ref, each.model_file, Provider("cpu")).open(threads=1) for each in (static, made))
    random = np.random.default_rng(0)
    for rows, length in ((1, 7), (3, 21), (8, 40)):
        feeds = {spec.name: np.ones((rows, length), np.int64) for spec in before.inputs}
        feeds["input_ids"] = random.integers(1000, 20000, (rows, length))
        feeds["attention_mask"][:, length - 2 :] = 0
        wanted, got = before.run(feeds), after.run(feeds)
        assert all(np.array_equal(wanted[name], got[name]) for name in wanted)
    report = optimizer.verify(made.ref, store=minilm_store, threads=1)
    assert report.exit_code == 0, report.failures


def test_a_gpu_is_given_no_int8_graph(static: Any, minilm_store: Store) -> None:
    with pytest.raises(BadInput, match="is quantized, and for a GPU only float graphs are fused"):
        optimizer.ort_optimize(static.ref, target="cuda", store=minilm_store)


def qdq(
    *, zero: Any = np.uint8(128), columns: bool = True, flipped: bool = False, bias: int = WIDTH,
    read_twice: bool = False, requantized: bool = False, computed: bool = False, blocks: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """One product between DequantizeLinear nodes, and the addition behind it."""
    scales = np.linspace(0.001, 0.01, WIDTH).astype(np.float32) if columns else np.float32(0.004)
    integers = np.random.default_rng(1).integers(-120, 120, (WIDTH, WIDTH)).astype(np.int8)
    stored = [
        numpy_helper.from_array(integers, "wq"),
        numpy_helper.from_array(np.tile(scales, (2, 1)) if blocks else np.asarray(scales), "ws"),
        numpy_helper.from_array(np.zeros((2, WIDTH) if blocks else np.shape(scales), np.int8), "wz"),
        numpy_helper.from_array(np.asarray(0.03, np.float32), "s"),
        numpy_helper.from_array(np.asarray(zero), "z"),
        weight("b", bias),
    ]
    blocked = {"axis": 0, "block_size": WIDTH // 2} if blocks else {"axis": 1} if columns else {}
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd", **blocked),
        node("MatMul", "xd wd", "h", name="project"),
        *([node("Abs", "b", "b2")] if computed else []),
        node("Add", ("b h" if flipped else "h b2" if computed else "h b"), "sum"),
    ]
    if requantized:
        nodes += [node("QuantizeLinear", "sum s z", "sq"), node("DequantizeLinear", "sq s z", "y")]
    elif read_twice:
        nodes += [node("Mul", "sum h", "y")]
    else:
        nodes[-1].output[0] = "y"
    return graph(nodes, [X], [Y], stored, opset=21)


@pytest.mark.parametrize(
    ("how", "fused"),
    [
        ({}, 1),
        ({"columns": False}, 1),
        ({"flipped": True}, 1),
        ({"zero": np.int8(0)}, 0),  # ONNX Runtime makes unsigned ones of them first
        ({"bias": 1}, 0),
        ({"computed": True}, 0),
        ({"read_twice": True}, 0),
        ({"requantized": True}, 1),
        ({"blocks": True}, 0),
    ],
)
def test_what_is_fused_and_what_is_left(tmp_path: Path, how: dict[str, Any], fused: int) -> None:
    onnx.save(qdq(**how), str(tmp_path / "before.onnx"))
    model = load(tmp_path / "before.onnx")
    assert fuse_int8_biases(model) == fused
    after = save(model, tmp_path)
    ops = [node.op_type for node in onnx.load(after).graph.node]
    assert ops.count("MatMulIntegerToFloat") == fused
    assert ops.count("DequantizeLinear") == (0 if fused else 2) + how.get("requantized", False)
    if how.get("blocks"):
        return  # ONNX Runtime fails on it, before and after
    x = np.random.default_rng(2).standard_normal((2, 5, WIDTH)).astype(np.float32)
    wanted, got = (answers(path, x) for path in (tmp_path / "before.onnx", after))
    assert np.array_equal(wanted, got)


def answers(path: Path, x: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_an_answer_of_the_graph_itself_is_not_taken_away(tmp_path: Path) -> None:
    model = qdq()
    model.graph.output.append(value("h", ["batch", "steps", WIDTH], TensorProto.FLOAT))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert fuse_int8_biases(load(tmp_path / "m.onnx")) == 0


def test_products_in_branches_are_fused_too(tmp_path: Path) -> None:
    inner = qdq().graph
    del inner.input[:]
    other = helper.make_graph([node("Identity", "x", "same")], "else", [], [value("same", ["batch", "steps", WIDTH])])
    branch = helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=other)
    flag = value("flag", [], TensorProto.BOOL)
    onnx.save(graph([branch], [X, flag], [value("out", ["batch", "steps", WIDTH])], opset=21), str(tmp_path / "m.onnx"))
    model = load(tmp_path / "m.onnx")
    assert fuse_int8_biases(model) == 1
    assert onnxruntime.InferenceSession(save(model, tmp_path), providers=["CPUExecutionProvider"]) is not None
