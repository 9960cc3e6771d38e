"""The folder that the workers of a server count in, and what servers that were killed left of theirs.

A server that is killed removes nothing. Whether one lives is told by a lock in its folder, which the system gives back
however it ended: a process's number may belong to another by now, or be one of another container.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optimizer.files import Lock

__all__ = ["after_the_dying", "clear", "counts_folder"]

_PREFIX = "ml-opt-serve-"
#: Held by the server for as long as it lives.
_LOCK = "lock"
#: Holds the ports of the server, one a line.
_PORTS = "ports"
#: Seconds that the workers of a server that was killed may still have its ports: they end within two.
_DYING_S = 5.0
_LOOK_EVERY_S = 0.05


@contextlib.contextmanager
def counts_folder(*ports: int) -> Iterator[Path]:
    """A folder that is gone when the block ends; where the process is killed in it, the next server removes it.

    Args:
        ports: that the server answers on.
    """
    made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    lock = Lock(made / _LOCK)
    lock.try_acquire()
    (made / _PORTS).write_text("\n".join(map(str, ports)))
    # Nobody looks at it under its first name: from here on it is locked.
    folder = made.rename(made.with_name(made.name.removeprefix(".")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def clear() -> None:
    """Remove what servers of this user left that were killed; nothing of one that lives."""
    for folder, lock in _killed():
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def after_the_dying(bind: Callable[[], None], port: int) -> None:
    """Bind a port, waiting where those who have it are workers of a server that was killed, and end just now.

    Args:
        bind: raises :class:`OSError` where the port is taken.
        port: that it binds.

    Raises:
        OSError: somebody else has it, or they did not end within five seconds.
    """
    end = time.monotonic() + _DYING_S
    while True:
        try:
            return bind()
        except OSError:
            if time.monotonic() > end or port not in _given_up():
                raise
        time.sleep(_LOOK_EVERY_S)


def _given_up() -> set[int]:
    """The ports of servers that were killed."""
    found: set[int] = set()
    for folder, lock in _killed():
        with contextlib.suppress(OSError, ValueError):
            found.update(map(int, (folder / _PORTS).read_text().split()))
        lock.release()
    return found


def _killed() -> Iterator[tuple[Path, Lock]]:
    """Folders of servers that are no more, each with its lock, which is held: no two servers clear one at a time."""
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):  # cleared by another meanwhile
            of = folder.lstat()
            # Anybody may make a link with such a name, or a folder with a lock that nobody holds.
            if not stat.S_ISDIR(of.st_mode) or of.st_uid != os.getuid() or not (folder / _LOCK).is_file():
                continue
            lock = Lock(folder / _LOCK)
            if lock.try_acquire():
                yield folder, lock
