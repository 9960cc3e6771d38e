"""What is worth trying on a machine, and why the rest is not. Nothing is made or run to know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.engines.flavors import FLAVORS
from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.runtime import GPU_PROVIDERS, TENSORRT_NATIVE, Provider
from optimizer.search.machine import Machine
from optimizer.types import JSON, Device, Precision

__all__ = [
    "QAT",
    "STATIC",
    "TARGETS",
    "TEXT_EXPORT",
    "Idea",
    "LeftOut",
    "Plan",
    "StepOf",
    "plan",
    "planned",
    "split_names",
]

#: What ``--target`` may name, and the providers behind each.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "ort": ("cpu", "cuda"),
    "openvino": ("openvino", "openvino-native"),
    "tensorrt": ("tensorrt", "rtx", TENSORRT_NATIVE),
}

#: What a session says of products in a precision (:meth:`optimizer.runtime.Session.runs`); others are not asked about.
_SAID: Mapping[Precision, str] = {Precision.INT8: "int8", Precision.INT4: "int4", Precision.BF16: "bfloat16"}

#: The stage that needs calibration, and whose candidates have milder kin (:mod:`optimizer.search.kin`).
STATIC = "quantize-static"
#: The stage that may take its place (:mod:`optimizer.search.trained`).
QAT = "quantize-qat"
_ENGINE = "build-trt-engine"
#: The stage that makes every candidate that writes text, from the source model itself.
TEXT_EXPORT = "export-genai"


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
        steps: stages after the export; none when the export itself is run. A stage that takes a source model starts
            from the one that was exported.
        why: what speaks for it.
    """

    name: str
    precision: Precision
    provider: Provider
    steps: tuple[StepOf, ...]
    why: str

    @property
    def family(self) -> str:
        """Candidates of one family differ only in how int8 was calibrated or trained; empty for one that stands alone.

        OpenVINO's int8 with fp32 between its products stands alone: what calibrating loses, it loses as its sister with
        bf16 does, whose milder kin are tried.
        """
        static = any(step.stage in (STATIC, QAT) for step in self.steps) and self.provider.precision != "fp32"
        builder = f"+{self.builder}" if self.builder else ""
        return f"{STATIC}+{self.provider}{builder}" if static else ""

    @property
    def builder(self) -> str:
        """The flavour of builder that its engine is built by; empty for one that is run as a graph."""
        return next((str(step.options["flavor"]) for step in self.steps if step.stage == _ENGINE), "")

    @property
    def asked(self) -> str:
        """What some of its products must be seen to run in; empty where that is not looked at."""
        return _SAID.get(self.precision, "")

    @property
    def chain(self) -> tuple[str, ...]:
        """Every stage from the model on: a text generator is exported in its precision, all else from one export."""
        stages = tuple(step.stage for step in self.steps)
        return stages if stages[:1] == (TEXT_EXPORT,) else ("export-onnx", *stages)

    @property
    def plain(self) -> bool:
        """It is the export itself, as ONNX Runtime takes it."""
        return not self.steps and self.provider.name == "cpu"

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
class Plan:
    """What will be tried, in order, and what will not."""

    ideas: tuple[Idea, ...]
    left_out: tuple[LeftOut, ...]


_CPU = Provider("cpu")
_DYNAMIC, _WEIGHTS = "quantize-dynamic", "quantize-weights"


def _ideas(data: Mapping[str, JSON], machine: Machine) -> Iterable[Idea]:
    """Every candidate there is, the likeliest winners right behind fp32, which anything must beat."""
    yield Idea("fp32", Precision.FP32, _CPU, (), "exact; what is kept when nothing else is better")
    yield from _on_gpu(data)
    yield from _on_openvino(data, machine)
    yield from _on_processor(data, machine)
    yield Idea("fp32-fused", Precision.FP32, _CPU, (StepOf("ort-optimize"),), "exact, with fewer and larger operators")


def _static(data: Mapping[str, JSON], **options: JSON) -> tuple[StepOf, ...]:
    return (StepOf(STATIC, {**data, **options}),)


