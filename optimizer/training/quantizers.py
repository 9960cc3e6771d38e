"""Rounding that can be trained through.

Forward, a number is rounded to the levels that the int8 graph has (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018). Backward, rounding counts as the identity within the
range and as a constant outside of it, and the step between two levels has a gradient of its own (Esser et al., "Learned
Step Size Quantization", 2020), so that training decides how much of an activation's tail is worth its levels.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from optimizer.quantizing.softmax import ABOVE
from optimizer.training.scheme import WEIGHT_LEVELS

__all__ = ["ActivationQuantizer", "clip_weight", "round_blocks", "round_rows", "round_weight", "weight_scale"]

#: Values of an activation that are kept while ranges are found, and how many of one batch.
_KEPT, _KEPT_OF_BATCH = 1 << 18, 1 << 14
#: Parts of the whole range among which the one is chosen that rounds with the least squared error.
_PARTS = tuple(part / 20 for part in range(20, 1, -1))
#: A range below this is that of an activation which is always zero.
_SMALLEST = 1e-12


class _RoundToLevels(torch.autograd.Function):
    """``(clamp(round(x * multiplier / scale) + zero, low, high) - zero) * scale`` (divided by the multiplier again,
    where it ``divides``) with gradients for x and scale.

    Division and rounding half to even are those of ONNX's QuantizeLinear, so that the graph makes the same levels. Of
    a training's step that is a good part: every pass over the numbers counts, and so does each that needs new memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, ends: tuple[int, int], multiplier: Any, divides: bool
    ) -> torch.Tensor:
        low, high = ends
        steps = x / scale if multiplier is None else (x * multiplier).div_(scale)
        if any(ctx.needs_input_grad):
            levels = steps.round().clamp_(low, high)
            made = levels * scale
            ctx.save_for_backward(steps, levels, scale, multiplier)
            ctx.ends, ctx.divides = ends, divides
        else:
            made = steps.round_().clamp_(low, high).mul_(scale)
        return made.mul_(multiplier.reciprocal()) if divides else made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        steps, levels, scale, multiplier = ctx.saved_tensors
        low, high = ctx.ends
        if ctx.divides:
            gradient = gradient * multiplier.reciprocal()
        # As numbers: a product with truths would make numbers of them first, in a pass of its own.
        inside = steps.clamp(low, high).eq_(steps)
        by_scale = None
        if ctx.needs_input_grad[1]:
            # Esser et al., equation 3; and their section 2.2 for the factor.
            off = torch.addcmul(levels, steps, inside, value=-1).mul_(gradient)
            by_scale = (off.sum() / (levels.numel() * max(high, 1)) ** 0.5).reshape(scale.shape)
        by_x = inside.mul_(gradient)
        return by_x if multiplier is None else by_x.mul_(multiplier), by_scale, None, None, None


