"""Answers that are kept: found by all that they depend on, whole or not at all, and never more than fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toys as toybox

from optimizer import upkeep
from optimizer.layout import Layout
from optimizer.quantizing import kept
from optimizer.quantizing.kept import Kept
from optimizer.store import Store


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"a graph")
    return path


def asked(keep: Kept, graph: Path, answer: bytes = b"42", **more: int) -> bool:
    """Whether the answer had to be worked out; what comes back must be it."""
    calls = []

    def work() -> bytes:
        calls.append(1)
        return answer

    assert keep.recall("what", graph, work, **more) == answer
    return bool(calls)


def test_an_answer_is_found_by_all_that_it_depends_on(store: Store, graph: Path) -> None:
    with store.scratch() as scratch:
        keep = Kept.beside(scratch.path, {"rows": "a"})
        assert keep.folder == store.layout.calibrated
        assert [asked(keep, graph), asked(keep, graph)] == [True, False]
        assert asked(Kept.beside(scratch.path, {"rows": "b"}), graph)
        assert asked(keep, graph, alpha=1)
        assert not asked(keep, graph, alpha=1)
        (graph.parent / "graph.data").write_bytes(b"weights beside it")
        assert asked(keep, graph)
        graph.write_bytes(b"another graph")
        assert asked(keep, graph)
    with store.scratch() as scratch:
        assert not asked(Kept.beside(scratch.path, {"rows": "a"}), graph)


def test_outside_of_a_store_nothing_is_kept(tmp_path: Path, graph: Path) -> None:
    keep = Kept.beside(tmp_path / "out", {})
    assert keep.folder is None
    assert [asked(keep, graph), asked(keep, graph)] == [True, True]
    assert Layout.around(tmp_path) is None


@pytest.mark.parametrize("spoilt", [b"", b"short", b"x" * 40])
def test_what_is_no_answer_is_worked_out_again(tmp_path: Path, graph: Path, spoilt: bytes) -> None:
    keep = Kept(tmp_path / "kept")
    assert asked(keep, graph)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(spoilt)
    assert [asked(keep, graph), asked(keep, graph)] == [True, False]


def test_what_was_not_asked_for_longest_makes_room(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MOST", 3000)
    monkeypatch.setattr(kept, "_LARGEST", 1500)
    keep = Kept(tmp_path / "kept")
    for number in range(2):
        asked(keep, graph, b"x" * 1000, number=number)
    for age, path in enumerate(sorted(keep.folder.iterdir(), key=lambda each: each.stat().st_mtime_ns)):  # type: ignore[union-attr]
        os.utime(path, (1e9 + age, 1e9 + age))
    assert not asked(keep, graph, b"x" * 1000, number=0)  # it is the younger one now
    asked(keep, graph, b"x" * 1000, number=2)
    assert [asked(keep, graph, b"x" * 1000, number=number) for number in (0, 2, 1)] == [False, False, True]
    asked(keep, graph, b"x" * 2000, number=3)
    assert asked(keep, graph, b"x" * 2000, number=3)  # too large to be kept
    assert sum(path.stat().st_size for path in keep.folder.iterdir()) <= 3000  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(tmp_path: Path, graph: Path) -> None:
    (tmp_path / "kept").write_text("a file where the folder should be")
    keep = Kept(tmp_path / "kept")
    assert [asked(keep, graph), asked(keep, graph)] == [True, True]


DIES = """
import os, signal, sys
from pathlib import Path
from optimizer.quantizing.kept import Kept
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
Kept(Path(sys.argv[1])).recall("what", Path(sys.argv[2]), lambda: b"42")
"""


def test_a_process_that_is_killed_while_it_keeps_an_answer_leaves_none(store: Store, graph: Path) -> None:
    folder = store.layout.calibrated
    died = subprocess.run([sys.executable, "-c", DIES, str(folder), str(graph)], env=toybox.environment())
    assert died.returncode == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 1  # what it was writing
    assert [asked(Kept(folder), graph), asked(Kept(folder), graph)] == [True, False]
    garbage = upkeep.gc(store)
    assert garbage.removed == [".ml-opt/calibrated"]
    assert garbage.bytes > 0
    assert not folder.exists()
    assert asked(Kept(folder), graph)


ASKS = """
import json, sys, time
from pathlib import Path
from optimizer.quantizing.kept import Kept
def work():
    time.sleep(0.3)
    return b"x" * 100_000
keep = Kept(Path(sys.argv[1]))
print(json.dumps([len(keep.recall("what", Path(sys.argv[2]), work, number=n % 3)) for n in range(9)]))
"""


def test_processes_that_ask_at_once_all_get_the_answer(tmp_path: Path, graph: Path) -> None:
    words = [sys.executable, "-c", ASKS, str(tmp_path / "kept"), str(graph)]
    every = [subprocess.Popen(words, stdout=subprocess.PIPE, env=toybox.environment()) for _ in range(4)]
    for process in every:
        out, _ = process.communicate()
        assert json.loads(out) == [100_000] * 9
    assert len(list((tmp_path / "kept").iterdir())) == 3
