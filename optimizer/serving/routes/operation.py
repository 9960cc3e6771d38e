"""What operators read: ``/health`` and ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.form import AS_JSON, TEXT, Form, listed, object_of, one_of
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Phase
from optimizer.types import JSON

if TYPE_CHECKING:
    from starlette.responses import Response

    from optimizer.serving.served import Served

__all__ = ["ROUTES"]


async def _health(call: Call) -> Response:
    state = call.state
    degraded = state.models.degraded
    status = "draining" if state.draining else "ready" if state.ready else "degraded" if degraded else "loading"
    answer: dict[str, JSON] = {"status": status}
    # What a server with keys serves is not for everybody who can reach it.
    if Scope.INFER in call.admitted.who.scopes:
        answer["models"] = [_model(served) for served in state.models]
    return json_answer(answer, 200 if state.ready else 503)


def _model(served: Served) -> dict[str, JSON]:
    """Where one model is."""
    said: dict[str, JSON] = {"name": served.name, "version": served.version, "state": served.phase}
    if served.ready:
        said |= {"proof": served.proof, "limits_from": served.limits_from}
    if served.why:
        said |= {"ref": served.ref, "why": served.why}
    if served.degraded:
        said["reason"] = served.told(served.reason)
    return said


async def _metrics(call: Call) -> Response:
    from starlette.responses import Response

    metrics = call.state.metrics
    metrics.queues(call.state.models)
    text, content_type = metrics.text()
    return Response(text, 200, {"content-type": content_type})


_MODEL = object_of(
    "ModelHealth",
    {"name": TEXT, "version": TEXT, "state": one_of(*Phase)},
    {"ref": TEXT, "why": TEXT, "proof": TEXT, "limits_from": TEXT, "reason": TEXT},
)
_HEALTH = object_of(
    "Health", {"status": one_of("ready", "loading", "degraded", "draining")}, {"models": listed(_MODEL)}
)

ROUTES = (
    Route(
        "/health",
        ("GET",),
        Scope.OPEN,
        _health,
        "Whether the server is ready, and where each model is.",
        Form({AS_JSON: _HEALTH}, also={503: _HEALTH}),
    ),
    Route(
        "/metrics",
        ("GET",),
        Scope.METRICS,
        _metrics,
        "What was counted, in Prometheus' text form.",
        Form({"text/plain": TEXT}),
    ),
)
