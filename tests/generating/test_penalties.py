"""Penalties bend logits as transformers and OpenAI's documentation say, and remember what a text has said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.generating.penalties import penalties
from optimizer.generator import Sampling

VOCABULARY = 40


def steps(sampling: Sampling, before: list[int], count: int = 30) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    """What was in sight, the logits and those that they were bent to, while the likeliest token is taken each time."""
    random, bent_by = np.random.default_rng(3), penalties(sampling, before)
    assert bent_by is not None
    found, sight = [], list(before)
    usual = random.normal(0, 2, VOCABULARY)
    for _ in range(count):
        logits = (usual + random.normal(0, 0.3, VOCABULARY)).astype(np.float32)
        given = logits.copy()
        bent = bent_by.apply(logits)
        assert (logits == given).all()  # others read them, too
        found.append((list(sight), logits, bent))
        token = int(bent.argmax())
        bent_by.take(token)
        sight.append(token)
    return found


def test_nothing_asked_is_nothing_done() -> None:
    assert penalties(Sampling(temperature=1.0, top_k=3, min_p=0.1, min_tokens=4), [1, 2]) is None


@pytest.mark.parametrize("before", [[], [5, 6, 7, 5, 6, 30, 31]])
@pytest.mark.parametrize(
    ("asked", "processor", "setting"),
    [
        ({"repetition_penalty": 1.7}, "RepetitionPenaltyLogitsProcessor", 1.7),
        ({"repetition_penalty": 0.6}, "RepetitionPenaltyLogitsProcessor", 0.6),
        ({"no_repeat_ngram_size": 1}, "NoRepeatNGramLogitsProcessor", 1),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor", 2),
        ({"no_repeat_ngram_size": 3}, "NoRepeatNGramLogitsProcessor", 3),
        ({"logit_bias": ((4, 3.5), (9, -100.0))}, "SequenceBiasLogitsProcessor", {(4,): 3.5, (9,): -100.0}),
    ],
)
def test_they_are_those_of_transformers(asked: Any, processor: str, setting: Any, before: list[int]) -> None:
    import torch
    import transformers

    theirs = getattr(transformers, processor)(setting)
    different = 0
    for sight, logits, bent in steps(Sampling(**asked), before):
        wanted = theirs(torch.tensor([sight], dtype=torch.long), torch.tensor(logits[None]))[0].numpy()
        np.testing.assert_array_equal(bent, wanted)
        different += bool((wanted != logits).any())
    assert different > 5


def test_presence_and_frequency_count_what_was_written_and_not_the_prompt() -> None:
    before = [1, 2, 2, 3]
    for sight, logits, bent in steps(Sampling(presence_penalty=0.75, frequency_penalty=0.5), before):
        written = sight[len(before) :]
        times = np.bincount(written, minlength=VOCABULARY)
        np.testing.assert_allclose(bent, logits - 0.75 * (times > 0) - 0.5 * times, rtol=1e-5, atol=1e-6)
    assert max(np.bincount(sight[len(before) :])) > 2  # the last: something was penalized more than once
