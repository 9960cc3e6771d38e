"""The two builders that NVIDIA makes, as what they are installed: without importing either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.environment import gpu_facts, has_module, version_of
from optimizer.errors import MissingPiece
from optimizer.types import JSON

__all__ = ["ELSEWHERE", "FLAVORS", "Flavor", "built_on", "choose", "numbers"]


#: What to do where TensorRT-RTX does not run on a GPU.
ELSEWHERE = 'use the provider cuda (onnxruntime-gpu), or TensorRT itself: pip install "ml-opt[tensorrt]"'


@dataclass(frozen=True)
class Flavor:
    """One of NVIDIA's two builders.

    Attributes:
        name: ``tensorrt`` or ``rtx``.
        title: as its maker writes it.
        module: the Python package.
        distributions: what it is installed as, one for each CUDA.
        extra: the extra of ml-opt that brings it.
        capabilities: that engines can be built for by name; empty where an engine is for the GPU it was built on.
        portable: capabilities of an engine that was built for none by name.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    extra: str
    capabilities: tuple[str, ...] = ()
    portable: tuple[str, ...] = ()

    @property
    def version(self) -> str | None:
        """The installed version, without importing it."""
        return next((found for name in self.distributions if (found := version_of(name))), None)

    @property
    def installed(self) -> bool:
        return has_module(self.module)

    def runs_on(self, capability: str) -> bool:
        """Whether its engines run on a GPU of this compute capability at all; TensorRT's do on every one.

        TensorRT-RTX 1.7 refuses an H100 (9.0) and says what it takes: 8.0, 8.6, 8.9, 12.0, 12.1 and what is newer.
        """
        most = max(map(numbers, self.capabilities), default=())
        return not most or capability in self.capabilities or numbers(capability) > most

    def need(self, gpu: Mapping[str, JSON]) -> None:
        """Refuse a GPU that its engines never run on.

        Args:
            gpu: ``name`` and ``compute_capability``.

        Raises:
            MissingPiece: naming those that they do.
        """
        here = str(gpu["compute_capability"])
        if not self.runs_on(here):
            raise MissingPiece(
                f"{self.title} runs on GPUs of compute capability {', '.join(self.capabilities)} and later, and "
                f"{gpu['name']} here has {here}",
                ELSEWHERE,
            )


#: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html says which GPUs an engine
#: of TensorRT-RTX runs on when nothing is asked for (8.0, 8.6, 8.9, 12.0 and later).
FLAVORS: Mapping[str, Flavor] = {
    each.name: each
    for each in (
        Flavor(
            "tensorrt",
            "TensorRT",
            "tensorrt",
            ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
            "tensorrt",
        ),
        Flavor(
            "rtx",
            "TensorRT-RTX",
            "tensorrt_rtx",
            ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
            "tensorrt-rtx",
            capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
            portable=("8.0", "8.6", "8.9", "12.0"),
        ),
    )
}


def choose(name: str, wanted_for: str = "building engines") -> Flavor:
    """The flavour that is meant; ``auto`` takes TensorRT where it is installed, else TensorRT-RTX.

    Args:
        name: of a flavour, or ``auto``.
        wanted_for: what needs it, for the error.

    Raises:
        MissingPiece: it is not installed, with the line that installs the one for this driver.
    """
    wanted = [FLAVORS[name]] if name != "auto" else list(FLAVORS.values())
    for flavor in wanted:
        if flavor.installed:
            return flavor
    flavor = wanted[-1]
    cuda = "cu12" if _driver_major() in range(1, 580) else "cu13"
    other = f" (or, on a machine with an NVIDIA GPU: pip install tensorrt-{cuda})" if name == "auto" else ""
    line = f'pip install "ml-opt[{flavor.extra}]"' if cuda == "cu13" else f"pip install {flavor.distributions[1]}"
    if flavor.name == "tensorrt" and cuda == "cu12":
        line = "pip install tensorrt-cu12 'cuda-bindings<13'"
    raise MissingPiece(f"{wanted_for} needs {flavor.title}, which is not installed", f"run: {line}{other}")


def numbers(text: str) -> tuple[int, ...]:
    """A version or compute capability as numbers that can be compared: ``8.6`` → ``(8, 6)``."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def built_on() -> dict[str, JSON]:
    """``gpu`` and ``driver`` of this machine, for the record of what is built on it; None where there are none."""
    gpus = gpu_facts()
    return {"gpu": gpus[0]["name"] if gpus else None, "driver": gpus[0]["driver"] if gpus else None}


def _driver_major() -> int:
    """The driver's branch, 0 without one. CUDA 13 wants 580 or newer (CUDA's release notes)."""
    for gpu in gpu_facts():
        head = str(gpu.get("driver", "")).partition(".")[0]
        if head.isdigit():
            return int(head)
    return 0
