"""A decode loop that batches continuously, whatever runs the graph.

A text takes a free row at any step, and leaves it at the step in which it ends or is cancelled.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from optimizer.errors import BadInput
from optimizer.generating.asked import check_asked, check_read
from optimizer.generating.beams import BeamSearch
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

__all__ = ["SLOTS", "BeamRows", "LoopGenerator", "Rows"]

#: Texts written at once when nobody says how many.
SLOTS = 16
#: Tokens of prompts that are read between two steps of the texts under way, so that these do not stand still.
_READ_AT_ONCE = 512


class Rows(Protocol):
    """An open graph with a cache of keys and values for some texts, each of which has a row; the first are in use.

    Attributes:
        slots: how many rows there are.
        together: most prompts that are read in one run.
        part: most tokens of a prompt that are read in one run; 0 where prompts are read whole.
    """

    slots: int
    together: int
    part: int

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]], begin: int = 0) -> NDArray[np.float32] | None:
        """Read prompts into this row and those behind it, whatever was there; logits of what follows each of them,
        ``[prompts, vocabulary]``. None where an encoder read them: the next step, which all rows make together, then
        takes the last of the tokens that an answer begins with. With ``begin`` it is a part of one prompt, so many
        tokens of which are in the row already.
        """

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows, which have ``lengths`` tokens already; logits of what follows,
        ``[rows, vocabulary]``.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first tokens of a row in place of another row's, which is not read any more."""

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; touches no row. ``read`` are
        the prompts, where an encoder reads them.
        """


@runtime_checkable
class BeamRows(Rows, Protocol):
    """Rows that may have the same text before them."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Put the first tokens of a row into the first one behind those in use."""

    def reorder(self, moved: Sequence[tuple[int, int]], length: int) -> None:
        """Let rows, the first of each pair, go on from what the second has: ``length`` tokens of the same prompt."""


