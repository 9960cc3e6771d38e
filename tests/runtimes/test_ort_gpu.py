"""ONNX Runtime's GPU providers without a GPU: what they are asked, where buffers lie, what runs where.

What only a GPU can show is listed in docs/gpu.md.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from runtimes import gpu_double as gpu
from runtimes.graphs import WEIGHT, X, matmul, node, opened, value, write

import optimizer
from optimizer.benching.gemm import gemm_feeds, gemm_graph
from optimizer.benching.roofline import _takes
from optimizer.engines.profiles import Profile
from optimizer.errors import BadInput, GateFailed, MissingPiece
from optimizer.runtime import Candidate, Provider, SessionOptions, get_runtime, probe
from optimizer.runtimes import _ort_gpu, _ort_load
from optimizer.runtimes._ort_graph import open_session
from optimizer.runtimes._ort_providers import PROVIDERS
from optimizer.runtimes._ort_recorded import same
from optimizer.runtimes._ort_shapes import shape_options

COMPILING = ("tensorrt", "rtx")
IDS = np.array([[1, 2, 3]])


@pytest.fixture
def double(monkeypatch, tmp_path):
    return gpu.install(monkeypatch, gpu.Double(), tmp_path / "cache")


@pytest.fixture
def encoder(tmp_path):
    """Rows of token ids: a dimension of rows and one of steps."""
    inputs = [value("input_ids", ["batch", "sequence"], 7)]
    outputs = [value("y", None)]
    nodes = [node("Gather", "w input_ids", ["g"]), node("MatMul", "g v", ["y"])]
    weights = {"w": WEIGHT, "v": np.ones((3, 2), np.float32)}
    return write(tmp_path / "encoder.onnx", nodes, inputs=inputs, outputs=outputs, weights=weights)


def asked(double, number=-1):
    """The options of the first provider of a session."""
    return double.sessions[number]["providers"][0][1]


# -------------------------------------------------------------------------------------------------------------- options


def test_cuda_is_asked_for_exact_fp32_where_it_is_judged(double, tmp_path):
    path = matmul(tmp_path / "m.onnx")
    opened(path, "cuda")
    assert double.sessions[-1]["providers"] == [
        (
            gpu.CUDA,
            {
                "device_id": "0",
                "use_tf32": "1",
                "arena_extend_strategy": "kSameAsRequested",
                "cudnn_conv_algo_search": "EXHAUSTIVE",
                "cudnn_conv_use_max_workspace": "1",
            },
        )
    ]
    Candidate("m", path, Provider("cuda")).open(tf32=False)
    assert asked(double)["use_tf32"] == "0"
    opened(path, "cuda", extra={"use_tf32": "0", "prefer_nhwc": "1"})
    assert asked(double)["prefer_nhwc"] == "1", "what a caller adds comes last"


def test_tensorrt_gets_shapes_and_no_precision(double, encoder):
    session = opened(encoder, "tensorrt", max_length=64)
    (first, options), (second, behind) = double.sessions[-1]["providers"]
    assert (first, second) == (gpu.TRT, gpu.CUDA)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:8x64"
    assert options["trt_profile_max_shapes"] == "input_ids:32x64"
    assert not [name for name in options if "fp16" in name or "int8" in name or "bf16" in name or "graph" in name]
    assert behind["use_tf32"] == "1"
    assert session.facts["profile"] == {"input_ids": {"min": [1, 1], "opt": [8, 64], "max": [32, 64]}}
    assert session.facts["nodes"] == {"tensorrt": 2}


def test_the_plugin_gets_its_own_words_for_the_same(double, encoder):
    session = opened(encoder, "rtx", max_length=64)
    assert session.facts["nodes"] == {"rtx": 2}
    assert asked(double) == {
        "enable_cuda_graph": "0",
        "nv_profile_min_shapes": "input_ids:1x1",
        "nv_profile_opt_shapes": "input_ids:8x64",
        "nv_profile_max_shapes": "input_ids:32x64",
    }


def test_a_cuda_graph_is_recorded_only_where_shapes_are_fixed(double, tmp_path):
    fixed = matmul(tmp_path / "m.onnx", inputs=[value("x", [5, 4])])
    session = opened(fixed, "rtx")
    assert asked(double) == {"enable_cuda_graph": "1"}
    assert session.facts["profile"] is None
    assert np.allclose(session.run({"x": X})["y"], X @ WEIGHT, atol=1e-6)


def test_one_device_of_several_is_added(monkeypatch, tmp_path):
    double = gpu.install(monkeypatch, gpu.Double(devices=2), tmp_path)
    opened(matmul(tmp_path / "m.onnx"), "rtx")
    assert len(double.sessions) == 1


def test_a_profile_in_the_vendors_words():
    profile = Profile.from_json(
        {"a": {"min": [1, 2], "opt": [3, 4], "max": [5, 6]}, "b": {"min": [1], "opt": [1], "max": [9]}}
    )
    assert shape_options("trt", profile) == {
        "trt_profile_min_shapes": "a:1x2,b:1",
        "trt_profile_opt_shapes": "a:3x4,b:1",
        "trt_profile_max_shapes": "a:5x6,b:9",
    }
    assert shape_options("trt", None) == {}


@pytest.mark.parametrize("provider", COMPILING)
@pytest.mark.parametrize("how", ["run", "bind"])
def test_shapes_outside_of_the_profile_are_refused_and_never_compiled_again(double, encoder, provider, how):
    session = opened(encoder, provider, max_length=64)
    session.run({"input_ids": np.zeros((32, 64), np.int64)})
    with pytest.raises(BadInput, match="compiled this model for other shapes than these: input_ids 33x64") as caught:
        getattr(session, how)({"input_ids": np.zeros((33, 64), np.int64)})
    assert "it takes input_ids:1x1:8x64:32x64" in caught.value.hint
    assert f"build-ep-context REF --provider {provider}" in caught.value.hint


@pytest.mark.parametrize("provider", COMPILING)
def test_a_dimension_of_which_nothing_is_known_is_asked_about(double, tmp_path, provider):
    path = matmul(tmp_path / "m.onnx", inputs=[value("x", ["batch", "channels", "anything", 4])])
    with pytest.raises(BadInput, match="nothing says how large dimension 1") as caught:
        opened(path, provider)
    assert "build-ep-context REF --profile" in caught.value.hint
    assert double.sessions == []


@pytest.mark.parametrize("provider", COMPILING)
def test_peaks_are_measured_at_their_own_shapes(double, tmp_path, provider):
    """They have thousands of rows, where a model usually has 32."""
    gemm_graph("fp32", 64, tmp_path / "gemm.onnx")
    model = _takes("fp32", (16, 128), 64)
    session = opened(tmp_path / "gemm.onnx", provider, **model)
    assert session.facts["profile"] == {"fp32": {"min": [16, 64], "opt": [128, 64], "max": [128, 64]}}
    session.run(gemm_feeds(["fp32"], 128, 64))


# --------------------------------------------------------------------------------------------------------------- caches


@pytest.fixture
def kept(store, encoder):
    return optimizer.export_onnx(str(encoder), name="m", store=store).artifact


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "ml-opt" / "ort").glob("*/*"))


def test_what_was_compiled_is_kept_by_content_versions_and_gpu(kept, double, tmp_path):
    opened(kept.model_file, "tensorrt")
    options = asked(double)
    engines, timings = Path(options["trt_engine_cache_path"]), Path(options["trt_timing_cache_path"])
    assert (options["trt_engine_cache_enable"], options["trt_timing_cache_enable"]) == ("1", "1")
    assert engines.is_dir()
    assert timings.is_dir()
    assert engines.parent == timings.parent
    assert engines.is_relative_to(tmp_path / "cache" / "ml-opt" / "ort")
    for word in ("tensorrt", "sm8.9", "590.1", "NVIDIA-RTX-4090"):
        assert word in engines.parent.name
    os.utime(engines, (0, 0))
    opened(kept.model_file, "tensorrt")
    assert asked(double)["trt_engine_cache_path"] == str(engines), "the same again"
    assert engines.stat().st_mtime > 0, "it is used, and `gc` goes by that"
    opened(kept.model_file, "tensorrt", max_length=32)
    assert asked(double)["trt_engine_cache_path"] != str(engines), "other shapes"
    Candidate("m", kept.model_file, Provider("tensorrt")).open(tf32=False).close()
    assert asked(double)["trt_engine_cache_path"] != str(engines), "without TF32"
    assert asked(double)["trt_timing_cache_path"] == str(timings)


@pytest.mark.parametrize(
    ("provider", "folder"), [("tensorrt", "trt_engine_cache_path"), ("rtx", "nv_runtime_cache_path")]
)
def test_other_weights_under_the_same_names_find_nothing(kept, encoder, store, double, provider, folder):
    opened(kept.model_file, provider)
    first = asked(double)[folder]
    model = onnx.load(encoder)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((3, 2), np.float32), "v"))
    onnx.save(model, kept.model_file)
    entry = json.loads((kept.path / "manifest.json").read_text())
    entry["files"]["model.onnx"]["sha256"] = "0" * 64  # whoever changes a file of an artifact is found out elsewhere
    (kept.path / "manifest.json").write_text(json.dumps(entry))
    opened(kept.model_file, provider)
    assert asked(double)[folder] != first


def test_another_gpu_or_driver_begins_anew(kept, double, monkeypatch):
    opened(kept.model_file, "rtx")
    first = asked(double)["nv_runtime_cache_path"]
    for change in ({"driver": "591.2"}, {"compute_capability": "12.0"}, {"name": "another"}):
        other = {"name": "NVIDIA RTX 4090", "driver": "590.1", "compute_capability": "8.9", **change}
        monkeypatch.setattr(_ort_gpu, "gpu_facts", lambda other=other: (other,))
        opened(kept.model_file, "rtx")
        assert asked(double)["nv_runtime_cache_path"] != first
    monkeypatch.setattr(_ort_gpu, "version_of", lambda name: "99")
    opened(kept.model_file, "rtx")
    assert "99" in asked(double)["nv_runtime_cache_path"]


def test_a_file_outside_of_a_store_leaves_no_engine_behind(double, encoder):
    """TensorRT names what it compiled by the names of a graph's nodes: other weights would find it."""
    opened(encoder, "tensorrt")
    assert "trt_engine_cache_path" not in asked(double)
    opened(encoder, "rtx")
    assert "nv_runtime_cache_path" not in asked(double)


