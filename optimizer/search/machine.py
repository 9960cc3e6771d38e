"""What decides which candidates make sense on a machine: by the same trials that ``ml-opt doctor`` makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizer.engines.flavors import FLAVORS
from optimizer.environment import cpu_facts, gpu_facts, has_bf16, has_module, has_vnni, version_of
from optimizer.runtime import GPU_PROVIDERS, works

__all__ = ["Machine"]

#: Those that come with ONNX Runtime's build for GPUs.
_OF_THE_GPU_BUILD = ("tensorrt", "cuda")
_NATIVE = "openvino-native"


@dataclass(frozen=True)
class Machine:
    """What decides which candidates make sense.

    Attributes:
        features: of the processor, as /proc/cpuinfo names them.
        providers: that work here.
        reasons: by provider, why it does not.
        fusing: the package is installed that fuses operators.
        builders: of engines, that are installed; by name of :data:`~optimizer.engines.flavors.FLAVORS`.
        misfits: those of them whose engines do not run on this GPU.
    """

    features: frozenset[str]
    providers: frozenset[str] = frozenset({"cpu"})
    reasons: Mapping[str, str] = field(default_factory=dict)
    fusing: bool = True
    builders: frozenset[str] = frozenset()
    misfits: frozenset[str] = frozenset()

    @classmethod
    def here(cls, texts: bool = False) -> Machine:
        """The machine that this runs on; what might work is tried, each provider in a process of its own.

        Args:
            texts: for a model that writes them, which of OpenVINO's two ways its own package alone does.
        """
        reasons = {name: _reason(name) for name in ("openvino", *GPU_PROVIDERS) if not texts or name != "openvino"}
        if texts or reasons["openvino"]:  # only then, as what both can do is tried once
            reasons[_NATIVE] = _reason(_NATIVE)
        return cls(
            features=frozenset(cpu_facts()["features"]),
            providers=frozenset({"cpu", *(name for name, reason in reasons.items() if not reason)}),
            reasons={name: reason for name, reason in reasons.items() if reason},
            fusing=has_module("onnxscript"),
            builders=frozenset(name for name, flavor in FLAVORS.items() if flavor.installed),
            misfits=frozenset(
                name
                for name, flavor in FLAVORS.items()
                if gpu_facts() and not flavor.runs_on(str(gpu_facts()[0]["compute_capability"]))
            ),
        )

    @property
    def openvino(self) -> str:
        """The provider by which OpenVINO computes here, or would: ONNX Runtime's; its own where that has no device."""
        return _NATIVE if _NATIVE in self.providers and "openvino" not in self.providers else "openvino"

    def why_not(self, provider: str) -> str:
        """Why a provider does not work here."""
        return self.reasons.get(provider) or f"the provider {provider} does not work here: `ml-opt doctor` says why"

    @property
    def gpu(self) -> bool:
        """Some provider computes on an NVIDIA GPU."""
        return any(name in self.providers for name in GPU_PROVIDERS)

    @property
    def int8(self) -> bool:
        """It multiplies int8 faster than float."""
        return has_vnni(self.features)

    @property
    def saturates(self) -> bool:
        """Sums of two products of int8 do not fit into what it adds them in; those of 7-bit weights do."""
        return "avx2" in self.features and not self.int8

    @property
    def bf16(self) -> bool:
        """It multiplies bf16 faster than float."""
        return has_bf16(self.features)


def _reason(provider: str) -> str:
    """Why a provider does not work here; empty when it does. What cannot work is not tried, as that takes a second."""
    if provider in GPU_PROVIDERS and not gpu_facts():
        return "no NVIDIA GPU here"
    if provider in _OF_THE_GPU_BUILD and version_of("onnxruntime-gpu") is None:
        return 'onnxruntime-gpu is not installed: pip uninstall onnxruntime && pip install "ml-opt[gpu]"'
    found = works(provider)
    return "" if found.ok else f"{found.reason} ({found.hint})" if found.hint else found.reason
