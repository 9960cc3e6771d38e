"""How well a decoder knows a text, and how far another one is from it.

Perplexity is exp of the mean negative log-likelihood of a token, in nats, given those before it (Jelinek, Mercer, Bahl
and Baker, *J. Acoust. Soc. Am.* 62, 1977, S63). A document longer than the window is scored by a sliding window, as in
Baevski and Auli, *Adaptive input representations for neural language modeling* (ICLR 2019, §4.4) and in the guide
"Perplexity of fixed-length models" of Hugging Face's documentation: windows overlap, and each token is scored once, in
the first window that holds it. The first token of a document has nothing before it and is not scored; where the
tokenizer puts a begin token there, it is that one. Of a model that reads with an encoder, a document is an answer to a
prompt: all of its tokens are scored, the one that ends it too, but not what every answer begins with.

The Kullback-Leibler divergence is Σ p ln(p / q) over the vocabulary, p the original's and q the candidate's
probabilities of the next token, the mean over the same tokens that are scored.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from optimizer.data.documents import Document
from optimizer.errors import BadInput, GateFailed
from optimizer.evaluate.bounds import Bounds, mean_bounds, median_bounds, quotient_bounds, share_bounds
from optimizer.evaluate.logits import divergence, log_softmax, logits_of, parts_of, taken, targets_of
from optimizer.generator import Generator, Sampling
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.stage import Progress

__all__ = [
    "Compared",
    "Continuation",
    "Score",
    "Sliding",
    "compare",
    "paired_ratio",
    "perplexity",
    "score_documents",
]

#: Windows are no longer than this when nobody says: a context may be far longer than any text at hand.
_USUAL = 2048


@dataclass(frozen=True)
class Sliding:
    """How documents are cut into windows.

    Attributes:
        window: most tokens that are scored together.
        stride: tokens from the beginning of one window to that of the next.
    """

    window: int
    stride: int

    @classmethod
    def within(cls, context: int, window: int = 0, stride: int = 0) -> Sliding:
        """What fits a context.

        Args:
            context: most tokens that a decoder takes.
            window: 0 for the context, or 2048 where it is longer.
            stride: 0 for half a window.

        Raises:
            BadInput: the window is longer than the context, or the stride is not shorter than the window.
        """
        if window > context:
            raise BadInput(f"a window of {window} tokens is longer than the context of {context}")
        window = window or min(context, _USUAL)
        stride = stride or max(1, window // 2)
        if not 1 <= stride < window:
            raise BadInput(f"a stride of {stride} does not fit a window of {window}", "it is shorter than the window")
        return cls(window, stride)


@dataclass(frozen=True)
class Score:
    """One document.

    Attributes:
        name: where it stands.
        tokens: how many were scored.
        nll: the sum of their negative log-likelihoods, nats.
        candidate: the same of the candidate; NaN where there is none.
        kl: the sum of their divergences, nats.
        same: of how many the likeliest token is the same.
    """

    name: str
    tokens: int
    nll: float
    candidate: float = math.nan
    kl: float = math.nan
    same: int = 0


@dataclass(frozen=True)
class Continuation:
    """How far two decoders go on alike, each taking the likeliest token.

    Attributes:
        name: the document whose beginning is the prompt.
        prompt: tokens of it.
        length: tokens that the original wrote.
        matched: the first so many of which the candidate wrote too.
        whole: whether it wrote all of them and no more.
    """

    name: str
    prompt: int
    length: int
    matched: int
    whole: bool


@dataclass(frozen=True)
class Compared:
    """A candidate beside the original, on the same windows.

    Attributes:
        sliding: the windows.
        documents: one score a document.
        ratio: the candidate's perplexity over the original's, paired by document.
        continuations: one a prompt; may be none.
    """

    sliding: Sliding
    documents: tuple[Score, ...]
    ratio: Bounds
    continuations: tuple[Continuation, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.documents)

    @property
    def original(self) -> float:
        """Its perplexity."""
        return _exp(sum(each.nll for each in self.documents) / self.tokens)

    @property
    def candidate(self) -> float:
        """Its perplexity."""
        return _exp(sum(each.candidate for each in self.documents) / self.tokens)

    @property
    def kl(self) -> float:
        """Mean divergence of a token, nats."""
        return sum(each.kl for each in self.documents) / self.tokens

    @property
    def kl_bounds(self) -> Bounds:
        """The same with its bounds over documents; 0 to infinity with fewer than three."""
        return mean_bounds([each.kl for each in self.documents], [each.tokens for each in self.documents])

    @property
    def top1(self) -> float:
        """Share of tokens where both find the same one likeliest."""
        return sum(each.same for each in self.documents) / self.tokens

    @property
    def top1_bounds(self) -> Bounds:
        """The same with its bounds over documents; 0 to 1 with fewer than three."""
        return share_bounds([each.same for each in self.documents], [each.tokens for each in self.documents])

    @property
    def match(self) -> float | None:
        """Median of the tokens that continuations share; None without any."""
        return statistics.median(each.matched for each in self.continuations) if self.continuations else None

    @property
    def match_bounds(self) -> Bounds | None:
        """That median with its bounds; 0 to infinity with fewer than five; None without any."""
        return median_bounds([each.matched for each in self.continuations]) if self.continuations else None

    @property
    def match_whole(self) -> float | None:
        """Share of continuations that are the same to the end; None without any."""
        if not self.continuations:
            return None
        return sum(each.whole for each in self.continuations) / len(self.continuations)

    def to_json(self) -> dict[str, JSON]:
        return {
            "sliding": asdict(self.sliding),
            "tokens": self.tokens,
            "perplexity": {"original": self.original, "candidate": self.candidate, "ratio": self.ratio.to_json()},
            "kl": self.kl,
            "top1": self.top1,
            "match": {"median": self.match, "whole": self.match_whole},
            "bounds": {
                "kl": self.kl_bounds.to_json(),
                "top1": self.top1_bounds.to_json(),
                "match": self.match_bounds.to_json() if self.match_bounds else None,
            },
            "documents": [asdict(each) for each in self.documents],
            "continuations": [asdict(each) for each in self.continuations],
        }


def score_documents(generator: Generator, documents: Sequence[Document], sliding: Sliding) -> Iterator[Score]:
    """Score documents one by one.

    Raises:
        BadInput: a token is not of this decoder's vocabulary.
        GateFailed: logits are not finite.
    """
    for document in documents:
        nll = 0.0
        for window in document.windows(sliding.window, sliding.stride):
            logits = logits_of(generator, document, window)
            targets = targets_of(document, window)
            for part in parts_of(len(targets)):
                nll -= float(taken(log_softmax(logits[part]), targets[part]).sum())
        yield Score(document.name, document.scored, nll)


def perplexity(scores: Sequence[Score]) -> float:
    """Of all tokens of all documents."""
    return _exp(sum(each.nll for each in scores) / sum(each.tokens for each in scores))


def compare(
    original: Generator,
    candidate: Generator,
    documents: Sequence[Document],
    sliding: Sliding | None = None,
    *,
    continuations: int = 0,
    prompt: int = 32,
    new_tokens: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compared:
    """Hold a candidate beside the original.

    Args:
        original: what it was made from.
        candidate: what is judged.
        documents: held-out text, in tokens that both understand.
        sliding: the windows [those that fit both contexts].
        continuations: from how many documents both go on writing.
        prompt: tokens of a document that they are given, at most half of it; what an encoder reads is given whole.
        new_tokens: how many they write.
        seed: of the bootstrap.
        progress: told of every document.

    Raises:
        BadInput: nothing to compare on, or windows that do not fit.
        GateFailed: the vocabularies differ, or logits are not finite.
    """
    if not documents:
        raise BadInput("there is no document to compare on")
    if original.vocabulary != candidate.vocabulary:
        raise GateFailed(
            f"the original has {original.vocabulary} tokens, and this has {candidate.vocabulary}",
            "compare with the model that it was made from",
        )
    sliding = sliding or Sliding.within(min(original.context, candidate.context))
    found = []
    for place, document in enumerate(documents):
        if progress is not None:
            progress("comparing on held-out text", place, len(documents))
        found.append(_compared(original, candidate, document, sliding))
    room = min(original.context, candidate.context)
    beginnings = [
        (
            document.name,
            document.read or document.tokens[: max(1, min(prompt, len(document.tokens) // 2, room - new_tokens))],
        )
        for document in documents[:continuations]
    ]
    sampling = Sampling(max_tokens=min(new_tokens, candidate.answers or new_tokens))
    return Compared(
        sliding,
        tuple(found),
        paired_ratio(found, seed=seed),
        tuple(_continued(original, candidate, name, tokens, sampling) for name, tokens in beginnings),
    )


def paired_ratio(documents: Sequence[Score], confidence: float = 0.95, seed: int = 0) -> Bounds:
    """The candidate's perplexity over the original's, with its bounds.

    It is exp(Σ (candidate's - original's negative log-likelihood) / Σ tokens), sums over documents, drawn the same for
    both: :mod:`optimizer.evaluate.bounds` says how.

    Args:
        documents: scored by both.
        confidence: of each bound.
        seed: of the draws; the same for every candidate.

    Returns:
        with fewer than three documents nothing is known of how they differ: 0 to infinity.
    """
    more, tokens = [each.candidate - each.nll for each in documents], [each.tokens for each in documents]
    found = quotient_bounds(more, tokens, confidence, seed)
    if found is None:
        return Bounds(_exp(sum(more) / sum(tokens)), 0.0, math.inf)
    return Bounds(_exp(found.value), _exp(found.low), _exp(found.high))


def _compared(original: Generator, candidate: Generator, document: Document, sliding: Sliding) -> Score:
    """One document by both."""
    nll = other = kl = 0.0
    same = 0
    for window in document.windows(sliding.window, sliding.stride):
        targets = targets_of(document, window)
        first, second = (logits_of(each, document, window) for each in (original, candidate))
        for part in parts_of(len(targets)):
            p, q = log_softmax(first[part]), log_softmax(second[part])
            nll -= float(taken(p, targets[part]).sum())
            other -= float(taken(q, targets[part]).sum())
            kl += float(divergence(p, q).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
    return Score(document.name, document.scored, nll, other, kl, same)


def _continued(
    original: Generator, candidate: Generator, name: str, prompt: tuple[int, ...], sampling: Sampling
) -> Continuation:
    wanted, got = (
        [token for piece in each.submit(prompt, sampling) for token in piece.tokens] for each in (original, candidate)
    )
    pairs = zip(wanted, got, strict=False)
    matched = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(wanted), len(got)))
    return Continuation(name, len(prompt), len(wanted), matched, wanted == got)


def _exp(value: float) -> float:
    """Infinite where it is too large for a number, as the perplexity of a broken decoder may be."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
