"""What the system says of processes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["alive", "parent", "state"]


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` behind the name, the state first."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def state(pid: int) -> str:
    """A letter: R for one that runs, T for one that was stopped, Z for one that ended and was not asked about since."""
    return _stat(pid)[0]


def parent(pid: int) -> int:
    """The process that it is a child of."""
    return int(_stat(pid)[1])


def alive(pid: int) -> bool:
    """Whether it has not ended; one that nobody has asked about since it did has."""
    try:
        return state(pid) != "Z"
    except OSError:
        return False
