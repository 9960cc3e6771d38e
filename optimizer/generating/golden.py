"""Where a text leaves the one that it should be, and whether rounding may be the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.generator import computed_and_kept

__all__ = ["EQUAL", "EQUAL_IN_BLOCKS", "first_difference", "reach"]

#: Rounding changes the order of tokens that are nearer to each other than this, in nats: of float and of blocks in
#: few bits, whose kernels for one row and for several do not round alike.
EQUAL, EQUAL_IN_BLOCKS = 1e-3, 0.1
#: Logits of other texts are further off than those of the golden one: by this factor, with room.
_ROOM = 4
#: What the same file comes to when it is computed in 16 bits: as far off as a logit of 16 is by one rounding (half of
#: 2⁻⁷ and of 2⁻¹⁰ of it), with the same room. A cache in 8 bits has as many as bf16.
_HALVES = {"bf16": _ROOM * 16 * 2**-8, "fp16": _ROOM * 16 * 2**-11}


def reach(facts: Mapping[str, Any], precision: str = "") -> float:
    """How far a token has to be ahead of the next one for an artifact to write it for sure, in nats.

    Args:
        facts: of its manifest; ``parity`` says how far its logits were from PyTorch's.
        precision: what it is computed in (``bf16``), and its cache kept in (``fp32-kv8``); empty for what the export
            was held to.
    """
    parity = facts.get("parity")
    off = parity.get("max_abs") if isinstance(parity, Mapping) else None
    computed, in_8_bits = computed_and_kept(precision)
    rounded = max(_HALVES.get(computed, 0.0), _HALVES["bf16"] if in_8_bits else 0.0)
    return max(EQUAL, _ROOM * float(off or 0.0), rounded)


def first_difference(
    wanted: Sequence[int], got: Sequence[int], margins: Sequence[float], near: float
) -> tuple[int | None, int]:
    """The place of the first token that is another one, and how many places were compared.

    Args:
        wanted: tokens that it should be.
        got: those that it is.
        margins: how far each wanted token was ahead of the next one.
        near: where one was no further ahead than this, rounding may choose another, and all that follows is another
            text.

    Returns:
        the place, None where there is none; and how many tokens were held to what they should be.
    """
    for place, token in enumerate(wanted):
        if place >= len(margins) or margins[place] <= near:
            return None, place
        if place >= len(got) or got[place] != token:
            return place, place + 1
    return None, len(wanted)
