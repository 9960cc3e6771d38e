"""What OpenVINO is told, whichever way it comes: as a plugin of ONNX Runtime, or as a package of its own."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from optimizer.errors import MissingPiece, missing_package
from optimizer.runtime import SessionOptions

__all__ = ["PRECISIONS", "config", "library", "need_capability"]

_TELEMETRY = "openvino_telemetry"

#: Precision → OpenVINO's name of it. The first is the default.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

#: What makes a processor list a precision among its capabilities.
_BRINGS = {"bf16": "AMX or AVX512-BF16", "fp16": "AVX512-FP16"}


def config(options: SessionOptions, precision: str, threads: int) -> dict[str, str]:
    """Properties of the device ``CPU``.

    The precision is always named: left to itself, OpenVINO computes fp32 files in bf16 wherever the processor has it.
    """
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
        **({"NUM_STREAMS": str(options.streams)} if options.streams > 1 else {}),
        **options.extra,
    }


def need_capability(provider: str, precision: str, capabilities: Collection[str]) -> None:
    """Refuse a precision that the processor does not compute in: OpenVINO takes the hint and does not follow it.

    Args:
        provider: for the message.
        precision: that was asked for.
        capabilities: what the device says it can do (``OPTIMIZATION_CAPABILITIES``).

    Raises:
        MissingPiece: it is not among them.
    """
    if precision.upper() in capabilities:
        return
    raise MissingPiece(
        f"this processor cannot compute in {precision}: OpenVINO would run in another precision without a word",
        f"use {provider} (fp32), or a machine with {_BRINGS.get(precision, 'that')}",
    )


def library() -> Any:
    """The package, without its telemetry.

    Unless the user has opted out, importing it writes an id into the home folder and reports the import to its maker.
    It has a stub for where its telemetry package is not installed, and takes that when the import fails.
    """
    silenced = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if silenced:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise missing_package(error.name or "openvino", "running ONNX files with OpenVINO") from None
    finally:
        if silenced:
            del sys.modules[_TELEMETRY]
    return openvino
