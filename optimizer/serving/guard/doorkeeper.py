"""The door: who asks, and whether this route is for them. Decided from the headers, before a byte of the body is read.

Where a key or tokens are configured, every route but the open ones needs one with its scope. Where none is, the server
listens on loopback alone and lets in whoever is on this machine. A browser is on this machine too, and runs pages from
anywhere: requests that a page of another site sent, or that reached us by another name than this machine's (DNS
rebinding, a proxy that forwards for others), are refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from optimizer.errors import BadInput, MlOptError
from optimizer.options import Options, opt
from optimizer.serving.guard.budgets import Budgets
from optimizer.serving.guard.jwt_tokens import JwtSettings, JwtVerifier
from optimizer.serving.guard.keys import PREFIX, KeyFile, Keys
from optimizer.serving.guard.rates import Rate
from optimizer.serving.guard.scopes import ANYBODY, STRANGER, Admitted, Principal, Reservation
from optimizer.serving.problems import Problem
from optimizer.serving.route import Scope

__all__ = ["AuthSettings", "Doorkeeper", "check_address", "is_loopback"]

_LONGEST = 16384
_WATCHED = frozenset(
    (b"authorization", b"x-api-key", b"host", b"origin", b"sec-fetch-site", b"forwarded", b"x-forwarded-for")
)


class AuthSettings(Options):
    """``[auth]`` of ``serve.toml``; ``[auth.jwt]`` is :class:`~optimizer.serving.guard.jwt_tokens.JwtSettings`."""

    keys: Path | None = opt(None, "The file of keys; $ML_OPT_KEYS or ~/.config/ml-opt/keys.json when left out.")
    rate: str | None = opt(None, "Requests in a time for a caller that has no rate of its own, e.g. 100/minute.")
    tokens: str | None = opt(None, "Tokens in a time for a caller that has no budget of its own, e.g. 100000/day.")
    redis: str = opt("", "Where several workers count rates together: redis://HOST:6379/0.")
    hosts: tuple[str, ...] = opt((), "Names beside this machine's own by which a server without keys may be called.")

    def check(self) -> None:
        if self.rate is not None:
            Rate.parse(self.rate, "[auth] rate")
        if self.tokens is not None:
            Rate.parse(self.tokens, "[auth] tokens")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone: ``localhost``, ``127.0.0.0/8``, ``::1``."""
    bare = host.strip().removeprefix("[").removesuffix("]")
    if bare.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def check_address(host: str, configured: bool) -> None:
    """Refuse to listen where others can reach a server that asks for no key; raises :class:`BadInput`."""
    if not configured and not is_loopback(host):
        raise BadInput(
            f"--host {host} can be reached from other machines, and no key is configured",
            "run: ml-opt keys create --name NAME   (or leave --host out, and serve this machine alone)",
        )


class _LiveKeys:
    """The file of keys as it is now: read again when it was replaced, and never forgotten once it held something."""

    def __init__(self, file: KeyFile) -> None:
        self.file = file
        self._seen: tuple[int, ...] = ()
        self._keys = Keys(b"", ())
        self.configured = False

    def now(self) -> Keys:
        """The keys; raises as :meth:`KeyFile.read` does."""
        try:
            facts = os.stat(self.file.path)
            seen: tuple[int, ...] = (facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode)
        except FileNotFoundError:
            seen = ()
        if seen != self._seen:
            self._seen = (-1,)  # what cannot be read is read again for the next request
            self._keys = self.file.read()
            self._seen = seen
        self.configured = self.configured or bool(self._keys.keys)
        return self._keys


