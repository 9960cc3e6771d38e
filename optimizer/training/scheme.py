"""Which numbers a quantized model computes with: what is rounded while training is what the graph will round."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCHEMES", "WEIGHT_LEVELS", "Scheme"]

#: Of 8-bit weights; -128 stays unused, so that they are as many on either side of zero.
WEIGHT_LEVELS = 127


@dataclass(frozen=True)
class Scheme:
    """Number formats of weights and activations.

    Attributes:
        weight_bits: of a weight: 8 (a scale an output channel, or one for all) or 4 (a scale a block of inputs).
        activation_bits: 8, or None where activations stay in float.
        symmetric: signed activations around zero, the only int8 that TensorRT takes; otherwise unsigned ones with a
            zero point, which use all of their levels on ranges like that of GELU.
        per_channel: a scale for each output channel of a weight, instead of one for the whole.
        every: also round sums, normalized values, softmax, products of two activations and the head's input.
        head: also quantize the weights of the task's own head.
        smooth: what a product reads is multiplied channel by channel before it is rounded, and the weight divided by
            the same; where every operator is rounded, what is normalized as well (:mod:`optimizer.training.smooth`).
        reduce_range: weights of products have 7 bits, so that no sum of two products leaves 16.
        block: input weights that share a scale, where weights have 4 bits.
    """

    weight_bits: int = 8
    activation_bits: int | None = 8
    symmetric: bool = False
    per_channel: bool = True
    every: bool = False
    head: bool = False
    smooth: bool = False
    reduce_range: bool = False
    block: int = 32

    @property
    def levels(self) -> tuple[int, int]:
        """Lowest and highest level of an activation: int8 as TensorRT has it, or uint8."""
        return (-128, 127) if self.symmetric else (0, 255)

    @property
    def most(self) -> int:
        """The highest level of an 8-bit weight that is multiplied; the lowest is as far from zero."""
        return 63 if self.reduce_range else WEIGHT_LEVELS


#: As ``--scheme`` names them: bits of weights and activations.
SCHEMES = {
    "w8a8": Scheme(),
    "w8a8-sym": Scheme(symmetric=True),
    "w4a16": Scheme(weight_bits=4, activation_bits=None),
}
