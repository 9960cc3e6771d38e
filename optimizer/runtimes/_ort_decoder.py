"""A decoder's graph in ONNX Runtime: its caches of keys and values, a prompt read, a step of several texts, scores.

Keys and values of all texts lie in one buffer a layer, ``[rows, heads, capacity, head size]``, which the graph's
GroupQueryAttention reads and writes in place: the input ``past`` and the output ``present`` are the same memory. The
attention mask says how long each row is, so that rows of any length make a step together, and a text can come or go
at any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.config import DecoderConfig
from optimizer.graph.head import LOGITS_FROM
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_graph import READ_AT_ONCE, DecoderGraph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Decoder"]

#: The first capacity of the caches, in tokens; it doubles when a text outgrows it.
_CAPACITY = 256


class Decoder(DecoderGraph):
    """An open graph, and room for ``slots`` texts.

    Raises:
        BadInput: its inputs are not those of a decoder, or its cache cannot be written in place.
    """

    #: Prompts are read one by one: GroupQueryAttention takes several new tokens behind a cache for one row at a time.
    together = 1
    part = READ_AT_ONCE

    def __init__(self, session: Any, config: DecoderConfig, slots: int) -> None:
        super().__init__(session, config)
        self.slots = slots
        self._buffers: list[NDArray[Any]] = []
        self._rows = self._capacity = 0
        self._binding: Any = None
        self._bound = 0
        if not self.in_place():
            raise BadInput(
                f"{config.file} does not write its cache in place: its attention is no GroupQueryAttention",
                "export it again with `ml-opt export-genai`",
            )

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
