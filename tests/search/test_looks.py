"""Looks cover the rows once, double, look like the whole, and their errors add up to what was allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.data.preprocess import Preprocessor
from optimizer.evalset import EvalSet
from optimizer.search.gates import paired_drop
from optimizer.search.looks import Looks, early_confidence, final_confidence, look_sizes
from optimizer.tasks._accuracy import ACCURACY

MODEL = {
    "task": "text-classification",
    "labels": ["a", "b"],
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
}


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (600, (75, 150, 300, 600)),
        (128, (64, 128)),
        (127, (127,)),
        (20, (20,)),
        (1000, (125, 250, 500, 1000)),
        (601, (75, 150, 300, 601)),
    ],
)
def test_looks_double_from_an_eighth(rows: int, sizes: tuple[int, ...]) -> None:
    assert look_sizes(rows) == sizes


def test_every_row_is_in_one_look_and_the_first_is_like_the_whole(tmp_path: Path) -> None:
    label = np.arange(400) % 10 == 0
    np.savez(tmp_path / "rows.npz", x=np.zeros((400, 2), np.float32), label=label.astype(np.int64))
    rows = EvalSet.open(tmp_path / "rows.npz", Preprocessor.open(tmp_path, MODEL), ACCURACY, MODEL)
    looks = Looks.of(rows, None, tmp_path)
    seen = [[place for places in part.places for place in places] for part in looks.parts]
    assert [len(each) for each in seen] == [64, 64, 272], "rows that are alike count as often as they are there"
    assert sorted(place for each in seen for place in each) == list(range(400))
    assert sum(label[place] for place in seen[0]) in (6, 7)
    assert seen[0] != list(range(64))
    upto = looks.upto(1)
    assert sum(map(len, upto.places)) == 128
    assert len(upto.feeds) == len(upto.places) == 8


def test_what_is_looked_at_first_does_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    first = []
    for folder in (tmp_path / "here", tmp_path / "elsewhere"):
        folder.mkdir()
        label = (np.arange(200) % 3 == 0).astype(np.int64)
        np.savez(folder / "rows.npz", x=np.ones((200, 2), np.float32), label=label)
        rows = EvalSet.open(folder / "rows.npz", Preprocessor.open(folder, MODEL), ACCURACY, MODEL)
        first.append(Looks.of(rows, None, folder).parts[0].places)
    assert first[0] == first[1]


def test_the_errors_of_all_looks_are_half_of_what_is_allowed() -> None:
    assert 3 * (1 - early_confidence(0.95, 4)) == pytest.approx(0.025)
    assert 5 * (1 - final_confidence(0.95, 5)) == pytest.approx(0.05)
    assert final_confidence(0.95, 0) == 0.95


def simulate(drops: list[float], limit: float, turns: int, random: np.random.Generator) -> tuple[float, float]:
    """How often some candidate passes though it misses the budget, and how often one is cut that keeps it.

    Args:
        drops: true drop of each candidate; each wins 1 % of rows and loses that and its drop.
        limit: the budget.
        turns: searches.
        random: draws every row's outcome, for each candidate by itself, which is the worst case.
    """
    sizes = look_sizes(600)
    wrong_pass = wrong_cut = 0
    for _ in range(turns):
        rivals, finished = 0, []
        for drop in drops:
            table = np.zeros(3, int)
            for before, after in zip((0, *sizes), sizes, strict=False):
                table += random.multinomial(after - before, [0.01 + drop, 0.01, 0.98 - drop])
                found = paired_drop(int(table[0]), int(table[1]), after, early_confidence(0.95, len(sizes)))
                if after < 600 and found.low > limit:
                    wrong_cut += drop <= limit
                    break
                rivals += after == sizes[0]
            else:
                finished.append((drop, table))
        confidence = final_confidence(0.95, rivals)
        wrong_pass += any(
            drop > limit - 1e-9 and paired_drop(int(t[0]), int(t[1]), 600, confidence).high < limit
            for drop, t in finished
        )
    return wrong_pass / turns, wrong_cut / turns


def test_among_eight_candidates_at_the_edge_one_gets_through_in_five_searches_of_a_hundred() -> None:
    passed, cut = simulate([0.02] * 8, 0.02, 250, np.random.default_rng(1))
    assert passed <= 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5
    assert cut / 8 <= 0.025 + 3 * (0.025 * 0.975 / 2000) ** 0.5


def test_that_others_are_cut_buys_no_luck() -> None:
    """Four at the edge and four that are far beyond: those are cut, and the confidence is shared by the four."""
    passed, _ = simulate([0.02] * 4 + [0.2] * 4, 0.02, 250, np.random.default_rng(2))
    assert passed <= 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5
