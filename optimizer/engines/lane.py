"""Where one call of an engine at a time runs: a context with its stream, its device memory and its CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.engines.cuda import Cuda
from optimizer.engines.profiles import Profile
from optimizer.errors import BadInput, MlOptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizer.engines.engine import Context, Engine

    Feeds = Mapping[str, NDArray[np.generic]]

__all__ = ["Buffers", "Lane", "choose_profile"]


class Buffers:
    """Device memory by tensor; it grows, and is given back as a whole."""

    def __init__(self, gpu: Cuda) -> None:
        self._gpu = gpu
        self._held: dict[str, tuple[int, int]] = {}

    def of(self, name: str, size: int) -> int:
        """Memory of at least so many bytes for a tensor; never a null pointer, which empty tensors may not have."""
        pointer, room = self._held.get(name, (0, -1))
        if room < size:
            if room >= 0:
                del self._held[name]  # first, so that a failure to get more leaves nothing that is freed twice
                self._gpu.free(pointer)
            pointer = self._gpu.malloc(size)
            self._held[name] = (pointer, size)
        return pointer

    def drop(self) -> None:
        """Give everything back; what cannot be freed does not keep the rest."""
        with contextlib.ExitStack() as stack:
            while self._held:
                _, (pointer, _) = self._held.popitem()
                stack.callback(self._gpu.free, pointer)


class Lane:
    """A context, its stream, its memory, and what was recorded there.

    Attributes:
        recorded: :meth:`begin` launches a CUDA graph.
        closed: everything was given back.
    """

    def __init__(self, engine: Engine, gpu: Cuda) -> None:
        self._gpu = gpu
        self._inputs, self._outputs, self._on_host = engine.inputs, engine.outputs, engine.on_host
        self._profiles = engine.profiles
        self._profile: int | None = None
        # What the context was told last: shapes, and values of inputs that are a shape.
        self._told: dict[str, tuple[int, ...]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        # Arrays that the vendor or a copy reads or writes, and that so have to stay alive.
        self._host: dict[str, NDArray[np.generic]] = {}
        self._sent: dict[str, NDArray[np.generic]] = {}
        self._graph: Any = None
        self.closed = False
        self._context: Context = engine.context()
        self._buffers = Buffers(gpu)
        self._stream = gpu.stream()

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def load(self, feeds: Feeds) -> None:
        """Choose the profile, set shapes and addresses, and begin to copy the inputs.

        Raises:
            BadInput: no profile holds these shapes, or only the data decides an output's shape.
        """
        import numpy as np

        # Not `ascontiguousarray`, which makes a scalar a row of one; the device knows one order of bytes only.
        arrays = {s.name: np.asarray(feeds[s.name], dtype=np.dtype(s.dtype), order="C") for s in self._inputs}
        told = {
            name: tuple(int(value) for value in array.ravel()) if name in self._on_host else array.shape
            for name, array in arrays.items()
        }
        if told != self._told:
            self._told = None
            self._tell(told, arrays)
            self._told = told
        self._sent = arrays
        for name, array in arrays.items():
            if name not in self._on_host and array.nbytes:
                self._gpu.to_device(self._buffers.of(name, array.nbytes), array, self._stream)

    def _tell(self, told: Mapping[str, tuple[int, ...]], arrays: Feeds) -> None:
        """Tell the context shapes and addresses; inputs on the host first, as shapes are worked out of them."""
        import numpy as np

        if self._profiles and (number := choose_profile(self._profiles, told)) != self._profile:
            self._context.use_profile(number, self._stream)
            self._profile = number
        for name, array in arrays.items():
            self._context.set_shape(name, array.shape)
            if name in self._on_host:
                self._host[name] = array.copy()
                self._context.set_address(name, self._host[name].ctypes.data)
            else:
                self._context.set_address(name, self._buffers.of(name, array.nbytes))
        if missing := self._context.missing():
            raise BadInput(f"the engine wants {', '.join(missing)} before it knows the shapes of its outputs")
        for spec in self._outputs:
            shape = self._context.shape(spec.name)
            if any(size < 0 for size in shape):
                raise BadInput(
                    f"the shape of output {spec.name!r} depends on the data, which is not supported",
                    "run this model with ONNX Runtime (its cuda provider)",
                )
            self._shapes[spec.name] = shape
            if spec.name in self._on_host:
                self._host[spec.name] = np.zeros(shape, spec.dtype)
                self._context.set_address(spec.name, self._host[spec.name].ctypes.data)
            else:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
                self._context.set_address(spec.name, self._buffers.of(spec.name, size))

    def begin(self) -> None:
        """Begin a call of what was loaded; raises :class:`GateFailed` when the vendor refuses."""
        if self._graph is None:
            self._context.begin(self._stream)
        else:
            self._gpu.launch(self._graph, self._stream)

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        self._gpu.wait(self._stream)
        self._sent = {}

    def answers(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the call that was begun, in arrays of their own."""
        import numpy as np

        filled: dict[str, NDArray[np.generic]] = {}
        for spec in self._outputs:
            if spec.name not in self._on_host:
                array = filled[spec.name] = np.empty(self._shapes[spec.name], spec.dtype)
                if array.nbytes:
                    self._gpu.to_host(array, self._buffers.of(spec.name, array.nbytes), self._stream)
        self.wait()
        return {s.name: self._host[s.name].copy() if s.name in self._on_host else filled[s.name] for s in self._outputs}

    def abandon(self) -> None:
        """After an error in the middle: let what was begun end."""
        with contextlib.suppress(MlOptError):
            self.wait()

    def record(self) -> None:
        """Make a CUDA graph of a call of what was loaded; nothing where the engine cannot be recorded.

        There must have been a call with these shapes: the first one settles memory and kernels, which no graph may
        hold (https://docs.nvidia.com/deeplearning/tensorrt, "CUDA Graphs"). A lane that was recorded is loaded with
        nothing else.
        """
        self._gpu.begin_capture(self._stream)
        try:
            self._context.begin(self._stream)
        except BaseException as error:
            with contextlib.suppress(MlOptError):
                self._gpu.drop_graph(self._gpu.end_capture(self._stream))
            if isinstance(error, MlOptError):
                return
            raise
        with contextlib.suppress(MlOptError):
            self._graph = self._gpu.end_capture(self._stream)

    def timed(self, times: int) -> float:
        """Milliseconds of device time that a call takes, out of so many."""
        return self._gpu.timed(self.begin, self._stream, times)

    def drop(self) -> None:
        """Give everything back, what runs first; what cannot be given back does not keep the rest."""
        self.closed = True
        with contextlib.ExitStack() as stack:
            stack.callback(self._gpu.drop_stream, self._stream)
            stack.callback(self._buffers.drop)
            stack.callback(self._context.close)
            if self._graph is not None:
                stack.callback(self._gpu.drop_graph, self._graph)
                self._graph = None
            stack.callback(self.wait)


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """The profile that holds these shapes and was built for the nearest.

    Raises:
        BadInput: none holds them.
    """
    fitting = [number for number, profile in enumerate(profiles) if profile.holds(shapes)]
    if not fitting:
        ranged = {name for profile in profiles for name in profile.ranges}
        given = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items() if name in ranged)
        built = "; ".join(str(profile) for profile in profiles)
        raise BadInput(
            f"the engine was not built for these shapes: {given}", f"it takes {built}; build another with --profile"
        )
    return min(fitting, key=lambda number: profiles[number].distance(shapes))