@dataclass(eq=False)
class _Text:
    """One text: what was asked, and where it is. With beams it has a row for each of them, and no token of its own."""

    prompt: NDArray[np.int64]
    sampling: Sampling
    stream: Stream
    sampler: Sampler
    guide: Guide | None
    penalties: Penalties | None
    ends: frozenset[int]
    left: int
    never: tuple[int, ...]
    search: BeamSearch | None = None
    length: int = 0
    token: int = field(default=-1)  # the last one
    written: int = 0

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is not in the row yet."""
        return self.length < self.prompt.size

    def go_on(self, logits: NDArray[np.float32]) -> bool:
        """Take the next token and hand it on; whether there is more to come."""
        own = logits  # what the model thinks, whatever is allowed: all that bends them makes a copy
        if self.guide:
            logits = self.guide.allow(logits)
        if banned := (*self.never, *(self.ends if self.written < self.sampling.min_tokens else ())):
            logits = _without(logits, banned)
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
        chances = (logprob(own, self.token),) if self.sampling.logprobs else ()
        count = self.sampling.top_logprobs
        top = (top_logprobs(own, count),) if self.sampling.logprobs and count else ()
        self.stream.put(Piece((self.token,), finish, chances, top))
        return finish is None


@dataclass(frozen=True)
class _Row:
    """Whose row it is: a text's, or one of its beams'."""

    text: _Text
    beam: int = 0

    @property
    def token(self) -> int:
        """What the next step takes: the last token, or of a prompt that is still read the one whose turn it is."""
        text = self.text
        if text.reading:
            return int(text.prompt[text.length])
        return text.search.token(self.beam) if text.search else text.token


def _without(logits: NDArray[np.float32], tokens: Collection[int]) -> NDArray[np.float32]:
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
        self._rows: list[_Row] = []
        self._awake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ml-opt-generate", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        """Begin a text; raises :class:`BadInput`."""
        import numpy as np

        check_asked(prompt, sampling, self.context, self.vocabulary, self.answers)
        if sampling.num_beams > 1:
            self._check_beams(sampling.num_beams)
        stream, config = Stream(self._wake), self._config
        bent = penalties(sampling, config.start if self.answers else prompt)
        ends = frozenset((*self.end_tokens, *sampling.stop_tokens))
        most = min(sampling.max_tokens, config.room(len(prompt)))
        text = _Text(
            np.asarray(prompt, np.int64),
            sampling,
            stream,
            Sampler(sampling),
            self._guides.guide(sampling),
            bent,
            ends,
            most,
            config.never,
        )
        if config.start:
            text.token = config.start[-1]
        if sampling.num_beams > 1:
            text.search = BeamSearch(sampling, bent, ends, config.never, config.start, most)
        with self._awake:
            if self._closing:
                raise BadInput("the generator is closed")
            self._waiting.append(text)
            self._awake.notify()
        return stream

    def _check_beams(self, count: int) -> None:
        if not isinstance(self._decoder, BeamRows):
            raise BadInput(
                f"{self.facts['runtime']} follows no beams", "leave the provider out: ONNX Runtime on a processor does"
            )
        if count > self._decoder.slots:
            raise BadInput(f"{count} beams were asked for, and {self._decoder.slots} texts are written at once")

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
                if any(not row.text.reading for row in self._rows):
                    self._step()
            except Exception as error:  # one that no text is to blame for: it ends them all, and the next may do better
                for text in self._texts:
                    text.stream.fail(error)
                self._rows = []
        for text in (*self._texts, *self._waiting):
            text.stream.end(Finish.CANCELLED)

    @property
    def _texts(self) -> list[_Text]:
        """Those under way, each once."""
        return list(dict.fromkeys(row.text for row in self._rows))

    def _drop_cancelled(self) -> None:
        for text in self._texts:
            if text.stream.cancelled:
                text.stream.end(Finish.CANCELLED)
                self._leave(text)
        with self._awake:
            gone = [text for text in self._waiting if text.stream.cancelled]
            self._waiting = deque(text for text in self._waiting if not text.stream.cancelled)
        for text in gone:
            text.stream.end(Finish.CANCELLED)

    def _leave(self, text: _Text) -> None:
        """Free a text's rows: the last one takes the place of each, so that those in use are the first."""
        for row in reversed(range(len(self._rows))):
            if self._rows[row].text is not text:
                continue
            last = self._rows.pop()
            if row < len(self._rows):
                self._rows[row] = last
                self._decoder.move(len(self._rows), row, last.text.length)

    def _admit(self) -> None:
        """Read some of what waits, so that texts under way do not stand still; all of one run where there are none."""
        part = self._decoder.part
        room = part if part and all(row.text.reading for row in self._rows) else _READ_AT_ONCE
        while room > 0:
            unread = next((place for place, row in enumerate(self._rows) if row.text.reading), None)
            if unread is not None:
                room -= self._read_on(unread, room)
                continue
            texts = self._next(room)
            if not texts:
                return
            if part and texts[0].prompt.size > room:  # it has its row while it is read
                self._rows.append(_Row(texts[0]))
            else:
                room -= self._read_whole(texts)

    def _read_on(self, row: int, room: int) -> int:
        """Read some more of a prompt, at most as many tokens as there is room for; how many it was."""
        text = self._rows[row].text
        begin = text.length
        part = text.prompt[begin : begin + min(room, self._decoder.part)]
        try:
            logits = self._decoder.read(row, [part], begin)
        except Exception as error:
            text.stream.fail(error)
            self._leave(text)
            return 0
        text.length += part.size
        if not text.reading and logits is not None:
            self._go_on([row], logits, row)
        return int(part.size)

    def _read_whole(self, texts: Sequence[_Text]) -> int:
        """Read prompts in one run; how many tokens that were."""
        first = len(self._rows)
        try:
            logits = self._decoder.read(first, [text.prompt for text in texts])
        except Exception as error:
            for text in texts:
                text.stream.fail(error)
            return 0
        for text in texts:
            text.length = text.prompt.size
        # Those that are over with their first token leave again, as each has its row already.
        self._rows += [_Row(text) for text in texts]
        if logits is not None:
            self._go_on(range(first, len(self._rows)), logits, first)
        return sum(text.prompt.size for text in texts)

    def _next(self, room: int) -> list[_Text]:
        """Texts that wait, as many as are read in one run: the first, and others while their tokens have room."""
        # Beams that have not had their first step have no rows yet.
        free = self._decoder.slots - sum(text.sampling.num_beams for text in self._texts)
        found: list[_Text] = []
        with self._awake:
            while self._waiting and len(found) < self._decoder.together:
                following = self._waiting[0]
                if following.sampling.num_beams > free or (found and following.prompt.size > room):
                    break
                found.append(self._waiting.popleft())
                free -= following.sampling.num_beams
                room -= following.prompt.size
        return found

    def _step(self) -> None:
        """One token more for every text; one whose prompt is still read takes the next of its tokens."""
        logits = self._decoder.step([row.token for row in self._rows], [row.text.length for row in self._rows])
        for text in self._texts:
            text.length += 1
        self._go_on([place for place, row in enumerate(self._rows) if not row.text.reading], logits, 0)

    def _go_on(self, rows: Sequence[int], logits: NDArray[np.float32], first: int) -> None:
        """Hand the next tokens of the texts in some rows on to them, by logits from the row ``first`` on; those that
        are over leave.
        """
        places: dict[_Text, list[int]] = {}
        for place in sorted(rows, key=lambda place: self._rows[place].beam):
            places.setdefault(self._rows[place].text, []).append(place)
        over = []
        for text, of_text in places.items():
            try:
                if text.search is None:
                    more = text.go_on(logits[of_text[0] - first])
                else:
                    more = self._search_on(text, text.search, of_text, logits[[place - first for place in of_text]])
            except Exception as error:
                text.stream.fail(error)
                more = False
            if not more:
                over.append(text)
        for text in over:
            self._leave(text)

    def _search_on(self, text: _Text, search: BeamSearch, places: list[int], logits: NDArray[np.float32]) -> bool:
        """One step of a search, whose beams are in these rows; whether there is more to come."""
        rows = self._decoder
        assert isinstance(rows, BeamRows)  # else it was refused
        parents = search.step(logits)
        if parents is None:
            tokens, finish = search.best()
            text.stream.put(Piece(tokens, finish))
            return False
        for beam in range(len(places), len(parents)):  # the first step: all go on from the prompt alone
            places.append(len(self._rows))
            rows.copy(places[0], places[-1], text.length)
            self._rows.append(_Row(text, beam))
        moved = [(row, places[parent]) for row, parent in zip(places, parents, strict=True) if row != places[parent]]
        if moved:
            rows.reorder(moved, text.length)
        return True
