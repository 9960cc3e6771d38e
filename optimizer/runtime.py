"""What runs an artifact: the two protocols that torch, ONNX Runtime, TensorRT and the fake one all speak."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from optimizer.discovery import members
from optimizer.environment import has_module
from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "GPU_PROVIDERS",
    "SHAPED",
    "STREAMING",
    "TENSORRT_NATIVE",
    "Availability",
    "Candidate",
    "Provider",
    "Runtime",
    "Session",
    "SessionOptions",
    "discover",
    "get_runtime",
    "is_openvino",
    "openvino_here",
    "preferred",
    "probe",
    "works",
]

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
        watch: record the first run, for :meth:`Session.runs`.
        extra: provider options handed to the vendor as they are.
        spin: threads look for their next work without sleeping, which is the fastest for a model alone on its cores;
            a server turns it off, as its own threads need them between two runs. ONNX Runtime alone has the choice.
        streams: threads that call :meth:`Session.run` at the same time, each run on its share of ``threads``, which
            has to be one; for providers in :data:`STREAMING`.
    """

    provider: Provider = Provider("cpu")
    threads: int = 0
    tf32: bool = True
    watch: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    spin: bool = True
    streams: int = 1


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

    def runs(self) -> dict[str, JSON] | None:
        """What has really computed: products by number format, as in ``{"int8": 36, "float32": 12, "fell_back": []}``.

        ``int8-weights`` and ``int4-weights`` count products whose weights are stored so; ``fell_back`` names those that
        the file wants in int8 and that were computed in float. None where nobody can say: the runtime does not tell,
        or the session was not opened to be watched (:attr:`SessionOptions.watch`). To be asked after a run.
        """

    def close(self) -> None:
        """Give back memory and threads."""


@dataclass(frozen=True)
class Runtime:
    """One library that opens artifacts.

    Attributes:
        name: ``onnxruntime``, ``openvino``, ``torch``, ``fake``.
        providers: names that :class:`Provider` may have here, with the precisions each one takes.
        open: ``open(path, options)`` → :class:`Session`. ``path`` is an ``.onnx`` file for ONNX runtimes, an
            artifact's ``model.engine`` for engines, and a model folder for torch.
        available: whether a provider can run on this machine, found out by loading it.
        onnx: it opens ``.onnx`` files.
        engines: it opens ``model.engine`` of an artifact.
        compile: ``compile(path, target, options, profile, embed=…)`` → versions: writes an ``.onnx`` file as a provider
            compiles it, for the shapes of a :class:`~optimizer.engines.profiles.Profile`; None where no provider does.
    """

    name: str
    help: str
    providers: Mapping[str, tuple[str, ...]]
    open: Callable[..., Session]
    available: Callable[[str], Availability]
    onnx: bool = False
    engines: bool = False
    compile: Callable[..., dict[str, JSON]] | None = None


#: Providers are tried in a process of their own: a broken driver may end it, and must not end this one.
_PROBE = """
import json, sys
from dataclasses import asdict
from optimizer.runtime import Provider, get_runtime
name = sys.argv[1]
found = get_runtime(Provider(name)).available(name)
sys.stdout.write("\\n@@" + json.dumps(asdict(found)) + "\\n")
"""
_PROBE_S = 120


@functools.cache
def probe(provider: str) -> Availability:
    """Whether a provider can run on this machine, found out by trying it in another process; once a process."""
    words = [sys.executable, "-c", _PROBE, provider]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        return Availability(provider, False, f"it did not answer within {_PROBE_S} s")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("@@"):
            return Availability(**json.loads(line[2:]))
    tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Availability(provider, False, f"trying it ended the process (code {done.returncode}): {tail}")


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


#: The provider that runs engines through NVIDIA's own bindings (:mod:`optimizer.runtimes.tensorrt`).
TENSORRT_NATIVE = "tensorrt-native"
#: Providers that compute on an NVIDIA GPU.
GPU_PROVIDERS = ("tensorrt", "rtx", "cuda", TENSORRT_NATIVE)

#: Providers in packages of their own, the module that is there when one is installed, and the extra of ml-opt that
#: brings it.
_PACKAGES = {
    "openvino": ("onnxruntime_ep_openvino", "openvino"),
    "openvino-native": ("openvino", "openvino-native"),
    TENSORRT_NATIVE: ("cuda", "tensorrt-rtx"),
    "rtx": ("onnxruntime_ep_nv_tensorrt_rtx", "rtx"),
}
#: Providers whose sessions several threads may run at the same time.
STREAMING = ("cpu", "openvino-native")
#: The two ways that OpenVINO comes, the better known first.
_OPENVINO = ("openvino", "openvino-native")
#: Providers that prepare kernels and memory for every shape that comes, and keep them.
SHAPED = _OPENVINO


def works(provider: str) -> Availability:
    """What :func:`probe` says, which takes a second, without it for a package that is not installed."""
    module, extra = _PACKAGES.get(provider, ("", ""))
    if module and not has_module(module):
        reason, hint = f"the provider {provider} is not installed", f'pip install "ml-opt[{extra}]"'
        return Availability(provider, False, reason, hint)
    return probe(provider)


def openvino_here() -> str | None:
    """The provider by which OpenVINO computes on this machine, each tried as :func:`works` does.

    Returns:
        ``openvino`` where ONNX Runtime's plugin is installed and has a device, ``openvino-native`` where the package of
        its own works, None where neither does.
    """
    return next((name for name in _OPENVINO if works(name).ok), None)


def is_openvino(provider: Provider) -> bool:
    """Whether OpenVINO computes there, whichever way it comes."""
    return provider.name in _OPENVINO


def preferred(text: str) -> Provider:
    """The provider that an artifact says it is made for: ``openvino`` is either of the two that works here."""
    provider = Provider.parse(text)
    if is_openvino(provider) and (here := openvino_here()):
        return replace(provider, name=here)
    return provider


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
        command: what starts the process that measures it; empty for ml-opt's own worker. A peer brings one that speaks
            the lines of :mod:`optimizer.benching.worker`.
    """

    label: str
    path: Path
    provider: Provider
    key: str = ""
    model: Mapping[str, JSON] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    def open(self, threads: int = 0, tf32: bool = True, watch: bool = False) -> Session:
        """Open it with the runtime of its provider."""
        options = SessionOptions(self.provider, threads, tf32, watch)
        return get_runtime(self.provider).open(self.path, options, model=dict(self.model))
