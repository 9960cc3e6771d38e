"""Tokens are drawn as often as the softmax says, and never from what was left out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimizer.errors import GateFailed
from optimizer.generating.sampler import Sampler, logprob, top_logprobs
from optimizer.generator import Sampling

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5, 0.25, -0.25, 1.9, -3.0], np.float32)
DRAWS = 20_000


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.exp(logits.astype(np.float64) / temperature)
    return scaled / scaled.sum()


def kept(chances: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The chances that are left, by the words of the definition and not by the sampler's code."""
    order = sorted(range(len(chances)), key=lambda n: -chances[n])
    if top_k:
        order = order[:top_k]
    total = sum(chances[n] for n in order)
    chosen, mass = [], 0.0
    for token in order:
        chosen.append(token)
        mass += chances[token] / total
        if mass >= top_p:
            break
    chosen = [token for token in chosen if chances[token] >= min_p * chances[order[0]]]
    left = np.zeros_like(chances)
    left[chosen] = chances[chosen]
    return left / left.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0), (0.5, 0, 1.0, 0.0), (3.0, 0, 1.0, 0.0), (1.0, 4, 1.0, 0.0), (1.0, 0, 0.7, 0.0),
        (0.8, 6, 0.9, 0.0), (1.0, 99, 0.05, 0.0), (1.0, 0, 1.0, 0.2), (2.0, 0, 1.0, 0.2), (1.0, 3, 1.0, 0.1),
        (1.0, 0, 0.6, 0.1), (1.0, 0, 0.95, 0.25), (1.0, 0, 1.0, 1.0),
    ],
)  # fmt: skip
def test_the_distribution_is_the_softmax(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1))
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(DRAWS)], minlength=LOGITS.size)
    wanted = kept(softmax(LOGITS, temperature), top_k, top_p, min_p)
    assert not counts[wanted == 0].any()
    if (wanted > 0).sum() > 1:
        assert stats.chisquare(counts[wanted > 0], DRAWS * wanted[wanted > 0]).pvalue > 1e-3


def test_a_seed_repeats_and_another_does_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_no_temperature_and_one_token_are_greedy() -> None:
    assert Sampler(Sampling()).pick(LOGITS) == 0
    assert Sampler(Sampling(temperature=5.0, top_k=1)).pick(LOGITS) == 0
    assert Sampler(Sampling(temperature=1e-30, seed=0)).pick(LOGITS) == 0


def test_tokens_that_must_not_come_do_not() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 4]] = 1.0
    sampler = Sampler(Sampling(temperature=2.0, top_k=10, top_p=0.99, seed=0))
    assert {sampler.pick(logits) for _ in range(200)} == {3, 4}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_numbers_that_are_none_are_an_error(broken: float) -> None:
    logits = LOGITS.copy()
    logits[5] = broken
    with pytest.raises(GateFailed, match="in its logits"):
        Sampler(Sampling()).pick(logits)


def test_logprob_is_the_log_of_the_softmax() -> None:
    assert logprob(LOGITS, 7) == pytest.approx(np.log(softmax(LOGITS, 1.0)[7]), abs=1e-6)


def test_the_likeliest_tokens_have_the_logarithms_of_the_softmax() -> None:
    logits = LOGITS.copy()
    logits[0] = -np.inf  # must not come, and is none of them
    chances = softmax(logits, 1.0)
    got = top_logprobs(logits, 4)
    assert [token for token, _ in got] == sorted(range(len(logits)), key=lambda n: -chances[n])[:4]
    np.testing.assert_allclose([chance for _, chance in got], np.log(chances[[token for token, _ in got]]), rtol=1e-6)
    assert got[0][1] == logprob(logits, got[0][0])
    assert len(top_logprobs(logits, 99)) == len(logits) - 1
