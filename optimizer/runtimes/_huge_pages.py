"""A model's weights onto huge pages: what is read once a run is then found with 512 times fewer look-ups of addresses.

Most kernels give huge pages to those alone who ask (``/sys/kernel/mm/transparent_hugepage/enabled``: ``madvise``), and
no runtime does. Weights are in memory by the time that a session is open, in pages of 4 KiB, so they are asked for and
moved at once: ``madvise(MADV_HUGEPAGE)`` and ``madvise(MADV_COLLAPSE)`` (Linux 6.1) of madvise(2).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["onto_huge_pages"]

_HUGE = 2 << 20
#: What is smaller than this is no weights that matter; thread stacks and arenas are left out by how full they are.
_LEAST = 4 << 20
_FULL = 0.9
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25


def onto_huge_pages() -> int:
    """Move this process's large private memory onto huge pages.

    Only what is filled already moves, so that nothing grows. It is an attempt: where the system has no huge pages, or
    none are left, memory stays as it is.

    Returns:
        bytes that lie on huge pages now and did not before.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for start, size in list(_small_paged()):
        # Both must say yes: without the first, a page that is given back and filled again would be small.
        if not libc.madvise(start, size, _MADV_HUGEPAGE) and not libc.madvise(start, size, _MADV_COLLAPSE):
            moved += size
    return moved


def _small_paged() -> Iterator[tuple[int, int]]:
    """Address and size, both of whole huge pages, of private memory that is full and lies on small pages."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return
    start = size = filled = 0
    for line in lines:
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            start, size = _whole_pages(first, rest)
        elif size and first == "Rss:":
            filled = 1024 * int(rest.split()[0])
        elif size and first == "AnonHugePages:":
            if filled >= _FULL * size and 1024 * int(rest.split()[0]) < _FULL * size:
                yield start, size
            size = 0


def _whole_pages(addresses: str, rest: str) -> tuple[int, int]:
    """The huge pages inside a mapping; none for one that is small, of a file, shared, or not to be written."""
    rights, _, _, inode, *_ = rest.split()
    first, last = (int(each, 16) for each in addresses.split("-"))
    start = -(-first // _HUGE) * _HUGE
    size = last // _HUGE * _HUGE - start
    return (start, size) if rights == "rw-p" and inode == "0" and size >= _LEAST else (0, 0)
