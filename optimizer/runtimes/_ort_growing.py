"""A decoder whose cache comes out longer than it went in, as attention has it that no operator of ONNX Runtime is.

All texts make a step together. Keys and values of shorter ones lie at the right end, behind some that the mask leaves
out: so a text's own are always next to each other, which windows and distances count on. They stay stacked while the
same texts make the next step, in two pieces of memory that take turns as what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.config import DecoderConfig
from optimizer.graph.head import LOGITS_FROM
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_graph import READ_AT_ONCE, DecoderGraph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GrowingDecoder"]

#: The fewest tokens that memory is taken for; it doubles when texts outgrow it.
_CAPACITY = 64


@dataclass(eq=False)
class _Group:
    """The caches of some texts in one piece, a row each.

    Attributes:
        past: keys and values of each layer, ``[texts, heads, tokens so far, head size]``, those of shorter texts at the
            right end.
        lengths: how many tokens of each text there are so far.
        memory: where ``past`` lies, and where the next one will.
    """

    past: list[NDArray[Any]]
    lengths: NDArray[np.int64]
    memory: tuple[list[NDArray[Any]], list[NDArray[Any]]]


@dataclass(eq=False)
class _Text:
    """One text: its row of a group."""

    group: _Group
    row: int


class GrowingDecoder(DecoderGraph):
    """An open graph, and room for ``slots`` texts; see :class:`optimizer.runtimes._decode_loop.Rows`.

    Raises:
        BadInput: its inputs are not those of a decoder, or its cache does not grow.
    """

    #: Prompts are read one by one, so that nothing of a row is padding but what lies before it.
    together = 1
    part = READ_AT_ONCE

    def __init__(self, session: Any, config: DecoderConfig, slots: int) -> None:
        super().__init__(session, config)
        self.slots = slots
        if self.in_place():
            raise BadInput(
                f"{config.file} writes its cache in place, and its genai_config.json says that it grows",
                "let past_present_share_buffer be true there, in search",
            )
        self._texts: list[_Text] = []
        #: Who made the last step together, and their caches.
        self._last: tuple[list[_Text], _Group] | None = None

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]], begin: int = 0) -> NDArray[np.float32]:
        """Read a prompt, or what follows so many of its tokens, into a row; logits of what is next,
        ``[1, vocabulary]``.
        """
        (prompt,) = prompts
        group = self._group(self._texts[row : row + 1]) if begin else self._made(1, 0, [0])
        for place in range(0, prompt.size, self.part):
            logits = self._run(group, prompt[None, place : place + self.part])
        self._texts[row : row + 1] = [_Text(group, 0)]
        return logits

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows; logits of what follows, ``[rows, vocabulary]``."""
        import numpy as np

        del lengths  # what was read knows
        del self._texts[len(tokens) :]  # rows that nobody is in any more
        group = self._group(self._texts)
        logits = self._run(group, np.array(tokens, np.int64)[:, None])
        for row, text in enumerate(self._texts):
            text.group, text.row = group, row
        self._last = list(self._texts), group
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Put a text in another row's place."""
        del length
        self._texts[target] = self._texts[source]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a row behind the others go on from the same tokens."""
        del length
        self._texts[target : target + 1] = [replace(self._texts[source])]

    def reorder(self, moved: Sequence[tuple[int, int]], length: int) -> None:
        """Let rows go on from what others have."""
        del length
        (group,) = {self._texts[row].group for row, _ in moved}  # they made the last step together
        into, out = ([self._texts[row].row for row in each] for each in zip(*moved, strict=True))
        for array in group.past:
            array[into] = array[out]

    def _group(self, texts: list[_Text]) -> _Group:
        """The caches of texts in one piece: as the last step left it, where they made it together."""
        if self._last is not None and self._last[0] == texts:
            return self._last[1]
        lengths = [int(text.group.lengths[text.row]) for text in texts]
        longest = max(lengths)
        made = self._made(len(texts), longest, lengths)
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            for array, own in zip(made.past, text.group.past, strict=True):
                array[row, :, : longest - length] = 0  # left out by the mask, which what is no number would outlive
                array[row, :, longest - length :] = own[text.row, :, own.shape[2] - length :]
        return made

    def _made(self, rows: int, tokens: int, lengths: list[int]) -> _Group:
        """A group with room for so many tokens, in which nothing is yet."""
        import numpy as np

        memory = (self._memory(rows, tokens), self._memory(rows, tokens))
        past = [self._shaped(flat, rows, tokens) for flat in memory[0]]
        return _Group(past, np.array(lengths, np.int64), memory)

    def _memory(self, rows: int, tokens: int) -> list[NDArray[Any]]:
        """Memory for so many tokens and some more, in a row, for keys and for values of each layer."""
        import numpy as np

        room = _CAPACITY
        while room < tokens + 1:
            room *= 2
        room = max(min(room, self._config.context), tokens)
        return [np.empty(self._size(rows, room), self._cache_type[0]) for _ in self._past]

    def _shaped(self, flat: NDArray[Any], rows: int, tokens: int) -> NDArray[Any]:
        shape = (rows, self._config.kv_heads, tokens, self._config.head_size)
        return flat[: self._size(rows, tokens)].reshape(shape)

    def _size(self, rows: int, tokens: int) -> int:
        """Numbers of keys, or of values, of one layer."""
        return rows * self._config.kv_heads * tokens * self._config.head_size

    def _run(self, group: _Group, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some tokens more for each row of a group, ``[rows, tokens]``; logits of what follows, ``[rows, vocabulary]``,
        and the group has what was read.
        """
        import numpy as np

        rows, new = ids.shape
        before = group.past[0].shape[2]
        total = before + new
        feeds = {
            self._ids: np.ascontiguousarray(ids, np.int64),
            self._mask: (np.arange(total) >= (before - group.lengths)[:, None]).astype(np.int64),
        }
        if self._positions:
            feeds[self._positions] = group.lengths[:, None] + np.arange(new, dtype=np.int64)
        if self._last_alone:
            feeds[LOGITS_FROM] = np.array([-1], np.int64)
        now, following = group.memory
        if self._size(rows, total) > following[0].size:
            following = self._memory(rows, total)
        present = [self._shaped(flat, rows, total) for flat in following]
        logits = np.empty((rows, 1 if self._last_alone else new, self._config.vocabulary), self._logits_type[0])
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_input(name, "cpu", 0, np.int64, list(array.shape), array.ctypes.data)
        for past, grown, old, made in zip(self._past, self._present, group.past, present, strict=True):
            self._bind(binding.bind_input, past, old)
            self._bind(binding.bind_output, grown, made)
        self._bind_logits(binding, logits)
        with ort_errors(self._config.file, "cpu"):
            self._session.run_with_iobinding(binding)
        group.past, group.lengths, group.memory = present, group.lengths + new, (following, now)
        return self._floats(logits[:, -1])
