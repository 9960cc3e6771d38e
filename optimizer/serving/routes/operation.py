"""What operators read: ``/health`` and ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.route import Route, Scope
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _health(call: Call) -> Response:
    state = call.state
    status = "draining" if state.draining else "ready" if state.ready else "loading"
    answer: dict[str, JSON] = {"status": status}
    # What a server with keys serves is not for everybody who can reach it.
    if Scope.INFER in call.admitted.who.scopes:
        answer["models"] = [
            {"name": s.name, "version": s.version, "state": s.phase, **({"ref": s.ref, "why": s.why} if s.why else {})}
            for s in state.models
        ]
    return json_answer(answer, 200 if state.ready else 503)


async def _metrics(call: Call) -> Response:
    from starlette.responses import Response

    metrics = call.state.metrics
    metrics.queues(call.state.models)
    text, content_type = metrics.text()
    return Response(text, 200, {"content-type": content_type})


ROUTES = (
    Route("/health", ("GET",), Scope.OPEN, _health, "Whether the server is ready, and where each model is."),
    Route("/metrics", ("GET",), Scope.METRICS, _metrics, "What was counted, in Prometheus' text form."),
)
