"""ml-opt keys: as people see it and as programs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.cli.main import run
from optimizer.serving.guard.keys import KeyFile

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keys(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one ``ml-opt keys`` line on a file of its own: exit code, stdout, stderr."""
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "keys.json"))

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["keys", *words])
        return (code, *capfd.readouterr())

    return call


def document(answer: tuple[int, str, str]) -> Any:
    return json.loads(answer[1])


def test_the_key_alone_is_on_stdout(keys: Run, tmp_path: Path) -> None:
    code, out, err = keys(
        "create", "--name", "alice", "--rate", "100/minute", "--tokens", "100000/day", "--expires", "30d"
    )
    assert code == 0
    held = KeyFile(tmp_path / "keys.json").read()
    key = held.find(out.strip())
    assert key is not None
    assert (key.name, str(key.rate), str(key.tokens)) == ("alice", "100/minute", "100000/day")
    assert out.strip() not in err
    assert "shown this once" in err


def test_json(keys: Run) -> None:
    made = document(keys("create", "--scope", "admin", "--scope", "metrics", "--json"))
    assert made["scopes"] == ["admin", "metrics"]
    assert made["key"].startswith(f"mlo_{made['id']}_")
    (listed,) = document(keys("list", "--json"))["keys"]
    assert listed["state"] == "active"
    assert not {"key", "digest"} & set(listed)
    gone = document(keys("revoke", made["id"], "--json"))
    assert gone["changed"] is True
    assert document(keys("revoke", made["id"], "--json"))["changed"] is False
    assert document(keys("list", "--json"))["keys"][0]["state"] == "revoked"


def test_list(keys: Run) -> None:
    assert "no keys in" in keys("list")[1]
    shown = keys("create", "--name", "bob", "--expires", "12h")[1].strip()
    keys("revoke", "bob")
    _, out, _ = keys("list")
    assert [line.split()[-1] for line in out.splitlines() if "bob" in line] == ["revoked"]
    assert shown.rpartition("_")[2] not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--scope", "infr"], "did you mean infer"),
        (["create", "--rate", "many"], "100/minute"),
        (["create", "--tokens", "0/day"], "--tokens"),
        (["create", "--expires", "tomorrow"], "30d"),
        (["create", "--name", "\x07"], "cannot name a key"),
        (["revoke", "nobody"], "unknown key"),
        (["revoke"], "ID|NAME"),
        (["creat"], "keys --help"),
    ],
)
def test_what_is_refused(keys: Run, words: list[str], said: str) -> None:
    code, out, err = keys(*words)
    assert code == 2
    assert said in err
    assert out == ""


def test_a_file_that_others_read(keys: Run, tmp_path: Path) -> None:
    keys("create", "--file", str(tmp_path / "own.json"))
    (tmp_path / "own.json").chmod(0o644)
    code, _, err = keys("list", "--file", str(tmp_path / "own.json"))
    assert code == 2
    assert "chmod 600" in err
