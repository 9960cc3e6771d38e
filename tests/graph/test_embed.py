"""Files written one tensor at a time are files like any other."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from exporting import byo
from onnx import TensorProto, helper, numpy_helper

from optimizer.graph import embed
from optimizer.graph.io import load, save


@pytest.mark.parametrize("smallest", [0, 4096, 10**9])
def test_every_reader_reads_the_same_model(smallest, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SMALL", smallest)
    path = byo.write(byo.linear(width=3000), tmp_path / "m.onnx")
    model = load(path)
    embed.save_embedded(model, tmp_path / "n.onnx")
    assert model.graph.initializers["w"].const_value is not None  # the model is as it was
    want, got = onnx.load(path), onnx.load(tmp_path / "n.onnx")
    onnx.checker.check_model(got, full_check=True)
    assert {i.name: i.raw_data for i in got.graph.initializer} == {i.name: i.raw_data for i in want.graph.initializer}
    assert got.graph.node == want.graph.node
    assert got.graph.input == want.graph.input
    feeds = {"x": np.ones((2, 3000), np.float32)}
    assert np.array_equal(byo.answers(path, feeds)[0], byo.answers(tmp_path / "n.onnx", feeds)[0])


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.bool_, np.int64, ml_dtypes.int4, np.float64]
)
def test_every_element_type(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SMALL", 0)
    array = (np.arange(15).reshape(3, 5) % 7).astype(dtype)
    value = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(array, name="w"))
    graph = onnx_ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23}, name="g")
    embed.save_embedded(onnx_ir.Model(graph, ir_version=10), tmp_path / "m.onnx")
    (found,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(found).astype(np.float32), array.astype(np.float32))


def test_weights_of_a_constant_in_another_file_are_brought_in(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=byo.weight("w", 4, 3))
    tensor = constant.attribute[0].t
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    proto = byo.model(
        [constant, helper.make_node("MatMul", ["x", "w"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 3])],
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    want = np.frombuffer((tmp_path / "w.bin").read_bytes(), np.float32).reshape(4, 3)
    model = load(tmp_path / "m.onnx")
    out = tmp_path / "out"
    out.mkdir()
    save(model, out)
    (tmp_path / "w.bin").unlink()
    assert np.allclose(byo.answers(out / "model.onnx", {"x": np.eye(4, dtype=np.float32)})[0], want)


@pytest.mark.parametrize(
    ("number", "bytes_"), [(0, b"\0"), (127, b"\x7f"), (300, b"\xac\x02"), (2**31, b"\x80\x80\x80\x80\x08")]
)
def test_varints(number, bytes_):
    assert embed._varint(number) == bytes_
