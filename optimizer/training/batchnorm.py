"""Batch normalization behind a convolution becomes part of it, as every runtime makes it before it quantizes."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fold_batch_norms"]

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


def fold_batch_norms(module: torch.nn.Module, sample: dict[str, torch.Tensor]) -> int:
    """Move each normalization into the convolution in front of it.

    The normalization stays where it is, as one that changes nothing and is passed by: names and shapes of weights are
    those of the architecture, so that what is saved can be loaded as ever. A frozen normalization that lies about its
    statistics would be rounded around; a folded one cannot.

    Args:
        module: in evaluation mode; changed in place.
        sample: inputs, by which it is found what stands behind what.

    Returns:
        how many were folded.
    """
    made: dict[int, tuple[torch.Tensor, torch.nn.Module]] = {}
    pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = []

    def after(conv: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        made[id(output)] = (output, conv)

    def before(norm: torch.nn.Module, inputs: Any) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][1], norm))

    hooks = [
        *(each.register_forward_hook(after) for each in module.modules() if isinstance(each, _CONVOLUTIONS)),
        *(each.register_forward_pre_hook(before) for each in module.modules() if isinstance(each, _NORMS)),
    ]
    try:
        with torch.no_grad():
            module(**sample)
    finally:
        for hook in hooks:
            hook.remove()
    for conv, norm in pairs:
        _fold(conv, norm)
    return len(pairs)


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    """The factors of ``torch.nn.utils.fuse_conv_bn_weights``; what is added stays a weight of the normalization."""
    weight, bias = torch.nn.utils.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.zero_()
    norm.bias.copy_(bias)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
    norm.weight.fill_(1.0)
    conv.forward = _Biased(conv, norm)
    norm.forward = _passed_by  # no module: that would become a part of it, and the class's own way be taken


def _passed_by(x: torch.Tensor) -> torch.Tensor:
    return x


class _Biased:
    """A convolution that adds what its normalization added. (Not a function: a copied model must use its own parts.)"""

    def __init__(self, conv: Any, norm: Any) -> None:
        # Not the modules themselves: they would become parts of each other.
        self._parts = (conv, norm)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm = self._parts
        answer: torch.Tensor = conv._conv_forward(x, conv.weight, norm.bias)
        return answer
