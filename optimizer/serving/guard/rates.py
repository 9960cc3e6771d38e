"""``100/minute``: an amount in a time, as it is typed, kept and counted."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optimizer.errors import BadInput

__all__ = ["Rate", "parse_duration"]

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"\s*(?P<amount>\d{1,15})\s*/\s*(?:(?P<many>\d{1,6})\s*)?(?P<unit>second|minute|hour|day)s?\s*\Z")
_DURATION = re.compile(r"(?P<number>\d{1,6})\s*(?P<unit>s|m|h|d|w)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Rate:
    """An amount of requests or tokens in a time.

    Attributes:
        amount: how many.
        many: how many units of time.
        unit: second, minute, hour or day.
    """

    amount: int
    many: int
    unit: str

    @classmethod
    def parse(cls, text: str, flag: str = "a rate") -> Rate:
        """Parse ``100/minute`` or ``20000 / 6 hours``.

        Raises:
            BadInput: it is no rate, or one that lets nothing through.
        """
        found = _RATE.match(text.lower())
        if found is None:
            raise BadInput(
                f"{flag} takes an amount in a time, not {text!r}", "write 100/minute, 5/second or 100000/day"
            )
        amount, many = int(found["amount"]), int(found["many"] or 1)
        if amount < 1 or many < 1:
            raise BadInput(f"{flag} {text!r} would let nothing through", "to take a key away: ml-opt keys revoke ID")
        return cls(amount, many, found["unit"])

    @property
    def seconds(self) -> int:
        return self.many * _UNITS[self.unit]

    def __str__(self) -> str:
        return f"{self.amount}/{self.unit}" if self.many == 1 else f"{self.amount}/{self.many} {self.unit}s"


def parse_duration(text: str, flag: str) -> int:
    """Seconds of ``30d``, ``12h``, ``90m``; raises :class:`BadInput`."""
    found = _DURATION.match(text.strip().lower())
    if found is None or int(found["number"]) == 0:
        raise BadInput(f"{flag} takes a time from now, not {text!r}", "write 30d, 12h, 90m or 4w")
    return int(found["number"]) * _SECONDS[found["unit"]]