def _on_gpu(data: Mapping[str, JSON]) -> Iterable[Idea]:
    """int8 of ONNX Runtime's CUDA provider is not among them: it is slower than its fp16."""
    fp16 = (StepOf("cast", {"to": "fp16"}),)
    symmetric = _static(data, symmetric=True)
    int8 = "int8 tensor cores; symmetric, as TensorRT takes no other"
    for flavor in FLAVORS:
        native, build = Provider(TENSORRT_NATIVE), (StepOf(_ENGINE, {"flavor": flavor}),)
        why = "tensor cores and kernels chosen for this very GPU, its launches one CUDA graph, and no ONNX Runtime"
        yield Idea(f"fp16-{flavor}-engine", Precision.FP16, native, fp16 + build, why)
        yield Idea(f"int8-static-{flavor}-engine", Precision.INT8, native, symmetric + build, f"the same with {int8}")
    for name in ("tensorrt", "rtx"):
        provider = Provider(name)
        yield Idea(f"fp16-{name}", Precision.FP16, provider, fp16, "tensor cores, and kernels chosen for this very GPU")
        yield Idea(f"int8-static-{name}", Precision.INT8, provider, symmetric, int8)
    fused = (StepOf("ort-optimize", {"target": "cuda"}), *fp16)
    why = "half the traffic, tensor cores, and attention in one kernel"
    yield Idea("fp16-fused-cuda", Precision.FP16, Provider("cuda"), fused, why)
    yield Idea("fp16-cuda", Precision.FP16, Provider("cuda"), fp16, "half the traffic, and tensor cores")


def _on_openvino(data: Mapping[str, JSON], machine: Machine) -> Iterable[Idea]:
    """Static int8 in its usual form: unsigned activations with zero points, signed weights with a scale a channel.

    OpenVINO runs every product of it in int8; of dynamic int8 (MatMulInteger) none, so that it is not among them.
    """
    fp16 = (StepOf("cast", {"to": "fp16"}),)
    bf16 = Provider(machine.openvino, "bf16")
    yield Idea("bf16-openvino", Precision.BF16, bf16, (), "bf16 matrix units, and no calibration")
    yield Idea("bf16-openvino-fp16-file", Precision.BF16, bf16, fp16, "the same from half the file")
    rest = "bf16" if machine.bf16 else "fp32"
    provider = bf16 if machine.bf16 else Provider(machine.openvino)
    why = f"int8 products, and {rest} between them"
    yield Idea("int8-static-openvino", Precision.INT8, provider, _static(data), why)
    smooth = _static(data, smooth=True)
    why = "the same, outliers moved from activations into weights"
    yield Idea("int8-static-smooth-openvino", Precision.INT8, provider, smooth, why)
    if machine.bf16:
        plain = Provider(machine.openvino, "fp32")
        why = "int8 products, and fp32 between them: in a small model, bf16 there costs more than it saves"
        yield Idea("int8-static-openvino-fp32", Precision.INT8, plain, _static(data), why)


def _on_processor(data: Mapping[str, JSON], machine: Machine) -> Iterable[Idea]:
    int8, int4 = Precision.INT8, Precision.INT4
    learned: dict[str, JSON] = {**data, "algorithm": "gptq"} if data["calib"] else {}
    narrow: dict[str, JSON] = {"reduce_range": True} if machine.saturates else {}
    data = {**data, **narrow}
    dynamic = (StepOf(_DYNAMIC, narrow),)
    yield Idea("int8-dynamic", int8, _CPU, dynamic, "a quarter of the weights, no calibration")
    # Biases go into the products that they are added to: the same answers, some 5 % sooner.
    fused = (StepOf("ort-optimize", {"allow_unfused": True}),) if machine.fusing else ()
    yield Idea("int8-static", int8, _CPU, _static(data) + fused, "no ranges to find while it runs")
    clipped = _static(data, method="percentile") + fused
    yield Idea("int8-static-percentile", int8, _CPU, clipped, "the same with outliers clipped")
    smooth = _static(data, smooth=True) + fused
    yield Idea("int8-static-smooth", int8, _CPU, smooth, "outliers moved from activations into weights")
    blocks = (StepOf(_WEIGHTS, {"bits": 8}),)
    why = "the most exact int8, as every block has its scale; faster than fp32 on short rows"
    yield Idea("int8-weights", int8, _CPU, blocks, why)
    name, how = ("int4-weights-gptq", "in view of each other's errors") if learned else ("int4-weights", "as they are")
    blocks = (StepOf(_WEIGHTS, {"bits": 4, **learned}),)
    yield Idea(name, int4, _CPU, blocks, f"an eighth of the products' weights, rounded {how}")
    blocks = (StepOf(_WEIGHTS, {"bits": 4, "tables": "int4", **learned}),)
    yield Idea(f"{name}-int4-tables", int4, _CPU, blocks, "an eighth of the lookup tables too")


@dataclass(frozen=True)
class _Asked:
    """What was asked of a plan; see :func:`plan`."""

    calib: Path | None
    precisions: tuple[str, ...]
    targets: tuple[str, ...]
    device: Device
    objective: str


