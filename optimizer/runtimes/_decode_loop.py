"""A decode loop that batches continuously, whatever runs the graph.

A text takes a free row at any step, and leaves it at the step in which it ends or is cancelled.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from optimizer.errors import BadInput
from optimizer.generating.asked import check_asked, check_read
from optimizer.generating.config import DecoderConfig
from optimizer.generating.guide import Guide, Guides
from optimizer.generating.penalties import Penalties, penalties
from optimizer.generating.sampler import Sampler, logprob, top_logprobs
from optimizer.generating.stream import Stream
from optimizer.generator import Finish, Piece, Sampling
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SLOTS", "LoopGenerator", "Rows"]

#: Texts written at once when nobody says how many.
SLOTS = 16
#: Tokens of new prompts that are read between two steps of the texts under way, so that these do not stand still.
_READ_AT_ONCE = 512


class Rows(Protocol):
    """An open graph with a cache of keys and values for some texts, each of which has a row; the first are in use.

    Attributes:
        slots: how many rows there are.
        together: most prompts that are read in one run.
    """

    slots: int
    together: int

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Read prompts into this row and those behind it, whatever was there; logits of what follows each of them,
        ``[prompts, vocabulary]``.
        """

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows, which have ``lengths`` tokens already; logits of what follows,
        ``[rows, vocabulary]``.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first tokens of a row in place of another row's."""

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; touches no row. ``read`` are
        the prompts, where an encoder reads them.
        """


@dataclass
class _Text:
    """One text: what was asked, and where it is."""

    prompt: NDArray[np.int64]
    sampling: Sampling
    stream: Stream
    sampler: Sampler
    guide: Guide | None
    penalties: Penalties | None
    ends: frozenset[int]
    left: int
    length: int = 0
    token: int = field(default=-1)
    written: int = 0

    def go_on(self, logits: NDArray[np.float32]) -> bool:
        """Take the next token and hand it on; whether there is more to come."""
        if self.guide:
            logits = self.guide.allow(logits)
        if self.written < self.sampling.min_tokens:
            logits = _without(logits, self.ends)
        self.token = self.sampler.pick(self.penalties.apply(logits) if self.penalties else logits)
        if self.token in self.ends:
            self.stream.end(Finish.STOP)
            return False
        if self.penalties:
            self.penalties.take(self.token)
        complete = self.guide.take(self.token) if self.guide else False
        self.left -= 1
        self.written += 1
        finish = Finish.STOP if complete else Finish.LENGTH if self.left == 0 else None
        chances = (logprob(logits, self.token),) if self.sampling.logprobs else ()
        count = self.sampling.top_logprobs
        top = (top_logprobs(logits, count),) if self.sampling.logprobs and count else ()
        self.stream.put(Piece((self.token,), finish, chances, top))
        return finish is None


def _without(logits: NDArray[np.float32], tokens: frozenset[int]) -> NDArray[np.float32]:
    """Logits by which none of these tokens comes."""
    kept = logits.copy()
    kept[list(tokens)] = -math.inf
    return kept


class LoopGenerator:
    """An open decoder; see :class:`optimizer.generator.Generator`. One thread runs the graph.

    Args:
        rows: the graph.
        config: of its folder.
        facts: what was really got; slots and batching are added.
    """

    def __init__(self, rows: Rows, config: DecoderConfig, facts: dict[str, JSON]) -> None:
        self._decoder = rows
        self._config = config
        self._guides = Guides(config.folder, config.vocabulary, config.end_tokens)
        self.context, self.vocabulary, self.end_tokens = config.context, config.vocabulary, config.end_tokens
        self.answers = config.answers
        self.facts: dict[str, JSON] = {**facts, "slots": rows.slots, "batching": "continuous"}
        self._waiting: deque[_Text] = deque()
        self._rows: list[_Text] = []
        self._awake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ml-opt-generate", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        """Begin a text; raises :class:`BadInput`."""
        import numpy as np

        check_asked(prompt, sampling, self.context, self.vocabulary, self.answers)
        stream = Stream(self._wake)
        text = _Text(
            np.asarray(prompt, np.int64),
            sampling,
            stream,
            Sampler(sampling),
            self._guides.guide(sampling),
            penalties(sampling, self._config.start if self.answers else prompt),
            frozenset((*self.end_tokens, *sampling.stop_tokens)),
            min(sampling.max_tokens, self._config.room(len(prompt))),
        )
        with self._awake:
            if self._closing:
                raise BadInput("the generator is closed")
            self._waiting.append(text)
            self._awake.notify()
        return stream

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token; from any thread, beside texts that are being written."""
        check_read(tokens, read, self.answers)
        return self._decoder.score(tokens, read)

    def close(self) -> None:
        """End every text."""
        with self._awake:
            self._closing = True
            self._awake.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._awake:
            self._awake.notify()

    def _work(self) -> None:
        while True:
            with self._awake:
                while not (self._waiting or self._rows or self._closing):
                    self._awake.wait()
                if self._closing:
                    break
            try:
                self._drop_cancelled()
                self._admit()
                if self._rows:
                    self._step()
            except Exception as error:  # one that no text is to blame for: it ends them all, and the next may do better
                for text in self._rows:
                    text.stream.fail(error)
                self._rows = []
        for text in (*self._rows, *self._waiting):
            text.stream.end(Finish.CANCELLED)

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].stream.cancelled:
                self._rows[row].stream.end(Finish.CANCELLED)
                self._leave(row)
        with self._awake:
            gone = [text for text in self._waiting if text.stream.cancelled]
            self._waiting = deque(text for text in self._waiting if not text.stream.cancelled)
        for text in gone:
            text.stream.end(Finish.CANCELLED)

    def _leave(self, row: int) -> None:
        """Free a row: the last one takes its place, so that those in use are the first."""
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last
            self._decoder.move(len(self._rows), row, last.length)

    def _admit(self) -> None:
        read = 0
        while len(self._rows) < self._decoder.slots and (read == 0 or read < _READ_AT_ONCE):
            texts = self._next(_READ_AT_ONCE - read)
            if not texts:
                return
            try:
                logits = self._decoder.read(len(self._rows), [text.prompt for text in texts])
            except Exception as error:
                for text in texts:
                    text.stream.fail(error)
                continue
            for text in texts:
                text.length = text.prompt.size
                read += text.length
            first = len(self._rows)
            self._rows += texts  # those that are over with their first token leave again, as each has its row already
            self._go_on(first, logits)

    def _next(self, room: int) -> list[_Text]:
        """Texts that wait, as many as are read in one run: the first, and others while their tokens have room."""
        most = min(self._decoder.together, self._decoder.slots - len(self._rows))
        found: list[_Text] = []
        with self._awake:
            while self._waiting and len(found) < most:
                if found and self._waiting[0].prompt.size > room:
                    break
                found.append(self._waiting.popleft())
                room -= found[-1].prompt.size
        return found

    def _step(self) -> None:
        """One token more for every text."""
        logits = self._decoder.step([text.token for text in self._rows], [text.length for text in self._rows])
        for text in self._rows:
            text.length += 1
        self._go_on(0, logits)

    def _go_on(self, first: int, logits: NDArray[np.float32]) -> None:
        """Hand the next token of each text from a row on to it; those that are over leave."""
        over = []
        for row, text in enumerate(self._rows[first:], first):
            try:
                more = text.go_on(logits[row - first])
            except Exception as error:
                text.stream.fail(error)
                more = False
            if not more:
                over.append(row)
        for row in reversed(over):
            self._leave(row)
