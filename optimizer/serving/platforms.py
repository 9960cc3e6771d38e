"""What Triton calls the thing that computes a model: its platform, its backend, and the kind of its instances."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.runtime import GPU_PROVIDERS, Provider, get_runtime
from optimizer.serving.served import Served

__all__ = ["Platform", "platform_of"]

#: Runtime → the word that Triton has for a model of it. ONNX Runtime's providers are all one platform to Triton.
_WORDS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino", "tensorrt": "tensorrt_plan"}


@dataclass(frozen=True)
class Platform:
    """What computes a model.

    Attributes:
        name: Triton's ``platform``; ``ml-opt_…`` for what Triton has no word for (a generator's loop, a planted model).
        backend: the runtime: ``onnxruntime``, ``openvino``, ``tensorrt``, ``genai``, ``torch``, ``fake``.
        kind: of an instance: ``KIND_GPU`` or ``KIND_CPU``.
    """

    name: str
    backend: str
    kind: str


def platform_of(served: Served) -> Platform:
    """What really computes a model that is loaded, by the provider that it got."""
    provider = Provider.parse(str(served.facts.get("provider") or "cpu"))
    kind = "KIND_GPU" if provider.name in GPU_PROVIDERS else "KIND_CPU"
    if served.generator is not None:
        return Platform("ml-opt_generator", str(served.facts.get("runtime", "")), kind)
    backend = get_runtime(Provider(provider.name)).name
    return Platform(_WORDS.get(backend, f"ml-opt_{backend}"), backend, kind)
