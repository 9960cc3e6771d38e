"""Tests that run side by side, and those that must not: what asserts a time has the machine for itself.

Where tests run in several processes, each one takes the machine before its fixtures are made and gives it back when
they are gone: shared, or alone where times decide what it sees. Those that wait to be alone are let in before any more
that share, by a gate that everyone passes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: What asserts how long something takes, by the beginning of its path below ``tests/``. Tests that measure and assert
#: who is the fastest are not here: what they plant differs by more than a neighbour can hide (they pass on a machine
#: that is loaded many times over), and alone they would leave a core idle for most of the suite's time.
ALONE = (
    "house/test_imports",
    "serving/test_ending",
    "test_loadgen",
    "test_self_check",
)


def runs_alone(path: str) -> bool:
    """Whether a test file measures, by its path below ``tests/``."""
    return path.startswith(ALONE)


@contextlib.contextmanager
def turn(alone: bool) -> Iterator[None]:
    """The machine, for one test; nothing where tests run in one process."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        yield
        return
    home = Path(tempfile.gettempdir()) / f"ml-opt-turns-{run}"
    home.mkdir(exist_ok=True)
    with (home / "gate").open("w") as gate, (home / "machine").open("w") as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
