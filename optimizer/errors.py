"""Every error that ml-opt raises on purpose, and the exit code each one ends a command with.

    MlOptError
    ├── GateFailed      1   something was measured or read back, and it is not what was asked
    ├── BadInput        2   what was given cannot be used
    │   ├── TooLarge    2   it is larger than a limit
    │   └── UnknownName 2   a name that does not exist (nearest names offered)
    ├── Inconclusive    3   the data does not allow a verdict
    ├── MissingPiece    4   this machine lacks a package, a provider, a driver or disk space
    ├── Damaged         5   an artifact is not what its manifest says
    └── (any other exception is a bug: exit code 70)

A message says what is wrong and names the thing; a hint says what to type next.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable

__all__ = [
    "BUG_EXIT_CODE",
    "BadInput",
    "Damaged",
    "GateFailed",
    "Inconclusive",
    "MissingPiece",
    "MlOptError",
    "TooLarge",
    "UnknownName",
    "missing_package",
]

#: Exit code of an exception that nobody meant (``EX_SOFTWARE`` of BSD's ``sysexits.h``).
BUG_EXIT_CODE = 70


class MlOptError(Exception):
    """Base of every error that is somebody's to mend, with the command to type next.

    Args:
        message: what is wrong, naming the file, option or node.
        hint: what to type or change; empty when the message says it already.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class GateFailed(MlOptError):
    """What was made or measured is not what was asked for."""

    exit_code = 1


class BadInput(MlOptError):
    """What was given cannot be used."""

    exit_code = 2


class TooLarge(BadInput):
    """What was given is larger than a limit that is there to be raised."""


class UnknownName(BadInput):
    """A name that is not there, with the nearest names that are.

    Args:
        what: the sort of thing, as a reader would say it ("artifact", "option of quantize-static").
        name: what was asked for.
        known: every name that would have been right.
        hint: replaces the default hint.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        message = f"unknown {what}: {name!r}"
        if near:
            message += f"; did you mean {' or '.join(near)}?"
        elif known:
            shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
            message += f"; known: {shown}"
        super().__init__(message, hint)
        self.name = name
        self.near = near


class Inconclusive(MlOptError):
    """There is too little data, or too much noise, to say yes or no."""

    exit_code = 3


class MissingPiece(MlOptError):
    """This machine lacks a package, a provider, a driver, a permission or room on its disk."""

    exit_code = 4


class Damaged(MlOptError):
    """An artifact's files are not the ones that its manifest names."""

    exit_code = 5


#: Which extra brings which import; the pip line in an error is made from it.
_EXTRA_OF = {
    "torch": "build",
    "transformers": "build",
    "safetensors": "build",
    "huggingface_hub": "build",
    "onnx": "cpu",
    "onnx_ir": "cpu",
    "onnxscript": "build",
    "onnxruntime": "cpu",
    "onnxruntime_ep_openvino": "openvino",
    "openvino": "openvino-native",
    "onnxruntime_ep_nv_tensorrt_rtx": "rtx",
    "numpy": "cpu",
    "tokenizers": "data",
    "PIL": "data",
    "pyarrow": "data",
    "onnxruntime_genai": "genai",
    "jinja2": "genai",
    "llguidance": "genai",
    "seqeval": "metrics",
    "aiohttp": "http",
    "jwt": "serve",
    "cryptography": "serve",
    "limits": "serve",
    "redis": "serve-redis",
    "opentelemetry": "serve-otel",
    "accelerate": "train",
    "uvicorn": "serve",
    "httptools": "serve",
    "uvloop": "serve",
    "starlette": "serve",
    "orjson": "serve",
    "prometheus_client": "serve",
    "grpc": "serve-grpc",
    "google": "serve-grpc",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "cuda": "tensorrt-rtx",
}


#: Extras that bring ONNX Runtime for processors, and those that bring its build for GPUs, which is the same module.
_ON_GPU = {"cpu": "gpu", "genai": "genai-gpu", "serve": "serve-gpu"}


def missing_package(module: str, wanted_for: str) -> MissingPiece:
    """The error for an import that failed because an extra is not installed.

    Args:
        module: the module that could not be imported (``error.name``).
        wanted_for: what needed it, e.g. "export-onnx".
    """
    module = module.partition(".")[0]
    extra = _EXTRA_OF.get(module)
    if extra in _ON_GPU and module != "onnxruntime" and _has_gpu_build():
        extra = _ON_GPU[extra]
    line = f'pip install "ml-opt[{extra}]"' if extra else f"pip install {module}"
    also = '  (on an NVIDIA GPU: pip install "ml-opt[gpu]")' if module == "onnxruntime" else ""
    return MissingPiece(f"{wanted_for} needs the package {module}, which is not installed", f"run: {line}{also}")


def _has_gpu_build() -> bool:
    """Whether ONNX Runtime's build for GPUs is installed, beside which the one for processors must not be."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
