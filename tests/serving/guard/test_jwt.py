"""Tokens: signed with real keys, and broken in every way that tokens are broken in."""

from __future__ import annotations

import base64
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from optimizer.errors import BadInput
from optimizer.serving.guard.jwt_tokens import JwtSettings, JwtVerifier
from optimizer.serving.problems import Problem
from optimizer.serving.route import Scope

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
NAMES = {"issuer": "https://issuer.example", "audience": "ml-opt"}


def pem(key: Any) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, kind))


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {
        "iss": NAMES["issuer"],
        "aud": "ml-opt",
        "nbf": now - 60,
        "exp": now + 600,
        "sub": "alice",
        "scope": "infer",
    }
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def packed(part: Any) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def verifier(tmp_path: Path) -> JwtVerifier:
    (tmp_path / "public.pem").write_bytes(pem(RSA))
    return JwtVerifier(JwtSettings(**NAMES, algorithms=("RS256",), key_file=tmp_path / "public.pem"))


def said(verifier: JwtVerifier, token: str) -> str:
    with pytest.raises(Problem) as refused:
        verifier.verify(token)
    assert refused.value.status == 401
    assert "invalid_token" in refused.value.headers["WWW-Authenticate"]
    return refused.value.message


def test_what_holds(verifier: JwtVerifier) -> None:
    token = verifier.verify(jwt.encode(claims(scope="infer metrics unknown open"), RSA, "RS256"))
    assert token.subject == "alice"
    assert token.scopes == {Scope.INFER, Scope.METRICS}
    assert verifier.verify(jwt.encode(claims(aud=["other", "ml-opt"]), RSA, "RS256")).scopes == {Scope.INFER}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exp": int(time.time()) - 120}, "expired"),
        # A day, as tests are collected long before they run.
        ({"nbf": int(time.time()) + 86400}, "not hold yet"),
        ({"iat": int(time.time()) + 86400}, "not hold yet"),
        ({"aud": "other"}, "for somebody else"),
        ({"aud": ["other"]}, "for somebody else"),
        ({"iss": "https://evil.example"}, "by somebody else"),
        ({"iss": "https://issuer.example/"}, "by somebody else"),
        ({"exp": None}, "lacks the claim `exp`"),
        ({"aud": None}, "lacks the claim `aud`"),
        ({"iss": None}, "lacks the claim `iss`"),
        ({"exp": "soon"}, "cannot be read"),
        ({"exp": 1e400}, "cannot be read"),
        ({"nbf": [1]}, "cannot be read"),
        ({"aud": {"ml-opt": 1}}, "for somebody else"),
        ({"sub": 7}, "cannot be read"),
    ],
)
def test_claims_that_do_not_hold(verifier: JwtVerifier, changed: dict[str, Any], message: str) -> None:
    assert message in said(verifier, jwt.encode(claims(**changed), RSA, "RS256"))


def test_a_token_need_not_say_from_when_it_holds(verifier: JwtVerifier) -> None:
    """Access tokens of Auth0, Okta and Keycloak have no ``nbf``."""
    token = verifier.verify(jwt.encode(claims(nbf=None, iat=int(time.time())), RSA, "RS256"))
    assert (token.subject, token.scopes) == ("alice", {Scope.INFER})
    late = jwt.encode(claims(nbf=int(time.time()) + 86400), RSA, "RS256")
    assert "not hold yet" in said(verifier, late)


def test_clocks_may_differ_by_the_leeway_and_no_more(verifier: JwtVerifier) -> None:
    now = int(time.time())
    for changed in ({"exp": now - 20}, {"nbf": now + 20}):
        verifier.verify(jwt.encode(claims(**changed), RSA, "RS256"))
    for changed in ({"exp": now - 45}, {"nbf": now + 45}):
        said(verifier, jwt.encode(claims(**changed), RSA, "RS256"))


def test_alg_none_in_every_spelling(verifier: JwtVerifier) -> None:
    for alg in ("none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], {"a": 1}):
        for signature in ("", packed(b"x")):
            said(verifier, f"{packed({'alg': alg, 'typ': 'JWT'})}.{packed(claims())}.{signature}")
    said(verifier, f"{packed({'typ': 'JWT'})}.{packed(claims())}.")


def test_a_public_key_is_no_secret(verifier: JwtVerifier) -> None:
    """The confusion of HS256 and RS256: signed with the public key as if it were a shared secret."""
    for secret in (pem(RSA), pem(RSA).strip()):
        signed = f"{packed({'alg': 'HS256', 'typ': 'JWT'})}.{packed(claims())}"
        signature = packed(hmac.digest(secret, signed.encode(), "sha256"))
        assert "algorithm" in said(verifier, f"{signed}.{signature}")


def test_another_key_and_a_changed_payload(verifier: JwtVerifier) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert "signature" in said(verifier, jwt.encode(claims(), other, "RS256"))
    head, _, tail = jwt.encode(claims(), RSA, "RS256").split(".")
    assert "signature" in said(verifier, f"{head}.{packed(claims(scope='admin'))}.{tail}")
    assert "algorithm" in said(verifier, jwt.encode(claims(), RSA, "PS256"))
    assert "algorithm" in said(verifier, jwt.encode(claims(), EC, "ES256"))


def test_a_key_that_a_token_brings_along_is_not_read(verifier: JwtVerifier) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key()))
    for header in ({"jwk": own}, {"jku": "http://127.0.0.1:9/keys"}, {"x5u": "http://127.0.0.1:9/cert"}):
        assert "signature" in said(verifier, jwt.encode(claims(), other, "RS256", headers=header))
    said(verifier, jwt.encode(claims(), RSA, "RS256", headers={"crit": ["exp"], "exp": 1}))


