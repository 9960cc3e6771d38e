"""What is said to the CUDA runtime, and what becomes of its answers, with NVIDIA's package and without."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from optimizer.engines import cuda
from optimizer.engines.cuda import CudaBindings, CudaFailed
from optimizer.errors import MissingPiece


class Runtime:
    """``cuda.bindings.runtime`` that answers what a test plants: every call gives its code and what comes with it."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaStreamNonBlocking = 1

    def __init__(self, **answers):
        self.answers = {"cudaGetDeviceCount": 1, "cudaGetErrorString": b"what CUDA says", **answers}
        self.codes = {}
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            code = self.codes.get(name, 0)
            if name == "cudaEventCreate":
                return code, f"event {sum(each[0] == name for each in self.calls)}"
            return (code, self.answers.get(name)) if not code else (code, None)

        return call

    def names(self):
        return [name for name, *_ in self.calls]


def test_the_package_is_called_with_as_many_arguments_as_it_takes():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    checked = set()
    for node in ast.walk(ast.parse(Path(cuda.__file__).read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        arguments = node.args[1:] if node.func.attr == "callback" else node.args
        if arguments and isinstance(arguments[0], ast.Constant) and str(arguments[0].value).startswith("cuda"):
            name = arguments[0].value
            if node.func.attr in ("_call", "callback"):
                (told,) = re.findall(rf"\A{name}\((.*?)\)", getattr(runtime, name).__doc__)
                takes = [each for each in told.split(", ") if each]
                assert len(takes) == len(arguments) - 1, f"{name}({told})"
                checked.add(name)
    constants = {"cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamNonBlocking", "cudaGetErrorString"}
    assert checked == set(cuda.CALLS) - constants


def test_the_package_takes_what_it_is_given():
    """Pointers and streams as plain numbers: with a GPU there and back, without one up to where it is missed."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    gpu, array, back = CudaBindings(runtime), np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    try:
        gpu.need_device()
    except MissingPiece:
        calls = [
            lambda: gpu.facts(),
            lambda: gpu.malloc(8),
            lambda: gpu.free(256),
            lambda: gpu.to_device(256, array, 7),
            lambda: gpu.to_host(array, 256, 7),
            lambda: gpu.stream(),
            lambda: gpu.wait(7),
            lambda: gpu.drop_stream(7),
            lambda: gpu.begin_capture(7),
            lambda: gpu.end_capture(7),
            lambda: gpu.launch(9, 7),
            lambda: gpu.drop_graph(9),
            lambda: gpu.timed(lambda: None, 7, 1),
        ]
        for call in calls:
            with pytest.raises(MissingPiece, match="no CUDA device can be used"):
                call()
        return
    stream, pointer = gpu.stream(), gpu.malloc(array.nbytes)
    gpu.to_device(pointer, array, stream)
    gpu.to_host(back, pointer, stream)
    gpu.wait(stream)
    assert np.array_equal(array, back)
    assert gpu.timed(lambda: gpu.to_device(pointer, array, stream), stream, 2) >= 0
    gpu.free(pointer)
    gpu.drop_stream(stream)


def test_this_machine_has_a_gpu_or_the_error_says_what_is_missing():
    try:
        facts = cuda.cuda().facts()
    except MissingPiece as error:
        assert re.match("no CUDA device can be used|running TensorRT engines needs the package cuda", error.message)
        assert error.hint
    else:
        assert re.fullmatch(r"\d+\.\d", str(facts["compute_capability"]))


@pytest.mark.parametrize("code", [34, 35, 36, 46, 100, 802, 803, 804, 999])
def test_no_gpu_is_a_missing_piece(code):
    runtime = Runtime()
    runtime.codes["cudaGetDeviceCount"] = code
    with pytest.raises(MissingPiece, match=rf"no CUDA device can be used: .*\(cudaGetDeviceCount: error {code}\)"):
        CudaBindings(runtime).need_device()


def test_a_driver_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(cuda, "gpu_facts", lambda: ({"driver": "570.86"},))
    runtime = Runtime()
    runtime.codes["cudaGetDeviceCount"] = 35
    with pytest.raises(MissingPiece) as caught:
        CudaBindings(runtime).need_device()
    assert caught.value.hint.startswith("the driver here is 570.86; update it, or run: pip install 'cuda-bindings<13'")


def test_a_machine_with_no_device_at_all():
    with pytest.raises(MissingPiece, match="the driver finds no GPU"):
        CudaBindings(Runtime(cudaGetDeviceCount=0)).need_device()


def test_the_context_is_made_at_once():
    runtime = Runtime()
    CudaBindings(runtime).need_device()
    assert runtime.calls[-1] == ("cudaSetDevice", 0)


def test_any_other_error_has_cudas_name_and_text():
    runtime = Runtime()
    runtime.codes["cudaMemcpyAsync"] = 700
    with pytest.raises(CudaFailed, match=r"cudaMemcpyAsync failed: what CUDA says \(error 700\)"):
        CudaBindings(runtime).to_device(256, np.ones(3), 7)


def test_memory_that_is_full_says_who_knows():
    runtime = Runtime()
    runtime.codes["cudaMalloc"] = 2
    with pytest.raises(CudaFailed) as caught:
        CudaBindings(runtime).malloc(8)
    assert "nvidia-smi" in caught.value.hint
    assert caught.value.exit_code == 4


def test_facts():
    about = SimpleNamespace(name=b"NVIDIA RTX\0\0", major=8, minor=9, totalGlobalMem=2**34)
    runtime = Runtime(cudaGetDeviceProperties=about, cudaDriverGetVersion=13020, cudaRuntimeGetVersion=12090)
    expected = {"name": "NVIDIA RTX", "compute_capability": "8.9", "memory": 2**34, "driver": "13.2", "runtime": "12.9"}
    assert CudaBindings(runtime).facts() == expected


def test_copies_go_the_right_way():
    runtime, array = Runtime(), np.arange(6, dtype=np.float32)
    gpu = CudaBindings(runtime)
    gpu.to_device(512, array, 7)
    gpu.to_host(array, 512, 7)
    there, back = runtime.calls
    assert there == ("cudaMemcpyAsync", 512, array.ctypes.data, 24, "to device", 7)
    assert back == ("cudaMemcpyAsync", array.ctypes.data, 512, 24, "to host", 7)


def test_streams_wait_for_no_other_and_empty_memory_is_somewhere():
    runtime = Runtime(cudaStreamCreateWithFlags=9, cudaMalloc=512)
    gpu = CudaBindings(runtime)
    assert gpu.stream() == 9
    assert gpu.malloc(0) == 512
    assert runtime.calls == [("cudaStreamCreateWithFlags", 1), ("cudaMalloc", 1)]


def test_a_recording_is_made_ready_and_its_draft_given_back():
    runtime = Runtime(cudaStreamEndCapture="draft", cudaGraphInstantiate="ready")
    gpu = CudaBindings(runtime)
    gpu.begin_capture(7)
    assert gpu.end_capture(7) == "ready"
    gpu.launch("ready", 7)
    gpu.drop_graph("ready")
    assert runtime.calls == [
        ("cudaStreamBeginCapture", 7, "thread"),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", "draft", 0),
        ("cudaGraphDestroy", "draft"),
        ("cudaGraphLaunch", "ready", 7),
        ("cudaGraphExecDestroy", "ready"),
    ]


def test_a_draft_that_cannot_be_made_ready_is_given_back_as_well():
    runtime = Runtime(cudaStreamEndCapture="draft")
    runtime.codes["cudaGraphInstantiate"] = 719
    with pytest.raises(CudaFailed, match="cudaGraphInstantiate"):
        CudaBindings(runtime).end_capture(7)
    assert runtime.names()[-1] == "cudaGraphDestroy"


def test_device_time_is_that_of_one_call():
    runtime, called = Runtime(cudaEventElapsedTime=8.0), []
    assert CudaBindings(runtime).timed(lambda: called.append(1), 7, 16) == 0.5
    assert len(called) == 16
    assert ("cudaEventElapsedTime", "event 1", "event 2") in runtime.calls
    destroyed = [call[1] for call in runtime.calls if call[0] == "cudaEventDestroy"]
    assert sorted(destroyed) == ["event 1", "event 2"]


def test_events_are_given_back_when_the_call_fails():
    runtime = Runtime()

    def fails():
        raise CudaFailed("no")

    with pytest.raises(CudaFailed, match="no"):
        CudaBindings(runtime).timed(fails, 7, 4)
    assert runtime.names().count("cudaEventDestroy") == 2
