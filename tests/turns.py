"""Tests that run side by side, and those that must not: a measurement has the machine for itself.

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

#: What measures, by the beginning of its path below ``tests/``: whoever runs beside it decides who is the fastest,
#: whether a machine is busy, and how long a command takes.
ALONE = (
    "benching/",
    "checks/test_bench",
    "checks/test_optimize",
    "checks/test_report",
    "cli/test_machine_commands",
    "house/test_cached",
    "house/test_docs_blocks",
    "house/test_imports",
    "search/",
    "serving/test_ending",
    "test_kill",
    "test_loadgen",
    "test_peers",
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
