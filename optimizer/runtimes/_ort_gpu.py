"""Options of ONNX Runtime's GPU providers, and where they keep what they have compiled.

The names are those of onnxruntime-gpu 1.31 and of the TensorRT-RTX plugin 0.5, each read out of the libraries:
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html,
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html and
https://nvidia.github.io/TensorRT-RTX-EP-ABI/_generated/provider-options.html (which takes no option it does not know).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.digest import digest_json
from optimizer.environment import gpu_facts, version_of
from optimizer.files import disk_errors
from optimizer.layout import machine_cache, used
from optimizer.runtime import SessionOptions
from optimizer.runtimes._ort_shapes import Shapes, shape_options

__all__ = ["OVERRIDE", "RTX", "Asked", "cuda", "rtx", "tensorrt", "tf32_allowed", "without_tf32"]

#: Set to 0, no library of NVIDIA's rounds to TF32, whatever it was told; TensorRT has no provider option for it.
OVERRIDE = "NVIDIA_TF32_OVERRIDE"
#: What TensorRT's libraries are installed as; they may also come from the system, with no version that is known here.
_TENSORRT = ("tensorrt-cu13-libs", "tensorrt-cu12-libs", "tensorrt", "tensorrt-cu13", "tensorrt-cu12")
RTX = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime-ep-nv-tensorrt-rtx")


@dataclass(frozen=True)
class Asked:
    """What a session is opened with.

    Attributes:
        options: the caller's.
        precision: that the provider computes in, where it has a choice.
        threads: intra-op.
        shapes: what a provider that compiles does so for; None for one that does not.
    """

    options: SessionOptions
    precision: str = ""
    threads: int = 1
    shapes: Shapes | None = None


def cuda(asked: Asked) -> dict[str, str]:
    """The CUDA provider.

    The arena grows by what is asked for and not in powers of two, so that the memory that is reported is the model's.
    Convolutions are chosen by trying all of cuDNN's (the vendor's default, said so that it stays). CUDA graphs are off:
    a recorded graph answers for one shape at one address, and ``run`` feeds both anew; bound calls turn them on
    (:mod:`._ort_recorded`).
    """
    return {
        "device_id": "0",
        "use_tf32": "1" if asked.options.tf32 else "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        **asked.options.extra,
    }


def tensorrt(asked: Asked) -> dict[str, str]:
    """The TensorRT provider.

    No option for a precision is set: without one the network is strongly typed, and computes in the formats of its
    graph. (TensorRT 11 knows nothing else; onnxruntime-gpu 1.31 is linked against TensorRT 10.) CUDA graphs are off, as
    with :func:`cuda`.
    """
    shapes = asked.shapes or Shapes()
    options = {"device_id": "0"}
    if not shapes.engine:
        timings = _folder("tensorrt", version_of("onnxruntime-gpu"), _first(_TENSORRT), "timings")
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(timings)}
        options |= shape_options("trt", shapes.profile)
        if shapes.content:
            engines = _folder("tensorrt", version_of("onnxruntime-gpu"), _first(_TENSORRT), _compiled(asked, shapes))
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(engines)}
    return {**options, **asked.options.extra}


def rtx(asked: Asked) -> dict[str, str]:
    """The TensorRT-RTX plugin; which GPU is said by the device that it is added for.

    A CUDA graph is recorded by TensorRT-RTX itself, and only where every dimension is fixed, as shapes must not change
    then.
    """
    shapes = asked.shapes or Shapes()
    options = {"enable_cuda_graph": "0" if shapes.profile else "1"}
    if shapes.content:
        kernels = _folder("rtx", version_of("onnxruntime"), _first(RTX), _compiled(asked, shapes))
        options |= {"nv_runtime_cache_path": str(kernels)}
    if not shapes.engine:
        options |= shape_options("nv", shapes.profile)
    return {**options, **asked.options.extra}


def _compiled(asked: Asked, shapes: Shapes) -> str:
    """The folder of one compiled graph: TensorRT's own name for it knows names and not weights."""
    profile = shapes.profile.to_json() if shapes.profile else None
    tf32 = tf32_allowed(asked.options, shapes)
    return digest_json({"content": shapes.content, "profile": profile, "tf32": tf32})[:32]


def _first(distributions: Sequence[str]) -> str | None:
    return next((found for name in distributions if (found := version_of(name))), None)


def _folder(provider: str, runtime: str | None, library: str | None, last: str) -> Path:
    """A folder in the user's cache: by versions of the libraries, GPU and driver, so that none is ever stale."""
    versions = (provider, f"ort{runtime or 'unknown'}", library or "unknown")
    folder = machine_cache("ort", versions, next(iter(gpu_facts()), None)) / last
    with disk_errors("keeping what a provider compiled", folder):
        folder.mkdir(parents=True, exist_ok=True)
    used(folder)
    return folder


def tf32_allowed(options: SessionOptions, shapes: Shapes | None) -> bool:
    """Whether fp32 products may round their factors to TF32; a graph that is compiled already is what it is."""
    if shapes is not None and shapes.engine is not None:
        return bool(shapes.engine["tf32"])
    return options.tf32 and os.environ.get(OVERRIDE) != "0"


class _Held:
    """Sessions of this process that want no TF32, and what the environment said before the first of them."""

    count = 0
    before: str | None = None


def without_tf32() -> Callable[[], None]:
    """Keep NVIDIA's libraries of this process from TF32 until the answer is called, once.

    TensorRT reads the variable when it builds and TensorRT-RTX once more when it runs (and complains when they differ),
    so that it stands for as long as the session is open.
    """
    if _Held.count == 0:
        _Held.before = os.environ.get(OVERRIDE)
    _Held.count += 1
    os.environ[OVERRIDE] = "0"

    def release() -> None:
        _Held.count -= 1
        if _Held.count == 0:
            if _Held.before is None:
                os.environ.pop(OVERRIDE, None)
            else:
                os.environ[OVERRIDE] = _Held.before

    return release
