"""What the server counts, in Prometheus' form: seconds and bytes, by model, version, endpoint and status."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from optimizer.serving.tickets import Run

if TYPE_CHECKING:
    from optimizer.serving.served import Served

__all__ = ["Metrics", "ModelMetrics"]

#: From 50 µs, each twice the one before, to 26 s: a model's answer may take either.
_SECONDS = tuple(50e-6 * 2**step for step in range(20))
_ROWS = tuple(2**step for step in range(11))
_TOKENS = tuple(2**step for step in range(4, 17))
_MODEL = ("model", "version")


class Metrics:
    """Every metric, in a registry of its own; needs ``prometheus-client``.

    Where several workers count together (``PROMETHEUS_MULTIPROC_DIR``, which has to be set before this is imported),
    each writes a file of its own, and any of them tells the sum: counts of those that are gone too, and the gauges of
    those that live.
    """

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = CollectorRegistry(auto_describe=True)
        #: Several workers count together.
        self.shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        labels = (*_MODEL, "endpoint", "status")
        self.requests = Counter("ml_requests", "Requests answered.", labels, registry=registry)
        self.duration = Histogram(
            "ml_request_duration_seconds", "From head to answer.", labels, buckets=_SECONDS, registry=registry
        )
        self.active = Gauge(
            "ml_active_requests", "Requests that are not answered yet.", registry=registry, multiprocess_mode="livesum"
        )
        self.rejected = Counter(
            "ml_requests_rejected",
            "Requests refused before any work.",
            (*_MODEL, "reason"),
            registry=registry,
        )
        self.failed = Counter(
            "ml_requests_failed", "Requests that were begun and not answered.", (*_MODEL, "reason"), registry=registry
        )
        self.cancelled = Counter(
            "ml_requests_cancelled", "Requests whose client hung up.", (*_MODEL, "reason"), registry=registry
        )
        self.memory = Gauge(
            "ml_model_memory_bytes",
            "Memory that a model took to load; 0 while it is not.",
            _MODEL,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.loads = Counter("ml_model_loads", "Times that a model was loaded.", _MODEL, registry=registry)
        self.unloads = Counter("ml_model_unloads", "Times that one was unloaded.", _MODEL, registry=registry)
        self.depth = Gauge("ml_queue_depth", "Rows that wait.", _MODEL, registry=registry, multiprocess_mode="livesum")
        self.info = Gauge(
            "ml_model_info",
            "1 for each model that is ready.",
            (*_MODEL, "ref", "provider"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.wait = Histogram("ml_queue_wait_seconds", "In the queue.", _MODEL, buckets=_SECONDS, registry=registry)
        self.tokenize = Histogram(
            "ml_tokenize_seconds", "Texts and images into inputs.", _MODEL, buckets=_SECONDS, registry=registry
        )
        self.compute = Histogram(
            "ml_compute_seconds", "One run of the model.", _MODEL, buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("ml_batch_rows", "Rows of a run.", _MODEL, buckets=_ROWS, registry=registry)
        self.batch_tokens = Histogram(
            "ml_batch_tokens", "Tokens of a run, padding included.", _MODEL, buckets=_TOKENS, registry=registry
        )
        self.padding = Counter("ml_padding_tokens", "Tokens computed for padding.", _MODEL, registry=registry)
        self.tokens = Counter("ml_tokens", "Tokens computed, padding left out.", _MODEL, registry=registry)
        self.token_rate = Gauge(
            "ml_tokens_per_second",
            "Tokens over seconds of the last run.",
            _MODEL,
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self.restarts = Counter(
            "ml_worker_restarts", "Workers that took the place of one that ended.", registry=registry
        )

    def of(self, model: str, version: str) -> ModelMetrics:
        """The metrics of one model, found once and used often."""
        return ModelMetrics(self, model, version)

    def text(self) -> tuple[bytes, str]:
        """All of it, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = self.registry
        if self.shared:
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def queues(self, models: Iterable[Served]) -> None:
        """Look how many rows wait now."""
        for served in models:
            if served.batcher is not None:
                self.depth.labels(served.name, served.version).set(served.batcher.depth)


class ModelMetrics:
    """The children of one model, so that no label is looked up for each run."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        labels = (model, version)
        self._labels = labels
        self._metrics = metrics
        self.wait = metrics.wait.labels(*labels)
        self.tokenize = metrics.tokenize.labels(*labels)
        self.compute = metrics.compute.labels(*labels)
        self._rows = metrics.batch_rows.labels(*labels)
        self._tokens = metrics.batch_tokens.labels(*labels)
        self._padding = metrics.padding.labels(*labels)
        self._real = metrics.tokens.labels(*labels)
        self._rate = metrics.token_rate.labels(*labels)

    def ran(self, run: Run) -> None:
        """Count one run."""
        self.compute.observe(run.seconds)
        self._rows.observe(run.rows)
        self._tokens.observe(run.computed)
        self._padding.inc(run.computed - run.tokens)
        self._real.inc(run.tokens)
        self._rate.set(run.tokens / max(run.seconds, 1e-9))

    def loaded(self, ref: str, provider: str, size: int) -> None:
        """Say what is served, and how much memory it took."""
        self._metrics.loads.labels(*self._labels).inc()
        self._metrics.memory.labels(*self._labels).set(size)
        self._metrics.info.labels(*self._labels, ref, provider).set(1)

    def unloaded(self, ref: str, provider: str) -> None:
        """Take that back."""
        self._metrics.unloads.labels(*self._labels).inc()
        self._metrics.memory.labels(*self._labels).set(0)
        self._metrics.info.labels(*self._labels, ref, provider).set(0)
