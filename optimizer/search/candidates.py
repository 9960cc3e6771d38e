"""What is worth trying on a machine, and why the rest is not. Nothing is opened or run to know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.environment import cpu_facts, gpu_facts, has_module, version_of
from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.runtime import Provider
from optimizer.types import JSON, Device, Precision

__all__ = ["STATIC", "TARGETS", "Idea", "LeftOut", "Machine", "Plan", "StepOf", "plan", "split_names"]

#: What ``--target`` may name, and the providers behind each.
TARGETS: Mapping[str, tuple[str, ...]] = {"ort": ("cpu", "cuda"), "openvino": ("openvino",)}

#: The stage that needs calibration, and whose candidates have milder kin (:mod:`optimizer.search.kin`).
STATIC = "quantize-static"


@dataclass(frozen=True)
class StepOf:
    """One stage of a candidate's chain, and its options."""

    stage: str
    options: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Idea:
    """A candidate before it is made.

    Attributes:
        name: what it is called in tables, unique among all ideas.
        precision: what it computes in.
        provider: where it runs.
        steps: stages after the export; none when the export itself is run.
        why: what speaks for it.
    """

    name: str
    precision: Precision
    provider: Provider
    steps: tuple[StepOf, ...]
    why: str

    @property
    def family(self) -> str:
        """Candidates of one family differ only in how static int8 was calibrated; empty for one that stands alone."""
        static = any(step.stage == STATIC for step in self.steps)
        return f"{STATIC}+{self.provider}" if static else ""

    @property
    def target(self) -> str:
        return next(name for name, providers in TARGETS.items() if self.provider.name in providers)

    def to_json(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "precision": self.precision.value,
            "provider": str(self.provider),
            "steps": [{"run": step.stage, **step.options} for step in self.steps],
            "why": self.why,
        }


@dataclass(frozen=True)
class LeftOut:
    """A candidate that is not tried, and why."""

    name: str
    reason: str

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


@dataclass(frozen=True)
class Machine:
    """What decides which candidates make sense.

    Attributes:
        features: of the processor, as /proc/cpuinfo names them.
        gpu: there is an NVIDIA GPU, and an ONNX Runtime that knows it.
        openvino: the OpenVINO provider is installed.
        fusing: the package is installed that fuses operators.
    """

    features: frozenset[str]
    gpu: bool = False
    openvino: bool = False
    fusing: bool = True

    @classmethod
    def here(cls) -> Machine:
        """The machine that this runs on."""
        return cls(
            features=frozenset(cpu_facts()["features"]),
            gpu=bool(gpu_facts()) and version_of("onnxruntime-gpu") is not None,
            openvino=has_module("onnxruntime_ep_openvino"),
            fusing=has_module("onnxscript"),
        )

    @property
    def int8(self) -> bool:
        """It multiplies int8 faster than float."""
        return bool(self.features & {"avx512_vnni", "avx_vnni", "amx_int8"})

    @property
    def bf16(self) -> bool:
        """It multiplies bf16 faster than float."""
        return bool(self.features & {"amx_bf16", "avx512_bf16"})


@dataclass(frozen=True)
class Plan:
    """What will be tried, in order, and what will not."""

    ideas: tuple[Idea, ...]
    left_out: tuple[LeftOut, ...]


_CPU = Provider("cpu")
_OPENVINO_BF16 = Provider("openvino", "bf16")


def _ideas(calib: Path | None) -> Iterable[Idea]:
    """Every candidate there is, the likeliest winners right behind fp32, which anything must beat."""
    static = {"calib": str(calib) if calib else ""}
    fp16 = StepOf("cast", {"to": "fp16"})
    yield Idea("fp32", Precision.FP32, _CPU, (), "exact; what is kept when nothing else is better")
    yield Idea("fp16-cuda", Precision.FP16, Provider("cuda"), (fp16,), "half the traffic, and tensor cores")
    yield Idea("bf16-openvino", Precision.BF16, _OPENVINO_BF16, (), "bf16 matrix units, and no calibration")
    yield Idea("bf16-openvino-fp16-file", Precision.BF16, _OPENVINO_BF16, (fp16,), "the same from half the file")
    yield Idea(
        "int8-dynamic", Precision.INT8, _CPU, (StepOf("quantize-dynamic"),), "a quarter of the weights, no calibration"
    )
    yield Idea(
        "int8-static",
        Precision.INT8,
        _CPU,
        (StepOf(STATIC, static),),
        "no ranges to find while it runs",
    )
    yield Idea(
        "int8-static-percentile",
        Precision.INT8,
        _CPU,
        (StepOf(STATIC, {**static, "method": "percentile"}),),
        "the same with outliers clipped",
    )
    yield Idea(
        "int8-static-smooth",
        Precision.INT8,
        _CPU,
        (StepOf(STATIC, {**static, "smooth": True}),),
        "outliers moved from activations into weights",
    )
    yield Idea("fp32-fused", Precision.FP32, _CPU, (StepOf("ort-optimize"),), "exact, with fewer and larger operators")


