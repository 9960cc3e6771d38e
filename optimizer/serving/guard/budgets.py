"""Requests and tokens of a caller in a time, counted by the package ``limits``: in memory, or in Redis.

Requests are counted in a sliding window (two counters, the older weighted by how much of it is still in sight): no
burst of twice the rate where one window ends and the next begins, and a caller costs two numbers, whatever its rate.

Tokens are counted in a window that begins with the first one. What a request may at most come to is reserved before it
runs, and what it did not need is given back after, so that many requests at once cannot overdraw a budget together.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from optimizer.errors import BadInput, MissingPiece, missing_package
from optimizer.serving.guard.rates import Rate
from optimizer.serving.guard.scopes import Principal, Reservation, joined
from optimizer.serving.problems import Problem

__all__ = ["Budgets"]


class Budgets:
    """Counts what callers use.

    Args:
        url: ``redis://…`` where several processes count together; this process's memory when empty.
        workers: how many processes serve. Without Redis several cannot hold a rate, and refuse those who have one.

    Raises:
        BadInput: the URL is none of Redis.
        MissingPiece: the package ``limits`` or ``redis`` is not installed.
    """

    def __init__(self, url: str = "", *, workers: int = 1) -> None:
        if url and not url.startswith(("redis://", "rediss://")):
            raise BadInput("the place where rates are counted is no URL of Redis", "write redis://HOST:6379/0")
        try:
            from limits.aio.strategies import SlidingWindowCounterRateLimiter
            from limits.errors import ConfigurationError
            from limits.storage import storage_from_string
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "limits", "counting requests") from None
        self._holds = workers == 1 or bool(url)
        try:
            if url:
                self._storage: Any = storage_from_string(f"async+{url}", implementation="redispy")
            else:
                self._storage = storage_from_string("async+memory://")
        except ConfigurationError as error:
            raise MissingPiece(f"counting requests in Redis: {error}", "run: pip install redis") from None
        self._windows = SlidingWindowCounterRateLimiter(self._storage)

    async def request(self, who: Principal) -> dict[str, str]:
        """Count one request.

        Returns:
            the fields ``RateLimit`` and ``RateLimit-Policy`` of its answer (draft-ietf-httpapi-ratelimit-headers).

        Raises:
            Problem: 429 with ``Retry-After`` when the rate or the budget of tokens is used up; 503 when the counts
                cannot be reached: nobody is let in uncounted.
        """
        headers: dict[str, str] = {}
        if who.rate is not None:
            rate, key = who.rate, self._key(who, who.rate, "requests")
            async with _reaching():
                let_in = await self._windows.hit(self._item(rate, "requests"), who.id)
                previous, _, current, _ = await self._storage.get_sliding_window(key, rate.seconds)
            now = time.time()
            left, wait = _sliding(rate, previous, current, now)
            headers = _fields("requests", rate, left, wait or rate.seconds - now % rate.seconds)
            if not let_in:
                raise _too_many("rate", f"more than {rate} requests", wait, headers)
        if who.tokens is not None:
            used, wait = await self._spent(who, who.tokens)
            headers = joined(headers, _fields("tokens", who.tokens, who.tokens.amount - used, wait))
            if used >= who.tokens.amount:
                raise _too_many("tokens", f"the budget of {who.tokens} tokens is used up", wait, headers)
        return headers

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        """Take what a request may at most come to: its own tokens and those that it may generate.

        Raises:
            Problem: 429 with ``Retry-After`` when so much is not left now, 400 when it is more than the whole budget.
        """
        if who.tokens is None or tokens <= 0:
            return Reservation()
        budget, key = who.tokens, self._key(who, who.tokens, "tokens")
        if tokens > budget.amount:
            message = f"the request may come to {tokens} tokens, and the whole budget of its key is {budget}"
            raise Problem(400, message, param="max_tokens", code="token_budget", reason="tokens")
        async with _reaching():
            used = await self._storage.incr(key, budget.seconds, amount=tokens)
            ends = await self._storage.get_expiry(key)
            fits = used <= budget.amount
            if not fits:
                used = await self._storage.incr(key, budget.seconds, amount=-tokens)
        wait = max(ends - time.time(), 0.0)
        headers = _fields("tokens", budget, budget.amount - used, wait)
        if not fits:
            left = max(budget.amount - used, 0)
            message = f"the request may come to {tokens} tokens, and {left} of {budget} are left"
            raise _too_many("tokens", message, wait, headers)

        async def correct(more: int) -> None:
            async with _reaching():
                # A window that began since owes nothing to what was taken from the last one. Redis tells whole seconds.
                if abs(await self._storage.get_expiry(key) - ends) < 1.5:
                    await self._storage.incr(key, budget.seconds, amount=more)

        return Reservation(tokens, headers, correct)

    async def _spent(self, who: Principal, budget: Rate) -> tuple[int, float]:
        """Tokens used in this window, and seconds until it ends."""
        key = self._key(who, budget, "tokens")
        async with _reaching():
            used = await self._storage.get(key)
            ends = await self._storage.get_expiry(key)
        return used, max(ends - time.time(), 0.0) if used else float(budget.seconds)

    def _key(self, who: Principal, rate: Rate, what: str) -> str:
        if not self._holds:
            message = "the server has several workers and no Redis: the rate of this key cannot be counted"
            raise Problem(503, message, reason="rates")
        return str(self._item(rate, what).key_for(who.id))

    @staticmethod
    def _item(rate: Rate, what: str) -> Any:
        from limits.limits import GRANULARITIES

        return GRANULARITIES[rate.unit](rate.amount, rate.many, namespace=f"ml-opt-{what}")


@contextlib.asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    """Counts that cannot be reached refuse the request: a rate that is not counted would be none."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        message = "the counts of requests cannot be reached; try again later"
        raise Problem(503, message, {"Retry-After": "5"}, reason="rates") from error


def _sliding(rate: Rate, previous: int, current: int, now: float) -> tuple[int, float]:
    """Requests that are left of a sliding window, and the seconds until (at least) one more is let in.

    The window of ``limits`` weighs the last period by the share of it that is still in sight, and lets a request in
    while ``floor(previous · share + current) + 1 ≤ amount``.

    Args:
        rate: what is allowed.
        previous: requests in the period before.
        current: requests in this period.
        now: seconds since the epoch; periods begin at multiples of their length.
    """
    period = float(rate.seconds)
    gone = now % period
    weighted = math.floor(previous * (period - gone) / period + current)
    if weighted < rate.amount:
        return rate.amount - weighted, 0.0
    if current < rate.amount and previous:
        # Within this period the older requests fade until one place is free.
        return 0, max(period * (1 - (rate.amount - current) / previous) - gone, 0.0)
    # Else this period's own have to fade, in the next one.
    return 0, period - gone + max(period * (1 - rate.amount / max(current, 1)), 0.0)


def _fields(name: str, rate: Rate, left: int, wait: float) -> dict[str, str]:
    return {
        "RateLimit-Policy": f'"{name}";q={rate.amount};w={rate.seconds}',
        "RateLimit": f'"{name}";r={max(left, 0)};t={_whole(wait)}',
    }


def _whole(seconds: float) -> int:
    # At the very moment a place is not free yet, and what is counted in floats may be a hair early.
    return math.floor(seconds + 1e-3) + 1 if seconds > 0 else 0


def _too_many(reason: str, message: str, wait: float, headers: Mapping[str, str]) -> Problem:
    after = {"Retry-After": str(max(_whole(wait), 1)), **headers}
    return Problem(429, f"{message}; try again in {after['Retry-After']} s", after, code="rate_limit", reason=reason)