class Doorkeeper:
    """Decides who is let in.

    Args:
        settings: of ``[auth]``.
        jwt: of ``[auth.jwt]``; None where no tokens are taken.
        workers: how many processes serve.
        told: is told, in words, when keys cannot be read; goes to the log.

    Raises:
        BadInput: a file of keys that others can read, or that was named and is not there; keys of tokens that do
            not fit; several workers with a rate and no Redis.
        Damaged: the file of keys is none.
        MissingPiece: a package is not installed.
    """

    def __init__(
        self,
        settings: AuthSettings | None = None,
        jwt: JwtSettings | None = None,
        *,
        workers: int = 1,
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings = settings if settings is not None else AuthSettings.from_mapping({})
        self._keys = _LiveKeys(KeyFile(self.settings.keys))
        self._told = told
        self._jwt = JwtVerifier(jwt) if jwt is not None else None
        self._rate = Rate.parse(self.settings.rate) if self.settings.rate else None
        self._tokens = Rate.parse(self.settings.tokens) if self.settings.tokens else None
        self._hosts = frozenset(host.lower() for host in self.settings.hosts)
        held = self._keys.now()
        if self.settings.keys is not None and not held.keys:
            raise BadInput(
                f"{self.settings.keys} holds no keys", f"run: ml-opt keys create --file {self.settings.keys}"
            )
        rated = self._rate or self._tokens or any(k.rate or k.tokens for k in held.keys)
        if workers > 1 and rated and not self.settings.redis:
            raise BadInput(
                f"{workers} workers cannot count a rate together, each in its own memory",
                'write redis = "redis://HOST:6379/0" in [auth] of serve.toml, or serve with one worker',
            )
        self._workers = workers
        self._budgets: Budgets | None = None
        if self.settings.redis or rated:
            self._budgets = self._counting()

    @property
    def configured(self) -> bool:
        """Whether callers need a key or a token; once it is so it stays so, whatever becomes of the file."""
        return self._jwt is not None or self._keys.configured

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Admitted:
        """Decide from the headers whether a request is let in.

        Args:
            scope: what its route asks for.
            headers: of the request; names are found in any case.
            client: its address; empty where there is none (a Unix socket).

        Raises:
            Problem: 401 who asks is not known; 403 it may not do this; 429 too often; 503 that cannot be told now.
        """
        if scope is Scope.OPEN:
            with contextlib.suppress(MlOptError, OSError):
                self._keys.now()  # says whether there are any by now; what is wrong with them is for other routes
            return Admitted(STRANGER if self.configured else ANYBODY)
        who = self._caller(_watched(headers))
        if scope not in who.scopes:
            may = ", ".join(sorted(who.scopes)) or "nothing here"
            challenge = f'Bearer realm="ml-opt", error="insufficient_scope", scope="{scope}"'
            raise Problem(
                403,
                f"this asks for the scope {scope}, and the caller may do: {may}",
                {"WWW-Authenticate": challenge},
                code="insufficient_scope",
                reason="forbidden",
            )
        if who.rate is None and who.tokens is None:
            return Admitted(who)
        return Admitted(who, await self._counting().request(who))

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        """Take the tokens that a request may come to from its caller's budget; see :meth:`Budgets.reserve`."""
        return await self._counting().reserve(who, tokens) if who.tokens is not None else Reservation()

    def _counting(self) -> Budgets:
        if self._budgets is None:
            self._budgets = Budgets(self.settings.redis, workers=self._workers)
        return self._budgets

    def _caller(self, headers: Mapping[str, list[str]]) -> Principal:
        try:
            keys = self._keys.now()
        except (MlOptError, OSError) as error:
            self._told(f"keys cannot be read, and nobody is let in: {error}")
            raise Problem(503, "the server cannot read its keys; its log says why", reason="keys") from None
        if not self.configured:
            self._must_be_near(headers)
            return ANYBODY
        typed = _credential(headers)
        if typed.startswith(PREFIX):
            return self._of_key(keys, typed)
        if self._jwt is None or typed.count(".") != 2:
            raise _unknown("the key is not known here")
        try:
            token = self._jwt.verify(typed)
        except MlOptError as error:
            self._told(f"keys of tokens cannot be read, and no token is taken: {error}")
            raise Problem(503, "the server cannot read its keys; its log says why", reason="keys") from None
        subject = token.subject
        if len(subject) > 128:
            subject = hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
        return Principal(f"jwt:{subject}", token.scopes, self._rate, self._tokens)

    def _of_key(self, keys: Keys, typed: str) -> Principal:
        key = keys.find(typed)
        if key is None:
            raise _unknown("the key is not known here")
        if (state := key.state(datetime.now(UTC))) != "active":
            raise _unknown(f"the key {key.id} {'has expired' if state == 'expired' else 'was revoked'}")
        who = Principal(f"key:{key.id}", key.scopes, key.rate, key.tokens)
        return replace(who, rate=who.rate or self._rate, tokens=who.tokens or self._tokens)

    def _must_be_near(self, headers: Mapping[str, list[str]]) -> None:
        """Without keys: only what was sent by this machine, to this machine, and not by a page of another site."""
        allowed = self._hosts
        for host in headers.get("host", ()):
            if not _ours(f"//{host}", allowed):
                raise _far("it was called by a name that is not this machine's")
        for origin in headers.get("origin", ()):
            if not _ours(origin, allowed):
                raise _far("a page of another site sent this")
        if any(site.lower() == "cross-site" for site in headers.get("sec-fetch-site", ())):
            raise _far("a page of another site sent this")
        if not allowed and ("x-forwarded-for" in headers or "forwarded" in headers):
            raise _far("a proxy forwards for others")


@functools.lru_cache(maxsize=256)
def _named_ours(url: str, allowed: frozenset[str]) -> bool:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return host is not None and (is_loopback(host) or host.lower() in allowed)


def _ours(url: str, allowed: frozenset[str]) -> bool:
    """Whether a URL names this machine; what is longer than any name is not kept in mind."""
    return len(url) <= 300 and _named_ours(url, allowed)


def _watched(headers: Mapping[str, str]) -> dict[str, list[str]]:
    """What the door looks at, in one walk: name → every value, as a header that was sent twice is two."""
    raw = getattr(headers, "raw", None)  # Starlette's
    if raw is None:
        raw = [(name.lower().encode("latin-1", "replace"), value) for name, value in headers.items()]
    found: dict[str, list[str]] = {}
    for name, value in raw:
        if name in _WATCHED:
            found.setdefault(name.decode(), []).append(value if isinstance(value, str) else value.decode("latin-1"))
    return found


def _credential(headers: Mapping[str, list[str]]) -> str:
    """The one key or token of a request: ``Authorization: Bearer …`` or ``X-API-Key: …``."""
    given, named = headers.get("authorization", []), headers.get("x-api-key", [])
    if not given and not named:
        challenge = {"WWW-Authenticate": 'Bearer realm="ml-opt"'}
        message = "this needs a key; send it as Authorization: Bearer KEY"
        raise Problem(401, message, challenge, code="missing_api_key", reason="unauthorized")
    if len(given) + len(named) > 1:
        raise _unknown("there is more than one key in the request")
    if named:
        typed = named[0]
    else:
        scheme, _, typed = given[0].strip().partition(" ")
        if scheme.lower() != "bearer":
            raise _unknown("the key has to be sent as Authorization: Bearer KEY")
    typed = typed.strip()
    if not typed or len(typed) > _LONGEST or not typed.isascii():
        raise _unknown("the key is not known here")
    return typed


def _unknown(message: str) -> Problem:
    challenge = 'Bearer realm="ml-opt", error="invalid_token"'
    return Problem(401, message, {"WWW-Authenticate": challenge}, code="invalid_api_key", reason="unauthorized")


def _far(why: str) -> Problem:
    message = f"this server has no keys and serves its own machine alone; {why}"
    return Problem(403, message, code="not_local", reason="forbidden")
