"""A process that has had OpenVINO in it still takes Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

#: Two sessions, the first one closed first, and then a signal, handled where this thread handles them.
CLOSED_IN_ORDER = """
import ctypes, gc, os, signal, sys
from pathlib import Path
from optimizer.runtime import Provider, SessionOptions, get_runtime
from optimizer.runtimes._signal_stack import _Stack
from optimizer.runtimes._tiny import TINY
import faulthandler
faulthandler.enable()  # a stack of signals of its own, as pytest and many services have it

def stack():
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.flags, found.size

provider = Provider(sys.argv[1])
path = Path(sys.argv[2])
path.write_bytes(TINY)
def opened():
    return get_runtime(provider).open(path, SessionOptions(provider, threads=1), model={})
before = stack()
first, second = opened(), opened()
assert stack() == before
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_two_sessions_of_openvino(openvino_provider: str, tmp_path: object) -> None:
    command = [sys.executable, "-c", CLOSED_IN_ORDER, openvino_provider, f"{tmp_path}/tiny.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=_interruptible)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_is_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    from optimizer.runtimes._signal_stack import _Stack, own_signal_stack

    libc, before, after = ctypes.CDLL(None), _Stack(), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    memory = ctypes.create_string_buffer(1 << 16)
    with pytest.raises(RuntimeError), own_signal_stack():
        taken = _Stack(ctypes.addressof(memory), 0, len(memory))
        assert libc.sigaltstack(ctypes.byref(taken), None) == 0
        raise RuntimeError
    libc.sigaltstack(None, ctypes.byref(after))
    assert (after.sp, after.flags, after.size) == (before.sp, before.flags, before.size)
