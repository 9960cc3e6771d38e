"""Strings that end a text, wherever tokens cut them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Stops"]


class Stops:
    """Lets text pass up to the first stop string; what may be the beginning of one is held back.

    Args:
        strings: none of them empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What may be said now; after a stop string nothing."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for string in self._strings if (place := text.find(string)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max(map(len, self._strings), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-size:]) for string in self._strings):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text

    def end(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held
