"""A parameter is declared once, checked once, and says itself again as flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.cli.app import build_app
from optimizer.cli.generate import typed_values
from optimizer.digest import canonical_json, digest_json
from optimizer.errors import BadInput, UnknownName
from optimizer.options import Options, opt
from optimizer.types import Precision


class Sample(Options):
    whole: int = opt(20, "A whole number.", ge=17, le=24)
    number: float = opt(0.5, "A number.", ge=0.0)
    word: str = opt("minmax", "A word.", choices=("minmax", "entropy"))
    on: bool = opt(False, "A switch.")
    off: bool = opt(True, "A switch.")
    kind: Precision = opt(Precision.FP32, "An enumeration.")
    maybe: int | None = opt(None, "A number or none.", ge=1)
    words: tuple[str, ...] = opt((), "Words.", choices=("a", "b"))
    some: tuple[int, ...] = opt((1, 2), "Numbers.", le=9)
    data: Path | None = opt(None, "A file.", data=True)
    quick: int = opt(1, "Nothing that matters.", key=False)


class Needy(Options):
    calib: Path = opt(help="Rows to calibrate on.", data=True)
    samples: int = opt(128, "Rows to use.", ge=1)

    def check(self) -> None:
        if self.samples == 13:
            raise BadInput("--samples 13 brings bad luck")


def test_defaults_and_conversions() -> None:
    assert Sample().whole == 20
    made = Sample(number=2, kind="bf16", words=["a", "b"], data="x/y")  # type: ignore[arg-type]
    assert (made.number, type(made.number)) == (2.0, float)
    assert made.kind is Precision.BF16
    assert made.words == ("a", "b")
    assert made.data == Path("x/y")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"whole": 16}, "--whole is out of range: 16 (allowed: 17 ≤ whole ≤ 24)"),
        ({"whole": 25}, "--whole is out of range"),
        ({"whole": 20.0}, "--whole takes a whole number, not 20.0"),
        ({"whole": True}, "--whole takes a whole number, not True"),
        ({"whole": "20"}, "--whole takes a whole number, not '20'"),
        ({"whole": None}, "--whole may not be empty"),
        ({"number": float("nan")}, "finite"),
        ({"number": float("inf")}, "finite"),
        ({"number": -0.1}, "(allowed: 0 ≤ number)"),
        ({"number": "1"}, "--number takes a number"),
        ({"on": 1}, "--on takes true or false"),
        ({"on": "yes"}, "--on takes true or false"),
        ({"word": "entropi"}, "did you mean entropy?"),
        ({"kind": "fp33"}, "did you mean fp32"),
        ({"maybe": 0}, "--maybe is out of range"),
        ({"words": "a"}, "--words takes a list, not 'a'"),
        ({"words": ["a", "c"]}, "unknown value of --words: 'c'"),
        ({"some": [1, 10]}, "--some is out of range: 10"),
        ({"some": []}, "--some needs at least one value"),
        ({"data": ""}, "--data may not be empty"),
        ({"data": 3}, "--data takes a path"),
        ({"wohle": 20}, "unknown option of sample: 'wohle'; did you mean whole?"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Sample.from_mapping(values, "sample")
    assert says in str(caught.value)


def test_required_and_combined() -> None:
    with pytest.raises(BadInput, match=r"quantize-static needs --calib: Rows to calibrate on\."):
        Needy.from_mapping({}, "quantize-static")
    with pytest.raises(BadInput, match="bad luck"):
        Needy(calib=Path("x"), samples=13)


def test_dashes_and_underscores_are_the_same() -> None:
    class Dashed(Options):
        per_channel: bool = opt(False, "x")

    assert Dashed.from_mapping({"per-channel": True}) == Dashed(per_channel=True)
    with pytest.raises(BadInput, match="'per_channel' is given twice"):
        Dashed.from_mapping({"per-channel": True, "per_channel": True})


def test_options_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().whole = 21  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sample(21)  # type: ignore[misc]


def test_a_declaration_that_three_doors_cannot_share_is_refused() -> None:
    class Bare(Options):
        x: int = 3

    class NoneIsSaid(Options):
        x: int | None = opt(3, "x")

    class Union(Options):
        x: int | str = opt(3, "x")

    for wrong in (Bare, NoneIsSaid, Union):
        with pytest.raises(TypeError):
            wrong()


def test_the_key_holds_content_and_leaves_out_what_cannot_matter() -> None:
    seen = []

    def digest(path: Path) -> str:
        seen.append(path)
        return "content"

    base = Sample(data=Path("one")).for_key(digest)
    assert base["data"] == "content"
    assert "quick" not in base
    assert base == Sample(data=Path("two"), quick=9).for_key(digest)
    assert base != Sample(data=Path("one"), whole=21).for_key(digest)
    assert seen == [Path("one"), Path("two"), Path("one")]
    assert Sample().for_key(digest)["data"] is None


def test_json_is_json() -> None:
    data = Sample(data=Path("a/b"), words=("a",)).to_json()
    assert data["kind"] == "fp32"
    assert data["words"] == ["a"]
    assert data["data"] == "a/b"
    assert digest_json(data) == digest_json(dict(reversed(data.items())))


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers(0, 10**9),
        "seed": st.integers(-(2**63), 2**63),
        "ratio": st.floats(0, 1, allow_nan=False).map(abs),
        "label": st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
        "mode": st.sampled_from(["plain", "fancy"]),
        "precision": st.sampled_from(list(Precision)),
        "tags": st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1)).map(tuple),
        "sizes": st.lists(st.integers(1, 2**40)).map(tuple),
        "notes": st.text("abc/.-_ é", min_size=1).map(Path),
        "fancy": st.booleans(),
        "safe": st.booleans(),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=VALUES)
def test_flags_say_the_same_options_again(toys: dict[str, Any], values: dict[str, Any]) -> None:
    """options → flags → the command line's own parser → options."""
    options = toys["toy-make"].options(**values)
    group: Any = typer.main.get_command(build_app())
    command = group.commands["toy"].commands["make"]
    context = command.make_context("make", ["model", *options.to_flags()])
    again = type(options).from_mapping(typed_values(type(options), dict(context.params)))
    assert again == options
    assert canonical_json(again.to_json()) == canonical_json(options.to_json())


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text(), st.floats(), st.lists(st.integers()))))
def test_no_mapping_does_anything_but_build_or_be_refused(values: dict[str, Any]) -> None:
    try:
        Needy.from_mapping(values)
    except BadInput as error:
        assert str(error)


def test_unknown_option_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName) as caught:
        Sample.from_mapping({"nope": 1})
    assert caught.value.exit_code == 2


def test_headings_of_help_name_parameters_that_exist():
    from optimizer.check import discover as checks
    from optimizer.stage import discover as stages

    for does in (*checks().values(), *stages().values()):
        names = {field.name for field in does.options.fields()}
        listed = [name for group in does.options.panels.values() for name in group]
        assert set(listed) <= names, does.name
        assert len(listed) == len(set(listed)), does.name


class Timed(Options):
    wait: float = opt(2.0, "A while.", ge=0.1, le=7200, time=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("500 ms", 0.5), (3, 3), (2.5, 2.5)]
)
def test_times_are_read_as_people_write_them(text: Any, seconds: float) -> None:
    assert Timed.from_mapping({"wait": text}).wait == seconds


def test_what_is_no_time_is_refused() -> None:
    for wrong in ("soon", "-1s", "5 d", ""):
        with pytest.raises(BadInput, match=r"--wait .* is no time"):
            Timed(wait=wrong)
    with pytest.raises(BadInput, match="out of range"):
        Timed(wait="3h")
