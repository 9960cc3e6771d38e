"""The stack that signals are handled on, given back by a library that takes it.

OpenVINO's plugin for processors gives the thread that loads it a new signal stack (sigaltstack(2)), and frees that
memory when the plugin goes. It puts the old one back only where its own is still in place: of two sessions, the one
that is closed first leaves the thread with the stack of the other, and that one's end with memory that is nobody's.
The next signal, a Ctrl-C, then ends the process without a word. The stack that was there before is large enough:
Python's is made for what the processor saves, AMX tiles included (``AT_MINSIGSTKSZ``).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["own_signal_stack"]


class _Stack(ctypes.Structure):
    """Linux' ``stack_t``."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def own_signal_stack() -> Iterator[None]:
    """Whatever is done inside, this thread handles signals on the stack that it had before."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
