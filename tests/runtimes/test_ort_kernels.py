"""What ran is read from the loaded session, and not from the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantizing import graphs

import optimizer
from optimizer.artifact import Artifact
from optimizer.errors import MlOptError
from optimizer.graph.facts import model_facts
from optimizer.runtime import Candidate, Provider, SessionOptions, get_runtime
from optimizer.runtimes._ort_kernels import kernels_of, quantized_nodes
from optimizer.store import Store

TOKENS = {name: np.full((1, 9), value) for name, value in (("input_ids", 2000), ("attention_mask", 1))}


def ran(path: Path, feeds: dict[str, Any], provider: str = "cpu") -> dict[str, Any] | None:
    session = Candidate("x", path, Provider.parse(provider)).open(threads=1, watch=True)
    feeds = {spec.name: feeds.get(spec.name, np.zeros((1, 9), np.int64)) for spec in session.inputs}
    session.run(feeds)
    found = session.runs()
    session.run(feeds)
    assert session.runs() == found, "it goes on, and what was seen stays"
    session.close()
    return found


@pytest.fixture(scope="module")
def variants(minilm_store: Store, train_sentences: Path) -> dict[str, Artifact]:
    source = "minilm:fp32"
    return {
        "fp32": minilm_store.get(source),
        "dynamic": optimizer.quantize_dynamic(source, store=minilm_store).artifact,
        "static": optimizer.quantize_static(source, calib=train_sentences, samples=16, store=minilm_store).artifact,
        "int4": optimizer.quantize_weights(source, store=minilm_store).artifact,
        "int8": optimizer.quantize_weights(source, bits=8, store=minilm_store).artifact,
    }


@pytest.mark.parametrize(
    ("variant", "kernels"),
    [
        # 36 products and a head have weights; 12 products of attention have none.
        ("fp32", {"float32": 49}),
        ("dynamic", {"int8": 37, "float32": 12}),
        ("static", {"int8": 37, "float32": 12}),
        ("int4", {"int4-weights": 37, "float32": 12}),
        ("int8", {"int8-weights": 37, "float32": 12}),
    ],
)
def test_minilm_says_what_it_runs(variants: dict[str, Artifact], variant: str, kernels: dict[str, int]) -> None:
    artifact = variants[variant]
    assert ran(artifact.model_file, TOKENS) == {**kernels, "fell_back": []}
    quantized = artifact.manifest.facts["quantized"]
    assert quantized["total"] - quantized.get("stored", 0) == sum(kernels.values()) - kernels["float32"]


def test_nodes_that_were_left_out_are_seen_in_float(minilm_store: Store) -> None:
    made = optimizer.quantize_dynamic("minilm:fp32", exclude=("node_MatMul_1*",), store=minilm_store).artifact
    found = ran(made.model_file, TOKENS)
    assert found is not None
    assert found["int8"] == made.manifest.facts["quantized"]["dynamic"]
    assert found["int8"] + found["float32"] == 49
    assert found["fell_back"] == [], "they were never to run in int8"


def test_openvino_says_what_it_runs(variants: dict[str, Artifact], openvino_plugin: None) -> None:
    """Attention's products lie inside kernels of their own there, which its plugin does not tell from others."""
    assert ran(variants["fp32"].model_file, TOKENS, "openvino") == {"float32": 37, "fell_back": []}
    assert ran(variants["static"].model_file, TOKENS, "openvino") == {"int8": 37, "fell_back": []}
    dynamic = ran(variants["dynamic"].model_file, TOKENS, "openvino")
    assert dynamic is not None
    assert (dynamic["float32"], len(dynamic["fell_back"])) == (37, 37)


def test_openvino_by_its_own_package_says_what_it_runs(variants: dict[str, Artifact]) -> None:
    """The six attentions are a kernel each."""
    native = "openvino-native"
    assert ran(variants["fp32"].model_file, TOKENS, native) == {"float32": 43, "fell_back": []}
    assert ran(variants["static"].model_file, TOKENS, native) == {"float32": 6, "int8": 37, "fell_back": []}
    dynamic = ran(variants["dynamic"].model_file, TOKENS, native)
    assert dynamic is not None
    assert (dynamic["float32"], len(dynamic["fell_back"])) == (43, 37)


def qdq(folder: Path, activation: Any, weight: Any) -> Path:
    """A product between Q/DQ pairs of those types; None leaves the activation as it is."""
    nodes = [graphs.node("DequantizeLinear", "w ws wz", "dw"), graphs.node("MatMul", "d dw", "y", name="product")]
    if activation is None:
        nodes[1].input[0] = "x"
    else:
        nodes[:0] = [graphs.node("QuantizeLinear", "x s z", "q"), graphs.node("DequantizeLinear", "q s z", "d")]
    values = {"s": np.float32(0.1), "ws": np.float32(0.01), "z": (activation or np.uint8)(3), "wz": weight(3)}
    values["w"] = np.ones((64, 64), weight)
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    path = folder / f"{activation}-{weight.__name__}.onnx"
    onnx.save(graphs.graph(nodes, [graphs.X], [graphs.Y], constants, opset=21), str(path))
    return path


