"""What every quantized file is held to: something was quantized, and it is smaller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact, Source
from optimizer.environment import cpu_facts, has_vnni
from optimizer.errors import BadInput, GateFailed
from optimizer.stage import Outcome
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir

    from optimizer.quantizing.choose import Choice

__all__ = [
    "cautions",
    "check_quantized",
    "check_symmetric",
    "finished",
    "float_weights",
    "modifiers",
    "refuse_quantized",
    "refuse_unquantizable",
    "saturation",
    "weights_in",
]

#: A quantizer that leaves more than this of the weights' bytes did not do what it was called for.
_MOST_OF_SIZE = 0.95
#: From this share of the weights on, the reader hears what stayed in float.
_WORTH_SAYING = 0.1
_ATTENTION = "com.microsoft.Attention"
#: Their float inputs are scales, and no weights.
_WITH_SCALES = ("QuantizeLinear", "DequantizeLinear", "MatMulNBits", "GatherBlockQuantized")


def weights_in(facts: Mapping[str, JSON]) -> int:
    """Bytes of all weights, by an artifact's facts."""
    return sum(int(count) for count in facts.get("weights", {}).values())


def refuse_quantized(source: Artifact) -> None:
    """Refuse to quantize twice. Raises :class:`BadInput`."""
    if source.manifest.facts.get("quantized", {}).get("total"):
        raise BadInput(
            f"{source.ref} is quantized already",
            f"quantize what it was made from: {source.manifest.source.get('ref', 'its float parent')}",
        )


def refuse_unquantizable(source: Artifact, taken: int) -> None:
    """Refuse a graph whose attention projections lie packed in nodes that the quantizer cannot take.

    They are a quarter of an encoder's weights, and would stay in float without a word. ``ort-optimize --target cuda``
    packs them; its parent has them apart.

    Args:
        source: what is to be quantized.
        taken: how many of its ``Attention`` nodes the quantizer takes.

    Raises:
        BadInput: some are left.
    """
    left = int(source.manifest.facts.get("ops", {}).get(_ATTENTION, 0)) - taken
    if left > 0:
        parent = source.manifest.source.get("ref", "the graph it was optimized from")
        raise BadInput(
            f"{source.ref} has {left} Attention nodes with their projections packed in, which would stay in float",
            f"quantize what it was made from: {parent} (or name what to quantize with --op-types)",
        )


def check_quantized(stage: str, facts: Mapping[str, JSON], source: Source) -> None:
    """Hold what was read back to what was asked.

    Raises:
        GateFailed: no node was quantized, or the weights did not shrink.
    """
    assert isinstance(source, Artifact)
    quantized = facts["quantized"]
    if not quantized["total"]:
        raise GateFailed(
            f"{stage} quantized nothing in {source.ref}: none of the chosen nodes has a weight it can take",
            f"`ml-opt show {source.ref}` lists the operators; choose among them with --op-types",
        )
    before, after = weights_in(source.manifest.facts), weights_in(facts)
    if before and after > _MOST_OF_SIZE * before:
        hint = "choose more operators with --op-types, or fewer exclusions"
        if "Conv" in facts.get("ops", {}) and stage == "quantize-dynamic":
            hint = f"convolutions want known ranges: ml-opt quantize static {source.ref} --calib FILE"
        raise GateFailed(
            f"{stage} quantized {quantized['total']} nodes of {source.ref}, and its weights still take "
            f"{after / before:.0%} of their bytes",
            hint,
        )


def check_symmetric(model: onnx_ir.Model) -> None:
    """Hold a symmetric graph to TensorRT's rule: signed everywhere, every zero point 0, no quantized bias.

    Raises:
        GateFailed: naming the first Q/DQ node that breaks it.
    """
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        given = node.inputs[2] if len(node.inputs) > 2 else None
        zero = given.const_value if given is not None else None
        if zero is None or zero.dtype.name != "INT8" or zero.numpy().any():
            what = f"{zero.dtype.name.lower()} {zero.numpy().reshape(-1)[:3].tolist()}" if zero is not None else "none"
            raise GateFailed(f"symmetric int8 was asked for, and the zero point of {node.name} is {what}")


def float_weights(model: onnx_ir.Model) -> dict[str, int]:
    """Bytes of the weights that are still in float, by the operator that uses them, largest first."""
    found: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype.name not in ("FLOAT", "FLOAT16") or tensor.size <= 1:
                continue
            user = next((use.node for use in value.uses()), None)
            if user is not None and user.op_type not in _WITH_SCALES:
                found[user.op_type] += tensor.nbytes
    return dict(found.most_common())


def finished(
    source: Artifact, quantized: onnx_ir.Model, choice: Choice, out: Path, facts: Mapping[str, JSON] | None = None
) -> Outcome:
    """Write what was quantized into a stage's folder, open it as whoever uses it will, and say what became of it.

    Args:
        source: what was quantized.
        quantized: the result.
        choice: the nodes that were to be quantized.
        out: the stage's folder.
        facts: what else the stage counted.

    Raises:
        GateFailed: ONNX Runtime cannot open the result.
    """
    from optimizer.graph.io import save
    from optimizer.quantizing.prepare import check_opens

    counted: dict[str, JSON] = {
        **(facts or {}),
        "chosen": choice.counts,
        "left_in_float": len(choice.excluded),
        "float_weights": float_weights(quantized),
    }
    warnings = cautions(source, quantized, choice.weighted)
    check_opens(save(quantized, out))
    return Outcome(counted, warnings=warnings)


def cautions(source: Artifact, model: onnx_ir.Model, weighted: int) -> list[str]:
    """What a reader should know of a quantized graph.

    Args:
        source: what was quantized.
        model: the result.
        weighted: how many nodes with weights were chosen.
    """
    from optimizer.graph.facts import graph_facts

    total = int(graph_facts(model)["quantized"]["total"])
    passed_over = [f"{weighted - total} of the {weighted} chosen nodes stay in float"] if total < weighted else []
    return [*passed_over, *_left_in_float(float_weights(model), source)]


def _left_in_float(left: Mapping[str, int], source: Artifact) -> list[str]:
    """Say which operators keep a large part of the weights in float."""
    share = sum(left.values()) / max(1, weights_in(source.manifest.facts))
    if share < _WORTH_SAYING:
        return []
    most = ", ".join(f"{op} {size / 2**20:.1f} MB" for op, size in list(left.items())[:3])
    return [f"{share:.0%} of the weights stay in float: {most}"]


def saturation(reduce_range: bool) -> list[str]:
    """Warn where int8 products saturate: AVX2 and AVX-512 without VNNI add pairs of products in 16 bits.

    Args:
        reduce_range: whether weights have 7 bits, so that no sum can.
    """
    cpu = cpu_facts()
    if cpu["machine"] != "x86_64" or reduce_range or has_vnni(cpu["features"]):
        return []
    return ["this processor has no VNNI: int8 sums may saturate; compare with --reduce-range, and measure both"]


def modifiers(source: Artifact) -> list[str]:
    """The parts of the source's variant name that are not its precision (``fp32-ort`` → ``["ort"]``)."""
    from optimizer.artifact import variant_words

    return variant_words(source)[1]
