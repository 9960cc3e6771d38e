"""The file of keys: what is in it, who may read it, and what two writers at once do to it."""

from __future__ import annotations

import hmac
import json
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from optimizer.errors import BadInput, Damaged, MissingPiece, UnknownName
from optimizer.serving.guard.keys import KeyFile, default_key_file
from optimizer.serving.guard.rates import Rate, parse_duration


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "config" / "keys.json")


def test_a_key_is_found_by_itself_and_by_nothing_else(file: KeyFile) -> None:
    key, shown = file.create(name="alice", scopes=["infer", "metrics"])
    _, other = file.create()
    held = file.read()
    assert held.find(shown) == key
    assert held.find(other) != key
    for wrong in (
        "",
        shown[:-1],
        shown + "A",
        shown.upper(),
        shown.replace("mlo_", "mlo-"),
        other[:13] + shown[13:],
        "é",
    ):
        assert held.find(wrong) is None, wrong
    # The id of one with the secret of the other.
    assert held.find(shown[:13] + other[13:]) is None


def test_the_secret_is_256_bits_and_kept_nowhere(file: KeyFile) -> None:
    key, shown = file.create()
    secret = shown.removeprefix(f"mlo_{key.id}_")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret)
    everything = b"".join(p.read_bytes() for p in file.path.parent.iterdir())
    assert secret.encode() not in everything
    document = json.loads(file.path.read_text())
    (record,) = document["keys"]
    assert record["digest"] == hmac.digest(bytes.fromhex(document["hmac_key"]), secret.encode(), "sha256").hex()
    assert "digest" not in key.to_json()


def test_secrets_are_compared_in_constant_time_even_for_an_unknown_id(
    file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shown = file.create()
    held, compared = file.read(), []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    for typed in (shown, "mlo_aaaaaaaa_" + shown[13:], "nothing like a key"):
        held.find(typed)
    assert len(compared) == 3
    assert {len(a) for pair in compared for a in pair} == {64}


def test_the_file_is_its_owners_alone_whatever_the_umask(file: KeyFile) -> None:
    before = os.umask(0)
    try:
        file.create()
        file.create()
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(file: KeyFile, mode: int) -> None:
    file.create()
    file.path.chmod(mode)
    for use in (file.read, file.create, lambda: file.revoke("x")):
        with pytest.raises(BadInput, match=rf"{mode:04o}") as refused:
            use()
        assert f"chmod 600 {file.path}" in refused.value.hint


def test_revoking_by_id_and_by_name(file: KeyFile) -> None:
    one, _ = file.create(name="one")
    two, shown = file.create(name="two")
    assert file.revoke(one.id)[1]
    assert file.revoke("two")[0].id == two.id
    gone, stood = file.revoke("two")
    assert not stood
    now = datetime.now(UTC)
    assert [k.state(now) for k in file.read().keys] == ["revoked", "revoked"]
    assert file.read().find(shown) == gone
    # The name is free again, and then stands for the key that holds.
    new, _ = file.create(name="two")
    assert file.read().named("two") == new
    with pytest.raises(UnknownName, match="did you mean two"):
        file.revoke("twoo")


def test_expiry(file: KeyFile) -> None:
    key, _ = file.create(seconds=parse_duration("30d", "--expires"))
    assert key.expires == key.created + timedelta(days=30)
    assert key.state(key.expires - timedelta(seconds=1)) == "active"
    assert key.state(key.expires) == "expired"


def test_names(file: KeyFile) -> None:
    key, _ = file.create(name="build server 2")
    with pytest.raises(BadInput, match="there is a key called"):
        file.create(name="build server 2")
    with pytest.raises(BadInput, match="there is a key called"):
        file.create(name=key.id)
    for bad in ("x" * 65, "\x1b[31m", "a\nb", " a", "-x"):
        with pytest.raises(BadInput, match="cannot name a key"):
            file.create(name=bad)
    with pytest.raises(UnknownName, match="did you mean infer"):
        file.create(scopes=["infr"])
    with pytest.raises(UnknownName):
        file.create(scopes=["open"])
    with pytest.raises(BadInput, match="needs a scope"):
        file.create(scopes=[])


def test_keys_made_at_once_by_several_processes_are_all_there(file: KeyFile) -> None:
    line = "import sys; from pathlib import Path; from optimizer.serving.guard.keys import KeyFile\n"
    line += "file = KeyFile(Path(sys.argv[1]))\nfor _ in range(12): print(file.create()[1])"
    makers = [
        subprocess.Popen([sys.executable, "-c", line, str(file.path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    shown = [key for maker in makers for key in maker.communicate(timeout=60)[0].split()]
    held = file.read()
    assert len(shown) == len(held.keys) == 48
    assert all(held.find(key) is not None for key in shown)
    assert sorted(p.name for p in file.path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 2, "hmac_key": "", "keys": []}',
        '{"schema": 1, "hmac_key": "00", "keys": []}',
        '{"schema": 1, "hmac_key": "zz", "keys": [{}]}',
        '{"schema": 1, "keys": null}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_file_that_is_no_file_of_keys(file: KeyFile, text: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text, encoding="latin-1")
    file.path.chmod(0o600)
    with pytest.raises(Damaged, match=re.escape(str(file.path))):
        file.read()
    # What cannot be read is not overwritten.
    with pytest.raises(Damaged):
        file.create()
    assert file.path.read_text(encoding="latin-1") == text


def test_a_damaged_record_damages_the_file(file: KeyFile) -> None:
    file.create()
    good = file.path.read_text()
    for find, instead in (
        (r'"digest": "..', '"digest": "'),
        (r'"infer"', '"root"'),
        (r"\+00:00", ""),
        (r'"rate": null', '"rate": "lots"'),
    ):
        file.path.write_text(re.sub(find, instead, good))
        with pytest.raises(Damaged):
            file.read()


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        KeyFile(tmp_path).read()
    (tmp_path / "file").touch()
    with pytest.raises(MissingPiece, match="is a file where a folder is needed") as refused:
        KeyFile(tmp_path / "file" / "keys.json").create()
    assert "--file" in refused.value.hint


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ML_OPT_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_file() == tmp_path / "ml-opt" / "keys.json"
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "mine"))
    assert KeyFile().path == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "seconds", "said"),
    [
        ("100/minute", 60, "100/minute"),
        ("5/second", 1, "5/second"),
        (" 20000 / 6 Hours ", 21600, "20000/6 hours"),
        ("1/day", 86400, "1/day"),
    ],
)
def test_rates(text: str, seconds: int, said: str) -> None:
    rate = Rate.parse(text)
    assert (rate.seconds, str(rate)) == (seconds, said)
    assert Rate.parse(said) == rate


@pytest.mark.parametrize(
    "text",
    ["", "100", "100/", "/minute", "0/minute", "-1/minute", "1.5/minute", "1/0 days", "1/year", "9" * 20 + "/day"],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(BadInput, match="--rate"):
        Rate.parse(text, "--rate")


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-3d", "1.5h", "9999999d", "30 days"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(BadInput, match="--expires"):
        parse_duration(text, "--expires")
