"""What is worth trying of a model that writes text, and why the rest is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from optimizer.errors import MissingPiece
from optimizer.generator import KV8
from optimizer.runtime import Provider
from optimizer.search.candidates import TEXT_EXPORT, Idea, LeftOut, Plan, StepOf, planned
from optimizer.search.machine import Machine
from optimizer.types import JSON, Device, Precision

__all__ = ["TEXT_TARGETS", "plan_texts"]

#: Of :data:`~optimizer.search.candidates.TARGETS`, those that write text.
TEXT_TARGETS = ("ort", "openvino")
_CPU, _CUDA = Provider("cpu"), Provider("cuda")
#: OpenVINO runs what is exported for processors.
_NATIVE = "openvino-native"
#: Precisions of 16 bits, and why no processor runs a decoder in them.
_HALVES = (Precision.FP16, Precision.BF16)
_NO_HALVES = "on a processor, ONNX Runtime lacks the kernels of a decoder in 16 bits"
_NO_BF16 = "the processor has no bf16 arithmetic"
_NO_PAIRS = "models that read with an encoder run on ONNX Runtime's processor provider alone"
_NO_MIXED = "which products are sensitive is known of decoders alone"


def _ideas(common: Mapping[str, JSON], bf16: bool, learned: Mapping[str, JSON]) -> Iterable[Idea]:
    """Every candidate there is, the likeliest winners right behind fp32, which anything must beat.

    With text to learn from, GPTQ takes the place of k_quant: its scales are the same and its products no slower.
    """

    def made(name: str, precision: Precision, provider: Provider, why: str, **options: JSON) -> Idea:
        on = {"provider": provider.name} if provider is _CUDA else {}
        step = StepOf(TEXT_EXPORT, {"precision": precision.value, **options, **on, **common})
        return Idea(name, precision, provider, (step,), why)

    int8, int4 = Precision.INT8, Precision.INT4
    yield made("fp32", Precision.FP32, _CPU, "exact; what is kept when nothing else is better")
    for half in _HALVES:
        yield made(f"{half}-cuda", half, _CUDA, "half the traffic, and tensor cores")
        yield made(str(half), half, _CPU, "half the traffic")
    why = "an eighth of the traffic: a step of decoding reads every weight"
    yield made("int4-cuda", int4, _CUDA, why)
    yield made("int4", int4, _CPU, why)
    yield from _on_openvino(made, bf16, learned)
    way = "gptq" if learned else "k_quant"
    why = "the same, scales and zero points searched as llama.cpp does it"
    if learned:
        why += ", each weight rounded in view of the errors before it (GPTQ, --calib)"
    yield made(f"int4-{way}", int4, _CPU, why, algorithm=way, **learned)
    why = "the same with the head in 8 bits: what every token goes through"
    yield made(f"int4-{way}_last", int4, _CPU, why, algorithm=f"{way}_last", **learned)
    why = "the same with other sensitive products in 8 bits too: values and the ends of the first and last layers"
    yield made(f"int4-{way}_mixed", int4, _CPU, why, algorithm=f"{way}_mixed", **learned)
    why = "the most exact int4: a scale for 16 weights"
    yield made(f"int4-{way}-b16", int4, _CPU, why, algorithm=way, block_size=16, **learned)
    if learned:
        why = "a scale for 128 weights, and GPTQ to make up for that"
        yield made("int4-gptq-b128", int4, _CPU, why, algorithm=way, block_size=128, **learned)
    why = "4 bits with the head, and the table of tokens, in float"
    yield made("int4-float-head", int4, _CPU, why, float_head=True, share_embeddings=False)
    yield made("int4-b128", int4, _CPU, "the smallest: a scale for 128 weights", block_size=128)
    yield made("int8", int8, _CPU, "a quarter of the traffic, and hardly any loss")
    yield made("int8-b128", int8, _CPU, "the same with fewer scales", block_size=128)


def _on_openvino(made: Callable[..., Idea], bf16: bool, learned: Mapping[str, JSON]) -> Iterable[Idea]:
    """The same files where products of many rows are the faster ones, with bf16 between those in integers."""
    half = Provider(_NATIVE, "bf16")
    why = "half the traffic, and products in bf16: the fastest to read prompts, and to write many texts at once"
    yield replace(made("bf16-openvino", Precision.FP32, half, why), precision=Precision.BF16)
    for precision in (Precision.INT4, Precision.INT8):
        why = "weights in integers, for prompts and many texts at once"
        yield made(f"{precision}-openvino", precision, half if bf16 else Provider(_NATIVE), why)
    if learned:
        why = "the same file as int4-gptq_last: what GPTQ learned is in the levels, whatever reads them"
        way: dict[str, JSON] = {"algorithm": "gptq_last", **learned}
        yield made("int4-openvino-gptq", Precision.INT4, half if bf16 else Provider(_NATIVE), why, **way)
    why = "keys and values in 8 bits too: for many texts, and long ones"
    kept = Provider(_NATIVE, f"{'bf16' if bf16 else 'fp32'}{KV8}")
    yield made("int4-openvino-kv8", Precision.INT4, kept, why)


def plan_texts(
    machine: Machine,
    *,
    common: Mapping[str, JSON] | None = None,
    learned: Mapping[str, JSON] | None = None,
    precisions: tuple[str, ...] = (),
    targets: tuple[str, ...] = (),
    device: Device = Device.AUTO,
    pairs: bool = False,
) -> Plan:
    """List what is worth trying.

    Args:
        machine: what it would run on.
        common: options of the export that every candidate has.
        learned: options of it that say what GPTQ learns from (``calib``, ``column``); without, nothing is learned.
        precisions: only these.
        targets: only these, of :data:`TEXT_TARGETS`.
        device: only there.
        pairs: the model reads with an encoder, and writes with a decoder.

    Raises:
        BadInput: what was asked leaves nothing to try.
        MissingPiece: ``--device cuda`` without a GPU that can be used.
    """
    if device is Device.CUDA and not machine.gpu:
        raise MissingPiece(
            "--device cuda needs an NVIDIA GPU and a provider that computes on it, and this machine lacks one of them",
            "`ml-opt doctor` says which; or leave --device out",
        )
    ideas: list[Idea] = []
    left: list[LeftOut] = []
    for idea in _ideas(common or {}, machine.bf16, learned or {}):
        on_gpu = idea.provider is _CUDA
        reason = ""
        if precisions and idea.precision not in precisions:
            reason = f"--precision {','.join(precisions)} was asked for"
        elif targets and idea.target not in targets:
            reason = f"--target {','.join(targets)} was asked for"
        elif device is not Device.AUTO and on_gpu != (device is Device.CUDA):
            reason = f"--device {device} was asked for"
        elif pairs and idea.provider is not _CPU:
            reason = _NO_PAIRS
        elif pairs and str(idea.steps[0].options.get("algorithm", "")).endswith("_mixed"):
            reason = _NO_MIXED
        elif on_gpu and "cuda" not in machine.providers:
            reason = machine.why_not("cuda")
        elif idea.provider.name == _NATIVE and _NATIVE not in machine.providers:
            reason = machine.why_not(_NATIVE)
        elif idea.provider.precision == "bf16" and not machine.bf16:
            reason = _NO_BF16
        elif idea.provider is _CPU and idea.precision in _HALVES:
            reason = _NO_HALVES
        if reason:
            left.append(LeftOut(idea.name, reason))
        else:
            ideas.append(idea)
    return planned(ideas, left, "--precision, --target, --device")
