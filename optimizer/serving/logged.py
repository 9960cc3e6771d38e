"""Texts as the log may have them, where somebody has asked for texts in it: without personal data, in one line, cut.

Whoever reads a log sees other people's texts. So nothing is in it that has the form of personal data, whatever the
settings of privacy say of what models see; and what would end a line, move a cursor or turn the direction of writing is
spelled out, so that no text can pretend to be something else in a terminal or a file.
"""

from __future__ import annotations

from optimizer.serving.guard.redaction import Redactor, redact

__all__ = ["TEXTS", "loggable"]

#: Texts of one request that are logged.
TEXTS = 16
#: Characters of a text that are logged, and those that are looked through for it.
_SHOWN, _READ = 500, 8192


def loggable(text: str) -> str:
    """The beginning of a text as a log may have it: ``[EMAIL]`` and the like in place of personal data."""
    # Of one that is longer, what is not over yet at the cut is left out: half an address would not be recognized.
    found = redact(text) if len(text) <= _READ else Redactor().feed(text[:_READ])
    cut = len(found) > _SHOWN or len(text) > _READ
    shown = "".join(each if each.isprintable() else _spelled(each) for each in found[:_SHOWN])
    return f"{shown}…" if cut else shown


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
