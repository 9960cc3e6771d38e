"""What an ONNX file says about itself."""

import numpy as np
import onnx_ir
import pytest
from exporting import byo
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import BadInput
from optimizer.graph.facts import graph_facts, model_facts, tensor_specs


def facts(proto):
    return graph_facts(onnx_ir.from_proto(proto))


def test_everything_a_file_says(tmp_path):
    found = model_facts(byo.write(byo.linear(), tmp_path / "m.onnx"))
    assert found == {
        "opset": {"": 20},
        "ir_version": 10,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 3]}],
        "nodes": 2,
        "ops": {"Add": 1, "MatMul": 1},
        "weights": {"float32": 60},
        "attention": 0,
        "quantized": {"total": 0},
    }


def test_subgraphs_and_functions_are_counted():
    assert facts(byo.with_if())["ops"]["MatMul"] == 2
    found = facts(byo.with_function())
    assert found["ops"] == {"Constant": 1, "MatMul": 1, "own.Dense": 1}
    assert found["weights"] == {"float32": 48}


def test_other_dtypes_by_numpys_names():
    made = facts(byo.linear(dtype=np.float64, data_type=TensorProto.DOUBLE))
    assert (made["inputs"][0]["dtype"], made["weights"]) == ("float64", {"float64": 120})
    made = facts(byo.linear(dtype=np.float16, data_type=TensorProto.FLOAT16))
    assert (made["inputs"][0]["dtype"], made["weights"]) == ("float16", {"float16": 30})


def test_initializers_listed_as_inputs_are_no_inputs():
    proto = byo.linear(opset=8, ir=3)
    proto.graph.input.append(byo.value("w", TensorProto.FLOAT, [4, 3]))
    assert [i["name"] for i in facts(proto)["inputs"]] == ["x"]


def test_values_that_are_no_tensors_say_so():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.INT64, None)
    proto = byo.model([helper.make_node("SequenceLength", ["s"], ["n"])], [sequence], [byo.value("n", 7, [])])
    assert tensor_specs(onnx_ir.from_proto(proto).graph.inputs)[0].dtype == "sequence(int64)"


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "m.onnx").write_text("text")
    with pytest.raises(BadInput, match=r"m\.onnx"):
        model_facts(tmp_path / "m.onnx")


class Rows:
    """One calibration row."""

    def __init__(self):
        self.left = [{"x": np.ones((2, 64), np.float32)}]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("kind", ["qdq", "stored", "dynamic"])
def test_how_a_node_was_quantized(kind, tmp_path):
    from onnxruntime import quantization as q

    path, out = byo.write(byo.linear(width=64), tmp_path / "m.onnx"), tmp_path / "q.onnx"
    if kind == "qdq":
        q.quantize_static(str(path), str(out), Rows(), op_types_to_quantize=["MatMul"])
    elif kind == "dynamic":
        q.quantize_dynamic(str(path), str(out), op_types_to_quantize=["MatMul"])
    else:
        weight = [numpy_helper.from_array(np.ones((4, 3), np.int8), "q"), numpy_helper.from_array(np.float32(0.1), "s")]
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        ends = byo.value("x", TensorProto.FLOAT, ["batch", 4]), byo.value("y", TensorProto.FLOAT, ["batch", 3])
        byo.write(byo.model(nodes, ends[:1], ends[1:], weight), out)
    assert model_facts(path)["quantized"] == {"total": 0}
    assert model_facts(out)["quantized"] == {kind: 1, "total": 1}
