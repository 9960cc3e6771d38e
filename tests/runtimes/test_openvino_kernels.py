"""What a model compiled by OpenVINO computes in is read from what it executes, and not from the file."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from runtimes.graphs import FLOAT, node, opened, value, write

from optimizer.runtimes._openvino_kernels import kernels_of

NATIVE = "openvino-native"
RANDOM = np.random.default_rng(4)


def qdq(path: Path) -> Path:
    """One product between Q/DQ pairs, as static quantization leaves it."""
    weights = {
        "sx": np.float32(0.02),
        "zx": np.uint8(128),
        "w": RANDOM.integers(-127, 127, (64, 32)).astype(np.int8),
        "sw": np.full(32, 0.01, np.float32),
    }
    nodes = [
        node("QuantizeLinear", "x sx zx", ["q"]),
        node("DequantizeLinear", "q sx zx", ["d"]),
        node("DequantizeLinear", "w sw", ["dw"], axis=1),
        node("MatMul", "d dw", ["y"], name="product"),
    ]
    return write(path, nodes, inputs=[value("x", ["batch", 64])], weights=weights)


def test_products_are_counted_by_what_they_run_in(wide, tmp_path, capabilities):
    session = opened(wide, NATIVE)
    assert session.runs() == {"float32": 1, "fell_back": []}
    if "BF16" in capabilities:
        assert opened(wide, f"{NATIVE}:bf16").runs() == {"bfloat16": 1, "fell_back": []}
    quantized = opened(qdq(tmp_path / "q.onnx"), NATIVE)
    assert quantized.runs() == {"int8": 1, "fell_back": []}
    quantized.run({"x": RANDOM.standard_normal((3, 64)).astype(np.float32)})
    assert quantized.runs() == {"int8": 1, "fell_back": []}
    quantized.close()
    assert quantized.runs() is None


def test_int8_of_the_file_that_runs_in_float_is_named(tmp_path):
    """OpenVINO takes dynamic int8 apart, and multiplies in float."""
    nodes = [
        node("DynamicQuantizeLinear", "x", ["q", "s", "z"]),
        node("MatMulInteger", "q w z", ["i"], name="product"),
        node("Cast", "i", ["f"], to=FLOAT),
        node("Mul", "f s", ["y"]),
    ]
    weights = {"w": RANDOM.integers(-127, 127, (4, 3)).astype(np.int8)}
    session = opened(write(tmp_path / "m.onnx", nodes, weights=weights), NATIVE)
    assert session.runs() == {"float32": 1, "fell_back": ["product"]}


def test_a_product_goes_by_its_name_in_the_file(tmp_path):
    """A kernel that took in a bias is called as the bias."""
    said = {"layerType": "FullyConnected", "primitiveType": "brgemm_avx512_f32", "originalLayersNames": "product,bias"}
    info = {name: SimpleNamespace(value=word) for name, word in said.items()}
    kernel = SimpleNamespace(get_rt_info=lambda: info, get_friendly_name=lambda: "bias")
    executed = SimpleNamespace(get_ordered_ops=lambda: [kernel])
    assert kernels_of(executed, qdq(tmp_path / "q.onnx")) == {"float32": 1, "fell_back": ["product"]}


def test_attention_is_one_product(tmp_path):
    """Both products of attention and the softmax between them become one kernel, which has no product's name."""
    heads = {name: ["batch", "length", 4, 32] for name in "qkv"}
    nodes = [
        node("Transpose", "q", ["qt"], perm=[0, 2, 1, 3]),
        node("Transpose", "k", ["kt"], perm=[0, 2, 3, 1]),
        node("Transpose", "v", ["vt"], perm=[0, 2, 1, 3]),
        node("MatMul", "qt kt", ["scores"]),
        node("Softmax", "scores", ["shares"], axis=-1),
        node("MatMul", "shares vt", ["mixed"]),
        node("Transpose", "mixed", ["y"], perm=[0, 2, 1, 3]),
    ]
    path = write(tmp_path / "m.onnx", nodes, inputs=[value(name, shape) for name, shape in heads.items()])
    feeds = {name: RANDOM.standard_normal((2, 5, 4, 32)).astype(np.float32) for name in "qkv"}
    session = opened(path, NATIVE)
    assert np.allclose(session.run(feeds)["y"], opened(path).run(feeds)["y"], atol=1e-5)
    assert session.runs() == {"float32": 1, "fell_back": []}


def test_attention_that_is_one_node_of_the_file_is_one_product(tmp_path):
    """As fusions for ONNX Runtime leave it; OpenVINO takes it apart, and names the parts itself."""
    nodes = [node("MultiHeadAttention", "q k v", ["y"], domain="com.microsoft", num_heads=4)]
    inputs = [value(name, ["batch", "length", 128]) for name in "qkv"]
    path = write(tmp_path / "m.onnx", nodes, inputs=inputs)
    feeds = {name: RANDOM.standard_normal((2, 5, 128)).astype(np.float32) for name in "qkv"}
    session = opened(path, NATIVE)
    assert np.allclose(session.run(feeds)["y"], opened(path).run(feeds)["y"], atol=1e-5)
    assert session.runs() == {"float32": 1, "fell_back": []}
