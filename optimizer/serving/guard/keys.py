"""API keys: made once, shown once, kept as digests in a file that its owner alone can read.

A key is ``mlo_ID_SECRET``. The id (8 letters) is public: it names the key in lists and logs and finds its record. The
secret is 256 bits from the system's generator. What is kept is its HMAC-SHA256 under a random key of the file.

A slow hash (bcrypt, scrypt, argon2) makes up for passwords that can be guessed. Nobody guesses 256 random bits, however
fast the hash; a slow one would only cost every request milliseconds, and hand a stranger a way to burn our processor.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, Damaged, MissingPiece, UnknownName
from optimizer.files import Lock, disk_errors, write_json
from optimizer.serving.guard.rates import Rate
from optimizer.serving.guard.scopes import scopes_of
from optimizer.serving.route import Scope
from optimizer.types import JSON

__all__ = ["PREFIX", "Key", "KeyFile", "Keys", "default_key_file", "owner_only"]

PREFIX = "mlo_"
_SCHEMA = 1
_ID = "abcdefghijkmnpqrstuvwxyz23456789"
_TYPED = re.compile(rf"{PREFIX}(?P<id>[{_ID}]{{8}})_(?P<secret>[A-Za-z0-9_-]{{43}})\Z")
_NAME = re.compile(r"[^\W_][\w .@+-]{0,63}\Z")


def default_key_file() -> Path:
    """``$ML_OPT_KEYS``, or ``keys.json`` in the user's configuration: never in the store, which is copied about."""
    if (named := os.environ.get("ML_OPT_KEYS")) is not None and named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "ml-opt" / "keys.json"


