"""OpenVINO, by its own package and, where the two are alike, by ONNX Runtime's plugin."""

import concurrent.futures
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from runtimes.graphs import WEIGHT, WIDE, X, cdist, matmul, node, opened, opened_in_a_child, value, write

from optimizer.errors import BadInput, GateFailed, MissingPiece, UnknownName
from optimizer.runtime import Provider, get_runtime
from optimizer.runtimes._openvino_errors import openvino_errors

NATIVE = "openvino-native"
RANDOM = np.random.default_rng(3)
INT64 = TensorProto.INT64


@pytest.fixture
def model(tmp_path):
    return matmul(tmp_path / "model.onnx")


def test_it_answers_what_numpy_answers(model, openvino_provider):
    session = opened(model, openvino_provider)
    assert np.allclose(session.run({"x": X})["y"], X @ WEIGHT, atol=1e-6)
    assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [("x", "float32", ("batch", 4))]
    assert session.facts["provider"] == openvino_provider
    assert session.facts["threads"] == 1
    assert session.facts["nodes"] == {openvino_provider: 1}
    assert session.facts["load_seconds"] > 0
    session.close()


def test_any_number_of_rows_in_any_order(model, openvino_provider):
    session = opened(model, openvino_provider)
    for rows in (1, 5, 2, 0, 64):
        x = RANDOM.standard_normal((rows, 4)).astype(np.float32)
        assert np.allclose(session.run({"x": x})["y"], x @ WEIGHT, atol=1e-5)


def test_without_a_precision_it_is_fp32(wide, openvino_provider):
    """Left to itself it computes in bf16 on processors that have it, which the tolerance would show."""
    feeds = {"x": RANDOM.standard_normal((32, 256)).astype(np.float32)}
    session = opened(wide, openvino_provider)
    assert session.facts["precision"] == "fp32"
    exact = feeds["x"] @ WIDE
    assert np.abs(session.run(feeds)["y"] - exact).max() < 1e-4
    try:
        low = opened(wide, f"{openvino_provider}:bf16")
    except MissingPiece as error:
        assert "bf16" in error.message
        return
    assert low.facts["precision"] == "bf16"
    answer = low.run(feeds)["y"]
    assert answer.dtype == np.float32
    assert 1e-3 < np.abs(answer - exact).max() < 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_the_processor_cannot_do_is_refused(model, openvino_provider, precision, capabilities):
    """OpenVINO takes any precision as a hint: fp16 is bf16 where there is no fp16, and no error."""
    asked = f"{openvino_provider}:{precision}"
    if precision.upper() in capabilities:
        assert opened(model, asked).facts["precision"] == precision
        return
    with pytest.raises(MissingPiece, match=f"cannot compute in {precision}") as caught:
        opened(model, asked)
    assert openvino_provider in caught.value.hint


def test_the_log_stays_quiet(model, openvino_provider):
    """Errors are raised, not printed."""
    done = opened_in_a_child(model, openvino_provider, {"NO_SUCH_KEY": "1"})
    assert "property NO_SUCH_KEY" in done.stdout
    assert done.stderr == ""


# ----------------------------------------------------------------------------------------------- by its own package


def test_another_precision_than_the_one_asked_for_is_an_error(model, capabilities):
    """With AVX2 alone OpenVINO passes over the hint; with AVX-512 it takes it, whether it lists bf16 or not."""
    try:
        got = opened(model, NATIVE, extra={"INFERENCE_PRECISION_HINT": "bf16"}).facts["precision"]
    except GateFailed as error:
        assert "fp32 was asked for, and OpenVINO computes in bf16" in error.message
    else:
        assert got == "fp32"
        assert "BF16" not in capabilities


def test_threads_are_those_that_it_took(model):
    most = len(os.sched_getaffinity(0))
    assert opened(model, NATIVE, threads=most + 100).facts["threads"] <= most


