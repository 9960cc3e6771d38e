"""Spans of OpenTelemetry: one a request, under the client's own trace, and one for each part of its time.

Off unless it is asked for, and then it is an extra: this is the only file that knows the packages. While a request
runs nothing is done but to note when each of its parts ended; the spans of the parts are made when it is over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from optimizer.environment import version_of
from optimizer.errors import missing_package
from optimizer.serving.route import Scope

if TYPE_CHECKING:
    from optimizer.serving.call import Call
    from optimizer.serving.route import Route
    from optimizer.serving.settings import Settings

__all__ = ["Tracing", "traced", "tracing_of"]

#: What a collector is named by; either of them asks for spans (OpenTelemetry's own names).
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Methods that OpenTelemetry's conventions know; all others are ``_OTHER``, as clients may think of any.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
#: Seconds that the last spans have to be sent in when the server ends.
_LAST_S = 2.0
#: Probes and scrapes come every few seconds, and nobody looks for them.
_UNTRACED = frozenset((Scope.OPEN, Scope.METRICS))


class _Parts(dict[str, float]):
    """Times of a request that note when each part ended, and hold its span."""

    def __init__(self, span: Any) -> None:
        super().__init__()
        self.span = span
        self.ends: dict[str, int] = {}

    def __setitem__(self, part: str, seconds: float) -> None:
        super().__setitem__(part, seconds)
        self.ends[part] = time.time_ns()


class Tracing:
    """Makes the spans of a server.

    Args:
        processor: takes spans that are over (OpenTelemetry's ``SpanProcessor``); None sends them over OTLP, as the
            variables ``OTEL_…`` say.
        told: is told, in words, what OpenTelemetry says, e.g. that a collector cannot be reached; goes to the log.

    Raises:
        MissingPiece: the packages are not installed.
    """

    def __init__(self, processor: Any = None, told: Callable[[str], None] = lambda text: None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            resource = Resource.create()
            if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
                resource = resource.merge(Resource({"service.name": "ml-opt"}))
            # A provider of our own: whoever uses this server as a library keeps theirs.
            self._exporter: Any = None
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            if processor is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
                from opentelemetry.sdk.trace.export import BatchSpanProcessor

                self._exporter = OTLPSpanExporter()
                processor = BatchSpanProcessor(self._exporter)
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "opentelemetry", "sending spans (--otel)") from None
        self._provider.add_span_processor(processor)
        self._trace = trace
        self._tracer = self._provider.get_tracer("ml-opt", version_of("ml-opt"))
        self._context = TraceContextTextMapPropagator()
        self._words = _Words(told)
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._words)
        logger.propagate = False

    def begin(self, call: Call, route: Route) -> None:
        """Begin the span of a request, in the trace that its ``traceparent`` names; its log gets the trace's id."""
        if route.scope in _UNTRACED:
            return
        method = call.request.method if call.request.method in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "http.route": route.path, "ml_opt.request.id": call.id}
        context = self._context.extract(dict(call.request.headers))
        span = self._tracer.start_span(
            f"{method} {route.path}", context, self._trace.SpanKind.SERVER, attributes=attributes
        )
        call.times = _Parts(span)
        call.notes["trace"] = self._trace.format_trace_id(span.get_span_context().trace_id)

    def over(self, call: Call, route: Route, status: int, seconds: float) -> None:
        """End the span of a request, and make those of its parts."""
        times = call.times
        if not isinstance(times, _Parts) or times.span is None:
            return
        span, now = times.span, time.time_ns()
        if span.is_recording():
            span.set_attributes({"http.response.status_code": status, **_about(call)})
            if status >= 500:
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            context = self._trace.set_span_in_context(span)
            for part, begun, ended in _laid_out(times, now):
                self._tracer.start_span(part, context, start_time=begun).end(ended)
        span.end(now)
        times.span = None  # the times are kept for longer than that (optimizer.serving.record)

    def close(self) -> None:
        """Send what is left; blocks while it is sent, but for no more than seconds where nobody takes it."""
        # A collector that is gone is asked again and again, which must not hold the server's end up.
        give_up = threading.Timer(_LAST_S, self._exporter.shutdown) if self._exporter is not None else None
        if give_up is not None:
            give_up.start()
        self._provider.shutdown()
        if give_up is not None:
            give_up.cancel()
        logger = logging.getLogger("opentelemetry")
        logger.removeHandler(self._words)
        logger.propagate = True


class _Words(logging.Handler):
    """What the packages say, as lines of the server's own log."""

    def __init__(self, told: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told(record.getMessage())


def _laid_out(times: _Parts, now: int) -> list[tuple[str, int, int]]:
    """Part, begin and end in nanoseconds since 1970. Parts follow each other; two whose times were told at once too."""
    found, later = [], now
    for part, seconds in reversed(times.items()):
        ended = min(times.ends[part], later)
        later = ended - int(seconds * 1e9)
        found.append((part, later, ended))
    return found[::-1]


def _about(call: Call) -> dict[str, str | int | float]:
    """What is said of a request beside its times; nothing of what was asked."""
    found: dict[str, str | int | float] = {}
    if call.model:
        found |= {"ml_opt.model": call.model, "ml_opt.model.version": call.version}
    if call.answering is not None:
        found["ml_opt.model.ref"] = call.answering.ref
        found["ml_opt.provider"] = str(call.answering.facts.get("provider", ""))
    if "reason" in call.notes:
        found["error.type"] = str(call.notes["reason"])
    for note in ("prompt_tokens", "tokens", "cache"):
        if note in call.notes:
            found[f"ml_opt.{note}"] = call.notes[note]
    if call.runs:
        run = call.runs[0].run
        found |= {"ml_opt.run.requests": run.requests, "ml_opt.run.rows": run.rows}
        found |= {"ml_opt.run.tokens": run.tokens, "ml_opt.run.computed_tokens": run.computed}
    return found


def traced(settings: Settings, variables: Mapping[str, str] = os.environ) -> bool:
    """Whether spans are asked for: by ``--otel``, or by a variable that names a collector."""
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return settings.otel or any(variables.get(name) for name in _ENDPOINTS)


def tracing_of(settings: Settings, told: Callable[[str], None]) -> Tracing | None:
    """What makes the spans of a server; None where none are asked for. Raises as :class:`Tracing` does."""
    return Tracing(told=told) if traced(settings) else None
