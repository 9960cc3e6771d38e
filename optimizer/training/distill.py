"""What training pulls on: the float model's own answers and hidden states, or labels.

Answers are drawn together by the divergence of softened probabilities (Hinton et al., "Distilling the Knowledge in a
Neural Network", 2015), hidden states by their squared difference (Jiao et al., "TinyBERT", 2020), here as a share of
the float model's own size, so that every layer counts the same. Neither asks for a label.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["IGNORED", "distillation_loss", "has_classes", "label_loss", "mix_rows"]

#: Softens both sides' probabilities (Hinton et al., section 2); 1 would look at the largest class alone.
_TEMPERATURE = 2.0
#: How many of a batch's rows are mixed, and the most of a row that comes from another one.
_MIXED, _MOST = 0.5, 0.5
#: The label of a token that is none of a word's own: cross entropy passes over it.
IGNORED = -100


def distillation_loss(
    ours: Any, theirs: Any, mask: torch.Tensor | None, pooling: str, *, exclusive: bool = True
) -> torch.Tensor:
    """How far a quantized model's answer is from the float model's.

    Args:
        ours: the quantized model's output, with ``hidden_states``.
        theirs: the float model's.
        mask: ``[rows, steps]``, 0 where a step is padding; None where rows have no steps of their own.
        pooling: how hidden states become a row's vector, for models whose answer that is: ``mean`` or ``cls``; another
            word leaves the vectors out.
        exclusive: logits are of classes that exclude each other. Of labels that do not, and of numbers, they are met
            as they are (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014).

    Returns:
        a number, 0 where both answer the same.
    """
    pairs = zip(getattr(ours, "hidden_states", None) or (), getattr(theirs, "hidden_states", None) or (), strict=True)
    losses = [_relative_error(a, b, mask) for a, b in pairs]
    loss = torch.stack(losses).mean() if losses else torch.zeros(())
    if getattr(theirs, "logits", None) is not None:
        near = _divergence if exclusive else _relative_error
        return loss + near(ours.logits, theirs.logits, mask)
    if pooling in ("mean", "cls"):
        a, b = (_pooled(side.last_hidden_state, mask, pooling) for side in (ours, theirs))
        loss = loss + (1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)).mean()
    return loss


def mix_rows(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs half of whose rows of tokens have a span of another row in the place of their own.

    The float model answers any row, so more of them can be asked than there are; between two rows lie those that it is
    not sure of, which say most about where it decides (CutMix of Yun et al., 2019, with tokens in the place of pixels).

    Args:
        feeds: with ``input_ids`` and ``attention_mask``, ``[rows, tokens]``; others come back as they are. The first
            token, which is a model's own, stays.
    """
    ids, mask = feeds.get("input_ids"), feeds.get("attention_mask")
    if ids is None or mask is None or ids.shape != mask.shape:
        return feeds
    rows, tokens = ids.shape
    # On the processor, so that the same seed gives the same rows on any device.
    draws = torch.rand(3, rows, 1)
    other = torch.randperm(rows).to(ids.device)
    share, begin, length = (each.to(ids.device) for each in (draws[0], draws[1] * tokens, draws[2] * tokens * _MOST))
    place = torch.arange(tokens, device=ids.device)
    taken = (share < _MIXED) & (place > 0) & (place >= begin) & (place < begin + length)
    taken &= mask.bool() & mask[other].bool()
    return {**feeds, "input_ids": torch.where(taken, ids[other], ids)}


def has_classes(config: Any) -> bool:
    """Whether a classifier answers with one of several classes: not with a number, nor with several labels."""
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    return not several and getattr(config, "num_labels", 2) > 1


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
    """Of ours from theirs, in nats, times the square of the temperature."""
    ours, theirs = (_unpadded(side, mask) for side in (ours, theirs))
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
