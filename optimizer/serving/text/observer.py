"""What a text tells of itself while it is written: to be counted, and never to be waited for."""

from __future__ import annotations

from optimizer.generator import Finish

__all__ = ["Observer"]


class Observer:
    """Counts nothing; the server's metrics are one that does (see :mod:`optimizer.serving.text.counted`)."""

    def places(self, under_way: int, slots: int) -> None:
        """So many texts were let in and are not over; so many of them can be written at once."""

    def prompt(self, tokens: int) -> None:
        """A prompt was read: so many tokens."""

    def first(self, seconds: float) -> None:
        """The first token came so long after it was asked for."""

    def between(self, seconds: float) -> None:
        """Another token came so long after the last one."""

    def ended(self, seconds: float, tokens: int, finish: Finish | None) -> None:
        """A text is over; None where it was cancelled or failed."""
