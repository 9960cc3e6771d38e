"""Milder kin are tried only while nothing of the family keeps the budgets, and the mildest cure is enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from search.test_contest import MODEL, PLAN, rows_of

from optimizer.benching.candidates import Entrant
from optimizer.benching.process import CandidateFailed
from optimizer.quantizing.sensitivity import NodeNoise
from optimizer.runtime import Candidate, Provider
from optimizer.search.candidates import STATIC, Idea, StepOf
from optimizer.search.contest import Contender, Contest, Rules, hold
from optimizer.search.kin import Kin
from optimizer.search.verdict import Outcome
from optimizer.stage import silent
from optimizer.types import Precision

RANKING = [NodeNoise(f"n{place}", "MatMul", 1.0 / (1 + place), 0.0, 0.0, 4) for place in range(40)]
PLAIN = [
    Idea("plain", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {"calib": "c"}),), ""),
    Idea("smooth", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {"calib": "c", "smooth": True}),), ""),
]


class Planted:
    """Static int8 that is wrong in a share of rows, less of it with smoothing and with every node that is left out."""

    def __init__(self, folder: Path, cured_by: int) -> None:
        self.folder, self.cured_by = folder, cured_by
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
            return self.entrant(idea.name, wrong=wrong, latency_s=0.001)

        return Contender(idea.name, make, idea.family)

    def ranked(self) -> tuple[str, list[NodeNoise]]:
        self.rankings += 1
        return "m@1:ranking", RANKING

    def hold(self, kin: Kin) -> Contest:
        rules = Rules("latency", PLAN, max_drop=None, min_agreement=0.9)
        rows = rows_of(self.folder, 200)
        original = self.entrant("original", latency_s=0.005)
        contenders = [self.contend(idea) for idea in PLAIN]
        return hold(original, contenders, rows, MODEL, rules, silent, {PLAIN[0].family: kin})


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[int], Planted]:
    return lambda cured_by: Planted(tmp_path, cured_by)


def test_the_smallest_number_that_keeps_the_budget_is_the_last_that_is_tried(
    planted: Callable[[int], Planted],
) -> None:
    plant = planted(5)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    found = plant.hold(kin)
    assert plant.made == [
        "plain", "smooth", "plain-entropy", "smooth-mixed-2", "smooth-mixed-4", "smooth-mixed-8",
    ]  # fmt: skip
    assert plant.rankings == 1
    assert kin.ranking == tuple(RANKING)
    assert (found.decision.verdict, found.decision.best) == (Outcome.PASS, "smooth-mixed-8")
    assert [c.seen for c in found.contenders] == [64, 64, 64, 64, 64, 200], "what is cut has not seen all rows"
    steps = kin.made["smooth-mixed-8"].steps
    assert steps == (StepOf(STATIC, {"calib": "c", "smooth": True, "exclude_worst": 8, "sensitivity": "m@1:ranking"}),)


def test_nothing_is_tried_that_nothing_asks_for(planted: Callable[[int], Planted]) -> None:
    plant = planted(0)
    kin = Kin(PLAIN, plant.contend, plant.ranked)
    assert plant.hold(kin).decision.verdict is Outcome.PASS
    assert plant.made == ["plain", "smooth"]
    assert plant.rankings == 0


def test_when_half_of_the_nodes_are_float_it_ends(planted: Callable[[int], Planted]) -> None:
    plant = planted(1000)
    found = plant.hold(Kin(PLAIN, plant.contend, plant.ranked))
    assert found.decision.verdict is Outcome.FAIL
    assert plant.made[-1] == "smooth-mixed-16", "32 of 40 nodes would hardly be int8"


def test_a_ranking_that_fails_is_said(planted: Callable[[int], Planted]) -> None:
    plant = planted(5)

    def fails() -> tuple[str, list[NodeNoise]]:
        raise CandidateFailed("no room")

    kin = Kin(PLAIN, plant.contend, fails)
    assert plant.hold(kin).decision.verdict is Outcome.FAIL
    assert plant.made[-1] == "plain-entropy"
    assert kin.trouble.endswith("nodes cannot be ranked: no room")
