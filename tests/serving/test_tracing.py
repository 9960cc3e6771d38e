"""Spans of OpenTelemetry, by its own SDK: under the client's trace, with what each part took, and none when off."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")

from serving.test_app import call
from serving.test_why import ids, play, why

from optimizer.errors import MissingPiece
from optimizer.serving.app import build_app
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.serving.tracing import Tracing, traced, tracing_of

CLASSES = "/v2/models/classes/infer"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans() -> Iterator[Any]:
    """What OpenTelemetry's own exporter in memory was given; ``tracing`` is what gives it."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    yield SimpleNamespace(tracing=tracing, all=exporter.get_finished_spans)
    tracing.close()


def turn_on(state: State, spans: Any) -> Any:
    """The application of a server that traces."""
    state.tracing = spans.tracing
    state.watchers.append(spans.tracing.over)
    return build_app(state)


def test_a_request_is_a_span_under_the_clients_own_and_its_parts_are_below(tiny_store: Path, spans: Any) -> None:
    from opentelemetry.trace import SpanKind, StatusCode

    events: list[Any] = []

    async def scene(app: Any, state: State) -> None:
        state.log = events.append
        app = turn_on(state, spans)
        parent = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())
        status, _, _ = await call(app, "POST", CLASSES, ids(4), parent, (b"x-request-id", b"mine"))
        assert status == 200
        assert (await why(app, "mine"))["trace"] == TRACE

    play(tiny_store, scene)
    parts = [span for span in spans.all() if span.parent and span.parent.span_id != int(PARENT, 16)]
    (whole,) = [span for span in spans.all() if span.parent and span.parent.span_id == int(PARENT, 16)]
    assert (whole.name, whole.kind) == ("POST /v2/models/{name}/infer", SpanKind.SERVER)
    assert whole.status.status_code is StatusCode.UNSET
    assert {span.context.trace_id for span in (whole, *parts)} == {int(TRACE, 16)}
    assert [span.name for span in parts] == ["parse", "queue", "compute", "serialize"]
    assert {span.parent.span_id for span in parts} == {whole.context.span_id}
    # One after the other, within the whole, and each as long as Server-Timing and the log have it.
    moments = [
        whole.start_time,
        *(moment for span in parts for moment in (span.start_time, span.end_time)),
        whole.end_time,
    ]
    assert moments == sorted(moments)
    for span in parts:
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(events[0][f"{span.name}_ms"], abs=0.001)
    assert events[0]["trace"] == TRACE
    said = dict(whole.attributes)
    assert said.pop("ml_opt.run.computed_tokens") == 4
    assert said == {
        "http.request.method": "POST", "http.route": "/v2/models/{name}/infer", "http.response.status_code": 200,
        "ml_opt.request.id": "mine", "ml_opt.model": "classes", "ml_opt.model.version": "2",
        "ml_opt.model.ref": "classes@2:fp32", "ml_opt.provider": "cpu", "ml_opt.run.requests": 1, "ml_opt.run.rows": 1,
        "ml_opt.run.tokens": 4,
    }  # fmt: skip


def test_texts_have_a_span_for_the_tokenizer_and_are_in_none(tiny_store: Path, spans: Any) -> None:
    async def scene(app: Any, state: State) -> None:
        app = turn_on(state, spans)
        body = json.dumps({"model": "classes", "input": ["badcafe", "fed"]}).encode()
        assert (await call(app, "POST", "/v1/classify", body))[0] == 200

    play(tiny_store, scene)
    assert [span.name for span in spans.all()] == [
        "tokenize", "queue", "compute", "serialize", "POST /v1/classify"
    ]  # fmt: skip
    assert "badcafe" not in "".join(span.to_json() for span in spans.all())
    assert spans.all()[-1].parent is None


@pytest.mark.parametrize("header", [b"", b"00-junk", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff" * 300])
def test_a_traceparent_that_is_none_begins_a_trace(tiny_store: Path, spans: Any, header: bytes) -> None:
    async def scene(app: Any, state: State) -> None:
        assert (await call(turn_on(state, spans), "POST", CLASSES, ids(4), (b"traceparent", header)))[0] == 200

    play(tiny_store, scene)
    assert spans.all()[-1].parent is None


def test_the_client_may_ask_for_no_span(tiny_store: Path, spans: Any) -> None:
    async def scene(app: Any, state: State) -> None:
        header = (b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())
        assert (await call(turn_on(state, spans), "POST", CLASSES, ids(4), header))[0] == 200

    play(tiny_store, scene)
    assert spans.all() == ()


def test_what_was_refused_says_why_and_probes_are_no_spans(tiny_store: Path, spans: Any) -> None:
    from opentelemetry.trace import StatusCode

    async def scene(app: Any, state: State) -> None:
        app = turn_on(state, spans)
        for path in ("/health", "/metrics", "/v2/health/live", "/nothing"):
            await call(app, "GET", path)
        assert (await call(app, "POST", CLASSES, ids(4)))[0] == 504
        assert (await call(app, "POST", CLASSES, b"{}"))[0] == 400

    play(tiny_store, scene, deadline="300ms", delay="30s")
    parsed, waited, late, refused = spans.all()
    assert [span.name for span in (parsed, waited)] == ["parse", "queue"]
    assert waited.end_time > waited.start_time
    assert (late.attributes["error.type"], late.status.status_code) == ("late", StatusCode.ERROR)
    assert (refused.attributes["error.type"], refused.status.status_code) == ("400", StatusCode.UNSET)


def test_it_is_off_unless_asked_for(tiny_store: Path) -> None:
    plain, asked = Settings(), Settings.from_mapping({"otel": True})
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert [traced(plain, {}), traced(plain, endpoint), traced(asked, {})] == [False, True, True]
    assert not traced(asked, {**endpoint, "OTEL_SDK_DISABLED": "true"})

    async def scene(app: Any, state: State) -> None:
        assert state.tracing is None
        assert (await call(app, "POST", CLASSES, ids(4), (b"x-request-id", b"mine")))[0] == 200
        assert "trace" not in await why(app, "mine")

    play(tiny_store, scene)


def test_without_the_package_only_who_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert tracing_of(Settings(), print) is None
    with pytest.raises(MissingPiece, match="opentelemetry") as error:
        tracing_of(Settings.from_mapping({"otel": True}), print)
    assert "ml-opt[serve-otel]" in error.value.hint


def test_spans_reach_a_collector_and_one_that_is_gone_is_told_of(
    tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    came: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    def serve(url: str, said: list[str]) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        tracing = tracing_of(Settings(), said.append)
        assert tracing is not None

        async def scene(app: Any, state: State) -> None:
            app = turn_on(state, SimpleNamespace(tracing=tracing))
            assert (await call(app, "POST", CLASSES, ids(4)))[0] == 200

        play(tiny_store, scene)
        tracing.close()

    said: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        serve(f"http://127.0.0.1:{served.server_port}", said)
        served.shutdown()
        thread.join()
    ((path, body),) = came
    assert path == "/v1/traces"
    assert b"ml-opt" in body
    assert b"POST /v2/models/{name}/infer" in body
    assert said == []
    monkeypatch.setattr("optimizer.serving.tracing._LAST_S", 0.2)
    serve("http://127.0.0.1:1", said)
    assert said
