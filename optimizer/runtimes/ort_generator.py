"""Text by ONNX Runtime alone: a decode loop that batches continuously, for every graph with GroupQueryAttention.

onnxruntime-genai's own engine batches on a processor at most four texts, and begins none before all of these are over
(:mod:`.genai`). Here a text takes a free row at any step, and leaves it at the step in which it ends or is cancelled.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.environment import cpu_threads
from optimizer.errors import BadInput
from optimizer.generating.asked import check_asked
from optimizer.generating.config import read_config
from optimizer.generating.guide import Guide, Guides
from optimizer.generating.sampler import Sampler, logprob, top_logprobs
from optimizer.generating.stream import Stream
from optimizer.generator import Finish, GeneratorOptions, GeneratorRuntime, Piece, Sampling
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._ort_decoder import Decoder, open_session
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GENERATOR", "OrtGenerator"]

#: Texts written at once when nobody says how many.
_SLOTS = 16
#: Tokens of new prompts that are read between two steps of the texts under way, so that these do not stand still.
_READ_AT_ONCE = 512


@dataclass
class _Text:
    """One text: what was asked, and where it is."""

    prompt: NDArray[np.int64]
    sampling: Sampling
    stream: Stream
    sampler: Sampler
    guide: Guide | None
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
        self.token = self.sampler.pick(logits)
        if self.token in self.ends:
            self.stream.end(Finish.STOP)
            return False
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


class OrtGenerator:
    """An open decoder; see :class:`optimizer.generator.Generator`. One thread runs the graph."""

    def __init__(self, folder: Path, options: GeneratorOptions) -> None:
        import onnxruntime

        config = read_config(folder)
        started = time.perf_counter()
        threads = options.threads or cpu_threads()
        self._decoder = Decoder(open_session(config.file, threads), config, options.slots or _SLOTS)
        self._guides = Guides(folder, config.vocabulary, config.end_tokens)
        self.context, self.vocabulary, self.end_tokens = config.context, config.vocabulary, config.end_tokens
        self.facts: dict[str, JSON] = {
            "runtime": GENERATOR.name,
            "provider": "cpu",
            "threads": threads,
            "slots": self._decoder.slots,
            "batching": "continuous",
            "huge_pages": onto_huge_pages(),
            "load_seconds": time.perf_counter() - started,
            "onnxruntime": onnxruntime.__version__,
        }
        self._waiting: deque[_Text] = deque()
        self._rows: list[_Text] = []
        self._awake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="ml-opt-generate", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        """Begin a text; raises :class:`BadInput`."""
        import numpy as np

        check_asked(prompt, sampling, self.context, self.vocabulary)
        stream = Stream(self._wake)
        text = _Text(
            np.asarray(prompt, np.int64),
            sampling,
            stream,
            Sampler(sampling),
            self._guides.guide(sampling),
            frozenset((*self.end_tokens, *sampling.stop_tokens)),
            min(sampling.max_tokens, self.context - len(prompt)),
        )
        with self._awake:
            if self._closing:
                raise BadInput("the generator is closed")
            self._waiting.append(text)
            self._awake.notify()
        return stream

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after every token; from any thread, beside texts that are being written."""
        return self._decoder.score(tokens)

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
            with self._awake:
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            try:
                logits = self._decoder.read(len(self._rows), text.prompt)
                text.length = text.prompt.size
                read += text.length
                if text.go_on(logits):
                    self._rows.append(text)
            except Exception as error:
                text.stream.fail(error)

    def _step(self) -> None:
        """One token more for every text."""
        logits = self._decoder.step([text.token for text in self._rows], [text.length for text in self._rows])
        over = []
        for row, text in enumerate(self._rows):
            text.length += 1
            try:
                more = text.go_on(logits[row])
            except Exception as error:
                text.stream.fail(error)
                more = False
            if not more:
                over.append(row)
        for row in reversed(over):
            self._leave(row)


GENERATOR = GeneratorRuntime(
    name="onnxruntime",
    help="ONNX Runtime and a decode loop of our own, which batches continuously.",
    providers=("cpu",),
    modules=("numpy", "onnxruntime"),
    open=OrtGenerator,
    rank=0,
)