@pytest.mark.parametrize(
    ("activation", "weight", "got"),
    [
        (np.uint8, np.int8, {"int8": 1, "fell_back": []}),
        # No kernel multiplies weights of 16 bits, and what is then multiplied is float.
        (np.uint8, np.int16, {"float32": 1, "fell_back": ["product"]}),
        # Nor activations of 16 bits, but ONNX Runtime packs the weight into blocks and multiplies those.
        (np.uint16, np.int8, {"int8-weights": 1, "fell_back": []}),
        (None, np.int8, {"int8-weights": 1, "fell_back": []}),
    ],
)
def test_files_say_what_is_wanted_and_sessions_what_is_got(
    tmp_path: Path, activation: Any, weight: Any, got: dict[str, Any]
) -> None:
    path = qdq(tmp_path, activation, weight)
    how, wanted = ("stored", "int8-weights") if activation is None else ("qdq", "int8")
    assert model_facts(path)["quantized"] == {how: 1, "total": 1}
    assert quantized_nodes(path) == {"product": wanted}
    assert ran(path, {"x": graphs.rows(3, graphs.WIDTH)}) == got


def test_convolutions_and_recurrences_are_products_too(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "conv.onnx"
    onnx.save(graphs.convolution(), str(path))
    assert ran(path, {"x": graphs.rows(2, 3, 16, 16)}) == {"float32": 2, "fell_back": []}
    calib = graphs.npz(tmp_path, x=graphs.rows(16, 3, 16, 16))
    ref = graphs.put(store, tmp_path, graphs.convolution())
    made = optimizer.quantize_static(ref, calib=calib, store=store).artifact
    assert ran(made.model_file, {"x": graphs.rows(2, 3, 16, 16)}) == {"int8": 2, "fell_back": []}
    lstm = optimizer.quantize_dynamic(graphs.put(store, tmp_path, graphs.lstm(), "lstm"), store=store).artifact
    assert ran(lstm.model_file, {"x": graphs.rows(7, 2, 64)}) == {"int8": 1, "fell_back": []}


def test_half_precision_on_the_processor_is_float(minilm_store: Store) -> None:
    """ONNX Runtime's CPU provider casts it up; the file says float16."""
    cast = optimizer.cast("minilm:fp32", to="fp16", store=minilm_store).artifact
    found = ran(cast.model_file, TOKENS)
    assert found is not None
    assert set(found) == {"float32", "fell_back"}


def test_nobody_is_watched_unasked(variants: dict[str, Artifact], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    session = Candidate("x", variants["fp32"].model_file, Provider("cpu")).open(threads=1)
    session.run({spec.name: np.ones((1, 4), np.int64) for spec in session.inputs})
    assert session.runs() is None
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_a_watched_session_leaves_nothing_behind(
    variants: dict[str, Artifact], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ran(variants["fp32"].model_file, TOKENS)
    session = Candidate("x", variants["fp32"].model_file, Provider("cpu")).open(threads=1, watch=True)
    session.close()
    with pytest.raises(MlOptError):
        get_runtime(Provider("cpu")).open(tmp_path / "no.onnx", SessionOptions(watch=True), model={})
    assert list(tmp_path.iterdir()) == []


#: Kernels as OpenVINO's plugin writes them.
OPENVINO = [
    ("OV::node_MatMul_1", "FullyConnected", "brgemm_avx512_amx_I8", "EXECUTED"),
    ("OV::node_MatMul_2", "FullyConnectedQuantizedLegacy", "brgemm_avx512_i8", "EXECUTED"),
    ("OV::head/WithoutBiases", "FullyConnected", "gemm_mlas_f32", "EXECUTED"),
    ("OV::conv", "Convolution", "brgconv_avx512_1x1_f32", "EXECUTED"),
    ("OV::attention", "ScaledDotProductAttention", "ref_any_bf16", "EXECUTED"),
    ("OV::gone", "FullyConnected", "brgemm_avx512_f32", "NOT_RUN"),
    ("OV::table", "Gather", "ref_any_I8", "EXECUTED"),
    ("OV::Convert_7", "Convert", "ref_i64", "EXECUTED"),
]


def test_openvinos_words() -> None:
    events = [
        {"cat": "Kernel", "name": name, "args": {"ov_node_type": kind, "ov_exec_type": how, "ov_status": status}}
        for name, kind, how, status in OPENVINO
    ]
    node = {"cat": "Node", "name": "g_kernel_time", "args": {"op_name": "OpenVINOExecutionProvider_1_0"}}
    wanted = {"node_MatMul_1": "int8", "head": "int8", "table": "int8"}
    found = kernels_of([node, *events], "openvino", wanted)
    assert json.dumps(found) == json.dumps(
        {"bfloat16": 1, "float32": 2, "int8": 2, "fell_back": ["head/WithoutBiases"]}
    )


def test_a_provider_that_does_not_say_is_unknown() -> None:
    node = {"cat": "Node", "name": "g_kernel_time", "args": {"op_name": "TensorrtExecutionProvider_TRTKernel_0"}}
    assert kernels_of([node], "tensorrt", {"a": "int8"}) is None
    assert kernels_of([node], "openvino", {"a": "int8"}) is None
    assert kernels_of([], "cpu", {}) == {"fell_back": []}
