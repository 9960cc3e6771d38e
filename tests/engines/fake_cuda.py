"""A GPU made of numpy, that forgives nothing: the ``Cuda`` protocol for tests of what runs engines.

What is begun on a stream happens when somebody waits for it, and reads and writes memory as it is then. Every use of
memory is held to the block it lies in. What a real GPU would answer with undefined behaviour is an ``AssertionError``
here, which no caller takes for an error of CUDA's.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable

import numpy as np

from optimizer.engines.cuda import CudaFailed

ALIGNED = 256


class FakeCuda:
    """See the top of this file.

    Attributes:
        calls: names of all calls so far.
        wrongs: what was wrong and could not be raised where it happened.
        pause: done once, at the end of the next wait.
    """

    def __init__(self, capability: str = "8.9", name: str = "Fake RTX", room: int = 1 << 30) -> None:
        self.capability, self.name, self.room = capability, name, room
        self.calls: list[str] = []
        self.wrongs: list[str] = []
        self.pause: Callable[[], None] | None = None
        self._memory: dict[int, np.ndarray] = {}
        self._streams: dict[int, list[Callable[[], None]]] = {}
        self._captures: dict[int, list[Callable[[], None]] | None] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = ALIGNED
        self._failures: dict[str, int] = {}
        self._lock = threading.RLock()

    # What tests ask and plant.

    def fail(self, name: str, after: int = 0) -> None:
        """Let a call fail, once, after so many of its name have succeeded."""
        self._failures[name] = after

    @property
    def in_use(self) -> dict[str, int]:
        """Blocks of memory, streams and graphs that nobody has given back."""
        return {"memory": len(self._memory), "streams": len(self._streams), "graphs": len(self._graphs)}

    @property
    def bytes_in_use(self) -> int:
        return sum(block.size for block in self._memory.values())

    def count(self, name: str) -> int:
        return self.calls.count(name)

    # What the fake engine asks.

    def view(self, pointer: int, size: int) -> np.ndarray:
        """Bytes of device memory."""
        with self._lock:
            for start, block in self._memory.items():
                if start <= pointer < start + block.size:
                    offset = pointer - start
                    assert offset + size <= block.size, f"{size} bytes at {offset} of a block of {block.size}"
                    return block[offset : offset + size]
        raise AssertionError(f"{pointer:#x} is no device memory, or not any more")

    def submit(self, stream: int, work: Callable[[], None]) -> None:
        """Begin work on a stream, or record it."""
        with self._lock:
            assert stream in self._streams, f"there is no stream {stream}"
            if stream not in self._captures:
                self._streams[stream].append(work)
            elif (recording := self._captures[stream]) is not None:
                recording.append(work)

    def is_capturing(self, stream: int) -> bool:
        return stream in self._captures

    def spoil(self, stream: int) -> None:
        """Something that no graph can hold was begun while recording."""
        self._captures[stream] = None

    # The protocol.

    def facts(self):
        self._called("facts")
        memory = {"memory": self.room, "driver": "13.0", "runtime": "13.0"}
        return {"name": self.name, "compute_capability": self.capability, **memory}

    def malloc(self, size: int) -> int:
        with self._lock:
            self._called("malloc")
            self._not_recording("malloc")
            if self.bytes_in_use + size > self.room:
                raise CudaFailed("malloc failed: out of memory (error 2)")
            pointer = self._next
            room = max(1, size)
            self._next += -(-room // ALIGNED) * ALIGNED + ALIGNED  # a gap that no block lies in
            self._memory[pointer] = np.full(room, 0xCD, np.uint8)  # not cleared, as the real one
            return pointer

    def free(self, pointer: int) -> None:
        with self._lock:
            self._called("free")
            self._not_recording("free")
            assert pointer in self._memory, f"{pointer:#x} is freed twice, or was never given"
            del self._memory[pointer]

    def to_device(self, pointer: int, array: np.ndarray, stream: int) -> None:
        self._called("to_device")
        assert array.flags.c_contiguous
        assert array.dtype.isnative
        self.view(pointer, array.nbytes)
        alive, size = weakref.ref(array), array.nbytes

        def copy() -> None:
            source = alive()
            assert source is not None, "copied out of an array that is gone"
            self.view(pointer, size)[:] = np.frombuffer(source.tobytes(), np.uint8)

        assert not self.is_capturing(stream), "a copy of an array is recorded"
        self.submit(stream, copy)

    def to_host(self, array: np.ndarray, pointer: int, stream: int) -> None:
        self._called("to_host")
        assert array.flags.c_contiguous
        assert array.flags.writeable
        self.view(pointer, array.nbytes)
        array.fill(1)  # what is read before somebody waits
        alive = weakref.ref(array)

        def copy() -> None:
            target = alive()
            assert target is not None, "copied into an array that is gone"
            target[...] = np.frombuffer(self.view(pointer, target.nbytes).tobytes(), target.dtype).reshape(target.shape)

        assert not self.is_capturing(stream), "a copy of an array is recorded"
        self.submit(stream, copy)

    def stream(self) -> int:
        with self._lock:
            self._called("stream")
            self._next += ALIGNED
            self._streams[self._next] = []
            return self._next

    def wait(self, stream: int) -> None:
        self._called("wait")
        with self._lock:
            assert stream in self._streams, f"there is no stream {stream}"
            assert stream not in self._captures, "somebody waits for a stream that is recorded"
            work, self._streams[stream] = self._streams[stream], []
        for each in work:
            each()
        if self.pause is not None:
            pause, self.pause = self.pause, None
            pause()

    def drop_stream(self, stream: int) -> None:
        with self._lock:
            self._called("drop_stream")
            assert stream in self._streams, f"stream {stream} is given back twice"
            assert not self._streams.pop(stream), "a stream is given back with work on it"

    def begin_capture(self, stream: int) -> None:
        self._called("begin_capture")
        assert stream not in self._captures
        assert not self._streams[stream]
        self._captures[stream] = []

    def end_capture(self, stream: int) -> int:
        recording = self._captures.pop(stream)
        self._called("end_capture")
        if recording is None:
            raise CudaFailed("end_capture failed: operation failed due to a previous error during capture (error 901)")
        self._next += ALIGNED
        self._graphs[self._next] = recording
        return self._next

    def launch(self, graph: int, stream: int) -> None:
        self._called("launch")
        assert graph in self._graphs, "a graph is launched that was given back"
        for work in self._graphs[graph]:
            self.submit(stream, work)

    def drop_graph(self, graph: int) -> None:
        self._called("drop_graph")
        assert graph in self._graphs, "a graph is given back twice"
        del self._graphs[graph]

    def timed(self, call: Callable[[], None], stream: int, times: int) -> float:
        self._called("timed")
        for _ in range(times):
            call()
        self.wait(stream)
        return 0.25

    def _called(self, name: str) -> None:
        with self._lock:
            self.calls.append(name)
            left = self._failures.get(name)
            if left is None:
                return
            if left:
                self._failures[name] = left - 1
                return
            del self._failures[name]
        raise CudaFailed(f"{name} failed: planted (error 719)")

    def _not_recording(self, what: str) -> None:
        for stream in self._captures:
            self.spoil(stream)
            raise CudaFailed(f"{what} failed: operation not permitted when stream is capturing (error 900)")


@contextlib.contextmanager
def nothing_left(gpu: FakeCuda):
    """Hold what is done within to giving everything back."""
    yield
    assert gpu.in_use == {"memory": 0, "streams": 0, "graphs": 0}
    assert not gpu.wrongs
