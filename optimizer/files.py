"""The few file operations that must survive a power cut, a full disk and a second process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optimizer.errors import MissingPiece
from optimizer.types import JSON

__all__ = [
    "Lock",
    "disk_errors",
    "disk_is_full",
    "fsync_folder",
    "fsync_tree",
    "write_json",
    "write_report",
    "write_text",
]


@contextlib.contextmanager
def disk_errors(doing: str, where: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error that says which folder and what to do."""
    try:
        yield
    except MissingPiece:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise MissingPiece(
                f"no room on the disk of {where} while {doing}",
                "nothing was added; free some space (`ml-opt gc` clears leftovers) or choose another --store",
            ) from error
        if not isinstance(error, OSError):
            raise
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else where
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            if not named.is_relative_to(where) and not where.is_relative_to(named):
                raise MissingPiece(f"no permission to use {named} while {doing}", f"run: ls -ld {named}") from error
            raise MissingPiece(
                f"no permission to write in {named} while {doing}",
                "choose a folder you own: --store DIR, or set ML_OPT_STORE",
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and (blocking := _file_on_the_way(where)) is not None:
            raise MissingPiece(
                f"{blocking} is a file where a folder is needed", "choose another --store DIR"
            ) from error
        raise


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that there is no room on a disk.

    Libraries wrap the system's error in their own, and keep its words; but for torch, whose writer of archives only
    finds that it is not where it should be in the file.
    """
    text = str(error)
    of_torch = "inline_container" in text and "unexpected pos" in text
    return getattr(error, "errno", None) == errno.EDQUOT or os.strerror(errno.ENOSPC) in text or of_torch


def _file_on_the_way(folder: Path) -> Path | None:
    return next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)


def fsync_tree(root: Path) -> None:
    """Flush every file and folder below ``root`` to the disk, so that a rename never publishes an empty file."""
    for folder, _, files in os.walk(root):
        for name in files:
            fsync_folder(Path(folder) / name)
        fsync_folder(Path(folder))


def fsync_folder(path: Path) -> None:
    """Flush one folder (or file): what was renamed into it is there after a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Replace a text file whole: a reader sees the old one or the new one, never half of either.

    Args:
        path: the file.
        text: what it holds from now on.
        mode: its permissions, e.g. ``0o600`` for what only its owner may read; those of any new file when left out.
    """
    fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes files that only their owner reads; the store is readable like any other folder.
        if mode is None:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(temp, mode)
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: JSON, mode: int | None = None) -> None:
    """Replace a JSON file whole, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode)


def write_report(path: Path, value: JSON) -> None:
    """Write a report's JSON, making its folder; raises :class:`MissingPiece` where the disk or a permission forbids."""
    with disk_errors("writing a report", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


class Lock:
    """An advisory lock on a file (``flock``), released by the system when its process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `gc` may have removed the file between open and flock: then this lock guards nothing.
            if os.fstat(fd).st_ino == os.stat(self.path).st_ino:
                self._fd = fd
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(fd)
        return False

    def acquire(self, waiting: Callable[[], None] | None = None) -> None:
        """Take the lock, however long that takes.

        Args:
            waiting: called once when somebody else holds it.
        """
        told = False
        pause = 0.01
        while not self.try_acquire():
            if waiting is not None and not told:
                waiting()
                told = True
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, and with ``remove`` take the file away while still holding it."""
        if self._fd is None:
            return
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
