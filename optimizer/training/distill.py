"""What training pulls on: the float model's own answers and hidden states, or labels.

Answers are drawn together by the divergence of softened probabilities (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015), hidden states by their squared difference (Jiao et al., "TinyBERT", 2020), here as a share of
the float model's own size, so that every layer counts the same. Neither asks for a label.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["IGNORED", "distillation_loss", "label_loss"]

#: Softens both sides' probabilities (Hinton et al., section 2); 1 would look at the largest class alone.
_TEMPERATURE = 2.0
#: The label of a token that is none of a word's own: cross entropy passes over it.
IGNORED = -100


def distillation_loss(ours: Any, theirs: Any, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """How far a quantized model's answer is from the float model's.

    Args:
        ours: the quantized model's output, with ``hidden_states``.
        theirs: the float model's.
        mask: ``[rows, steps]``, 0 where a step is padding; None where rows have no steps of their own.
        pooling: how hidden states become a row's vector, for models whose answer that is: ``mean`` or ``cls``; another
            word leaves the vectors out.

    Returns:
        a number, 0 where both answer the same.
    """
    pairs = zip(getattr(ours, "hidden_states", None) or (), getattr(theirs, "hidden_states", None) or (), strict=True)
    losses = [_relative_error(a, b, mask) for a, b in pairs]
    loss = torch.stack(losses).mean() if losses else torch.zeros(())
    if getattr(theirs, "logits", None) is not None:
        return loss + _divergence(ours.logits, theirs.logits, mask)
    if pooling in ("mean", "cls"):
        a, b = (_pooled(side.last_hidden_state, mask, pooling) for side in (ours, theirs))
        loss = loss + (1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)).mean()
    return loss


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the right classes.

    Args:
        logits: ``[rows, classes]`` or ``[rows, steps, classes]``.
        labels: of one dimension less; -100 is passed over.
    """
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED)


def _unpadded(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Values in float32, those of padded steps left out where there are steps."""
    stepped = mask is not None and values.ndim == 3 and values.shape[:2] == mask.shape
    return values.float()[mask.bool()] if mask is not None and stepped else values.float()


def _relative_error(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Squared difference of states, as a share of the squared size of theirs."""
    ours, theirs = (_unpadded(side, mask) for side in (ours, theirs))
    return (ours - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12)


def _divergence(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of ours from theirs, in nats, times the square of the temperature; one class is a number to be met."""
    ours, theirs = (_unpadded(side, mask) for side in (ours, theirs))
    if theirs.shape[-1] == 1:
        return (ours - theirs).square().mean()
    ours, theirs = ours.flatten(0, -2), theirs.flatten(0, -2)
    return (
        torch.nn.functional.kl_div(
            torch.log_softmax(ours / _TEMPERATURE, -1),
            torch.log_softmax(theirs / _TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        * _TEMPERATURE**2
    )


def _pooled(states: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """A vector a row, ``[rows, hidden]``."""
    if states.ndim == 2:
        return states
    if pooling == "cls":
        return states[:, 0]
    if mask is None or mask.shape != states.shape[:2]:
        return states.flatten(1, -2).mean(1)
    share = mask.to(states.dtype).unsqueeze(-1)
    return (states * share).sum(1) / share.sum(1).clamp(min=1e-9)
