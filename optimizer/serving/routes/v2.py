"""The Open Inference Protocol V2, all but infer: what the server and its models are, and whether they are ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.environment import version_of
from optimizer.serving.answers import json_answer
from optimizer.serving.call import Call
from optimizer.serving.forms import v2 as forms
from optimizer.serving.platforms import platform_of
from optimizer.serving.route import Route, Scope
from optimizer.serving.served import Served
from optimizer.serving.tensors import datatype
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    from starlette.responses import Response

__all__ = ["ROUTES"]

_EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")


async def _server(call: Call) -> Response:
    return json_answer({"name": "ml-opt", "version": version_of("ml-opt") or "", "extensions": _EXTENSIONS})


async def _live(call: Call) -> Response:
    return json_answer({"live": True})


async def _ready(call: Call) -> Response:
    ready = call.state.ready
    return json_answer({"ready": ready, "live": True}, 200 if ready else 503)


def _found(call: Call) -> Served:
    params = call.request.path_params
    served = call.state.models.get(params["name"], params.get("version", ""))
    call.model, call.version = served.name, served.version
    return served


async def _model_ready(call: Call) -> Response:
    served = _found(call)
    document: dict[str, JSON] = {"name": served.name, "ready": served.ready}
    if not served.ready:
        document["error"] = f"{served.phase.lower()}: {served.reason}" if served.reason else served.phase.lower()
    return json_answer(document, 200 if served.ready else 503)


async def _model(call: Call) -> Response:
    served = call.served()
    return json_answer(
        {
            "name": served.name,
            "versions": call.state.models.versions(served.name),
            "platform": platform_of(served).name,
            "inputs": [_tensor(spec) for spec in served.inputs],
            "outputs": [_tensor(spec) for spec in served.outputs],
            "parameters": {
                "ref": served.ref,
                "task": served.task,
                "provider": served.facts.get("provider", ""),
                "batching": served.batching,
                "proof": served.proof,
                **({"why": served.why} if served.why else {}),
            },
        }
    )


def _shape(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]


def _tensor(spec: TensorSpec) -> dict[str, JSON]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": _shape(spec)}


async def _config(call: Call) -> Response:
    """Triton's model configuration, as far as clients read it."""
    served = call.served()
    platform = platform_of(served)
    joins = served.batcher is not None and served.batcher.plan.joins
    most = served.batcher.limits.rows if served.batcher is not None and joins else 0

    def tensor(spec: TensorSpec) -> dict[str, JSON]:
        name = datatype(spec.dtype)
        # A configuration with a largest batch leaves the batch out of its shapes, and spells strings its own way.
        kind = "STRING" if name == "BYTES" else name
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": _shape(spec)[1 if joins else 0 :]}

    return json_answer(
        {
            "name": served.name,
            "platform": platform.name,
            "backend": platform.backend,
            "version_policy": {"specific": {"versions": [int(v) for v in call.state.models.versions(served.name)]}},
            "max_batch_size": most,
            "input": [tensor(spec) for spec in served.inputs],
            "output": [tensor(spec) for spec in served.outputs],
            "dynamic_batching": {"max_queue_delay_microseconds": int((call.state.settings.delay or 0) * 1e6)},
            "parameters": {"limits_from": {"string_value": served.limits_from}},
            "instance_group": [{"name": served.name, "kind": platform.kind, "count": served.streams}],
        }
    )


def _statistics(served: Served) -> dict[str, JSON]:
    return {"name": served.name, "version": served.version, **served.statistics.to_json()}


async def _stats(call: Call) -> Response:
    return json_answer({"model_stats": [_statistics(call.served())]})


async def _all_stats(call: Call) -> Response:
    return json_answer({"model_stats": [_statistics(served) for served in call.state.models if served.ready]})


def _both(rest: str) -> tuple[str, str]:
    return f"/v2/models/{{name}}{rest}", f"/v2/models/{{name}}/versions/{{version}}{rest}"


ROUTES = (
    Route("/v2", ("GET",), Scope.OPEN, _server, "What this server is, and which extensions it speaks.", forms.SERVER),
    Route("/v2/health/live", ("GET",), Scope.OPEN, _live, "Whether the server answers.", forms.LIVE),
    Route(
        "/v2/health/ready", ("GET",), Scope.OPEN, _ready, "Whether every model is ready; 503 where not.", forms.READY
    ),
    Route(
        "/v2/models/stats", ("GET",), Scope.METRICS, _all_stats, "Counts and times of every model.", forms.STATISTICS
    ),
    *(Route(path, ("GET",), Scope.INFER, _model, "Inputs and outputs of a model.", forms.MODEL) for path in _both("")),
    *(
        Route(path, ("GET",), Scope.INFER, _model_ready, "Whether a model is ready.", forms.MODEL_READY)
        for path in _both("/ready")
    ),
    *(
        Route(path, ("GET",), Scope.INFER, _config, "Triton's configuration of a model.", forms.CONFIG)
        for path in _both("/config")
    ),
    *(
        Route(path, ("GET",), Scope.METRICS, _stats, "Counts and times of a model.", forms.STATISTICS)
        for path in _both("/stats")
    ),
)
