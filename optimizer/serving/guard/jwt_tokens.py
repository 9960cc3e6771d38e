"""JSON Web Tokens: whose they are, whether they hold, and what they allow.

What RFC 8725 (JSON Web Token Best Current Practices) asks for: the algorithms come from the settings and never from the
token, one key is used with algorithms of its own family alone, ``exp``, ``aud`` and ``iss`` have to be there and are
checked, and nothing that a token says about where its key lies (``jwk``, ``jku``, ``x5u``) is read. ``nbf`` is optional
(RFC 7519, 4.1.5), and many identity providers leave it out of access tokens: it is checked where it is there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, missing_package
from optimizer.options import Options, opt
from optimizer.serving.guard.keys import owner_only
from optimizer.serving.problems import Problem
from optimizer.serving.route import Scope

__all__ = ["JwtSettings", "JwtVerifier", "Token"]

#: Longer ones are not looked at: a token of four scopes has under 1,000 characters.
_MAX_LENGTH = 8192
_SHARED = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC = ("ES256", "ES384", "ES512")
_FAMILIES = {"oct": _SHARED, "RSA": _RSA, "EC": _EC, "OKP": ("EdDSA",)}


class JwtSettings(Options):
    """``[auth.jwt]`` of ``serve.toml``."""

    issuer: str = opt(help="Who makes the tokens: their claim `iss` must be exactly this.")
    audience: str = opt(help="Who they are for: their claim `aud` must be or hold this.")
    algorithms: tuple[str, ...] = opt(
        ("RS256", "ES256", "EdDSA"),
        "Algorithms that are accepted; those with a shared secret never together with others.",
        choices=(*_SHARED, *_RSA, *_EC, "EdDSA"),
    )
    key_file: Path | None = opt(None, "A public key in PEM, or the shared secret (a file that only its owner reads).")
    jwks_file: Path | None = opt(None, "Public keys as a JSON Web Key Set; a token's `kid` chooses one.")
    leeway: float = opt(30.0, "Seconds by which clocks may differ.", ge=0, le=300, time=True)
    scope_claim: str = opt("scope", "The claim that holds the scopes: words in a string, or a list.")
    scope_prefix: str = opt("", "What stands before a scope's name in that claim, e.g. `ml-opt:`.")

    def check(self) -> None:
        if (self.key_file is None) == (self.jwks_file is None):
            raise BadInput("[auth.jwt] takes either key-file or jwks-file", 'write jwks-file = "keys.json"')
        if not self.issuer or not self.audience:
            raise BadInput("[auth.jwt] needs an issuer and an audience", "tokens for another service would be let in")
        shared = [a for a in self.algorithms if a in _SHARED]
        if shared and len(shared) != len(self.algorithms):
            raise BadInput(
                f"[auth.jwt] algorithms mixes {shared[0]} with algorithms of public keys",
                "whoever knows the public key could sign with it as a secret: keep one sort",
            )
        if shared and self.jwks_file is not None:
            raise BadInput(f"[auth.jwt] {shared[0]} takes a key-file with the secret, and no jwks-file")


@dataclass(frozen=True)
class Token:
    """What a token says, when it holds.

    Attributes:
        subject: the claim ``sub``, else the issuer.
        scopes: those among its scopes that this server knows.
    """

    subject: str
    scopes: frozenset[Scope]


@dataclass
class JwtVerifier:
    """Checks tokens against the keys of a file, which is read again when it is replaced.

    Raises:
        BadInput: the file is not there, holds a private key or one that is too short, or none for these algorithms.
        MissingPiece: PyJWT is not installed.
    """

    settings: JwtSettings
    _keys: dict[str, tuple[Any, tuple[str, ...]]] = field(default_factory=dict, init=False)
    _seen: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        try:
            import jwt  # noqa: F401 - a server that could read no token shall say so when it starts
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "jwt", "serve with [auth.jwt]") from None
        self._refresh()

    @property
    def path(self) -> Path:
        """The file of keys."""
        path = self.settings.jwks_file or self.settings.key_file
        assert path is not None
        return path

    def verify(self, typed: str) -> Token:
        """What a token allows.

        Raises:
            Problem: 401; the message says what is wrong in general words, and nothing of the token.
        """
        import jwt

        if len(typed) > _MAX_LENGTH:
            raise _refused(f"the token has more than {_MAX_LENGTH} characters")
        self._refresh()
        try:
            header = jwt.get_unverified_header(typed)
            key, algorithms = self._key_of(header)
            claims = jwt.decode(
                typed,
                key,
                algorithms=list(algorithms),
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=self.settings.leeway,
                options={"require": ["exp", "aud", "iss"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _refused(_word(error)) from None
        except (ValueError, TypeError, OverflowError, RecursionError, UnicodeError):
            # What libraries under PyJWT make of claims and keys of another shape than they expect.
            raise _refused("the token cannot be read") from None
        subject = claims.get("sub")
        return Token(subject if isinstance(subject, str) and subject else self.settings.issuer, self._scopes(claims))

    def _key_of(self, header: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
        if self.settings.key_file is not None:
            return self._keys[""]
        kid = header.get("kid")
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if not isinstance(kid, str) or kid not in self._keys:
            raise _refused("the token's key (`kid`) is not one of ours")
        return self._keys[kid]

    def _scopes(self, claims: dict[str, Any]) -> frozenset[Scope]:
        held = claims.get(self.settings.scope_claim, "")
        words = held.split() if isinstance(held, str) else held if isinstance(held, list) else []
        prefix = self.settings.scope_prefix
        bare = {w.removeprefix(prefix) for w in words if isinstance(w, str) and w.startswith(prefix)}
        return frozenset(s for s in Scope if s is not Scope.OPEN and s.value in bare)

    def _refresh(self) -> None:
        """Read the keys where the file is another than it was; what cannot be read keeps nobody's token valid."""
        try:
            facts = os.stat(self.path)
        except OSError as error:
            self._keys, self._seen = {"": (None, ())}, ()
            raise BadInput(f"[auth.jwt] {self.path} cannot be read: {error.strerror}") from None
        seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if seen == self._seen:
            return
        self._keys, self._seen = {"": (None, ())}, ()
        if self.settings.jwks_file is not None:
            self._keys = _key_set(self.path, self.settings.algorithms)
        else:
            self._keys = {"": _one_key(self.path, self.settings.algorithms, facts)}
        self._seen = seen


