"""Looking at a machine: every provider is tried, none is believed."""

from __future__ import annotations

from dataclasses import asdict

from optimizer import runtime as runtimes
from optimizer.environment import describe, gpu_facts, has_module, version_of
from optimizer.types import JSON

__all__ = ["examine"]

#: What each extra is for, and a module that is only there when it is installed.
_EXTRAS = {
    "cpu": ("onnxruntime", "run and quantize ONNX artifacts on a processor"),
    "openvino": ("onnxruntime_ep_openvino", "bf16 and int8 on Intel's processors, through ONNX Runtime"),
    "openvino-native": ("openvino", "bf16 and int8 on any maker's processors, through OpenVINO itself"),
    "build": ("transformers", "export models from PyTorch"),
    "data": ("tokenizers", "read texts, images and tables for calibration and verification"),
}


def examine() -> dict[str, JSON]:
    """Everything ``ml-opt doctor`` prints.

    Returns:
        ``environment``, ``providers`` (name, ok, reason, hint, facts), ``extras`` (name, ok, for, hint), ``tensorrt``
        (flavour → version or None), ``advice`` (sentences about what this machine is good at).
    """
    providers = [asdict(runtimes.probe(name)) for runtime in runtimes.discover().values() for name in runtime.providers]
    extras = []
    for name, (module, purpose) in _EXTRAS.items():
        ok = has_module(module)
        extras.append({"name": name, "ok": ok, "for": purpose, "hint": "" if ok else f'pip install "ml-opt[{name}]"'})
    environment = describe()
    return {
        "report": "doctor",
        "schema": 1,
        "environment": environment,
        "providers": [p for p in providers if p["name"] != "fake"],
        "extras": extras,
        "tensorrt": {
            "tensorrt": version_of("tensorrt"),
            "tensorrt-rtx": version_of("tensorrt-rtx-cu13") or version_of("tensorrt-rtx-cu12"),
        },
        "advice": _advice(environment["cpu"]["features"], runtimes.openvino_here() or "openvino-native"),
    }


def _advice(features: list[str], openvino: str) -> list[str]:
    """What is likely fast on a processor, and the provider by which OpenVINO computes there."""
    advice = []
    if "amx_bf16" in features:
        advice.append(f"AMX: bf16 through {openvino}:bf16 is likely the fastest here, and more exact than int8")
    elif "avx512_bf16" in features:
        advice.append(
            f"AVX512-BF16 without AMX: {openvino}:bf16 is likely faster than fp32 here, and more exact than int8; "
            "measure which of the two is the fastest"
        )
    elif "avx512_vnni" in features or "avx_vnni" in features:
        advice.append("VNNI without AMX: int8 is likely the fastest here")
    elif "avx2" in features:
        advice.append("no VNNI: int8 wants 7-bit weights here (--reduce-range), and may be little faster than fp32")
    if gpu_facts():
        advice.append("NVIDIA GPU: fp16 on the cuda or tensorrt provider is likely the fastest")
    return advice
