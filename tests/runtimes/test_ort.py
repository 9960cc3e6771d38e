"""ONNX Runtime on graphs small enough to know the answer of."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from runtimes.graphs import FLOAT, WEIGHT, X, cdist, matmul, opened, opened_in_a_child, value, write

from optimizer.errors import BadInput, GateFailed, MissingPiece
from optimizer.runtime import Provider, get_runtime
from optimizer.runtimes import _ort_open, _ort_providers


@pytest.fixture
def model(tmp_path):
    return matmul(tmp_path / "model.onnx")


def test_it_answers_what_numpy_answers(model):
    session = opened(model)
    assert np.allclose(session.run({"x": X})["y"], X @ WEIGHT, atol=1e-6)
    assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [("x", "float32", ("batch", 4))]
    assert session.facts["provider"] == "cpu"
    assert session.facts["threads"] == 1
    assert session.facts["nodes"] == {"cpu": 1}
    assert session.facts["load_seconds"] > 0


def test_a_bound_call_answers_again_without_copies(model):
    session = opened(model)
    call = session.bind({"x": X})
    call()
    call()


@pytest.mark.parametrize(("provider", "fused"), [("cpu", False), ("cuda", True)])
def test_fusions_that_are_slower_on_a_processor_are_left_out(tmp_path, provider, fused):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["with_bias"]),
        helper.make_node("Gelu", ["with_bias"], ["wide"]),
        helper.make_node("Add", ["x", "wide"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "s", "b"], ["y"]),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "b": X[0], "s": X[1]}
    optimized, [x, y] = tmp_path / "optimized.onnx", [value(name, ["batch", 3, 4]) for name in "xy"]
    path = write(tmp_path / "m.onnx", nodes, inputs=[x], outputs=[y], weights=weights)
    settings = _ort_open.plain_options(onnxruntime, provider, 1)
    settings.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(optimized).graph.node}
    assert ({"SkipLayerNormalization", "BiasGelu"} <= operators) is fused
    assert ({"LayerNormalization", "Gelu", "Add"} <= operators) is not fused


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": X.astype(np.float64)}, "'x' takes float32, not float64"),
        ({"x": X[:, :3]}, "'x' has 3 in dimension 1"),
        ({"x": X, "z": X}, "unknown input: 'z'"),
    ],
)
@pytest.mark.parametrize("how", ["run", "bind"])
def test_feeds_that_do_not_fit_are_named(model, how, feeds, message):
    with pytest.raises(BadInput, match=message):
        getattr(opened(model), how)(feeds)


def test_limits_of_the_manifest_are_held(tmp_path):
    nodes = [helper.make_node("Gather", ["w", "ids"], ["y"])]
    ids = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])]
    path = write(tmp_path / "m.onnx", nodes, inputs=ids, weights={"w": WEIGHT})
    with pytest.raises(BadInput, match="'ids' holds 4; the model takes 0 to 3"):
        opened(path, limits={"ids": [0, 3]}).run({"ids": np.array([4])})
    with pytest.raises(BadInput, match="row 4 of a table that has rows -4 to 3"):
        opened(path).run({"ids": np.array([4])})


# ------------------------------------------------------------------------------------------------- files that are bad


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04"])
def test_what_is_no_onnx_file_is_named(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.onnx is not an ONNX model"):
        opened(path)


def test_a_file_cut_short_is_named(model):
    model.write_bytes(model.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"model\.onnx is not an ONNX model, or it is cut short"):
        opened(model)


def test_no_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"no such file: .*nothing\.onnx"):
        opened(tmp_path / "nothing.onnx")


def test_missing_and_short_external_weights_are_named(tmp_path):
    path = matmul(tmp_path / "m.onnx", external="m.data")
    (tmp_path / "m.data").write_bytes(b"1234")
    with pytest.raises(BadInput, match="weights file is cut short"):
        opened(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(BadInput, match=r"weights file is missing: .*m\.data"):
        opened(path)


def test_operators_that_nobody_has_are_named(tmp_path):
    path = write(tmp_path / "m.onnx", [helper.make_node("Frobnicate", ["x"], ["y"])])
    with pytest.raises(BadInput, match="operator Frobnicate"):
        opened(path)
    path = write(tmp_path / "m.onnx", [helper.make_node("Foo", ["x"], ["y"], domain="my.own")], domains=["my.own"])
    with pytest.raises(BadInput, match=r"operator my\.own:Foo"):
        opened(path)


def test_opsets_and_ir_versions_from_the_future_are_named(tmp_path):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(BadInput, match="opset 99"):
        opened(write(tmp_path / "m.onnx", relu, opset=99))
    with pytest.raises(BadInput, match="IR version 99"):
        opened(write(tmp_path / "m.onnx", relu, ir=99))


def test_a_type_without_a_kernel_is_named(tmp_path):
    bf16 = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=bf16),
        helper.make_node("Cast", ["w"], ["b"], to=bf16),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    path = write(tmp_path / "m.onnx", nodes, weights={"w": WEIGHT})
    with pytest.raises(BadInput, match="cpu has no kernel for MatMul"):
        opened(path)


def test_bfloat16_at_the_edge_is_refused_by_name(tmp_path):
    info = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2])
    out = helper.make_tensor_value_info("y", FLOAT, [2])
    path = write(tmp_path / "m.onnx", [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], inputs=[info], outputs=[out])
    with pytest.raises(BadInput, match="input 'x' is bfloat16"):
        opened(path)


def test_more_memory_than_there_is_is_said_so(tmp_path):
    shape = helper.make_tensor_value_info("s", TensorProto.INT64, [3])
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", 4])
    path = write(tmp_path / "m.onnx", [helper.make_node("Expand", ["x", "s"], ["y"])], inputs=[x, shape])
    with pytest.raises(MissingPiece, match="not enough memory"):
        opened(path).run({"x": X[:1], "s": np.array([10**8, 10**4, 4])})


# ------------------------------------------------------------------------------------------------------- asked and got


def test_nodes_that_another_provider_took_are_an_error(tmp_path, openvino_plugin):
    """ONNX Runtime would run what OpenVINO has not on the CPU without a word."""
    path = cdist(tmp_path / "m.onnx")
    assert opened(path).facts["nodes"] == {"cpu": 3}
    with pytest.raises(GateFailed, match=r"1 of 3 nodes would not run on openvino: CDist \(1\)"):
        opened(path, "openvino")


@pytest.mark.parametrize(
    ("vendor", "says", "hint"),
    [
        ("AuthenticAMD", r"passes over processors that are not Intel's \(AuthenticAMD\)", "ml-opt[openvino-native]"),
        ("", r"not Intel's \(aarch64\)", "use openvino-native"),
        ("GenuineIntel", "finds no device on this machine", "doctor"),
    ],
)
def test_a_plugin_without_a_device_says_what_runs_instead(monkeypatch, vendor, says, hint):
    monkeypatch.setattr(_ort_providers, "cpu_facts", lambda: {"vendor": vendor, "machine": "aarch64"})
    error = _ort_providers._no_device("openvino")
    assert re.search(says, error.message)
    assert hint in error.hint
    assert error.exit_code == 4


def test_a_provider_that_is_not_there_names_the_pip_line(model):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(MissingPiece) as caught:
        opened(model, "cuda")
    assert caught.value.exit_code == 4
    assert "ml-opt[gpu]" in caught.value.hint
    assert not get_runtime(Provider("cuda")).available("cuda").ok


def test_available_means_that_it_loads():
    assert get_runtime(Provider("cpu")).available("cpu").ok
    found = get_runtime(Provider("rtx")).available("rtx")
    assert found.ok or (found.reason and "pip install" in found.hint)


def test_the_log_stays_quiet(model):
    """Errors are raised, not printed: a child's stderr holds nothing of ONNX Runtime."""
    model.write_bytes(b"garbage")
    done = opened_in_a_child(model, "cpu")
    assert "is not an ONNX model" in done.stdout
    assert done.stderr == ""