class _RoundWeight(torch.autograd.Function):
    """``clamp(round(weight / scale)) * scale`` as ``torch.fake_quantize_per_channel_affine`` has it, to the bit; its
    kernel looks at one number at a time. No weight lies outside of what its scale reaches, and so every gradient
    passes.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scale: torch.Tensor, most: int) -> torch.Tensor:
        return (weight * scale.reciprocal()).round_().clamp_(-most, most).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient, None, None


class ActivationQuantizer(torch.nn.Module):
    """One activation's range: found on data first, learned from then on.

    Args:
        low: its lowest level.
        high: its highest level.
        symmetric: the zero point is 0.
        of_softmax: it is an answer of softmax, whose scale ONNX Runtime's kernel rounds
            (:mod:`optimizer.quantizing.softmax`): it is one that needs no rounding.

    Attributes:
        log_scale: the logarithm of the step between two levels, so that a step of the optimizer is a share of it.
        zero_point: the level of zero.
        multiplier: what each channel of the last axis is multiplied with before it is rounded, ``[channels]``; None
            where nothing is.
        divides: what was rounded is divided by them again, as no weight behind it is.
    """

    log_scale: torch.nn.Parameter
    zero_point: torch.Tensor
    multiplier: torch.Tensor | None

    def __init__(self, low: int, high: int, *, symmetric: bool, of_softmax: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.symmetric, self.of_softmax = low, high, symmetric, of_softmax
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int64))
        self.register_buffer("multiplier", None)
        self.divides = False
        #: Values with the mean square of the row that each is of, ``[2, values]``; every so many are kept.
        self._seen: list[torch.Tensor] = []
        self._every = 1
        self._smallest, self._largest = 0.0, 0.0

    @property
    def scale(self) -> torch.Tensor:
        """The step between two levels, float32 ``[]``."""
        scale = self.log_scale.exp()
        if not self.of_softmax:
            return scale
        exact = 1 / (scale.detach().reciprocal().round().clamp(min=1) + ABOVE)
        return scale + (exact - scale).detach()

    def smoothed(self, x: torch.Tensor) -> torch.Tensor:
        """Values times their channels' multipliers: what is rounded."""
        return x if self.multiplier is None else x * self.multiplier.to(x.dtype)

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """What was rounded, as it goes on through the model."""
        return x * self.multiplier.reciprocal().to(x.dtype) if self.divides and self.multiplier is not None else x

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """Look at one batch's values, as they are rounded: their ends, and a sample of them."""
        x = self.smoothed(x)
        flat = x.detach().float().reshape(-1)
        if not bool(torch.isfinite(flat).all()):
            self._largest = float("inf")  # Python's min and max pass over NaN
            return
        self._smallest = min(self._smallest, float(flat.min()))
        self._largest = max(self._largest, float(flat.max()))
        # A step that shares no factor with the size of a row looks at every channel.
        step = self._every * max(1, len(flat) // _KEPT_OF_BATCH)
        while math.gcd(step, x.shape[-1]) > 1:
            step += 1
        size = x.detach().float().square().mean(-1, keepdim=True).expand(x.shape).reshape(-1)[::step]
        self._seen.append(torch.stack([flat[::step], size]))
        if sum(each.shape[1] for each in self._seen) > _KEPT:
            self._every *= 2
            self._seen = [each[:, ::2] for each in self._seen]

    @property
    def widest(self) -> float:
        """The largest magnitude that was seen; 0 where nothing was, infinity where a value was not finite."""
        return max(-self._smallest, self._largest)

    @torch.no_grad()
    def settle(self) -> None:
        """Choose the range that rounds what was seen with the least squared error, and forget what was seen."""
        seen, size = torch.cat(self._seen, 1) if self._seen else torch.zeros(2, 1)
        self._seen = []
        weight = 1 / size.clamp(min=_SMALLEST)
        best, error = (1.0, 0), float("inf")
        for part in _PARTS:
            scale, zero = self._range(part * self._smallest, part * self._largest)
            levels = (seen / scale).round().clamp(self.low - zero, self.high - zero)
            found = float(((levels * scale - seen).square() * weight).mean())
            if found < error:
                best, error = (scale, zero), found
        self.log_scale.copy_(torch.tensor(best[0]).log())
        self.zero_point.fill_(best[1])

    def _range(self, smallest: float, largest: float) -> tuple[float, int]:
        """Scale and zero point of a range around zero, by the formulas of ONNX's DynamicQuantizeLinear."""
        if self.symmetric:
            return max(-smallest, largest, _SMALLEST) / self.high, 0
        scale = max(largest - smallest, _SMALLEST) / (self.high - self.low)
        return scale, min(self.high, max(self.low, round(self.low - smallest / scale)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values times their multipliers, through their levels and back."""
        zero, multiplier = int(self.zero_point), self.multiplier
        ends = (self.low - zero, self.high - zero)
        divides = self.divides and multiplier is not None
        # In float32 wherever it is called: of these operations autocast makes none that of half a float.
        made: torch.Tensor = _RoundToLevels.apply(x.float(), self.scale, ends, multiplier, divides)
        return made.to(x.dtype)


def weight_scale(weight: torch.Tensor, axis: int | None, most: int = WEIGHT_LEVELS) -> torch.Tensor:
    """The step between two levels of a weight with ``most`` of them on either side of zero: for each place along
    ``axis`` (``[n]``), or for all (``[1]``).

    It follows the largest weight, as in the graphs that are quantized after training.
    """
    weight = weight.detach()
    if axis is None:
        low, high = (each.reshape(1) for each in torch.aminmax(weight))
    else:
        others = [d for d in range(weight.ndim) if d != axis]
        low, high = weight.amin(dim=others), weight.amax(dim=others)
    end = torch.maximum(-low, high)
    # Not where it is larger than zero: a weight that is no number must not become one.
    return torch.where(end == 0, torch.ones_like(end), end / most)


def round_weight(
    weight: torch.Tensor, axis: int | None, scale: torch.Tensor | None = None, most: int = WEIGHT_LEVELS
) -> torch.Tensor:
    """A weight through 8 bits and back; the gradient passes as if nothing had happened.

    Args:
        weight: float32, any shape.
        axis: of its output channels, which have a scale each; None for one scale.
        scale: what :func:`weight_scale` said, where the weight is a part of what that was asked of.
        most: levels on either side of zero.
    """
    scale = weight_scale(weight, axis, most) if scale is None else scale
    along = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    made: torch.Tensor = _RoundWeight.apply(weight, along, most)
    return made


def round_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of a table through 8 bits and back, a scale for each: of what the whole table would be rounded to, they are
    the same rows.

    Args:
        rows: ``[..., width]``.
    """
    return round_weight(rows.reshape(-1, rows.shape[-1]), 0).reshape(rows.shape)


@torch.no_grad()
def clip_weight(weight: torch.Tensor, axis: int | None, most: int = WEIGHT_LEVELS) -> torch.Tensor:
    """A weight whose largest numbers are cut off where that rounds it with the least squared error.

    One number that is far larger than the rest takes their levels away. It is cut off once, before training, which then
    makes up for it; scales follow the largest number as before.

    Args:
        weight: float32, any shape.
        axis: of its output channels, which are cut each by themselves; None for one bound.
        most: levels on either side of zero.
    """
    others = tuple(d for d in range(weight.ndim) if d != axis)
    end = weight.abs().amax(dim=others, keepdim=True)

    def cut(part: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(weight, -part * end), part * end)

    def error(part: torch.Tensor) -> torch.Tensor:
        return (round_weight(cut(part), axis, most=most) - weight).square().sum(dim=others, keepdim=True)

    best = torch.ones_like(end)
    least = error(best)
    for each in _PARTS[1:]:
        part = torch.full_like(end, each)
        found = error(part)
        best, least = torch.where(found < least, part, best), torch.minimum(found, least)
    return cut(best)


def round_blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    """A matrix through 4 bits and back, a scale for each ``block`` of inputs, as ONNX Runtime's MatMulNBits has it.

    The largest magnitude of a block becomes the level -8 (``onnxruntime.quantization.matmul_nbits_quantizer``,
    symmetric): of what was rounded so, rounding again makes the same.

    Args:
        weight: ``[outputs, inputs]``.
        block: inputs that share a scale; the last block may be shorter.
    """
    outputs, inputs = weight.shape
    short = -inputs % block
    blocks = torch.nn.functional.pad(weight.detach(), (0, short)).reshape(outputs, -1, block)
    place = blocks.abs().argmax(dim=-1, keepdim=True)
    scale = blocks.gather(-1, place) / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = (blocks / scale).round().clamp(-8, 7)
    rounded = (levels * scale).reshape(outputs, -1)[:, :inputs]
    return weight + (rounded - weight).detach()
