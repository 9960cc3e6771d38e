"""A decoder's graph in ONNX Runtime: its caches of keys and values, a prompt read, a step of several texts, scores.

Keys and values of all texts lie in one buffer a layer, ``[rows, heads, capacity, head size]``, which the graph's
GroupQueryAttention reads and writes in place: the input ``past`` and the output ``present`` are the same memory. The
attention mask says how long each row is, so that rows of any length make a step together, and a text can come or go
at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.asked import check_scored
from optimizer.generating.config import DecoderConfig
from optimizer.graph.head import LOGITS_FROM
from optimizer.runtime import Provider, SessionOptions
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_gpu import Asked
from optimizer.runtimes._ort_load import not_loaded
from optimizer.runtimes._ort_open import plain_options, vendor_session
from optimizer.runtimes._ort_providers import PROVIDERS, devices_of, library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Decoder", "open_session"]

#: The first capacity of the caches, in tokens; it doubles when a text outgrows it.
_CAPACITY = 256
#: Tokens of a prompt that are read in one run: attention makes ``[heads, tokens, tokens so far]`` numbers of them.
_READ_AT_ONCE = 512
#: ONNX Runtime's element types: numpy's, and ONNX's number where numpy has none (bits are held instead).
_ELEMENTS: dict[str, tuple[str, int]] = {
    "tensor(float)": ("float32", 1),
    "tensor(float16)": ("float16", 10),
    "tensor(bfloat16)": ("uint16", 16),
}


def open_session(path: Path, threads: int, provider: str = "cpu") -> Any:
    """Open a graph on the processor, or for scores on a GPU: what is bound in the processor's memory is copied there.

    Raises:
        BadInput: ONNX Runtime cannot load it.
        MissingPiece: there is no such provider here.
    """
    row, onnxruntime = PROVIDERS[provider], library()
    if not path.is_file():
        raise BadInput(f"no such file: {path}", "the folder's genai_config.json names it as its decoder")
    settings = plain_options(onnxruntime, provider, threads)
    devices = devices_of(onnxruntime, provider, row, "")
    asked = Asked(SessionOptions(Provider(provider)))
    session = vendor_session(onnxruntime, str(path), path, row, asked, settings, devices)
    if row.ep not in session.get_providers():
        raise not_loaded(onnxruntime, provider, row.ep)
    return session


class Decoder:
    """An open graph, and room for ``slots`` texts.

    Raises:
        BadInput: its inputs are not those of a decoder, or its cache cannot be written in place.
    """

    #: Prompts are read one by one: GroupQueryAttention takes several new tokens behind a cache for one row at a time.
    together = 1
    part = _READ_AT_ONCE

    def __init__(self, session: Any, config: DecoderConfig, slots: int) -> None:
        self._session, self._config, self.slots = session, config, slots
        names = {one.name: one.type for one in session.get_inputs()}
        layers, inputs, outputs = range(config.layers), config.inputs, config.outputs
        self._ids = inputs.get("input_ids", "input_ids")
        self._mask = inputs.get("attention_mask", "attention_mask")
        positions = inputs.get("position_ids", "position_ids")
        self._positions = positions if positions in names else ""
        sides = ("key", "value")
        self._past = [_layer(inputs, f"past_{s}_names", f"past_key_values.%d.{s}", n) for n in layers for s in sides]
        self._present = [_layer(outputs, f"present_{s}_names", f"present.%d.{s}", n) for n in layers for s in sides]
        self._logits = outputs.get("logits", "logits")
        wanted = {self._ids, self._mask, *self._past}
        unknown = set(names) - wanted - {self._positions}
        if missing := sorted(wanted - set(names)):
            raise BadInput(f"{config.file} has no input {missing[0]}, which its genai_config.json names")
        if unknown:
            raise BadInput(f"{config.file} has the input {sorted(unknown)[0]}, which no decoder here feeds")
        self._cache_type = self._type_of(names[self._past[0]])
        self._last_alone = LOGITS_FROM in {one.name for one in session.get_overridable_initializers()}
        logits = {one.name: one.type for one in session.get_outputs()}.get(self._logits)
        if logits is None:
            raise BadInput(f"{config.file} has no output {self._logits}")
        self._logits_type = self._type_of(logits)
        self._buffers: list[NDArray[Any]] = []
        self._rows = self._capacity = 0
        self._binding: Any = None
        self._bound = 0
        self._check_in_place()

    def _type_of(self, name: str) -> tuple[str, int]:
        if name not in _ELEMENTS:
            raise BadInput(f"{self._config.file} keeps its cache or its logits in {name}, which cannot be used here")
        return _ELEMENTS[name]

    def _check_in_place(self) -> None:
        """Try whether the graph leaves a longer cache as long as it is, as GroupQueryAttention does."""
        import numpy as np

        feeds = self._feeds(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64))
        config = self._config
        empty = np.zeros((1, config.kv_heads, 2, config.head_size), self._cache_type[0])
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in self._past:
            self._bind(binding.bind_input, name, empty)
        for name in (self._logits, *self._present):
            binding.bind_output(name)
        with ort_errors(config.file, "cpu"):
            try:
                self._session.run_with_iobinding(binding)
                length = binding.get_outputs()[1].shape()[2]
            except Exception as error:
                if "shape" not in str(error).lower() and "dimension" not in str(error).lower():
                    raise
                length = None  # its mask has to be as long as past and new tokens together
        if length != 2:
            raise BadInput(
                f"{config.file} does not write its cache in place: its attention is no GroupQueryAttention",
                "export it again with `ml-opt export-genai`",
            )

    def _feeds(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """What a run of whole rows is fed beside the caches: tokens, mask, and positions where the graph has them."""
        import numpy as np

        feeds = {self._ids: np.ascontiguousarray(ids, np.int64), self._mask: mask}
        if self._positions:
            places = np.arange(mask.shape[1] - ids.shape[1], mask.shape[1], dtype=np.int64)
            feeds[self._positions] = np.ascontiguousarray(np.broadcast_to(places, ids.shape))
        return feeds

    def _bind(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        """Bind an array's own memory."""
        element: Any = array.dtype if self._cache_type[0] != "uint16" else self._cache_type[1]
        bind(name, "cpu", 0, element, list(array.shape), array.ctypes.data)

    def _room(self, rows: int, length: int) -> None:
        """Make the buffers large enough; what is in them stays."""
        import numpy as np

        if rows <= self._rows and length <= self._capacity:
            return
        capacity, high = max(self._capacity, min(_CAPACITY, self._config.context)), max(self._rows, 1)
        while capacity < length:
            capacity = min(capacity * 2, self._config.context)
        while high < rows:
            high = min(high * 2, self.slots)
        shape = (high, self._config.kv_heads, capacity, self._config.head_size)
        made = []
        for place in range(len(self._past)):
            new = np.zeros(shape, self._cache_type[0])
            if self._buffers:
                new[: self._rows, :, : self._capacity] = self._buffers[place]
                self._buffers[place] = new[:0]  # its memory goes before that of the next layer is taken
            made.append(new)
        self._buffers, self._rows, self._capacity = made, high, capacity
        self._bound = 0

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]], begin: int = 0) -> NDArray[np.float32]:
        """Read a prompt, or what follows so many of its tokens, into a row; logits of what is next,
        ``[1, vocabulary]``.
        """
        (prompt,) = prompts
        self._room(row + 1, begin + prompt.size + 1)
        for place in range(0, prompt.size, self.part):
            logits = self._read(row, prompt[place : place + self.part], begin + place)
        return self._floats(logits)[None]

    def _read(self, row: int, tokens: NDArray[np.int64], begin: int) -> NDArray[Any]:
        """Read tokens that follow ``begin`` others; logits of what follows them, ``[vocabulary]``."""
        import numpy as np

        feeds = self._feeds(tokens.reshape(1, -1), np.ones((1, begin + tokens.size), np.int64))
        if self._last_alone:
            feeds[LOGITS_FROM] = np.array([-1], np.int64)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            # Bound by its memory: by its array only what must be fed can be bound, and LOGITS_FROM has a default.
            binding.bind_input(name, "cpu", 0, np.int64, list(array.shape), array.ctypes.data)
        for past, present, buffer in zip(self._past, self._present, self._buffers, strict=True):
            self._bind(binding.bind_input, past, buffer[row : row + 1])
            self._bind(binding.bind_output, present, buffer[row : row + 1])
        rows = 1 if self._last_alone else tokens.size
        logits = np.empty((rows, self._config.vocabulary), self._logits_type[0])
        self._bind_logits(binding, logits.reshape(1, *logits.shape))
        with ort_errors(self._config.file, "cpu"):
            self._session.run_with_iobinding(binding)
        last: NDArray[Any] = logits[-1]
        return last

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows.

        Args:
            tokens: of each row.
            lengths: how many tokens are in its cache already.

        Returns:
            Logits of what follows, ``[rows, vocabulary]``.
        """
        rows = len(tokens)
        self._room(rows, max(lengths) + 1)
        if self._bound != rows:
            self._bind_step(rows)
        self._step_ids[:, 0] = tokens
        if self._positions:
            self._step_positions[:, 0] = lengths
        for row, length in enumerate(lengths):
            self._step_mask[row, : length + 1] = 1
            self._step_mask[row, length + 1 :] = 0
        with ort_errors(self._config.file, "cpu"):
            self._session.run_with_iobinding(self._binding)
        return self._floats(self._step_logits[:, 0])

    def _bind_step(self, rows: int) -> None:
        """Everything of a step is bound once for each number of rows, and its arrays are only written into."""
        import numpy as np

        # As wide as the buffers: rows say by their ones how long they are, and the width costs nothing.
        self._step_mask = np.zeros((rows, self._capacity), np.int64)
        self._step_ids = np.zeros((rows, 1), np.int64)
        self._step_positions = np.zeros((rows, 1), np.int64)
        self._step_logits = np.zeros((rows, 1, self._config.vocabulary), self._logits_type[0])
        binding = self._session.io_binding()
        fed = [(self._ids, self._step_ids), (self._mask, self._step_mask)]
        if self._positions:
            fed.append((self._positions, self._step_positions))
        for name, array in fed:
            binding.bind_input(name, "cpu", 0, np.int64, list(array.shape), array.ctypes.data)
        for past, present, buffer in zip(self._past, self._present, self._buffers, strict=True):
            self._bind(binding.bind_input, past, buffer[:rows])
            self._bind(binding.bind_output, present, buffer[:rows])
        self._bind_logits(binding, self._step_logits)
        self._binding, self._bound = binding, rows

    def _bind_logits(self, binding: Any, logits: NDArray[Any]) -> None:
        element: Any = logits.dtype if self._logits_type[0] != "uint16" else self._logits_type[1]
        binding.bind_output(self._logits, "cpu", 0, element, list(logits.shape), logits.ctypes.data)

    def _floats(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        import numpy as np

        if self._logits_type[0] == "uint16":
            return (logits.astype(np.uint32) << 16).view(np.float32)
        return logits.astype(np.float32, copy=False)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a row over another row."""
        for buffer in self._buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a row into one behind the others."""
        self._room(target + 1, length + 1)
        self.move(source, target, length)

    def reorder(self, moved: Sequence[tuple[int, int]], length: int) -> None:
        """Let rows go on from what others have."""
        rows, sources = (list(each) for each in zip(*moved, strict=True))
        for buffer in self._buffers:
            buffer[rows, :, :length] = buffer[sources, :, :length]

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; touches no row."""
        import numpy as np

        del read  # there is no encoder
        config = self._config
        check_scored(tokens, config.context, config.vocabulary)
        feeds = self._feeds(tokens, np.ones(tokens.shape, np.int64))
        empty = np.zeros((tokens.shape[0], config.kv_heads, 0, config.head_size), self._cache_type[0])
        logits = np.empty((*tokens.shape, config.vocabulary), self._logits_type[0])
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in self._past:
            self._bind(binding.bind_input, name, empty)
        self._bind_logits(binding, logits)
        with ort_errors(config.file, "cpu"):
            self._session.run_with_iobinding(binding)
        return self._floats(logits)


def _layer(names: Any, key: str, default: str, layer: int) -> str:
    return str(names.get(key, default)) % layer