def plan(
    machine: Machine,
    *,
    calib: Path | None = None,
    columns: tuple[str, ...] = (),
    precisions: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    device: Device = Device.AUTO,
    objective: str = "latency",
) -> Plan:
    """List what is worth trying.

    Args:
        machine: what it would run on.
        calib: calibration data; static quantization is left out without.
        columns: what its columns are, as ``--column`` has it.
        precisions: only these. int8 that is asked for is tried even where nothing speaks for it, and so is int4.
        targets: only these, of :data:`TARGETS`.
        device: only there.
        objective: what the best has most of: ``latency``, ``throughput`` or ``size``.

    Raises:
        BadInput: what was asked leaves nothing to try.
        MissingPiece: ``--device cuda`` without a GPU that can be used.
    """
    if device is Device.CUDA and not machine.gpu:
        raise MissingPiece(
            "--device cuda needs an NVIDIA GPU and a provider that computes on it (onnxruntime-gpu, TensorRT), and "
            "this machine lacks one of them",
            "`ml-opt doctor` says which; or leave --device out",
        )
    asked = _Asked(calib, precisions, targets, device, objective)
    ideas: list[Idea] = []
    left: list[LeftOut] = []
    data: dict[str, JSON] = {"calib": str(calib) if calib else "", **({"column": list(columns)} if columns else {})}
    for idea in _ideas(data, machine):
        reason = _not_asked(idea, asked) or _not_here(idea, machine) or _no_use(idea, machine, asked)
        if reason:
            left.append(LeftOut(idea.name, reason))
        else:
            ideas.append(idea)
    return planned(ideas, left, "--precision, --target, --device")


def planned(ideas: Sequence[Idea], left: Sequence[LeftOut], narrowed_by: str) -> Plan:
    """The plan; raises :class:`BadInput` where nothing is left to try, and names the options that leave it out."""
    if not ideas:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in left if "was asked for" not in each.reason)
        raise BadInput(
            "nothing is left to try" + (f" ({reasons})" if reasons else ": no candidate is all that was asked for"),
            f"ask for fewer things: {narrowed_by}",
        )
    return Plan(tuple(ideas), tuple(left))


def _not_asked(idea: Idea, asked: _Asked) -> str:
    """Why an idea is none of what was asked for; empty when it is."""
    if asked.precisions and idea.precision not in asked.precisions:
        return f"--precision {','.join(asked.precisions)} was asked for"
    if asked.targets and idea.target not in asked.targets:
        return f"--target {','.join(asked.targets)} was asked for"
    on_gpu = idea.provider.name in GPU_PROVIDERS
    if asked.device is not Device.AUTO and on_gpu != (asked.device is Device.CUDA):
        return f"--device {asked.device} was asked for"
    return ""


def _not_here(idea: Idea, machine: Machine) -> str:
    """What this machine lacks for an idea."""
    if idea.provider.name not in machine.providers:
        return machine.why_not(idea.provider.name)
    if idea.provider.precision == "bf16" and not machine.bf16:
        return "this processor has no bf16 arithmetic (neither AMX nor AVX512-BF16)"
    if idea.builder and idea.builder not in machine.builders:
        flavor = FLAVORS[idea.builder]
        return f'{flavor.title} is not installed: pip install "ml-opt[{flavor.extra}]"'
    if idea.builder in machine.misfits:
        return f"{FLAVORS[idea.builder].title} does not run on this GPU"
    if any(step.stage == "ort-optimize" for step in idea.steps) and not machine.fusing:
        return 'fusing needs onnxscript: pip install "ml-opt[build]"'
    return ""


def _no_use(idea: Idea, machine: Machine, asked: _Asked) -> str:
    """Why an idea that could be tried is not worth its time."""
    insisted = idea.precision in asked.precisions
    small = asked.objective == "size"
    on_gpu = idea.provider.name in GPU_PROVIDERS
    if idea.precision is Precision.INT8 and not (machine.int8 or on_gpu or insisted or small):
        # AVX2 adds half as many products again in int8 as in float: worth the form that takes no calibration.
        if not machine.saturates:
            return "this processor has no int8 arithmetic that is known here; --precision int8 tries it all the same"
        if not any(step.stage == _DYNAMIC for step in idea.steps):
            return "this processor has no VNNI: of int8 only int8-dynamic is tried; --precision int8 tries it as well"
    if idea.precision is Precision.INT4 and not (insisted or small):
        return "4 bits lose more than int8 and are no faster than it; --precision int4 or --objective size tries it"
    if any(step.stage == STATIC for step in idea.steps) and asked.calib is None:
        return "static quantization needs calibration data: --calib FILE"
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
