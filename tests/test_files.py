"""Locks, whole writes, and what a disk refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toys

from optimizer import files
from optimizer.errors import BadInput, MissingPiece
from optimizer.files import Lock, disk_errors, fsync_tree, write_json


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with Lock(tmp_path / "deep" / "lock"):
        assert not Lock(tmp_path / "deep" / "lock").try_acquire()
    again = Lock(tmp_path / "deep" / "lock")
    assert again.try_acquire()
    again.release()
    again.release()


def test_a_waiting_lock_says_so_once_and_gets_its_turn(tmp_path: Path) -> None:
    first, told = Lock(tmp_path / "lock"), []
    first.acquire()
    threading.Timer(0.3, first.release).start()
    second = Lock(tmp_path / "lock")
    second.acquire(lambda: told.append(1))
    assert told == [1]
    second.release(remove=True)
    assert not (tmp_path / "lock").exists()


def test_a_lock_whose_file_was_removed_guards_nothing_and_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``gc`` may remove the file between another process's open and its flock."""
    path = tmp_path / "lock"
    real = files.fcntl.flock

    def removed_meanwhile(fd: int, how: int) -> None:
        path.unlink()
        monkeypatch.setattr(files.fcntl, "flock", real)
        real(fd, how)

    monkeypatch.setattr(files.fcntl, "flock", removed_meanwhile)
    lock = Lock(path)
    assert not lock.try_acquire()
    assert lock.try_acquire()
    assert not Lock(path).try_acquire()
    lock.release()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    code = (
        f"from optimizer.files import Lock; from pathlib import Path; Lock(Path({str(tmp_path / 'lock')!r})).acquire()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code + "; print('have it', flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
        env=toys.environment(),
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert not Lock(tmp_path / "lock").try_acquire()
    child.kill()
    child.wait()
    assert Lock(tmp_path / "lock").try_acquire()


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    os.umask(before := os.umask(0))
    write_json(file, {"a": "é"})
    assert json.loads(file.read_text()) == {"a": "é"}
    assert file.stat().st_mode & 0o777 == 0o666 & ~before

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(file, {"a": "new"})
    assert json.loads(file.read_text()) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_fsync_reaches_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    seen: list[str] = []
    monkeypatch.setattr(files.os, "fsync", lambda fd: seen.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    fsync_tree(tmp_path)
    assert sorted(seen) == sorted(
        map(str, [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"])
    )


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no room on the disk of {0} while working", "ml-opt gc"),
        (OSError(errno.EDQUOT, "quota"), "no room on the disk", "--store"),
        (RuntimeError("SafetensorError: No space left on device (os error 28)"), "no room on the disk", "--store"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), "no room", "--store"),
        (BadInput("cannot be written: No space left on device"), "no room on the disk", "--store"),
        (PermissionError(errno.EACCES, "no", "{0}/x"), "no permission to write in {0}/x", "--store DIR"),
        (OSError(errno.EROFS, "read-only"), "no permission to write in {0}", "ML_OPT_STORE"),
        (PermissionError(errno.EACCES, "no", "/else/where"), "no permission to use /else/where", "ls -ld /else/where"),
    ],
)
def test_what_a_disk_refuses_is_said_in_words(tmp_path: Path, error: Exception, says: str, hint: str) -> None:
    if isinstance(error, OSError) and isinstance(error.filename, str):
        error.filename = error.filename.format(tmp_path)
    with pytest.raises(MissingPiece) as caught, disk_errors("working", tmp_path):
        raise error
    assert says.format(tmp_path) in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    where = tmp_path / "file" / "store"
    says = f"{tmp_path / 'file'} is a file where a folder is needed"
    with pytest.raises(MissingPiece, match=says), disk_errors("working", where):
        where.mkdir(parents=True)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "x"), FileExistsError(17, "x"), BadInput("x"), ValueError("x")])
def test_other_errors_pass_unchanged(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_errors("working", tmp_path):
        raise error
    assert caught.value is error


def test_a_lock_waits_without_burning_the_processor(tmp_path: Path) -> None:
    holder, waiter = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    holder.acquire()
    threading.Timer(1.0, holder.release).start()
    before = time.thread_time()
    waiter.acquire()
    assert time.thread_time() - before < 0.2
    waiter.release()
