"""Memory of a process that makes one thing and ends."""

from __future__ import annotations

__all__ = ["reuse_freed"]

#: Parameters of mallopt(3), as glibc's malloc.h numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Blocks beyond this are given back to the system as soon as they are freed; bytes.
_LARGE = 256 * 2**20
#: So much may lie free at the end before it is given back; bytes.
_FREE = 512 * 2**20


def reuse_freed() -> None:
    """Let freed memory be taken again, instead of giving it back to the system and asking for it anew.

    Quantizers read, copy and write a whole graph many times over. By default glibc gives every such copy back, and each
    page of the next one is a page fault. For a process of our own only, as it then holds up to half a gigabyte more
    than it uses. Does nothing where the allocator is another one.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _FREE)
