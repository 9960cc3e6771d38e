"""Sizes in memory, as the system tells them and as they are said."""

from __future__ import annotations

import ctypes
import os

__all__ = ["resident", "said"]


def said(size: int) -> str:
    """A size in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def resident() -> int:
    """Bytes of this process that lie in memory (``/proc/self/statm``); 0 where nobody tells.

    What the allocator holds of freed memory is given back before (glibc's ``malloc_trim``): what was used for a moment
    is not counted, and what is taken next is.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
