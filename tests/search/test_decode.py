"""What was written is read again with its types, and what is of another type is named by its way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from optimizer.benching.stats import Ratio
from optimizer.search.decode import decoded
from optimizer.search.gates import Bounded, Outcome
from optimizer.types import JSON


@dataclass(frozen=True)
class Inner:
    size: int
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    outcome: Outcome | None
    many: tuple[Inner, ...]
    free: Mapping[str, JSON] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    bound: Bounded | None = None
    yes: bool = False


WHOLE: dict[str, Any] = {
    "name": "a", "outcome": "PASS", "many": [{"size": 3, "share": 0.5}, {"size": 4}], "free": {"x": [1, "2", None]},
    "seconds": {"make": 1}, "bound": {"value": 1.0, "low": 0.5, "high": 2}, "yes": True,
}  # fmt: skip


def test_every_field_gets_its_type() -> None:
    found = decoded(Outer, WHOLE)
    assert found == Outer(
        "a", Outcome.PASS, (Inner(3, 0.5), Inner(4)), {"x": [1, "2", None]}, {"make": 1.0}, Bounded(1.0, 0.5, 2.0), True
    )
    assert isinstance(found.outcome, Outcome)


def test_new_fields_are_left_out_and_old_files_lack_some() -> None:
    assert decoded(Outer, {"name": "a", "outcome": None, "many": [], "later": 1}) == Outer("a", None, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is int, not str"),
        ({"many": {}}, "many is dict, not list"),
        ({"many": [{"size": 1}, {"size": True}]}, r"many\[1\].size is bool, not int"),
        ({"many": [{}]}, r"many\[0\].size is missing"),
        ({"outcome": "MAYBE"}, "outcome is 'MAYBE', which is no outcome"),
        ({"seconds": {"make": "1"}}, "seconds.make is str, not float"),
        ({"bound": []}, "bound is list, not Mapping"),
        ({"yes": 1}, "yes is int, not bool"),
    ],
)
def test_another_type_is_named_by_its_way(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(Outer, {**WHOLE, **change})


def test_an_interval_that_is_open_is_null() -> None:
    open_ended = Ratio(2.0, 0.0, math.inf)
    written = json.loads(json.dumps(open_ended.to_json(), allow_nan=False))
    assert written["high"] is None
    assert decoded(Ratio, written) == Ratio.from_json(written) == open_ended
    with pytest.raises(ValueError, match="low is NoneType"):
        decoded(Ratio, {**written, "low": None})


def test_the_document_itself() -> None:
    with pytest.raises(ValueError, match="the document is list, not Mapping"):
        decoded(Outer, [])