@pytest.mark.parametrize(
    "token",
    [
        "..",
        "a.b.c",
        "....",
        "é.é.é",
        f"{packed(b'[]')}.{packed(claims())}.x",
        f"{packed(b'{')}.{packed(claims())}.x",
        f"{packed(b'[' * 4000)}.e30.x",
        f"{packed({'alg': 'RS256', 'kid': {}})}.{packed(claims())}.eA",
        f"{packed({'alg': 'RS256', 'b64': False, 'crit': ['b64']})}..eA",
        "x" * 9000,
    ],
)
def test_malformed(verifier: JwtVerifier, token: str) -> None:
    said(verifier, token)


def test_scopes_as_a_list_under_another_name_and_with_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_bytes(pem(ED))
    settings = JwtSettings(**NAMES, key_file=tmp_path / "public.pem", scope_claim="scp", scope_prefix="ml-opt:")
    verifier = JwtVerifier(settings)

    def scopes(value: Any) -> set[Scope]:
        return set(verifier.verify(jwt.encode(claims(scp=value), ED, "EdDSA")).scopes)

    assert scopes(["ml-opt:infer", "admin", 3, None]) == {Scope.INFER}
    assert scopes("ml-opt:admin infer") == {Scope.ADMIN}
    assert scopes({"ml-opt:infer": True}) == set()
    assert scopes(None) == set()


def test_a_set_of_keys(tmp_path: Path) -> None:
    def record(key: Any, algorithm: Any, **more: str) -> dict[str, Any]:
        return {**json.loads(algorithm.to_jwk(key.public_key())), **more}

    first = record(RSA, jwt.algorithms.RSAAlgorithm, kid="a", alg="RS256", use="sig")
    second = record(EC, jwt.algorithms.ECAlgorithm, kid="b")
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [first, second]}))
    verifier = JwtVerifier(JwtSettings(**NAMES, jwks_file=path))
    verifier.verify(jwt.encode(claims(), RSA, "RS256", headers={"kid": "a"}))
    verifier.verify(jwt.encode(claims(), EC, "ES256", headers={"kid": "b"}))
    assert "kid" in said(verifier, jwt.encode(claims(), RSA, "RS256"))
    assert "kid" in said(verifier, jwt.encode(claims(), RSA, "RS256", headers={"kid": "c"}))
    assert "algorithm" in said(verifier, jwt.encode(claims(), RSA, "PS256", headers={"kid": "a"}))
    said(verifier, jwt.encode(claims(), EC, "ES256", headers={"kid": "a"}))
    # A key that was taken away is gone for the next request.
    path.write_text(json.dumps({"keys": [second]}))
    said(verifier, jwt.encode(claims(), RSA, "RS256", headers={"kid": "a"}))
    verifier.verify(jwt.encode(claims(), EC, "ES256"))
    # And a file that cannot be read lets nobody in, however good the keys were that it held.
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(BadInput, match="Key Set"):
            verifier.verify(jwt.encode(claims(), EC, "ES256"))
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        verifier.verify(jwt.encode(claims(), EC, "ES256"))


def test_a_shared_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"0123456789abcdef0123456789abcdef\n")
    settings = JwtSettings(**NAMES, algorithms=("HS256",), key_file=path)
    path.chmod(0o644)
    with pytest.raises(BadInput, match="read or written by others"):
        JwtVerifier(settings)
    path.chmod(0o600)
    JwtVerifier(settings).verify(jwt.encode(claims(), path.read_bytes().strip(), "HS256"))
    path.write_bytes(b"short")
    with pytest.raises(BadInput, match="32 bytes"):
        JwtVerifier(settings)
    path.write_bytes(pem(RSA))
    with pytest.raises(BadInput, match="PEM"):
        JwtVerifier(settings)


def test_keys_that_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "key"

    def refused(data: bytes, message: str, **settings: Any) -> None:
        path.write_bytes(data)
        with pytest.raises(BadInput, match=message):
            JwtVerifier(JwtSettings(**NAMES, **(settings or {"key_file": path})))

    private = EC.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    refused(private, "private key")
    refused(b"", "no public key")
    refused(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key")
    refused(pem(EC), "none of the algorithms", key_file=path, algorithms=("RS256",))
    refused(pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "1024 bits")
    of_private = json.dumps({"keys": [json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC))]}).encode()
    refused(of_private, "no public key", jwks_file=path)
    refused(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', "no public key", jwks_file=path)
    refused(b'{"keys": []}', "Key Set", jwks_file=path)
    refused(b'{"keys": [{"kty": "RSA", "n": "x", "e": "y"}]}', "cannot be read", jwks_file=path)
    refused(b'{"keys": [{"kty": "new"}]}', "fits the algorithms", jwks_file=path)
    path.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        JwtVerifier(JwtSettings(**NAMES, key_file=path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either key-file or jwks-file"),
        ({"key_file": "a", "jwks_file": "b"}, "either key-file or jwks-file"),
        ({"key_file": "a", "algorithms": ("none",)}, "none"),
        ({"key_file": "a", "algorithms": ("HS256", "RS256")}, "mixes"),
        ({"jwks_file": "a", "algorithms": ("HS256",)}, "key-file"),
        ({"key_file": "a", "leeway": 3600.0}, "leeway"),
        ({"key_file": "a", "issuer": ""}, "issuer"),
    ],
)
def test_settings_that_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        JwtSettings(**{**NAMES, **settings})
