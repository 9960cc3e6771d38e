"""An original that is asked once says of every candidate what it says beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.data.documents import Document
from optimizer.evaluate.generation import Sliding, compare
from optimizer.evaluate.remembered import bytes_of, remember, score_beside

from .doubles import Planted

#: Shorter than a window, as long as one, and of several.
DOCUMENTS = [Document(f"row {n}", tuple((n + i * i) % 8 for i in range(length))) for n, length in enumerate((5, 8, 40))]


def drawn(seed: int) -> Any:
    """Logits that are as good as random, the same for the same token at the same place."""
    table = np.random.default_rng(seed).standard_normal((8, 64, 8)).astype(np.float32)
    return lambda token, place: table[token, place]


@pytest.mark.parametrize("whole", [True, False])
def test_scores_are_those_of_both_side_by_side(tmp_path: Path, whole: bool) -> None:
    sliding = Sliding(8, 3)
    first, second = Planted(drawn(1)), Planted(drawn(2))
    wanted = compare(first, second, DOCUMENTS, sliding).documents
    for place, (document, known) in enumerate(zip(DOCUMENTS, wanted, strict=True)):
        own = remember(first, document, sliding, tmp_path / str(place), whole)
        assert (own.tokens, own.same, own.nll) == (known.tokens, known.tokens, pytest.approx(known.nll))
        found = score_beside(second, document, sliding, tmp_path / str(place), own.nll)
        assert (found.tokens, found.same) == (known.tokens, known.same)
        assert (found.nll, found.candidate) == (pytest.approx(known.nll), pytest.approx(known.candidate))
        assert found.kl == pytest.approx(known.kl, rel=1e-5) if whole else math.isnan(found.kl)
        kept = tmp_path / str(place) / "logs.npy"
        assert kept.exists() is whole
        assert not whole or kept.stat().st_size > bytes_of(document, 8)
