"""What stands behind the masks of a text, as the fill-mask pipeline of ``transformers`` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimizer.serving.asking import Answered

if TYPE_CHECKING:
    from optimizer.data.text import TextEncoder

__all__ = ["masks"]


def masks(
    answered: Answered, encoder: TextEncoder, mask: int, top: int, targets: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Every mask of one text, with the tokens that are likeliest in its place, the likeliest first.

    Scores are shares of the whole vocabulary, each mask for itself: they say nothing of two masks together.

    Args:
        answered: its first output is ``[1, tokens, vocabulary]``.
        encoder: of the model; nobody else may use it meanwhile.
        mask: the id of the token.
        top: most tokens for a mask.
        targets: ids of the only ones that are looked at; None for all.
    """
    import numpy as np

    texts = answered.texts
    assert texts is not None
    logits = answered.outputs["logits" if "logits" in answered.outputs else next(iter(answered.outputs))][0]
    ids = [int(token) for token in answered.feeds["input_ids"][0][answered.real]]
    places = [place for place, token in enumerate(ids) if token == mask]
    found = []
    for place in places:
        likely = np.exp((wide := logits[answered.real[place]].astype(np.float64)) - wide.max())
        likely /= likely.sum()
        among = np.arange(len(likely)) if targets is None else np.array(sorted(set(targets)))
        scores = likely[among]
        order = np.argpartition(-scores, top)[:top] if top < len(scores) else np.arange(len(scores))
        best = [int(among[each]) for each in order[np.argsort(-scores[order], kind="stable")]]
        fills = [
            {
                "score": float(likely[token]),
                "token": token,
                "token_str": encoder.decoded([token], special=True),
                "sequence": _sequence([*ids[:place], token, *ids[place + 1 :]], encoder, several=len(places) > 1),
            }
            for token in best
        ]
        found.append({"start": texts.tokens[place].start, "end": texts.tokens[place].end, "fills": fills})
    return found


def _sequence(ids: Sequence[int], encoder: TextEncoder, *, several: bool) -> str:
    """A text with a mask filled in; without special tokens, unless there are other masks, which are special too."""
    return encoder.decoded([token for token in ids if token != encoder.pad_id], special=several)