@dataclass(frozen=True)
class Key:
    """A key as it is kept.

    Attributes:
        id: eight letters, public.
        name: what its owner calls it; empty for none.
        scopes: what it may do.
        rate: requests in a time; None for any number.
        tokens: tokens in a time.
        created: when it was made (UTC).
        expires: from when on it is refused; None for never.
        revoked: when it was taken away; None while it stands.
        digest: HMAC-SHA256 of the secret, 64 hex digits.
    """

    id: str
    name: str
    scopes: frozenset[Scope]
    rate: Rate | None
    tokens: Rate | None
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    digest: str

    def state(self, now: datetime) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"

    def to_json(self) -> dict[str, JSON]:
        """Everything about the key but its digest."""
        return {
            "id": self.id,
            "name": self.name,
            "scopes": sorted(s.value for s in self.scopes),
            "rate": str(self.rate) if self.rate else None,
            "tokens": str(self.tokens) if self.tokens else None,
            "created": self.created.isoformat(timespec="seconds"),
            "expires": self.expires.isoformat(timespec="seconds") if self.expires else None,
            "revoked": self.revoked.isoformat(timespec="seconds") if self.revoked else None,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Key:
        def moment(text: str | None) -> datetime | None:
            if text is None:
                return None
            found = datetime.fromisoformat(text)
            if found.tzinfo is None:
                raise ValueError(f"{text} names no time zone")
            return found

        created = moment(value["created"])
        if created is None or not re.fullmatch(r"[0-9a-f]{64}", value["digest"]):
            raise ValueError("a record lacks its time or its digest")
        return cls(
            id=str(value["id"]),
            name=str(value["name"]),
            scopes=scopes_of(value["scopes"]),
            rate=Rate.parse(value["rate"]) if value["rate"] else None,
            tokens=Rate.parse(value["tokens"]) if value["tokens"] else None,
            created=created,
            expires=moment(value["expires"]),
            revoked=moment(value["revoked"]),
            digest=value["digest"],
        )


@dataclass(frozen=True)
class Keys:
    """What a key file holds at one moment."""

    pepper: bytes
    keys: tuple[Key, ...]

    def find(self, typed: str) -> Key | None:
        """The key that was typed, whatever its state; None where there is none, or its secret is another.

        Takes as long for an id that is not there as for a wrong secret, so that ids cannot be tried out by time.
        """
        found = _TYPED.match(typed)
        known = self._by_id.get(found["id"]) if found is not None else None
        given = _digest(self.pepper, found["secret"] if found is not None else "")
        same = hmac.compare_digest(given, known.digest if known is not None else "0" * 64)
        return known if same and known is not None else None

    @functools.cached_property
    def _by_id(self) -> dict[str, Key]:
        return {k.id: k for k in self.keys}

    def named(self, word: str) -> Key:
        """The key of this id, else the one that stands under this name, else the last one that did.

        Raises:
            UnknownName: there is none.
        """
        if (by_id := next((k for k in self.keys if k.id == word), None)) is not None:
            return by_id
        by_name = [k for k in self.keys if k.name == word and word]
        if not by_name:
            raise UnknownName("key", word, {k.id for k in self.keys} | {k.name for k in self.keys if k.name})
        return next((k for k in by_name if k.revoked is None), by_name[-1])


class KeyFile:
    """The file of keys. Writers wait for each other; a reader sees the file before or after a change, never between."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else default_key_file()

    def read(self) -> Keys:
        """What the file holds; nothing where there is none.

        Raises:
            BadInput: others than its owner can read or write it.
            Damaged: it is no key file.
        """
        try:
            with self.path.open("rb") as handle:
                owner_only(self.path, os.fstat(handle.fileno()))
                text = handle.read()
        except FileNotFoundError:
            return Keys(b"", ())
        except IsADirectoryError:
            raise BadInput(f"{self.path} is a folder, and no file of keys") from None
        except PermissionError as error:
            raise MissingPiece(f"{self.path} cannot be read: {error.strerror}", f"run: ls -l {self.path}") from None
        try:
            value = json.loads(text)
            if value["schema"] != _SCHEMA:
                raise ValueError(f"its schema is {value['schema']}, this version reads {_SCHEMA}")
            keys = tuple(Key.from_json(k) for k in value["keys"])
            pepper = bytes.fromhex(value["hmac_key"])
            if len(pepper) < 32 or len({k.id for k in keys}) != len(keys):
                raise ValueError("its hmac_key is too short, or two keys have one id")
            return Keys(pepper, keys)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadInput) as error:
            raise Damaged(
                f"{self.path} is not a file of keys: {error}", "restore it, or move it away and create keys anew"
            ) from None

    def create(
        self,
        *,
        name: str = "",
        scopes: Iterable[str] = ("infer",),
        rate: Rate | None = None,
        tokens: Rate | None = None,
        seconds: int | None = None,
    ) -> tuple[Key, str]:
        """Make a key.

        Args:
            name: what to call it; must not be that of another key that stands.
            scopes: what it may do: infer, admin, metrics.
            rate: requests in a time.
            tokens: tokens in a time.
            seconds: how long it is good for; for ever when left out.

        Returns:
            the record, and the key itself, which is kept nowhere and can be shown this once.

        Raises:
            BadInput: the name is taken or none, or there is no scope.
        """
        allowed = scopes_of(scopes)
        if not allowed:
            raise BadInput("a key needs a scope", "add --scope infer")
        if name and not _NAME.match(name):
            raise BadInput(f"{name!r} cannot name a key: use letters, digits, spaces and . _ @ + -, at most 64")
        secret = secrets.token_urlsafe(32)
        with self._changing():
            held = self.read()
            if name and any(k.id == name or (k.name == name and k.revoked is None) for k in held.keys):
                raise BadInput(
                    f"there is a key called {name!r}", f"choose another --name, or: ml-opt keys revoke {name}"
                )
            now = datetime.now(UTC).replace(microsecond=0)
            pepper = held.pepper or secrets.token_bytes(32)
            taken = {k.id for k in held.keys} | {k.name for k in held.keys}
            while (key_id := "".join(secrets.choice(_ID) for _ in range(8))) in taken:
                pass
            expires = now + timedelta(seconds=seconds) if seconds is not None else None
            key = Key(key_id, name, allowed, rate, tokens, now, expires, None, _digest(pepper, secret))
            self._write(Keys(pepper, (*held.keys, key)))
        return key, f"{PREFIX}{key_id}_{secret}"

    def revoke(self, word: str) -> tuple[Key, bool]:
        """Take a key away, by its id or its name; its record stays, so that a log can be read later.

        Returns:
            the record, and whether it still stood before.

        Raises:
            UnknownName: there is no such key.
        """
        with self._changing():
            held = self.read()
            key = held.named(word)
            if key.revoked is not None:
                return key, False
            gone = replace(key, revoked=datetime.now(UTC).replace(microsecond=0))
            self._write(Keys(held.pepper, tuple(gone if k.id == key.id else k for k in held.keys)))
        return gone, True

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """One writer at a time; what the disk or a permission forbids is said with the flag that helps."""
        try:
            with disk_errors("changing keys", self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with Lock(self.path.with_name(self.path.name + ".lock")):
                    yield
        except MissingPiece as error:
            error.hint = error.hint if error.message.startswith(str(self.path)) else "name another file: --file FILE"
            raise

    def _write(self, keys: Keys) -> None:
        records: list[JSON] = [{**k.to_json(), "digest": k.digest} for k in keys.keys]
        write_json(self.path, {"schema": _SCHEMA, "hmac_key": keys.pepper.hex(), "keys": records}, mode=0o600)


def owner_only(path: Path, facts: os.stat_result) -> None:
    """Refuse a file of secrets that others than its owner can read or change, as ssh does; raises :class:`BadInput`."""
    if not stat.S_ISREG(facts.st_mode):
        raise BadInput(f"{path} is no regular file")
    if facts.st_mode & 0o077:
        raise BadInput(
            f"{path} can be read or written by others (its mode is {stat.S_IMODE(facts.st_mode):04o})",
            f"run: chmod 600 {path}   (and make new keys if somebody may have read it)",
        )


def _digest(pepper: bytes, secret: str) -> str:
    return hmac.digest(pepper or b"none", secret.encode(), "sha256").hex()
