"""The door: with keys nobody without one, without keys nobody from elsewhere."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from optimizer.errors import BadInput, Damaged
from optimizer.serving.guard.doorkeeper import AuthSettings, Doorkeeper, check_address, is_loopback
from optimizer.serving.guard.jwt_tokens import JwtSettings
from optimizer.serving.guard.keys import KeyFile
from optimizer.serving.guard.rates import Rate
from optimizer.serving.guard.scopes import Admitted
from optimizer.serving.problems import Problem
from optimizer.serving.route import Scope

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    """The file that a server without settings looks into."""
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "keys.json"))
    return KeyFile()


def admit(door: Doorkeeper, scope: Scope = Scope.INFER, **headers: str) -> Admitted:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(door.admit(scope, Headers(raw=raw), "127.0.0.1"))


def refused(door: Doorkeeper, status: int, scope: Scope = Scope.INFER, **headers: str) -> Problem:
    with pytest.raises(Problem) as found:
        admit(door, scope, **headers)
    assert found.value.status == status, found.value.message
    return found.value


def test_a_key_opens_what_it_has_the_scope_for(file: KeyFile) -> None:
    key, shown = file.create(scopes=["infer"])
    door = Doorkeeper()
    assert admit(door, authorization=f"Bearer {shown}").who.id == f"key:{key.id}"
    assert admit(door, authorization=f"bearer   {shown}  ").who.id == f"key:{key.id}"
    assert admit(door, x_api_key=shown).who.id == f"key:{key.id}"
    for scope in (Scope.ADMIN, Scope.METRICS):
        problem = refused(door, 403, scope, authorization=f"Bearer {shown}")
        assert f'scope="{scope}"' in problem.headers["WWW-Authenticate"]
    assert admit(door, Scope.OPEN).who.scopes == {Scope.OPEN}


@pytest.mark.parametrize("scope", [Scope.INFER, Scope.ADMIN, Scope.METRICS])
def test_with_any_key_nobody_without_one(file: KeyFile, scope: Scope) -> None:
    _, shown = file.create(scopes=["infer", "admin", "metrics"])
    door = Doorkeeper()
    assert refused(door, 401, scope).headers["WWW-Authenticate"] == 'Bearer realm="ml-opt"'
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {shown}",
        shown,
        f"Bearer {shown}x",
        f"Bearer {shown[:-1]}",
        f"Bearer {shown[:13]}{'A' * 43}",
        f"Bearer {shown}, Bearer {shown}",
        "Bearer a.b.c",
        "Bearer " + "x" * 60_000,
        "Bearer \u00e9",
    ):
        problem = refused(door, 401, scope, authorization=wrong)
        assert shown not in problem.message
    assert refused(door, 401, scope, x_api_key="")


def test_two_keys_in_one_request_are_none(file: KeyFile) -> None:
    _, shown = file.create()
    door = Doorkeeper()
    twice = Headers(raw=[(b"authorization", f"Bearer {shown}".encode())] * 2)
    for headers in (twice, Headers({"authorization": f"Bearer {shown}", "x-api-key": shown})):
        with pytest.raises(Problem, match="more than one key"):
            asyncio.run(door.admit(Scope.INFER, headers, ""))


def test_revoked_and_expired_from_the_next_request_on(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    key, shown = file.create(seconds=3600)
    other, other_shown = file.create()
    door = Doorkeeper()
    admit(door, authorization=f"Bearer {shown}")
    admit(door, authorization=f"Bearer {other_shown}")
    file.revoke(other.id)
    assert "revoked" in refused(door, 401, authorization=f"Bearer {other_shown}").message
    monkeypatch.setattr(type(key), "state", lambda self, now: "expired" if self.id == key.id else "revoked")
    assert "expired" in refused(door, 401, authorization=f"Bearer {shown}").message
    # A key that was made while the server runs is good at once.
    monkeypatch.undo()
    new = KeyFile(file.path).create()[1]
    admit(door, authorization=f"Bearer {new}")


def test_a_server_that_had_keys_is_never_open_again(file: KeyFile) -> None:
    _, shown = file.create()
    told: list[str] = []
    door = Doorkeeper(told=told.append)
    file.path.chmod(0o644)
    refused(door, 503, authorization=f"Bearer {shown}")
    assert "chmod 600" in told[-1]
    file.path.chmod(0o600)
    admit(door, authorization=f"Bearer {shown}")
    file.path.write_text("{}")
    refused(door, 503, authorization=f"Bearer {shown}")
    file.path.unlink()
    refused(door, 401)
    refused(door, 401, authorization=f"Bearer {shown}")


def test_a_server_without_keys_has_them_as_soon_as_one_is_made(file: KeyFile) -> None:
    door = Doorkeeper()
    assert not door.configured
    admit(door, Scope.ADMIN, host="127.0.0.1:8000")
    assert admit(door, Scope.OPEN).who.id == "anybody"
    _, shown = file.create()
    assert admit(door, Scope.OPEN).who.id == "stranger"
    refused(door, 401, host="127.0.0.1:8000")
    assert door.configured
    file.path.chmod(0o644)
    assert admit(door, Scope.OPEN).who.id == "stranger"
    file.path.chmod(0o600)
    admit(door, authorization=f"Bearer {shown}", host="example.com", x_forwarded_for="8.8.8.8")


def test_all_revoked_is_not_open(file: KeyFile) -> None:
    key, shown = file.create()
    file.revoke(key.id)
    door = Doorkeeper()
    assert door.configured
    refused(door, 401)
    refused(door, 401, authorization=f"Bearer {shown}")


@pytest.mark.parametrize("scope", [Scope.INFER, Scope.ADMIN, Scope.METRICS])
def test_without_keys_only_this_machine(file: KeyFile, scope: Scope) -> None:
    door = Doorkeeper()
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000", "LOCALHOST:1"):
        admit(door, scope, host=host)
    admit(door, scope, host="localhost", origin="http://localhost:8000", sec_fetch_site="same-origin")
    for headers in (
        {"host": "evil.example"},  # DNS that names 127.0.0.1
        {"host": "127.0.0.1.evil.example"},
        {"host": "192.168.1.7:8000"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "localhost@evil.example"},
        {"host": "localhost", "origin": "https://evil.example"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "sec_fetch_site": "cross-site"},
        {"host": "localhost", "x_forwarded_for": "8.8.8.8"},
        {"host": "localhost", "forwarded": "for=8.8.8.8"},
    ):
        assert "serves its own machine alone" in refused(door, 403, scope, **headers).message


def test_names_that_are_allowed(file: KeyFile) -> None:
    door = Doorkeeper(AuthSettings(hosts=("models.lan",)))
    admit(door, host="Models.lan:8000", origin="https://models.lan", x_forwarded_for="10.0.0.1")
    refused(door, 403, host="other.lan")


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.0.0.53", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.0.2", False),
        ("::ffff:8.8.8.8", False),
        ("localhost.evil.example", False),
    ],
)
def test_addresses(host: str, near: bool) -> None:
    assert is_loopback(host) == near
    check_address(host, configured=True)
    if near:
        check_address(host, configured=False)
    else:
        with pytest.raises(BadInput, match="no key is configured") as found:
            check_address(host, configured=False)
        assert "ml-opt keys create" in found.value.hint
        assert found.value.exit_code == 2


def test_what_cannot_be_started(file: KeyFile, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no keys") as found:
        Doorkeeper(AuthSettings(keys=tmp_path / "none.json"))
    assert "ml-opt keys create --file" in found.value.hint
    for wrong in ({"rate": "lots"}, {"tokens": "0/day"}):
        with pytest.raises(BadInput, match="auth"):
            AuthSettings(**wrong)
    file.create(rate=Rate.parse("5/minute"))
    with pytest.raises(BadInput, match="2 workers"):
        Doorkeeper(workers=2)
    file.path.chmod(0o666)
    with pytest.raises(BadInput, match="0666"):
        Doorkeeper()
    file.path.write_text("no")
    file.path.chmod(0o600)
    with pytest.raises(Damaged):
        Doorkeeper()


def test_rates_of_keys_and_of_those_without(file: KeyFile) -> None:
    _, own = file.create(rate=Rate.parse("1/hour"))
    _, usual = file.create()
    door = Doorkeeper(AuthSettings(rate="2/hour"))

    async def work() -> None:
        for key, times in ((own, 1), (usual, 2)):
            headers = Headers({"authorization": f"Bearer {key}"})
            for _ in range(times):
                let_in = await door.admit(Scope.INFER, headers, "")
                assert "RateLimit" in let_in.headers
            with pytest.raises(Problem) as found:
                await door.admit(Scope.INFER, headers, "")
            assert found.value.status == 429
            # A scope that the key lacks costs nothing of its rate, and an open route neither.
            await door.admit(Scope.OPEN, headers, "")

    asyncio.run(work())


def test_tokens_beside_keys(file: KeyFile, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    door = Doorkeeper(jwt=JwtSettings(issuer="me", audience="ml-opt", algorithms=("HS256",), key_file=secret))
    assert door.configured

    def token(**changed: object) -> str:
        now = int(time.time())
        usual = {"iss": "me", "aud": "ml-opt", "nbf": now, "exp": now + 60, "sub": "alice", "scope": "infer"}
        return str(jwt.encode({**usual, **changed}, SECRET, "HS256"))

    assert admit(door, authorization=f"Bearer {token()}").who.id == "jwt:alice"
    refused(door, 403, Scope.ADMIN, authorization=f"Bearer {token()}")
    refused(door, 403, authorization=f"Bearer {token(scope='')}")
    refused(door, 401, authorization=f"Bearer {token(exp=1)}")
    refused(door, 401)
    assert len(admit(door, authorization=f"Bearer {token(sub='x' * 500)}").who.id) < 80
    _, shown = file.create(scopes=["admin"])
    admit(door, Scope.ADMIN, authorization=f"Bearer {shown}")
    # A subject that looks like a key's id has counts of its own.
    assert admit(door, authorization=f"Bearer {token(sub='key:abc')}").who.id == "jwt:key:abc"
    secret.write_text("short")
    refused(door, 503, authorization=f"Bearer {token()}")


ODD = ["Bearer ", "Bearer mlo_", "Bearer a.b.c", "http://[", "localhost:x", "//@:"]
HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "x-api-key", "host", "origin", "sec-fetch-site", "forwarded", "cookie"]),
    st.text(max_size=60) | st.sampled_from(ODD),
)


@settings(max_examples=200, deadline=None)
@given(HEADERS, st.sampled_from(list(Scope)), st.booleans())
def test_whatever_the_headers_hold_they_are_refused_in_order(
    tmp_path_factory: pytest.TempPathFactory, headers: dict[str, str], scope: Scope, keyed: bool
) -> None:
    """Any headers end in a place or in a Problem below 500, and with keys never in a place."""
    path = tmp_path_factory.getbasetemp() / f"fuzz-{keyed}.json"
    if keyed and not path.exists():
        KeyFile(path).create(scopes=["infer", "admin", "metrics"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ML_OPT_KEYS", str(path))
        door = Doorkeeper()
    try:
        let_in = asyncio.run(door.admit(scope, headers, ""))
    except Problem as problem:
        assert problem.status in (401, 403)
        assert scope is not Scope.OPEN
    else:
        assert scope is Scope.OPEN or (not keyed and let_in.who.id == "anybody")


def test_nothing_of_a_credential_is_said(file: KeyFile) -> None:
    file.create()
    door = Doorkeeper()
    problem = refused(door, 401, authorization="Bearer mlo_abcdefgh_" + "S" * 43)
    assert "SSS" not in json.dumps([problem.message, problem.headers])
