"""A decoder in OpenVINO: its cache in pages, prompts read together, a step of several texts, scores."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimizer.generating.asked import check_scored
from optimizer.generating.config import DecoderConfig
from optimizer.runtimes._openvino_errors import openvino_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PagedDecoder"]

#: Pages of the cache at first; they double when texts outgrow them.
_PAGES = 64
#: Tokens that are read in one run: every product makes so many rows.
_READ_AT_ONCE = 2048
#: The input that says whose logits are wanted.
_WANTED = "rows"


class _Pages:
    """A request, and the cache that it reads and writes: tensors ``[pages, kv_heads, tokens of a page, head_size]``.

    In 8 bits scales lie beside the numbers: behind the tokens of a page's keys, and behind each token's values.

    Args:
        compiled: what :func:`optimizer.runtimes._openvino_paged.paged` made, compiled.
    """

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._ports = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        self.chooses = any(port.get_any_name() == _WANTED for port in compiled.inputs)
        #: Tokens of a page.
        self.size = min(int(port.get_partial_shape()[2].get_length()) for port in self._ports)
        self._tensors: list[Any] = []
        self._count = 0
        self._free: list[int] = []
        self._fed: dict[str, tuple[NDArray[Any], Any]] = {}

    def grow(self, table: list[int], length: int) -> bool:
        """Give a row pages for so many tokens; whether it got one."""
        missing = -(-length // self.size) - len(table)
        if missing <= 0:
            return False
        if len(self._free) < missing:
            self._double(self._count - len(self._free) + missing)
        table += [self._free.pop() for _ in range(missing)]
        return True

    def release(self, table: list[int]) -> None:
        """Take the pages of a row back."""
        self._free += reversed(table)
        table.clear()

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Put what is in these pages into others; all are read before any is written."""
        for tensor in self._tensors:
            tensor.data[targets] = tensor.data[sources]

    def _double(self, needed: int) -> None:
        """Make the tensors large enough; what is in them stays."""
        import openvino

        count = max(self._count, _PAGES)
        while count < needed:
            count *= 2
        tensors = []
        for place, port in enumerate(self._ports):
            shape = [count, *(port.get_partial_shape()[axis].get_length() for axis in (1, 2, 3))]
            tensor = openvino.Tensor(port.get_element_type(), openvino.Shape(shape))
            tensor.data.fill(0)  # what no token was written to is read too, and counts nothing
            if self._tensors:
                tensor.data[: self._count] = self._tensors[place].data
                self._tensors[place] = tensor  # the old one's memory goes before the next one's is taken
            self._request.set_tensor(port, tensor)
            tensors.append(tensor)
        self._free += reversed(range(self._count, count))
        self._tensors, self._count = tensors, count

    def feed(self, **arrays: NDArray[Any]) -> None:
        """Say what the next runs read; an array that was fed is read again in each, with what is in it by then."""
        import openvino

        for name, array in arrays.items():
            tensor = openvino.Tensor(array, shared_memory=True)
            self._request.set_tensor(name, tensor)
            self._fed[name] = (array, tensor)

    def run(self) -> NDArray[np.float32]:
        """Logits ``[n, vocabulary]``, which the next run writes over."""
        self._request.start_async()
        self._request.wait()
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data[:, 0]
        return logits

    def read(self, parts: Sequence[tuple[NDArray[np.int64], int, list[int]]], every: bool = False) -> NDArray[Any]:
        """Read new tokens of several rows in one run.

        Args:
            parts: of each row its new tokens, how many are before them, and its pages.
            every: logits of every token are wanted, and not of the last of each row alone.

        Returns:
            logits ``[rows, vocabulary]``, or with ``every`` ``[tokens, vocabulary]``; the next run writes over them.
        """
        import numpy as np

        tables = [table[: -(-(past + new.size) // self.size)] for new, past, table in parts]
        ends = np.cumsum([new.size for new, _, _ in parts], dtype=np.int32)
        places = [np.arange(past, past + new.size, dtype=np.int64) for new, past, _ in parts]
        wanted = np.arange(ends[-1], dtype=np.int32) if every else ends - 1
        self.feed(
            input_ids=np.concatenate([new for new, _, _ in parts])[:, None],
            position_ids=np.concatenate(places)[:, None],
            past_lens=np.array([past for _, past, _ in parts], np.int32),
            max_context_len=np.array(max(past + new.size for new, past, _ in parts), np.int32),
            **_ranges([new.size for new, _, _ in parts], tables),
        )
        if self.chooses:
            self.feed(**{_WANTED: wanted})
        logits = self.run()
        return logits if self.chooses else logits[wanted]


def _ranges(sizes: Sequence[int], tables: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int32]]:
    """Where each row's tokens begin, its pages, and where these begin."""
    import numpy as np

    return {
        "subsequence_begins": np.cumsum([0, *sizes], dtype=np.int32),
        "block_indices": np.array([page for table in tables for page in table], np.int32),
        "block_indices_begins": np.cumsum([0, *(len(table) for table in tables)], dtype=np.int32),
    }


class PagedDecoder:
    """An open graph, and room for ``slots`` texts; :class:`optimizer.runtimes._decode_loop.BeamRows`.

    Args:
        compiled: what :func:`optimizer.runtimes._openvino_paged.paged` made, compiled.
        config: of its folder.
        slots: how many rows there are.
        provider: for messages.
    """

    def __init__(self, compiled: Any, config: DecoderConfig, slots: int, provider: str) -> None:
        self.slots = self.together = slots
        self.part = _READ_AT_ONCE
        self._compiled, self._config, self._provider = compiled, config, provider
        self._pages = _Pages(compiled)
        #: Pages of each row, as many as it has needed so far.
        self._tables: list[list[int]] = [[] for _ in range(slots)]
        #: How many rows the arrays of a step were made for; 0 after another run.
        self._bound = 0
        self._scoring = threading.Lock()
        self._scorer: _Pages | None = None

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]], begin: int = 0) -> NDArray[np.float32]:
        """Read prompts into this row and those behind it, or what follows so many tokens of one; logits of what is
        next, ``[prompts, vocabulary]``.
        """
        import numpy as np

        self._bound = 0
        tables = self._tables[row : row + len(prompts)]
        for table, prompt in zip(tables, prompts, strict=True):
            if not begin:
                self._pages.release(table)
            self._pages.grow(table, begin + prompt.size)
        logits = np.empty((len(prompts), self._config.vocabulary), np.float32)
        with openvino_errors(self._config.file, self._provider):
            for part in _runs(prompts):
                pieces = [(prompts[at][start:end], begin + start, tables[at]) for at, start, end in part]
                for (at, _, end), found in zip(part, self._pages.read(pieces), strict=True):
                    if end == prompts[at].size:
                        logits[at] = found
        return logits

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows; logits of what follows, ``[rows, vocabulary]``."""
        grown = [self._pages.grow(self._tables[row], length + 1) for row, length in enumerate(lengths)]
        with openvino_errors(self._config.file, self._provider):
            if self._bound != len(tokens) or any(grown):
                self._bind(len(tokens))
            self._ids[:, 0] = tokens
            self._positions[:, 0] = lengths
            self._past[:] = lengths
            self._longest[...] = max(lengths) + 1
            return self._pages.run()

    def _bind(self, rows: int) -> None:
        """Everything of a step is fed once for each number of rows and pages, and its arrays are only written into."""
        import numpy as np

        self._ids, self._positions = np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.int64)
        self._past, self._longest = np.zeros(rows, np.int32), np.zeros((), np.int32)
        self._pages.feed(
            input_ids=self._ids,
            position_ids=self._positions,
            past_lens=self._past,
            max_context_len=self._longest,
            **_ranges([1] * rows, self._tables[:rows]),
        )
        if self._pages.chooses:
            self._pages.feed(**{_WANTED: np.arange(rows, dtype=np.int32)})
        self._bound = rows

    def move(self, source: int, target: int, length: int) -> None:
        """Let a row have another row's pages."""
        del length
        self._tables[target], self._tables[source] = self._tables[source], self._tables[target]
        self._bound = 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a row into one behind the others."""
        self.reorder([(target, source)], length)

    def reorder(self, moved: Sequence[tuple[int, int]], length: int) -> None:
        """Let rows go on from what others have, in pages of their own: the last one of each is written to next."""
        count = -(-length // self._pages.size)
        for row, _ in moved:
            if self._pages.grow(self._tables[row], length):
                self._bound = 0
        targets, sources = (
            [page for row in rows for page in self._tables[row][:count]] for rows in zip(*moved, strict=True)
        )
        self._pages.copy(sources, targets)

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``, in a cache of its own."""
        import numpy as np

        del read  # there is no encoder
        config = self._config
        check_scored(tokens, config.context, config.vocabulary)
        logits = np.empty((*tokens.shape, config.vocabulary), np.float32)
        with self._scoring, openvino_errors(config.file, self._provider):
            pages = self._scorer = self._scorer or _Pages(self._compiled)
            table: list[int] = []
            pages.grow(table, tokens.shape[1])
            for row, each in enumerate(tokens):
                for begin in range(0, each.size, _READ_AT_ONCE):
                    part = np.ascontiguousarray(each[begin : begin + _READ_AT_ONCE], np.int64)
                    logits[row, begin : begin + part.size] = pages.read([(part, begin, table)], every=True)
            pages.release(table)
        return logits


def _runs(prompts: Sequence[NDArray[np.int64]]) -> list[list[tuple[int, int, int]]]:
    """Which part of which prompt is read in each run: its number, the first token and the one behind the last."""
    runs: list[list[tuple[int, int, int]]] = [[]]
    room = _READ_AT_ONCE
    for at, prompt in enumerate(prompts):
        begin = 0
        while begin < prompt.size:
            if not room:
                runs.append([])
                room = _READ_AT_ONCE
            end = min(prompt.size, begin + room)
            runs[-1].append((at, begin, end))
            room -= end - begin
            begin = end
    return runs