def test_importing_it_tells_nobody(model, tmp_path):
    """The package reports its import, and writes an id into the home folder, unless its telemetry is kept away."""
    home = tmp_path / "home"
    home.mkdir()
    done = opened_in_a_child(model, NATIVE, HOME=str(home), PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == f"opened {NATIVE}\n"
    assert list(home.rglob("*")) == []
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "openvino" in imported
    assert not any(name.startswith("openvino_telemetry.") for name in imported)


def test_a_bound_call_answers_again_without_copies(model):
    session = opened(model, NATIVE)
    call = session.bind({"x": X})
    call()
    assert np.allclose(session.run({"x": X[:2]})["y"], X[:2] @ WEIGHT, atol=1e-6)
    call()


def test_many_threads_may_run_one_session(model):
    session = opened(model, NATIVE)
    rows = [np.full((place % 7 + 1, 4), place, np.float32) for place in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: session.run({"x": x})["y"], rows))
    for x, answer in zip(rows, answers, strict=True):
        assert np.allclose(answer, x @ WEIGHT, atol=1e-3)


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
        getattr(opened(model, NATIVE), how)(feeds)


def test_limits_of_the_manifest_are_held(tmp_path):
    inputs = [value("ids", ["batch"], INT64)]
    path = write(tmp_path / "m.onnx", [node("Gather", "w ids", ["y"])], inputs=inputs, weights={"w": WEIGHT})
    session = opened(path, NATIVE, limits={"ids": [0, 3]})
    assert np.array_equal(session.run({"ids": np.array([3, 0])})["y"], WEIGHT[[3, 0]])
    with pytest.raises(BadInput, match="'ids' holds 4; the model takes 0 to 3"):
        session.run({"ids": np.array([4])})


# --------------------------------------------------------------------------------------------- inputs and outputs


def test_outputs_keep_their_names_and_order(tmp_path):
    nodes = [node("Split", "x", ["b", "a"], axis=1, num_outputs=2), node("Identity", "b", ["c"])]
    path = write(tmp_path / "m.onnx", nodes, outputs=[value(name, None) for name in "cab"])
    session = opened(path, NATIVE)
    assert [spec.name for spec in session.outputs] == ["c", "a", "b"]
    answer = session.run({"x": X})
    assert list(answer) == ["c", "a", "b"]
    for name, wanted in (("a", X[:, 2:]), ("b", X[:, :2]), ("c", X[:, :2])):
        assert np.array_equal(answer[name], wanted)


def test_inputs_keep_their_names_where_openvino_renames_them(tmp_path):
    """Dropout does nothing here, and OpenVINO calls its input as its output."""
    path = write(tmp_path / "m.onnx", [node("Dropout", "x", ["y", ""])])
    session = opened(path, NATIVE)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert np.array_equal(session.run({"x": X})["y"], X)


def test_optional_outputs_may_be_left_out_or_taken(tmp_path):
    scale = {"s": np.ones(4, np.float32)}
    nodes = [node("LayerNormalization", "x s", ["y", "", "spread"])]
    path = write(tmp_path / "m.onnx", nodes, outputs=[value("y", None), value("spread", None)], weights=scale)
    wanted, got = opened(path).run({"x": X}), opened(path, NATIVE).run({"x": X})
    assert list(got) == ["y", "spread"]
    for name in wanted:
        assert np.allclose(got[name], wanted[name], atol=1e-4)


def test_weights_listed_among_the_inputs_are_not_fed(tmp_path):
    inputs = [value("w", [4, 3]), value("x", ["batch", 4])]
    session = opened(matmul(tmp_path / "m.onnx", inputs=inputs, ir=3, opset=9), NATIVE)
    assert [spec.name for spec in session.inputs] == ["x"]
    assert np.allclose(session.run({"x": X})["y"], X @ WEIGHT, atol=1e-6)


def test_an_input_that_nothing_reads_is_still_an_input(tmp_path):
    inputs = [value("u", ["batch"], INT64), value("x", ["batch", 4])]
    session = opened(write(tmp_path / "m.onnx", [node("Relu", "x", ["y"])], inputs=inputs), NATIVE)
    answer = session.run({"u": np.arange(5), "x": X})["y"]
    assert np.array_equal(answer, np.maximum(X, 0))
    with pytest.raises(BadInput, match="'u' is missing"):
        session.run({"x": X})


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_numbers_of_every_kind_go_in_and_come_out(tmp_path, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Concat", "x x", ["y"], axis=1)]
    path = write(tmp_path / "m.onnx", nodes, inputs=[value("x", ["n", 4], kind)], outputs=[value("y", None, kind)])
    array = (X > 0).astype(dtype)
    answer = opened(path, NATIVE).run({"x": array})["y"]
    assert answer.dtype == dtype
    assert np.array_equal(answer, np.concatenate([array, array], 1))


@pytest.mark.parametrize(("kind", "word"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.STRING, "string")])
def test_what_numpy_cannot_hold_is_refused_by_name(tmp_path, kind, word):
    """Strings pass through OpenVINO, and end the process when it is closed."""
    ends = {"inputs": [value("x", [2], kind)], "outputs": [value("y", [2], kind)]}
    path = write(tmp_path / "m.onnx", [node("Identity", "x", ["y"])], **ends)
    with pytest.raises(BadInput, match=f"input 'x' is {word}"):
        opened(path, NATIVE)


