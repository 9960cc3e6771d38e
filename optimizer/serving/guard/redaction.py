"""Personal data found and taken out, of whole texts and of streams, with the same answer for both.

A text is cut into runs: characters that a piece of personal data could consist of, and single spaces between groups
that could belong to one number. No piece reaches out of its run, so that a stream is answered run by run: what is held
back is the run that is not over yet, which in prose is the word that is being written.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from optimizer.serving.guard.personal import CONTEXT, Found, Personal, in_run

__all__ = ["Redactor", "find", "redact"]

_SOLID = r"A-Za-z0-9._%+\-@:/()'"
#: No run is matched to its end where it has none: longer than ``_LONGEST`` is enough to know.
_TOKEN = rf"[{_SOLID}]{{1,600}}"
#: A whole token that may belong to a number in groups: with a digit, or letters of an IBAN, or a sign between groups.
_JOINS = (
    rf"(?<![{_SOLID}])(?=[{_SOLID}]{{1,40}}(?![{_SOLID}]))"
    rf"(?:(?=[{_SOLID}]*?\d)|(?=[A-Z]{{2,4}}(?![{_SOLID}]))|(?=[-().+]+(?![{_SOLID}]))){_TOKEN}"
)
_RUN = re.compile(rf"{_JOINS}(?:[ \xa0]{_JOINS}){{0,300}}|{_TOKEN}")
_ENDS_JOINING = re.compile(rf"{_JOINS}\Z")
_NEXT = re.compile(_TOKEN)
_WORTH = re.compile(r"[0-9@]")
#: Longer runs are decided from their beginning; nothing that is looked for is as long as what is kept of them.
_LONGEST = 512
_KEPT = 80
_MOST_JOINING = 40
_ALL = frozenset(Personal)


class Redactor:
    """Takes personal data out of a stream of text.

    However the text is cut into pieces, what comes out together is :func:`redact` of the whole.

    Args:
        kinds: what to take out.
    """

    def __init__(self, kinds: Collection[Personal] = _ALL) -> None:
        self._kinds = frozenset(kinds)
        self._context = ""
        self._held = ""

    def feed(self, text: str) -> str:
        """The next piece of the text; returns what can be said by now."""
        self._held += text
        return self._advance(final=False)

    def finish(self) -> str:
        """The text is over; returns the rest."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        whole, place = self._context + self._held, len(self._context)
        found, until = _decided(whole, place, self._kinds, final)
        out = []
        for piece in found:
            out += [whole[place : piece.start], f"[{piece.kind.upper()}]"]
            place = piece.end
        out.append(whole[place:until])
        self._context, self._held = whole[max(0, until - CONTEXT) : until], whole[until:]
        return "".join(out)


def redact(text: str, kinds: Collection[Personal] = _ALL) -> str:
    """The text with every piece of personal data replaced by its kind: ``[EMAIL]``, ``[CARD]``, …"""
    if not _WORTH.search(text):
        return text
    made = Redactor(kinds)
    made._held = text
    return made.finish()


def find(text: str, kinds: Collection[Personal] = _ALL) -> list[Found]:
    """Every piece of personal data in a text, in order."""
    return _decided(text, 0, frozenset(kinds), True)[0] if _WORTH.search(text) else []


def _decided(whole: str, place: int, kinds: Collection[Personal], final: bool) -> tuple[list[Found], int]:
    """What is personal in ``whole[place:]`` as far as no more text can change that, and how far that is."""
    found: list[Found] = []
    while (match := _RUN.search(whole, place)) is not None:
        start, end = match.span()
        if end - start > _LONGEST:
            # By the first characters of the run alone, so that it is the same wherever a stream is cut.
            inside = _inside(whole, start, start + _LONGEST, kinds)
            place = start + _LONGEST - _KEPT
            for piece in inside:
                if piece.start < place < piece.end:
                    place = piece.start if piece.start > start else piece.end
            found += [piece for piece in inside if piece.end <= place]
            continue
        if not final and not _over(whole, start, end):
            return found, start
        if _WORTH.search(whole, start, end):
            found += _inside(whole, start, end, kinds)
        place = end
    return found, len(whole)


def _inside(whole: str, start: int, end: int, kinds: Collection[Personal]) -> list[Found]:
    offset = max(0, start - CONTEXT)
    inside = in_run(whole[offset:end], start - offset, kinds)
    return [Found(f.kind, f.start + offset, f.end + offset) for f in inside]


def _over(whole: str, start: int, end: int) -> bool:
    """Whether no more text can lengthen the run that lies there."""
    if end == len(whole):
        return False
    if whole[end] not in " \xa0":
        return True
    last = max(whole.rfind(" ", start, end), whole.rfind("\xa0", start, end), start - 1) + 1
    if _ENDS_JOINING.match(whole[:end], last) is None:
        return True
    following = _NEXT.match(whole, end + 1)
    if following is None:
        return end + 1 < len(whole)
    # The next token is whole, and was not taken; or it is longer than one that could be.
    return following.end() < len(whole) or len(following[0]) > _MOST_JOINING
