"""What the server's metrics count of texts."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from optimizer.generator import Finish
from optimizer.serving.text.observer import Observer

if TYPE_CHECKING:
    from optimizer.serving.metrics import Metrics

__all__ = ["Counted", "TextMetrics"]

_MODEL = ("model", "version")
#: Each twice the one before: from 100 µs between tokens, and from 1 ms to a first token.
_BETWEEN = tuple(1e-4 * 2**step for step in range(16))
_FIRST = tuple(1e-3 * 2**step for step in range(17))
#: Tokens per second are those of the last seconds.
_WINDOW = 10.0


class TextMetrics:
    """Metrics of texts, in the registry of a server's metrics; made once for each."""

    _known: ClassVar[WeakKeyDictionary[Metrics, TextMetrics]] = WeakKeyDictionary()

    def __init__(self, metrics: Metrics) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        registry = metrics.registry
        self.first = Histogram(
            "ml_time_to_first_token_seconds", "From asking to the first token of a text.", _MODEL,
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self.between = Histogram(
            "ml_inter_token_seconds",
            "From one token of a text to the next.",
            _MODEL,
            buckets=_BETWEEN,
            registry=registry,
        )
        self.read = Counter("ml_prompt_tokens", "Tokens of prompts.", _MODEL, registry=registry)
        self.written = Counter("ml_generated_tokens", "Tokens written.", _MODEL, registry=registry)
        self.texts = Counter("ml_texts", "Texts that are over, by why.", (*_MODEL, "finish"), registry=registry)
        self.active = Gauge(
            "ml_texts_active", "Texts that are being written.", _MODEL, registry=registry, multiprocess_mode="livesum"
        )
        self.waiting = Gauge(
            "ml_texts_waiting", "Texts that wait for a place.", _MODEL, registry=registry, multiprocess_mode="livesum"
        )

    @classmethod
    def of(cls, metrics: Metrics) -> TextMetrics:
        """Those of a server."""
        if metrics not in cls._known:
            cls._known[metrics] = cls(metrics)
        return cls._known[metrics]


class Counted(Observer):
    """Counts texts of one model.

    Args:
        metrics: of the server.
        model: its name.
        version: which of it.
    """

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        texts, labels = TextMetrics.of(metrics), (model, version)
        self._first = texts.first.labels(*labels)
        self._between = texts.between.labels(*labels)
        self._read = texts.read.labels(*labels)
        self._written = texts.written.labels(*labels)
        self._texts, self._labels = texts.texts, labels
        self.active, self.waiting = texts.active.labels(*labels), texts.waiting.labels(*labels)
        self._recent: deque[float] = deque(maxlen=1_000_000)
        metrics.token_rate.labels(*labels).set_function(self.rate)

    def prompt(self, tokens: int) -> None:
        self._read.inc(tokens)

    def first(self, seconds: float) -> None:
        self._first.observe(seconds)
        self._token()

    def between(self, seconds: float) -> None:
        self._between.observe(seconds)
        self._token()

    def ended(self, seconds: float, tokens: int, finish: Finish | None) -> None:
        self._texts.labels(*self._labels, finish or "cancelled").inc()

    def places(self, under_way: int, slots: int) -> None:
        self.active.set(min(under_way, slots))
        self.waiting.set(max(0, under_way - slots))

    def _token(self) -> None:
        self._written.inc()
        self._recent.append(time.perf_counter())

    def rate(self) -> float:
        """Tokens written in the last ten seconds, a second."""
        since = time.perf_counter() - _WINDOW
        while self._recent and self._recent[0] < since:
            self._recent.popleft()
        return len(self._recent) / _WINDOW