@pytest.mark.parametrize("threads", [1, 2])
def test_shapes_that_only_the_graph_refuses(tmp_path, threads):
    """With one thread OpenVINO's own `infer` would leave the answers of the call before, and say nothing."""
    path = write(
        tmp_path / "m.onnx", [node("MatMul", "x z", ["y"])], inputs=[value("x", ["a", "b"]), value("z", ["c", "d"])]
    )
    session = opened(path, NATIVE, threads)
    feeds = {"x": X, "z": X[:, :3].copy()}
    for how in (session.run, session.bind):
        with pytest.raises(BadInput, match=r"cannot take inputs of these shapes: Matmul .*\(5\.4\).*\(5\.3\)"):
            how(feeds)
    assert session.run({"x": X, "z": WEIGHT})["y"].shape == (5, 3)


# --------------------------------------------------------------------------------------------- files that are bad


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04"])
def test_what_is_no_onnx_file_is_named(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.onnx is not an ONNX model"):
        opened(path, NATIVE)


def test_files_that_are_not_whole_are_named(tmp_path):
    path = matmul(tmp_path / "m.onnx", external="m.data")
    (tmp_path / "m.data").write_bytes(b"1234")
    with pytest.raises(BadInput, match=r"weights file m\.data is cut short"):
        opened(path, NATIVE)
    (tmp_path / "m.data").unlink()
    with pytest.raises(BadInput, match=r"weights file m\.data is missing"):
        opened(path, NATIVE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"m\.onnx is not an ONNX model, or it is cut short"):
        opened(path, NATIVE)
    with pytest.raises(BadInput, match=r"no such file: .*nothing\.onnx"):
        opened(tmp_path / "nothing.onnx", NATIVE)


def test_operators_that_it_lacks_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"operators that OpenVINO does not have: com\.microsoft\.CDist") as caught:
        opened(cdist(tmp_path / "m.onnx"), NATIVE)
    assert "cpu" in caught.value.hint
    path = write(tmp_path / "m.onnx", [node("Foo", "x", ["y"], domain="my.own")], domains=["my.own"])
    with pytest.raises(BadInput, match=r"does not have: my\.own\.Foo"):
        opened(path, NATIVE)


def test_more_memory_than_there_is_is_said_so(tmp_path):
    inputs = [value("x", ["batch", 4]), value("s", [3], INT64)]
    path = write(tmp_path / "m.onnx", [node("Expand", "x s", ["y"])], inputs=inputs)
    session = opened(path, NATIVE)
    assert session.run({"x": X[:1], "s": np.array([2, 3, 4])})["y"].shape == (2, 3, 4)
    with pytest.raises(MissingPiece, match="not enough memory"):
        session.run({"x": X[:1], "s": np.array([10**8, 10**8, 4])})


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("Check 'ptr' failed at a/b.cpp:257:\nFailed to allocate 160000 bytes of memory\n", MissingPiece, "not enough"),
        ("Exception from a/b.cpp:1:\nCheck 'x == y' failed at a/b.cpp:45: Too odd.\n\n", BadInput, "m.onnx: Too odd."),
        ("", BadInput, "OpenVINO cannot run m.onnx"),
    ],
)
def test_messages_are_said_without_places_in_the_source(text, error, says):
    with pytest.raises(error, match=says) as caught, openvino_errors(Path("m.onnx"), NATIVE):
        raise RuntimeError(text)
    assert ".cpp" not in caught.value.message


def test_available_means_that_it_runs(monkeypatch):
    assert get_runtime(Provider(NATIVE)).available(NATIVE).ok
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = get_runtime(Provider(NATIVE)).available(NATIVE)
    assert not found.ok
    assert "ml-opt[openvino-native]" in found.hint


def test_only_its_own_precisions(model):
    with pytest.raises(UnknownName, match="precision of openvino-native"):
        opened(model, "openvino-native:int8")
