"""What every quantized file is held to: something was quantized, and it is smaller."""

from __future__ import annotations

from collections.abc import Mapping

from optimizer.artifact import Artifact, Source
from optimizer.environment import cpu_facts
from optimizer.errors import BadInput, GateFailed
from optimizer.types import JSON

__all__ = ["check_quantized", "modifiers", "refuse_quantized", "saturation_warning", "weights_in"]

#: A quantizer that leaves more than this of the weights' bytes did not do what it was called for.
_MOST_OF_SIZE = 0.95


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


def saturation_warning(reduce_range: bool) -> list[str]:
    """Warn where int8 products saturate: AVX2 and AVX-512 without VNNI add pairs of products in 16 bits."""
    features = cpu_facts()["features"]
    if cpu_facts()["machine"] != "x86_64" or reduce_range:
        return []
    if any(f in features for f in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return []
    return ["this processor has no VNNI: int8 sums may saturate; compare with --reduce-range, and measure both"]


def modifiers(source: Artifact) -> list[str]:
    """The parts of the source's variant name that are not its precision (``fp32-ort`` → ``["ort"]``)."""
    from optimizer.artifact import variant_words

    return variant_words(source)[1]
