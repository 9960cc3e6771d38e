"""V2's repository extension: what is there, load, unload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.serving.answers import json_answer, parsed
from optimizer.serving.call import Call
from optimizer.serving.form import AS_JSON, OBJECT, TEXT, TRUTH, Form, listed, object_of, one_of, or_null
from optimizer.serving.problems import Problem
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Phase

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]


async def _index(call: Call) -> Response:
    asked = await call.body()
    ready_only = parsed(asked).get("ready") if asked else None
    if ready_only is not None and not isinstance(ready_only, bool):
        raise Problem(400, "ready should be true or false", param="ready")
    return json_answer(
        [
            {"name": served.name, "version": served.version, "state": served.phase, "reason": served.reason}
            for served in call.state.models
            if served.ready or not ready_only
        ]
    )


def _need_one_process(call: Call) -> None:
    """Refuse what only the worker that answers would do."""
    if (count := call.state.settings.workers) > 1:
        raise Problem(
            400, f"one of {count} workers cannot load or unload for all: restart the server", reason="workers"
        )


async def _load(call: Call) -> Response:
    _need_one_process(call)
    asked = await call.body()
    given = parsed(asked).get("parameters") if asked else None
    if given is not None and not isinstance(given, dict):
        raise Problem(400, "parameters should be an object", param="parameters")
    if given:
        words = ", ".join(map(str, given))[:100]
        raise Problem(400, f"a model is loaded as the store has it, not with files or another configuration ({words})")
    served = await call.state.models.load_by_name(call.request.path_params["name"])
    call.model, call.version = served.name, served.version
    return json_answer({})


async def _unload(call: Call) -> Response:
    _need_one_process(call)
    await call.state.models.unload(call.request.path_params["name"])
    return json_answer({})


_ENTRY = object_of("RepositoryEntry", {"name": TEXT, "version": TEXT, "state": one_of(*Phase), "reason": TEXT})
_INDEX = Form({AS_JSON: listed(_ENTRY)}, {AS_JSON: object_of("", {}, {"ready": or_null(TRUTH)})}, optional=True)
_DONE = object_of("Done", {})
_LOAD = Form({AS_JSON: _DONE}, {AS_JSON: object_of("", {}, {"parameters": or_null(OBJECT)})}, optional=True)
_UNLOAD = Form({AS_JSON: _DONE}, {AS_JSON: OBJECT}, optional=True)

ROUTES = (
    Route("/v2/repository/index", ("POST",), Scope.ADMIN, _index, "Every model, and where it is.", _INDEX),
    Route(
        "/v2/repository/models/{name}/load",
        ("POST",),
        Scope.ADMIN,
        _load,
        "Load a model of the store, or again.",
        _LOAD,
    ),
    Route(
        "/v2/repository/models/{name}/unload", ("POST",), Scope.ADMIN, _unload, "Take a model out of service.", _UNLOAD
    ),
)
