"""What a search with beams counts; that it finds what transformers finds is seen on models (test_export_seq2seq)."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import GateFailed
from optimizer.generating.beams import BeamSearch
from optimizer.generator import Finish, Sampling

END, A, B, C = range(4)


def logits(*chances: float) -> np.ndarray:
    return np.log(np.array(chances, np.float32))


@pytest.mark.parametrize(("start", "best"), [((), (A,)), ((9,), (A,)), ((9, 8), ())])
def test_tokens_that_an_answer_begins_with_count_in_its_length_but_for_the_first(
    start: tuple[int, ...], best: tuple[int, ...]
) -> None:
    """Ending at once has the logarithm -1.2, after A -2.2: by 1 and 2 tokens the latter is better, by 2 and 3 not."""
    search = BeamSearch(Sampling(num_beams=2, early_stopping=True), None, (END,), (), start, 8)
    if start:
        assert search.token(0) == start[-1]
    assert search.step(logits(0.301, 0.6, 0.05, 0.049)[None]) == [0, 0]
    assert (search.token(0), search.token(1)) == (A, B)
    assert search.step(np.stack([logits(0.1847, 0.05, 0.05, 0.7153), logits(0.25, 0.25, 0.25, 0.25)])) is None
    assert search.best() == (best, Finish.STOP)


def test_a_text_that_is_cut_off_says_so() -> None:
    search = BeamSearch(Sampling(num_beams=2), None, (END,), (), (9,), 1)
    assert search.step(logits(0.1, 0.2, 0.3, 0.4)[None]) is None
    assert search.best() == ((C,), Finish.LENGTH)


def test_what_is_no_number_is_said() -> None:
    search = BeamSearch(Sampling(num_beams=2), None, (END,), (), (9,), 4)
    with pytest.raises(GateFailed, match="nan in its logits"):
        search.step(np.array([[0.0, np.nan, 1.0, 2.0]], np.float32))
