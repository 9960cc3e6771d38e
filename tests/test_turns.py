"""Tests share the machine or have it alone, and whoever waits to be alone is let in next."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import turns


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "a-run")
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: str(tmp_path))


def worker(alone: bool, line: Connection) -> None:
    """Wait for a turn, say so, and keep it until told."""
    with turns.turn(alone):
        line.send("in")
        line.recv()


def start(alone: bool) -> tuple[Any, Connection]:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=worker, args=(alone, theirs), daemon=True)
    process.start()
    return process, ours


def end(each: tuple[Any, Connection]) -> None:
    each[1].send("out")
    each[0].join(30)
    assert each[0].exitcode == 0


def test_sharing_is_at_once_and_alone_is_alone(run: None) -> None:
    first, second = start(False), start(False)
    assert first[1].poll(30)
    assert second[1].poll(30), "two that share need not wait"
    lone = start(True)
    assert not lone[1].poll(0.3)
    late = start(False)
    assert not late[1].poll(0.3), "nobody passes one that waits to be alone"
    end(first)
    end(second)
    assert lone[1].poll(30)
    assert not late[1].poll(0.3)
    end(lone)
    assert late[1].poll(30)
    end(late)


def test_a_process_of_its_own_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    began = time.monotonic()
    with turns.turn(True), turns.turn(True):
        assert time.monotonic() - began < 30


def test_what_measures_exists() -> None:
    here = Path(turns.__file__).parent
    files = [str(path.relative_to(here)) for path in here.rglob("test_*.py")]
    for beginning in turns.ALONE:
        assert any(path.startswith(beginning) for path in files), beginning
    assert turns.runs_alone("test_loadgen.py")
    assert not turns.runs_alone("search/test_kin.py")