# ----------------------------------------------------------------------------------------------------------------- TF32


@pytest.mark.parametrize("provider", COMPILING)
def test_without_tf32_is_said_by_the_environment_for_as_long_as_a_session_is_open(double, encoder, provider):
    candidate = Candidate("m", encoder, Provider(provider))
    session = candidate.open(tf32=False)
    second = candidate.open(tf32=False)
    assert double.sessions[-1]["tf32_override"] == "0"
    assert session.facts["tf32"] is False
    session.close()
    session.close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0", "the second is open"
    third = candidate.open()
    assert third.facts["tf32"] is False, "what was got, not what was asked"
    second.close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0", "nothing changes under an open session"
    del third
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    assert candidate.open().facts["tf32"] is True
    assert double.sessions[-1]["tf32_override"] is None


def test_the_users_own_setting_comes_back(double, encoder, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    candidate = Candidate("m", encoder, Provider("tensorrt"))
    candidate.open(tf32=False).close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    session = candidate.open()
    assert session.facts["tf32"] is False
    session.close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_a_session_that_fails_to_open_gives_the_environment_back(double, encoder):
    double.takes = lambda op: gpu.CPU
    with pytest.raises(GateFailed):
        Candidate("m", encoder, Provider("tensorrt")).open(tf32=False)
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


# -------------------------------------------------------------------------------------------------------------- binding


@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_bound_buffers_lie_on_the_gpu(double, encoder, provider):
    """``cuda`` is the word for memory of NVIDIA's device, whoever allocates it (onnxruntime's OrtDevice.make)."""
    session = opened(encoder, provider)
    call = session.bind({"input_ids": IDS})
    (binding,) = double.bindings
    assert binding.log == [
        ("input", "input_ids", ("cuda", 0)),
        ("output", "y", ("cuda", 0)),
        ("synchronize",),
        ("run",),
        ("kept output", "y", ("cuda", 0)),
    ]
    call()
    assert binding.log[5:] == [("run",)], "no copies"
    assert np.allclose(binding.get_outputs()[0].real.numpy(), session.run({"input_ids": IDS})["y"])


def test_a_bound_call_of_cuda_is_one_graph(double, encoder):
    """Opened again for that, recorded into other memory than its own answers lie in, and replayed with every call."""
    session = opened(encoder, "cuda")
    want = session.run({"input_ids": IDS})["y"]
    assert "cuda_graph" not in session.facts, "nothing is bound yet"
    calls = [session.bind({"input_ids": IDS}), session.bind({"input_ids": IDS[:, :2]})]
    assert [each["providers"][0][1].get("enable_cuda_graph") for each in double.sessions] == [None, "1"]
    assert session.facts["cuda_graph"] is True
    for number, (binding, call) in enumerate(zip(double.bindings, calls, strict=True), 1):
        assert binding.log == [
            ("input", "input_ids", ("cuda", 0)),
            ("output", "y", ("cuda", 0)),
            ("synchronize",),
            ("run", -1),
            ("kept output", "y", ("cuda", 0)),
            ("kept output", "y", ("cuda", 0)),
            ("run", number),
        ]
        call()
        assert binding.log[7:] == [("run", number)], "no copies, and the same recording"
    assert np.array_equal(double.bindings[0].get_outputs()[0].numpy(), want)
    assert np.array_equal(session.run({"input_ids": IDS})["y"], want), "runs of other inputs are not replays"


def test_a_model_that_cannot_be_recorded_is_run_as_it_was(double, encoder):
    double.records = "This session cannot use the graph capture feature as requested by the user"
    session = opened(encoder, "cuda")
    session.bind({"input_ids": IDS})()
    assert session.facts["cuda_graph"] is False
    assert "cannot use the graph capture feature" in session.facts["why_no_cuda_graph"]
    session.bind({"input_ids": IDS})()
    assert len(double.sessions) == 2, "it is not asked again"
    assert {entry for binding in double.bindings for entry in binding.log if entry[0] == "run"} == {("run",)}


def nothing(binding):
    """A replay that writes nothing: the outputs are what lay in their memory."""


def fails(binding):
    raise RuntimeError("/onnxruntime_src/x.cc:1 CUDA failure 900: operation not permitted when stream is capturing")


@pytest.mark.parametrize(("replays", "why"), [(nothing, "answers otherwise"), (fails, "stream is capturing")])
def test_a_recording_that_is_wrong_is_given_up(double, encoder, replays, why):
    double.replays = replays
    session = opened(encoder, "cuda")
    session.bind({"input_ids": IDS})()
    assert session.facts["cuda_graph"] is False
    assert why in session.facts["why_no_cuda_graph"]
    assert "onnxruntime_src" not in session.facts["why_no_cuda_graph"]
    assert [each["providers"][0][1].get("enable_cuda_graph") for each in double.sessions] == [None, "1", None]
    assert double.bindings[-1].log[-1] == ("run",)
    assert np.allclose(double.bindings[-1].get_outputs()[0].numpy(), WEIGHT[IDS] @ np.ones((3, 2)), atol=1e-6)


def test_who_turns_graphs_off_has_none(double, encoder):
    session = opened(encoder, "cuda", extra={"enable_cuda_graph": "0"})
    session.bind({"input_ids": IDS})()
    assert "cuda_graph" not in session.facts
    assert len(double.sessions) == 1


def test_what_a_replay_may_differ_by():
    exact = np.array([[1.0, -100.0, np.nan]], np.float32)
    assert same([exact], [exact + np.float32(0.5)]), "half a percent of the largest"
    assert not same([exact], [exact + np.float32(2.0)])
    assert not same([exact], [np.zeros((1, 3), np.float32)]), "a number where there was none"
    assert same([np.array([3])], [np.array([3])])
    assert not same([np.array([3])], [np.array([4])]), "whole numbers are equal or not"


def test_the_alias_cuda_is_memory_of_nvidias_device():
    """On which binding for a plugin rests: its allocator is found by vendor, kind and number of the device."""
    import onnxruntime

    made = onnxruntime.OrtDevice.make("cuda", 0)
    named = onnxruntime.OrtDevice.make("gpu", 0, onnxruntime.OrtDeviceVendorId.NVIDIA)
    for what in ("device_id", "device_type", "device_vendor_id", "device_mem_type"):
        assert getattr(made, what)() == getattr(named, what)()
    assert {name for name, row in PROVIDERS.items() if row.device == "cuda"} == {"cuda", "tensorrt", "rtx"}


def test_on_the_cpu_a_bound_call_answers_for_real(encoder):
    session = opened(encoder)
    session.bind({"input_ids": IDS})()
    assert np.allclose(session.run({"input_ids": IDS})["y"], WEIGHT[IDS] @ np.ones((3, 2)), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- asked and got


def test_nodes_are_told_by_provider(double, encoder):
    double.takes = lambda op: gpu.CPU if op == "Gather" else None
    assert opened(encoder, "tensorrt").facts["nodes"] == {"cpu": 1, "tensorrt": 1}
    assert opened(encoder, "rtx").facts["nodes"] == {"cpu": 1, "rtx": 1}
    assert opened(encoder, "cuda").facts["nodes"] == {"cpu": 1, "cuda": 1}
    double.takes = lambda op: gpu.CUDA if op == "Gather" else None
    assert opened(encoder, "tensorrt").facts["nodes"] == {"cuda": 1, "tensorrt": 1}


@pytest.mark.parametrize(("provider", "better"), [("cuda", "cpu"), ("tensorrt", "cuda"), ("rtx", "cpu")])
def test_products_on_another_provider_are_an_error(double, encoder, provider, better):
    double.takes = lambda op: gpu.CPU if op == "MatMul" else None
    with pytest.raises(GateFailed, match=rf"1 of 2 nodes would not run on {provider}: MatMul \(1\)") as caught:
        opened(encoder, provider)
    assert f"use the provider {better}" in caught.value.hint


def test_products_that_tensorrt_leaves_to_cuda_are_not_tensorrts(double, encoder):
    double.takes = lambda op: gpu.CUDA if op == "MatMul" else None
    with pytest.raises(GateFailed, match=r"1 of 2 nodes would not run on tensorrt: MatMul \(1\)"):
        opened(encoder, "tensorrt")


def test_a_provider_that_has_no_node_at_all_is_an_error(double, tmp_path):
    path = write(tmp_path / "m.onnx", [node("Relu", "x", ["y"])])
    double.takes = lambda op: gpu.CUDA
    with pytest.raises(GateFailed, match="1 of 1 nodes would not run on tensorrt"):
        opened(path, "tensorrt")


# -------------------------------------------------------------------------------------------------- what does not load


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("libcuda.so.1: cannot open shared object file: No such file", "no NVIDIA driver here", "doctor"),
        ("libnvidia-ml.so.1: cannot open shared object file", "no NVIDIA driver here", "doctor"),
        (
            "libcublasLt.so.13: cannot open shared object file",
            "libcublasLt.so.13 is missing",
            "onnxruntime-gpu[cuda,cudnn]",
        ),
        ("libcudnn.so.9: cannot open shared object file", "libcudnn.so.9 is missing", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvinfer.so.10: cannot open shared object file", "libnvinfer.so.10 is missing", "'tensorrt-cu13==10.*'"),
        ("libother.so: cannot open shared object file", "libother.so is missing", "doctor"),
        ("undefined symbol: x", "undefined symbol: x", "doctor"),
    ],
)
def test_a_missing_library_says_what_brings_it(text, says, hint):
    error = _ort_load.missing_library("tensorrt", text, "13.0")
    assert says in error.message
    assert hint in error.hint
    assert error.exit_code == 4
    assert "the provider tensorrt did not load" in error.message


def test_the_silent_fallback_is_an_error(monkeypatch, tmp_path):
    """ONNX Runtime opens a session on the CPU, and says nothing, when the CUDA provider cannot load."""
    gpu.install(monkeypatch, gpu.Double(loads=False), tmp_path)
    with pytest.raises(MissingPiece, match="the provider cuda did not load") as caught:
        opened(matmul(tmp_path / "m.onnx"), "cuda")
    assert caught.value.hint


def test_tensorrt_that_is_not_there_is_told_by_the_library_that_is_missing(double, encoder, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("/onnxruntime_src/x.cc:729 Please install TensorRT libraries as mentioned in the page")

    monkeypatch.setattr(double, "InferenceSession", refuse)
    with pytest.raises(MissingPiece, match="the provider tensorrt did not load") as caught:
        opened(encoder, "tensorrt")
    assert "onnxruntime_src" not in str(caught.value)


def test_a_plugin_without_a_gpu_that_it_takes(monkeypatch, tmp_path):
    gpu.install(monkeypatch, gpu.Double(devices=0), tmp_path)
    with pytest.raises(MissingPiece, match=r"rtx finds no device: it takes GPUs of compute capability 8\.6"):
        opened(matmul(tmp_path / "m.onnx"), "rtx")


def test_a_plugin_without_its_library(double, monkeypatch, tmp_path):
    import onnxruntime_ep_nv_tensorrt_rtx as module

    def missing():
        raise FileNotFoundError("No EP library found next to this package")

    monkeypatch.setattr(module, "get_library_path", missing)
    with pytest.raises(MissingPiece, match="its library is not") as caught:
        opened(matmul(tmp_path / "m.onnx"), "rtx")
    assert "--force-reinstall" in caught.value.hint


def test_a_plugin_whose_library_needs_a_driver(double, monkeypatch, tmp_path):
    """The sentence is the one that ONNX Runtime 1.32 gives of the plugin 0.5 on a machine without a driver."""

    def refuse(name, path):
        raise RuntimeError(
            f"onnxruntime: Failed to load library {path} with error: "
            "libcuda.so.1: cannot open shared object file: No such file or directory"
        )

    monkeypatch.setattr(double, "register_execution_provider_library", refuse)
    with pytest.raises(MissingPiece, match=r"no NVIDIA driver here \(libcuda\.so\.1 is missing\)") as caught:
        opened(matmul(tmp_path / "m.onnx"), "rtx")
    assert caught.value.exit_code == 4
    assert "doctor" in caught.value.hint


@pytest.mark.parametrize(
    "why", ["CUDA driver version is insufficient for CUDA runtime version", "no CUDA-capable device"]
)
def test_a_driver_that_cannot_be_used_is_said_in_its_own_words(double, encoder, monkeypatch, why):
    """The sentence is that of onnxruntime-gpu 1.31 with a driver that knows no device."""

    def refuse(*args, **kwargs):
        raise RuntimeError(
            "/onnxruntime_src/cuda_execution_provider_info.cc:1 static onnxruntime::Info onnxruntime::From(const "
            f'onnxruntime::Options&) Parse Failed to parse provider option "device_id": CUDA failure 35: {why} ; GPU=0'
        )

    monkeypatch.setattr(double, "InferenceSession", refuse)
    with pytest.raises(MissingPiece) as caught:
        opened(encoder, "cuda")
    assert caught.value.message.rstrip() == f"cuda finds no NVIDIA GPU that it can use: {why}"
    assert caught.value.exit_code == 4


def test_loading_prints_nothing(double, encoder, capsys):
    opened(encoder, "cuda")
    assert capsys.readouterr().out == "", "--json prints one document"


def test_scores_of_a_generator_are_computed_where_it_writes(double, encoder):
    """A graph for GPUs may have no kernels for processors: attention in bf16 has none."""
    open_session(encoder, 1, "cuda")
    assert asked(double)["use_tf32"] == "1"
    assert double.sessions[-1]["providers"][0][0] == gpu.CUDA
    double.loads = False
    with pytest.raises(MissingPiece, match="the provider cuda did not load"):
        open_session(encoder, 1, "cuda")


# ------------------------------------------------------------------------------------------------------ compiled graphs


def compiled(path, target, provider, profile=None, tf32=True, embed=True):
    runtime = get_runtime(Provider(provider))
    return runtime.compile(path, target, SessionOptions(Provider(provider), tf32=tf32), profile, embed=embed)


PROFILE = Profile.from_json({"input_ids": {"min": [1, 1], "opt": [4, 8], "max": [8, 16]}})


def test_tensorrt_writes_its_context_while_a_session_opens(double, encoder, tmp_path):
    versions = compiled(encoder, tmp_path / "out.onnx", "tensorrt", PROFILE, tf32=False)
    session = double.sessions[-1]
    assert session["config"]["ep.context_enable"] == "1"
    assert session["config"]["ep.context_file_path"] == str(tmp_path / "out.onnx")
    assert session["config"]["ep.context_embed_mode"] == "1"
    assert session["tf32_override"] == "0"
    assert asked(double)["trt_profile_max_shapes"] == "input_ids:8x16"
    assert "trt_engine_cache_path" not in asked(double), "it takes none but a relative one beside a context"
    assert versions == {"onnxruntime": double.__version__}
    assert (tmp_path / "out.onnx").is_file()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    compiled(encoder, tmp_path / "out.onnx", "tensorrt", PROFILE, embed=False)
    assert double.sessions[-1]["config"]["ep.context_embed_mode"] == "0"


def test_the_plugin_compiles_through_the_model_compiler(double, encoder, tmp_path):
    compiled(encoder, tmp_path / "out.onnx", "rtx", PROFILE, embed=False)
    (made,) = double.compiled
    assert made["path"] == str(encoder)
    assert made["target"] == str(tmp_path / "out.onnx")
    assert made["embed"] is False
    assert int(made["flags"]) == 3, "nothing compiled is an error, and so is a file that is there"
    assert made["options"].given["nv_profile_opt_shapes"] == "input_ids:4x8"
    assert made["tf32_override"] is None
    assert (tmp_path / "out.onnx").is_file()


def test_what_compiles_nothing_says_so(encoder, tmp_path):
    with pytest.raises(BadInput, match="cpu compiles no graphs") as caught:
        compiled(encoder, tmp_path / "out.onnx", "cpu")
    assert "tensorrt or rtx" in caught.value.hint


def test_onnx_runtimes_own_compiler_takes_these_arguments(encoder, tmp_path):
    """The real one, on a provider that compiles nothing."""
    import onnxruntime

    from optimizer.runtimes._ort_errors import ort_errors

    flags = onnxruntime.OrtCompileApiFlags
    both = flags.ERROR_IF_NO_NODES_COMPILED | flags.ERROR_IF_OUTPUT_FILE_EXISTS
    compiler = onnxruntime.ModelCompiler(
        onnxruntime.SessionOptions(), str(encoder), embed_compiled_data_into_model=True, flags=both
    )
    with pytest.raises(GateFailed, match="rtx compiled nothing of"), ort_errors(encoder, "rtx"):
        compiler.compile_to_file(str(tmp_path / "out.onnx"))


def test_a_compiled_graph_on_another_provider_is_named(tmp_path):

    gpu.write_context(onnx.load(matmul(tmp_path / "m.onnx")), tmp_path / "c.onnx", gpu.TRT)
    with pytest.raises(BadInput, match="compiled by TensorrtExecutionProvider, and cpu cannot run it"):
        opened(tmp_path / "c.onnx")


# ------------------------------------------------------------------------------------------------------- on a real GPU


@pytest.fixture(params=["cuda", "tensorrt", "rtx"])
def working(request):
    """A provider that works here."""
    found = probe(request.param)
    if not found.ok:
        pytest.skip(found.reason)
    return request.param


@pytest.mark.gpu
def test_a_gpu_answers_what_the_processor_answers(working, encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = Candidate("m", encoder, Provider(working)).open(tf32=False)
    right = opened(encoder).run({"input_ids": IDS})["y"]
    assert np.allclose(session.run({"input_ids": IDS})["y"], right, atol=1e-6)
    assert session.facts["nodes"][working] >= 1
    call = session.bind({"input_ids": IDS})
    call()
    call()
    if working == "cuda":
        assert session.facts["cuda_graph"] is True, session.facts
    assert np.allclose(session.run({"input_ids": IDS})["y"], right, atol=1e-6), "after a recording too"
    session.close()


@pytest.mark.gpu
def test_a_gpu_keeps_what_it_compiled(working, kept, tmp_path, monkeypatch):
    if working == "cuda":
        pytest.skip("cuda compiles nothing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = opened(kept.model_file, working)
    session.run({"input_ids": IDS})
    session.close()
    assert [path for path in (tmp_path / "cache" / "ml-opt" / "ort").rglob("*") if path.is_file()]
