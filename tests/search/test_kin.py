"""Milder kin are tried where nothing of the family keeps the budgets and they may win; the mildest cure is enough."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from search.test_contest import MODEL, PLAN, rows_of

from optimizer.benching.candidates import Entrant
from optimizer.benching.process import CandidateFailed
from optimizer.quantizing.sensitivity import NodeNoise
from optimizer.runtime import Candidate, Provider
from optimizer.search.accuracy import Scores
from optimizer.search.candidates import STATIC, Idea, StepOf
from optimizer.search.contest import Contender, Contest, Rules, hold
from optimizer.search.gates import Outcome, cosine_gate
from optimizer.search.kin import Kin
from optimizer.stage import silent
from optimizer.types import Precision

RANKING = [NodeNoise(f"n{place}", "MatMul", 1.0 / (1 + place), 0.0, 0.0, 4) for place in range(40)]
PLAIN = [
    Idea("plain", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {"calib": "c"}),), ""),
    Idea("smooth", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {"calib": "c", "smooth": True}),), ""),
]
FAMILY = PLAIN[0].family
PLAIN_ONES = ["plain", "smooth"]
CURED_BY_8 = [*PLAIN_ONES, "plain-entropy", "smooth-mixed-2", "smooth-mixed-4", "smooth-mixed-8"]


class Planted:
    """Static int8 that is wrong in a share of rows, less of it with smoothing and with every node that is left out."""

    def __init__(self, folder: Path, cured_by: int, **does: Any) -> None:
        self.folder, self.cured_by = folder, cured_by
        self.does = {"latency_s": 0.001, **does}
        self.made: list[str] = []
        self.rankings = 0

    def entrant(self, name: str, **does: Any) -> Entrant:
        path = self.folder / f"{name}.json"
        logits = {"name": "logits", "dtype": "float32", "shape": ["batch", 4]}
        path.write_text(json.dumps({"outputs": [logits], "wait": "sleep", **does}))
        return Entrant(Candidate(name, path, Provider("fake")))

    def contend(self, idea: Idea) -> Contender:
        options = idea.steps[-1].options
        left_out = int(str(options.get("exclude_worst", 0)))

        def make() -> Entrant:
            self.made.append(idea.name)
            wrong = 0.0 if left_out >= self.cured_by else 0.3 if options.get("smooth") else 0.6
            return self.entrant(idea.name, wrong=wrong, **self.does)

        return Contender(idea.name, make, idea.family)

    def ranked(self) -> tuple[str, list[NodeNoise]]:
        self.rankings += 1
        return "m@1:ranking", RANKING

    def hold(self, kin: Kin, *others: Entrant, rows: int = 200, **rules: Any) -> Contest:
        settings: dict[str, Any] = {"objective": "latency", "plan": PLAN, "min_agreement": 0.9, **rules}
        contenders = [self.contend(idea) for idea in PLAIN]
        contenders += [Contender(each.label, lambda each=each: each) for each in others]
        original = self.entrant("original", latency_s=0.005)
        judged_on = rows_of(self.folder, rows)
        return hold(original, contenders, judged_on, MODEL, Rules(**settings), silent, {FAMILY: kin})


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Planted]:
    return lambda cured_by, **does: Planted(tmp_path, cured_by, **does)


def test_the_smallest_number_that_keeps_the_budget_is_the_last_that_is_tried(
    planted: Callable[..., Planted],
) -> None:
    plant = planted(5)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    found = plant.hold(kin)
    assert plant.made == CURED_BY_8
    assert plant.rankings == 1
    assert kin.ranking == tuple(RANKING)
    assert (found.decision.verdict, found.decision.best) == (Outcome.PASS, "smooth-mixed-8")
    assert [c.seen for c in found.contenders] == [64, 64, 64, 64, 64, 200], "what is cut has not seen all rows"
    steps = kin.made["smooth-mixed-8"].steps
    assert steps == (StepOf(STATIC, {"calib": "c", "smooth": True, "exclude_worst": 8, "sensitivity": "m@1:ranking"}),)


def test_nothing_is_tried_that_nothing_asks_for(planted: Callable[..., Planted]) -> None:
    plant = planted(0)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    assert plant.hold(kin).decision.verdict is Outcome.PASS
    assert plant.made == ["plain", "smooth"]
    assert plant.rankings == 0


def test_when_half_of_the_nodes_are_float_it_ends(planted: Callable[..., Planted]) -> None:
    plant = planted(1000)
    found = plant.hold(Kin(PLAIN, plant.contend, plant.ranked))
    assert found.decision.verdict is Outcome.FAIL
    assert plant.made[-1] == "smooth-mixed-16", "32 of 40 nodes would hardly be int8"


def test_a_ranking_that_fails_is_said(planted: Callable[..., Planted]) -> None:
    plant = planted(5)

    def fails() -> tuple[str, list[NodeNoise]]:
        raise CandidateFailed("no room")

    kin = Kin(PLAIN, plant.contend, fails)
    assert plant.hold(kin).decision.verdict is Outcome.FAIL
    assert plant.made[-1] == "plain-entropy"
    assert kin.trouble.endswith("nodes cannot be ranked: no room")


@pytest.mark.parametrize("objective", ["latency", pytest.param("throughput", marks=pytest.mark.thorough)])
def test_kin_of_what_is_slower_than_a_promising_one_are_not_made(
    planted: Callable[..., Planted], objective: str
) -> None:
    plant = planted(5, latency_s=0.004)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    found = plant.hold(kin, plant.entrant("bf16", latency_s=0.0015), objective=objective)
    assert plant.made == PLAIN_ONES
    assert plant.rankings == 0
    assert found.decision.best == "bf16"
    said = found.held_back[FAMILY]
    assert re.fullmatch(r"plain itself takes [23]\.\d\d times as long( a row)? as bf16, which keeps the budgets", said)
    by_name = {c.name: c for c in found.contenders}
    assert by_name["plain"].quick is not None, "one member is timed though it is out"
    assert by_name["smooth"].quick is None, "its time hardly depends on how it was calibrated"
    assert found.decision.reasons["plain"].startswith("after 64 of 200 rows: "), "and stays out for what it was"
    assert found.rivals == 1, "what is timed without a chance has no share"


def test_kin_of_what_is_faster_than_every_promising_one_are_made(planted: Callable[..., Planted]) -> None:
    plant = planted(5)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    found = plant.hold(kin, plant.entrant("bf16", latency_s=0.004))
    assert plant.made == CURED_BY_8
    assert (found.decision.best, found.held_back, found.rivals) == ("smooth-mixed-8", {}, 2)
    assert found.quick is not None
    labels = [row.label for row in found.quick.rows]
    assert labels == ["original", "bf16", "plain", "original #2", "smooth-mixed-8"], "every sample is kept"
    bf16 = next(c for c in found.contenders if c.name == "bf16")
    assert bf16.unjudged.startswith("not judged on all rows: 64 rows do not speak against it, but it takes")


def test_faster_within_the_noise_is_no_reason(planted: Callable[..., Planted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.search.timing.behind", lambda *pair: "")
    plant = planted(5)
    found = plant.hold(Kin(PLAIN, plant.contend, plant.ranked), plant.entrant("bf16", latency_s=0.004))
    assert plant.made == PLAIN_ONES
    assert found.held_back[FAMILY].startswith("plain itself is not faster than bf16 beyond the noise")


def test_kin_that_were_held_back_are_tried_when_what_looked_promising_fails(planted: Callable[..., Planted]) -> None:
    """One row in thirty is wrong, none of them among those of the first look."""
    plant = planted(3, latency_s=0.004)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    bf16 = plant.entrant("bf16", latency_s=0.0015, wrong=0.03)
    found = plant.hold(kin, bf16, rows=300, min_agreement=None, min_cosine=0.999)
    by_name = {c.name: c for c in found.contenders}
    assert by_name["bf16"].cut
    assert by_name["bf16"].seen == 128, "it kept the budgets at first look"
    assert plant.made == CURED_BY_8[:-1]
    assert (found.decision.best, found.held_back) == ("smooth-mixed-4", {})
    assert found.rivals == 2, "what was cut on the way had its chance, and keeps its share"


@pytest.mark.parametrize("smaller", [True, False])
def test_where_size_counts_files_decide_and_nothing_is_timed(planted: Callable[..., Planted], smaller: bool) -> None:
    plant = planted(5, chatter="" if smaller else " " * 400)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    found = plant.hold(kin, plant.entrant("int8-weights", chatter=" " * 200), objective="size")
    assert plant.made == (CURED_BY_8 if smaller else PLAIN_ONES)
    assert found.decision.best == ("smooth-mixed-8" if smaller else "int8-weights")
    assert found.quick is None
    if not smaller:
        said = found.held_back[FAMILY]
        assert re.fullmatch(r"plain itself is 1\.\d\d times as large as int8-weights, which keeps the budgets", said)


@pytest.mark.parametrize(("rate", "tried"), [(0.9, [2, 4]), (0.4, [2, 4, 8, 16])])
def test_doubling_ends_where_it_comes_too_slowly_to_the_cosine_that_is_asked_for(rate: float, tried: list[int]) -> None:
    """2 nodes in float leave .02 where .001 is allowed: at .9 a doubling it is .013 after four more, at .4 .0005."""
    seen: list[Contender] = []

    def contend(idea: Idea) -> Contender:
        left_out = int(str(idea.steps[-1].options.get("exclude_worst", 1)))
        far = 0.02 * rate ** (math.log2(left_out) - 1)
        made = Contender(idea.name, lambda: None, idea.family)  # type: ignore[arg-type, return-value]
        made.scores = Scores((1 - far, 1 - far / 2))
        made.gates = (cosine_gate(made.scores.cosine, 0.999, 0.95),)
        return made

    kin = Kin(PLAIN[:1], contend, lambda: ("m@1:ranking", RANKING))
    seen.append(contend(PLAIN[0]))
    while (following := kin(seen)) is not None:
        seen.append(following)
    numbers = [int(contender.name.rpartition("-")[2]) for contender in seen if "mixed" in contender.name]
    assert numbers == tried
    assert bool(kin.trouble) is (rate == 0.9)
    if kin.trouble:
        assert kin.trouble.startswith("No more than 4 nodes were left in float")
