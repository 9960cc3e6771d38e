"""Stop strings, wherever they are cut."""

from __future__ import annotations

import itertools

import pytest

from optimizer.generating.stops import Stops


def said(strings: list[str], pieces: list[str]) -> str:
    stops = Stops(strings)
    return "".join(stops.add(piece) for piece in pieces) + stops.end()


@pytest.mark.parametrize("text", ["one\n\ntwo", "aab", "aaab", "xENDy", "EN", "ENENDx", "nothing", "", "\n\n"])
@pytest.mark.parametrize("strings", [["\n\n"], ["aab"], ["END", "E"], ["END", "ND"], ["END"], []])
def test_any_cut_of_a_text_says_the_same(strings: list[str], text: str) -> None:
    """Against the definition: all before the first place where some stop string begins."""
    places = [text.find(s) for s in strings if s in text]
    wanted = text[: min(places)] if places else text
    for cuts in itertools.product([True, False], repeat=max(len(text) - 1, 0)):
        pieces, begun = [], 0
        for place, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[begun:place])
                begun = place
        assert said(strings, [*pieces, text[begun:]]) == wanted


def test_nothing_is_said_that_may_be_the_beginning_of_one() -> None:
    stops = Stops(["END"])
    assert stops.add("a E") == "a "
    assert stops.add("N") == ""
    assert stops.add("O") == "ENO"
    assert stops.add("EN") == ""
    assert stops.add("D more") == ""
    assert stops.stopped
    assert stops.add("more") == ""
