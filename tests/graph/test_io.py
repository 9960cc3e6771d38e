"""Loading and saving; what an untrusted file may not do is in tests/exporting/test_onnx_file.py."""

import numpy as np
import onnx
import onnx_ir
import pytest
from exporting import byo

from optimizer.errors import BadInput
from optimizer.graph import io


def test_small_weights_are_embedded_and_large_ones_lie_beside(tmp_path, monkeypatch):
    model = io.load(byo.external(tmp_path))
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    want = byo.answers(tmp_path / "m.onnx", {"x": np.ones((2, 4), np.float32)})[0]
    assert io.save(model, small) == small / "model.onnx"
    assert [p.name for p in small.iterdir()] == ["model.onnx"]
    assert io.external_files(io.load(small / "model.onnx")) == []
    assert np.array_equal(byo.answers(small / "model.onnx", {"x": np.ones((2, 4), np.float32)})[0], want)
    monkeypatch.setattr(io, "EMBED_LIMIT", 40)
    path = byo.write(byo.linear(width=500), tmp_path / "big.onnx")
    want = byo.answers(path, {"x": np.ones((2, 500), np.float32)})[0]
    io.save(io.load(path), large)
    assert sorted(p.name for p in large.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert io.external_files(io.load(large / "model.onnx")) == ["model.onnx.data"]
    assert np.array_equal(byo.answers(large / "model.onnx", {"x": np.ones((2, 500), np.float32)})[0], want)


def test_tensors_of_subgraphs_functions_and_constants_are_seen():
    for proto, names in ((byo.with_if(), {"zero", "w_then", "w_else"}), (byo.with_function(), {"w"})):
        model = onnx_ir.from_proto(proto)
        assert {name for name, _ in io.tensors(model)} == names
    assert io.weight_bytes(onnx_ir.from_proto(byo.with_function())) == 48


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"no such file: .*gone\.onnx"):
        io.load(tmp_path / "gone.onnx")
    with pytest.raises(BadInput, match="is not an ONNX model"):
        io.load(tmp_path)


def test_what_is_saved_passes_onnx_own_checker(tmp_path):
    io.save(io.load(byo.write(byo.with_loop(), tmp_path / "m.onnx")), tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