def _one_key(path: Path, algorithms: tuple[str, ...], facts: os.stat_result) -> tuple[Any, tuple[str, ...]]:
    data = path.read_bytes()
    if algorithms[0] in _SHARED:
        owner_only(path, facts)
        secret = data.strip()
        if b"-----BEGIN" in secret:
            raise BadInput(f"[auth.jwt] {path} holds a key in PEM, and {algorithms[0]} takes a secret")
        if len(secret) < 32:
            raise BadInput(f"[auth.jwt] the secret in {path} is shorter than 32 bytes", "run: openssl rand -hex 32")
        return secret, algorithms
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    except ModuleNotFoundError as error:
        raise missing_package(error.name or "cryptography", "serve with [auth.jwt]") from None
    if b"PRIVATE KEY" in data:
        raise BadInput(f"[auth.jwt] {path} holds a private key", "a server needs its public half alone")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise BadInput(f"[auth.jwt] {path} is no public key in PEM: {error}") from None
    kinds: tuple[tuple[type, tuple[str, ...]], ...] = (
        (rsa.RSAPublicKey, _RSA),
        (ec.EllipticCurvePublicKey, _EC),
        (ed25519.Ed25519PublicKey, ("EdDSA",)),
    )
    usable = tuple(a for a in algorithms for kind, of_kind in kinds if isinstance(key, kind) and a in of_kind)
    if not usable:
        raise BadInput(f"[auth.jwt] none of the algorithms {', '.join(algorithms)} fits the key in {path}")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        raise BadInput(f"[auth.jwt] the RSA key in {path} has {key.key_size} bits; 2048 are the least")
    return key, usable


def _key_set(path: Path, algorithms: tuple[str, ...]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    import jwt

    try:
        listed = json.loads(path.read_bytes())["keys"]
        if not isinstance(listed, list) or not all(isinstance(k, dict) for k in listed) or not listed:
            raise ValueError("`keys` is no list of keys")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"[auth.jwt] {path} is no JSON Web Key Set: {error}") from None
    found: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for number, record in enumerate(listed, 1):
        if record.get("use", "sig") != "sig":
            continue
        if "d" in record or record.get("kty") == "oct":
            raise BadInput(f"[auth.jwt] key {number} of {path} is no public key", "give the public halves alone")
        of_kind = _FAMILIES.get(str(record.get("kty")), ())
        allowed = tuple(a for a in algorithms if a in of_kind and record.get("alg", a) == a)
        kid = record.get("kid", "")
        if not isinstance(kid, str) or kid in found:
            raise BadInput(f"[auth.jwt] key {number} of {path} has no `kid` of its own")
        if not allowed:
            continue
        try:
            # The key alone, without the algorithm that PyJWT would bind to it: those it serves stand in `allowed`.
            found[kid] = jwt.PyJWK(record, algorithm=allowed[0]).key, allowed
        except jwt.PyJWTError as error:
            raise BadInput(f"[auth.jwt] key {number} of {path} cannot be read: {error}") from None
    if not found:
        raise BadInput(f"[auth.jwt] no key of {path} fits the algorithms {', '.join(algorithms)}")
    return found


def _word(error: Exception) -> str:
    import jwt

    words: tuple[tuple[type[Exception], str], ...] = (
        (jwt.ExpiredSignatureError, "the token has expired"),
        (jwt.ImmatureSignatureError, "the token does not hold yet"),
        (jwt.InvalidAudienceError, "the token is for somebody else (`aud`)"),
        (jwt.InvalidIssuerError, "the token is by somebody else (`iss`)"),
        (jwt.InvalidAlgorithmError, "the token's algorithm is not allowed"),
        (jwt.InvalidSignatureError, "the token's signature does not hold"),
    )
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks the claim `{error.claim}`"
    return next((said for kind, said in words if isinstance(error, kind)), "the token cannot be read")


def _refused(message: str) -> Problem:
    challenge = 'Bearer realm="ml-opt", error="invalid_token"'
    return Problem(401, message, {"WWW-Authenticate": challenge}, code="invalid_api_key", reason="unauthorized")
