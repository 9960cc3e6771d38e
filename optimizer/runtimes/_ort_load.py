"""Loading the libraries behind ONNX Runtime's GPU providers, and why one did not load.

ONNX Runtime writes the reason into its log alone, and falls back to its CPU kernels. So the reason is found by loading
the provider's own library again, and the library that is missing says what to install.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

from optimizer.errors import MissingPiece

__all__ = ["NO_GPU", "missing_library", "not_loaded", "preload"]

#: A provider's part of the name of its library in onnxruntime-gpu.
_WORDS = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
_LIBRARY = re.compile(r"(?P<name>lib[\w+-]+)\.so(?:\.(?P<major>\d+))?[\d.]*: cannot open shared object")
_TENSORRT = ("libnvinfer.so.*", "libnvinfer_plugin.so.*", "libnvonnxparser.so.*")
#: What CUDA says where there is a driver too old, or none, or no GPU behind it.
NO_GPU = r"(?P<why>CUDA driver version is insufficient[^\n;]*|no CUDA-capable device[^\n;]*)"
_DOCTOR = "`ml-opt doctor` says what this machine has"


def preload(onnxruntime: Any, ep: str) -> None:
    """Load CUDA and cuDNN, and for TensorRT its libraries too, from where pip puts them; what is not there is left out.

    The loader finds a library that is loaded already by its name, and looks into no folder of Python's otherwise.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()
    spec = importlib.util.find_spec("tensorrt_libs") if ep == "TensorrtExecutionProvider" else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in _TENSORRT:
            for file in sorted(Path(folder).glob(pattern)):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)


def not_loaded(onnxruntime: Any, name: str, ep: str) -> MissingPiece:
    """Why a provider that is built in did not load.

    Args:
        onnxruntime: the module.
        name: of the provider, as users write it.
        ep: as ONNX Runtime does.
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{_WORDS.get(ep, '')}.so"))
    except OSError as error:
        return missing_library(name, str(error), str(getattr(onnxruntime, "cuda_version", "") or ""))
    return MissingPiece(
        f"the provider {name} did not load: there is no NVIDIA GPU here, or its driver is older than the library",
        _DOCTOR,
    )


def missing_library(name: str, text: str, cuda: str = "") -> MissingPiece:
    """What a loader's message means, with the line that brings the library.

    Args:
        name: of the provider.
        text: the loader's message.
        cuda: the CUDA that ONNX Runtime was built for (``13.0``); empty where it was built for none.
    """
    found = _LIBRARY.search(text)
    if found is None:
        return MissingPiece(f"the provider {name} did not load: {text}", _DOCTOR)
    library, major = found["name"], found["major"] or ""
    full = f"{library}.so.{major}" if major else f"{library}.so"
    if library in ("libcuda", "libnvidia-ml"):
        return MissingPiece(
            f"the provider {name} did not load: there is no NVIDIA driver here ({full} is missing)",
            "it runs on a machine with an NVIDIA GPU and its driver; " + _DOCTOR,
        )
    said = f"the provider {name} did not load: {full} is missing"
    version = cuda.partition(".")[0] or "13"
    if library.startswith(("libnvinfer", "libnvonnxparser")):
        return MissingPiece(
            said, f"run: pip install 'tensorrt-cu{version}=={major}.*' (this ONNX Runtime takes no other TensorRT)"
        )
    if library.startswith(("libcublas", "libcudart", "libcudnn", "libcufft", "libcurand", "libnvrtc")):
        return MissingPiece(said, "run: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return MissingPiece(said, _DOCTOR)
