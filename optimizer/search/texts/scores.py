"""What is known of a text generator, document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.evaluate.generation import Score
from optimizer.search.accuracy import Measures
from optimizer.search.contender import Rules
from optimizer.search.gates import Gate
from optimizer.search.texts.gates import agreement, agreement_gate, perplexity_of, rise_gate
from optimizer.types import JSON

__all__ = ["TextScores", "gates"]


@dataclass(frozen=True)
class TextScores:
    """Scores of documents, in the order of the data file.

    Attributes:
        documents: one score a document; its divergence is NaN where the original's probabilities were not kept.
    """

    documents: tuple[Score, ...]

    def rows(self, own: bool = False) -> dict[str, JSON]:
        """Of each document, sums over its tokens: of the negative log-likelihood and the divergence in nats, and of
        tokens whose likeliest one is the original's.
        """
        found: dict[str, JSON] = {
            "name": [each.name for each in self.documents],
            "tokens": [each.tokens for each in self.documents],
            "nll": [each.candidate for each in self.documents],
        }
        if not own:
            found["kl"] = [each.kl if math.isfinite(each.kl) else None for each in self.documents]
            found["same"] = [each.same for each in self.documents]
        return found

    def measures(self, rules: Rules, whole: bool) -> Measures:
        """Perplexity and top-1 agreement with bounds over documents, and the divergence of a token."""
        confidence, seed = rules.confidence, rules.plan.seed
        known = [each for each in self.documents if math.isfinite(each.kl)]
        kl = {}
        if known:
            tokens = sum(each.tokens for each in known)
            kl = {
                "worst": max(each.kl / each.tokens for each in known),
                "mean": sum(each.kl for each in known) / tokens,
            }
        return Measures(
            accuracy=perplexity_of(self.documents, confidence, seed) if whole else None,
            agreement=agreement(self.documents, confidence, seed) if whole else None,
            kl=kl,
        )


def gates(documents: Sequence[Score], rules: Rules, confidence: float) -> tuple[Gate, ...]:
    """One gate for each budget."""
    found = []
    if rules.max_drop is not None:
        found.append(rise_gate(documents, rules.max_drop, confidence, rules.plan.seed))
    if rules.min_agreement is not None:
        found.append(agreement_gate(documents, rules.min_agreement, confidence, rules.plan.seed))
    return tuple(found)
