"""What differs between two manifests, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from optimizer.diff import Difference, differences
from optimizer.manifest import Manifest

SAMPLE: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "manifest-1.json").read_text())


def manifest(**changes: Any) -> Manifest:
    """The golden manifest with values at dotted paths changed (`__` for a dot)."""
    data = copy.deepcopy(SAMPLE)
    for path, value in changes.items():
        *way, last = path.split("__")
        place = data
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return Manifest.from_json(data, "x")


def test_the_same_is_the_same_whenever_and_however_it_was_made() -> None:
    other = manifest(created="later", seconds=99.0, command="ml-opt other", key="other", environment__cpu={"mhz": 2})
    one = manifest(environment__cpu={"mhz": 1.0})
    assert differences(one, other) == []


def test_every_sort_of_difference_has_its_path() -> None:
    other = manifest(options__per_channel=False, options__new=1, options__exclude=..., facts__quantized={"total": 35})
    assert differences(manifest(), other) == [
        Difference("options.per_channel", True, False),
        Difference("options.exclude", [], None),
        Difference("options.new", None, 1),
        Difference("facts.quantized.total", 36, 35),
    ]


def test_a_mapping_against_a_value() -> None:
    assert differences(manifest(), manifest(facts__quantized=3)) == [Difference("facts.quantized", {"total": 36}, 3)]


@given(st.sampled_from(["options", "facts", "model", "environment"]), st.text("abc", min_size=1), st.integers())
def test_turned_round_it_is_the_same_difference_turned_round(part: str, name: str, value: int) -> None:
    one, two = manifest(), manifest(**{f"{part}__{name}": value})
    assert differences(one, two) == [Difference(f"{part}.{name}", None, value)]
    assert differences(two, one) == [Difference(f"{part}.{name}", value, None)]
