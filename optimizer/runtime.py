"""What runs an artifact: the two protocols that torch, ONNX Runtime, TensorRT and the fake one all speak."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from optimizer.discovery import members
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Availability", "Candidate", "Provider", "Runtime", "Session", "SessionOptions", "discover", "get_runtime"]

Arrays = "dict[str, NDArray[np.generic]]"


@dataclass(frozen=True)
class Provider:
    """A back end and, where it has a choice, the precision it computes in: ``cpu``, ``openvino``, ``openvino:bf16``."""

    name: str
    precision: str = ""

    @classmethod
    def parse(cls, text: str) -> Provider:
        name, _, precision = text.strip().lower().partition(":")
        if not name:
            raise BadInput(f"{text!r} is not a provider", "write a name such as cpu, openvino or openvino:bf16")
        return cls(name, precision)

    def __str__(self) -> str:
        return f"{self.name}:{self.precision}" if self.precision else self.name


@dataclass(frozen=True)
class SessionOptions:
    """How to open a session.

    Attributes:
        provider: back end and precision; what is asked and not got is an error.
        threads: intra-op threads; 0 means one a physical core that this process may use.
        tf32: allow TF32 in fp32 matrix products on NVIDIA GPUs.
        extra: provider options handed to the vendor as they are.
    """

    provider: Provider = Provider("cpu")
    threads: int = 0
    tf32: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Availability:
    """Whether something can run here, and if not, why and what to type."""

    name: str
    ok: bool
    reason: str = ""
    hint: str = ""
    facts: dict[str, JSON] = field(default_factory=dict)


@runtime_checkable
class Session(Protocol):
    """An open model.

    Attributes:
        inputs: what :meth:`run` must be fed.
        outputs: what it returns.
        facts: what was really got: provider, precision, threads, nodes by provider, load seconds.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: dict[str, JSON]

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once: arrays by input name in, arrays by output name out."""

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """A call that runs the same feeds again with every copy already made: what a benchmark times."""

    def close(self) -> None:
        """Give back memory and threads."""


@dataclass(frozen=True)
class Runtime:
    """One library that opens artifacts.

    Attributes:
        name: ``onnxruntime``, ``torch``, ``tensorrt``, ``fake``.
        providers: names that :class:`Provider` may have here, with the precisions each one takes.
        open: ``open(path, options)`` → :class:`Session`. ``path`` is an ``.onnx`` file for ONNX runtimes and a
            model folder for torch.
        available: whether a provider can run on this machine, found out by loading it.
    """

    name: str
    help: str
    providers: Mapping[str, tuple[str, ...]]
    open: Callable[..., Session]
    available: Callable[[str], Availability]


@functools.cache
def discover() -> dict[str, Runtime]:
    """Every runtime of :mod:`optimizer.runtimes`, by name."""
    return members("optimizer.runtimes", "RUNTIME")


def get_runtime(provider: Provider) -> Runtime:
    """The runtime that has this provider.

    Raises:
        UnknownName: no runtime has it, or it does not take this precision.
    """
    names: dict[str, Runtime] = {}
    for runtime in discover().values():
        for name in runtime.providers:
            names[name] = runtime
    if provider.name not in names:
        raise UnknownName("provider", provider.name, names)
    runtime = names[provider.name]
    precisions = runtime.providers[provider.name]
    if provider.precision and provider.precision not in precisions:
        raise UnknownName(f"precision of {provider.name}", provider.precision, precisions or ("none: leave it out",))
    return runtime


@dataclass(frozen=True)
class Candidate:
    """Something that can be opened: the file, how to open it, and what to call it in a report.

    Attributes:
        label: its name in tables (``minilm:int8-dynamic``, ``minilm:fp32+openvino:bf16``, ``torch``).
        path: ``.onnx`` file, or a model folder for torch.
        provider: back end and precision.
        key: the artifact's key, when there is one.
        model: what the model is (task, limits), from the manifest.
        extra: what the runtime must know beside the file (task, revision).
    """

    label: str
    path: Path
    provider: Provider
    key: str = ""
    model: Mapping[str, JSON] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def open(self, threads: int = 0, tf32: bool = True) -> Session:
        """Open it with the runtime of its provider."""
        options = SessionOptions(self.provider, threads, tf32)
        return get_runtime(self.provider).open(self.path, options, model=dict(self.model))