def plan(
    machine: Machine,
    *,
    calib: Path | None = None,
    precisions: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    device: Device = Device.AUTO,
) -> Plan:
    """List what is worth trying.

    Args:
        machine: what it would run on.
        calib: calibration data; static quantization is left out without.
        precisions: only these. int8 that is asked for is tried even where nothing speaks for it.
        targets: only these, of :data:`TARGETS`.
        device: only there.

    Raises:
        BadInput: what was asked leaves nothing to try.
        MissingPiece: ``--device cuda`` without a GPU that can be used.
    """
    if device is Device.CUDA and not machine.gpu:
        raise MissingPiece(
            "--device cuda needs an NVIDIA GPU and onnxruntime-gpu, and this machine lacks one of them",
            "`ml-opt doctor` says which; or leave --device out",
        )
    ideas: list[Idea] = []
    left: list[LeftOut] = []
    for idea in _ideas(calib):
        reason = _against(idea, machine, calib, precisions, targets, device)
        if reason:
            left.append(LeftOut(idea.name, reason))
        else:
            ideas.append(idea)
    if not ideas:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in left if "was asked for" not in each.reason)
        raise BadInput(
            "nothing is left to try" + (f" ({reasons})" if reasons else ": no candidate is all that was asked for"),
            "ask for fewer things: --precision, --target, --device",
        )
    return Plan(tuple(ideas), tuple(left))


def _against(
    idea: Idea,
    machine: Machine,
    calib: Path | None,
    precisions: tuple[str, ...],
    targets: tuple[str, ...],
    device: Device,
) -> str:
    """Why an idea is not worth trying; empty when it is."""
    if precisions and idea.precision not in precisions:
        return f"--precision {','.join(precisions)} was asked for"
    if targets and idea.target not in targets:
        return f"--target {','.join(targets)} was asked for"
    on_gpu = idea.provider.name == "cuda"
    if device is not Device.AUTO and on_gpu != (device is Device.CUDA):
        return f"--device {device} was asked for"
    if on_gpu and not machine.gpu:
        return "no NVIDIA GPU with onnxruntime-gpu here"
    if idea.provider.name == "openvino" and not machine.openvino:
        return 'the OpenVINO provider is not installed: pip install "ml-opt[openvino]"'
    if idea.precision is Precision.BF16 and not machine.bf16:
        return "this processor has no bf16 arithmetic (neither AMX nor AVX512-BF16)"
    if idea.precision is Precision.INT8 and not machine.int8 and Precision.INT8 not in precisions:
        return "this processor has no VNNI: int8 is no faster than float; --precision int8 tries it all the same"
    if any(step.stage == STATIC for step in idea.steps) and calib is None:
        return "static quantization needs calibration data: --calib FILE"
    if any(step.stage == "ort-optimize" for step in idea.steps) and not machine.fusing:
        return 'fusing needs onnxscript: pip install "ml-opt[build]"'
    return ""


def split_names(given: tuple[str, ...], what: str, known: Iterable[str]) -> tuple[str, ...]:
    """``("int8,bf16",)`` or ``("int8", "bf16")`` as separate, known names, each once.

    Raises:
        UnknownName: one of them does not exist.
    """
    names = tuple(dict.fromkeys(name.strip() for each in given for name in each.split(",")))
    allowed = list(known)
    for name in names:
        if name not in allowed:
            raise UnknownName(what, name, allowed)
    return names
