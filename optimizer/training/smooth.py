"""Channels of an activation that are far larger than the rest hand their size over to the weights, before training.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022
(arXiv:2211.10438): ``X W = (X m) (W / m)`` for any positive ``m``, one number an input channel. With ``1 / m_j =
max|X_j|^α / max|W_j|^(1-α)`` (its equation 4) what is hard to round moves from the activations, which share one scale,
into the weights. The share α is chosen here for each activation by itself: the one whose products come out closest to
those in float.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimizer.training.quantizers import ActivationQuantizer, clip_weight, round_weight
from optimizer.training.scheme import Scheme

__all__ = ["KeptRows", "find_multiplier"]

#: Rows that are kept of an activation, and of one batch of it.
_KEPT, _KEPT_OF_BATCH = 1024, 64
#: Shares of the activation's size that are tried (1 makes all channels alike).
_ALPHAS = (0.5, 0.7, 0.8, 0.9, 1.0)
#: What must be left of the error, at most, for a multiplication more to be worth it; and for two.
_WORTH, _WORTH_TWO = 0.7, 0.5
#: Below this, a channel was never seen, or is not read.
_SMALLEST = 1e-8


class KeptRows:
    """Some rows of an activation, and how large each of its channels became in all of them.

    Attributes:
        peaks: the largest magnitudes, ``[channels]``.
    """

    def __init__(self) -> None:
        self.peaks = torch.zeros(())
        self._rows: list[torch.Tensor] = []
        self._every = 1

    @property
    def rows(self) -> torch.Tensor:
        """What was kept, ``[rows, channels]``."""
        return torch.cat(self._rows)

    @torch.no_grad()
    def add(self, x: torch.Tensor) -> None:
        """Look at one batch, ``[..., channels]``."""
        rows = x.detach().float().reshape(-1, x.shape[-1])
        self.peaks = torch.maximum(self.peaks.to(rows.device), rows.abs().amax(0))
        self._rows.append(rows[:: self._every * max(1, len(rows) // _KEPT_OF_BATCH)].clone())
        if sum(map(len, self._rows)) > _KEPT:
            self._every *= 2
            self._rows = [each[::2] for each in self._rows]


@torch.no_grad()
def find_multiplier(kept: KeptRows, weights: Sequence[torch.Tensor], scheme: Scheme) -> torch.Tensor | None:
    """What an activation's channels are best multiplied with before they are rounded.

    Args:
        kept: of the activation.
        weights: that are multiplied with it, ``[outputs, channels]`` each; all are divided by the same numbers. Empty
            for a sum, which is divided itself when it was rounded.
        scheme: how both are rounded.

    Returns:
        positive numbers, ``[channels]``, the geometric mean 1; None where that is not worth a multiplication.
    """
    rows, peaks = kept.rows, kept.peaks
    if not bool(torch.isfinite(peaks).all()):
        return None
    read = torch.ones_like(peaks)
    if weights:
        read = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    known = (peaks > _SMALLEST) & (read > _SMALLEST)
    if not bool(known.any()):
        return None
    best, least = None, (_WORTH if weights else _WORTH_TWO) * _error(rows, weights, torch.ones_like(peaks), scheme)
    for alpha in _ALPHAS:
        logarithm = torch.where(known, (1 - alpha) * read.log() - alpha * peaks.log(), torch.zeros_like(peaks))
        logarithm = torch.where(known, logarithm - logarithm[known].mean(), logarithm)
        multiplier = logarithm.exp()
        if (error := _error(rows, weights, multiplier, scheme)) < least:
            best, least = multiplier, error
    return best


def _error(rows: torch.Tensor, weights: Sequence[torch.Tensor], multiplier: torch.Tensor, scheme: Scheme) -> float:
    """How far rounded products are from those in float: squared, a share of each row's own size, summed over weights.

    As in the ranges of activations, a row counts as much as another one, however large it is. Of a sum it is the error
    of each channel as a share of that channel's size, as the normalization behind it may weigh them in any way.
    """
    low, high = scheme.levels
    quantizer = ActivationQuantizer(low, high, symmetric=scheme.symmetric).to(rows.device)
    smooth = rows * multiplier
    quantizer.observe(smooth)
    quantizer.settle()
    rounded = quantizer(smooth)
    if not weights:
        share = 1 / rows.square().mean(1, keepdim=True).clamp(min=_SMALLEST)
        wrong = (rounded / multiplier - rows).square() * share
        return float((wrong.mean(0) / (rows.square() * share).mean(0).clamp(min=_SMALLEST)).mean())
    axis = 0 if scheme.per_channel else None
    found = 0.0
    for weight in weights:
        held = weight.detach().float() / multiplier
        if axis is None:  # an outlier of a channel is its own
            held = clip_weight(held, axis, scheme.most)
        wanted = rows @ weight.detach().float().T
        made = rounded @ round_weight(held, axis, most=scheme.most).T
        size = wanted.square().sum(1).clamp(min=_SMALLEST)
        found += float(((made - wanted).square().sum(1) / size).mean())
    return found
