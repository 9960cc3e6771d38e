"""Which method of gRPC is which route of HTTP: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.serving.answers import parsed
from optimizer.serving.problems import Problem
from optimizer.serving.rpc.messages import PACKAGE, message
from optimizer.serving.rpc.texts import text_asked
from optimizer.serving.rpc.translation import Asked, infer_asked, infer_said, parameters_of, said
from optimizer.serving.state import State

__all__ = ["METHODS", "Method"]

_SERVICE = f"{PACKAGE}.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"
#: Status, headers and body of a route's answer → the message that is sent.
Said = Callable[[int, Mapping[str, str], bytes], Any]


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        service: with its package.
        name: of the method.
        routes: ``METHOD path`` of the routes that answer, the usual one first.
        request: the name of its message.
        asked: for each route, that message → what the route is asked; raises :class:`Problem`.
        said: status, headers and body of the route's answer → the message that is sent.
        also: statuses beside 200 that are an answer.
        choose: which of the routes answers a message, by its place.
        streams: whether many messages come in one call, and many are sent (:class:`rpc.streams.Streams`).
    """

    service: str
    name: str
    routes: tuple[str, ...]
    request: str
    asked: tuple[Callable[[Any], Asked], ...]
    said: Said
    also: tuple[int, ...] = ()
    choose: Callable[[Any, State], int] = lambda request, state: 0
    streams: bool = False

    @property
    def path(self) -> str:
        """As gRPC sends it over HTTP/2; the endpoint's name in metrics and log."""
        return f"/{self.service}/{self.name}"


def _nothing(request: Any) -> Asked:
    return Asked()


def _model(request: Any) -> Asked:
    return Asked({"name": request.name, "version": request.version})


def _index(request: Any) -> Asked:
    _ours(request)
    return Asked(body=b'{"ready": true}' if request.ready else b"")


def _repository(request: Any) -> Asked:
    import orjson

    _ours(request)
    document = {"parameters": parameters_of(request.parameters)}
    return Asked({"name": request.model_name}, orjson.dumps(document))


def _ours(request: Any) -> None:
    if request.repository_name:
        raise Problem(400, "this server has one repository; leave repository_name out", param="repository_name")


def _plain(name: str) -> Said:
    """An answer whose fields are those of the message."""

    def made(status: int, headers: Mapping[str, str], body: bytes) -> Any:
        return said(name, parsed(body))

    return made


def _config(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    return said("ModelConfigResponse", {"config": parsed(body)})


def _models(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    return said("RepositoryIndexResponse", parsed(b'{"models":' + body + b"}"))


def _empty(name: str) -> Said:
    return lambda status, headers, body: message(name)()


def _infer(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    return infer_said(body, headers)


def _writes(request: Any, state: State) -> int:
    """1 where a request means a model that writes text; one that is not there is named by the first route."""
    try:
        return int(state.models.get(request.model_name, request.model_version).task == "text-generation")
    except Problem:
        return 0


def _health(request: Any) -> Asked:
    if request.service not in ("", _SERVICE):
        raise Problem(404, f"there is no service {request.service[:100]!r}")
    return Asked()


def _serving(status: int, headers: Mapping[str, str], body: bytes) -> Any:
    return message("HealthCheckResponse")(status=1 if status == 200 else 2)


def _ready(name: str) -> Said:
    return lambda status, headers, body: message(name)(ready=status == 200)


def _v2(
    name: str, route: str, asked: Callable[[Any], Asked], said: Said | None = None,
    *, also: tuple[int, ...] = (),
) -> Method:  # fmt: skip
    return Method(_SERVICE, name, (route,), f"{name}Request", (asked,), said or _plain(f"{name}Response"), also)


METHODS = (
    _v2("ServerLive", "GET /v2/health/live", _nothing),
    _v2("ServerReady", "GET /v2/health/ready", _nothing, _ready("ServerReadyResponse"), also=(503,)),
    _v2("ServerMetadata", "GET /v2", _nothing),
    _v2("ModelReady", "GET /v2/models/{name}/ready", _model, _ready("ModelReadyResponse"), also=(503,)),
    _v2("ModelMetadata", "GET /v2/models/{name}", _model),
    _v2("ModelConfig", "GET /v2/models/{name}/config", _model, _config),
    _v2("ModelInfer", "POST /v2/models/{name}/infer", infer_asked, _infer),
    Method(_SERVICE, "ModelStreamInfer", ("POST /v2/models/{name}/infer", "POST /v2/models/{name}/generate_stream"),
           "ModelInferRequest", (infer_asked, text_asked), _infer, choose=_writes, streams=True),
    _v2("RepositoryIndex", "POST /v2/repository/index", _index, _models),
    _v2("RepositoryModelLoad", "POST /v2/repository/models/{name}/load", _repository,
        _empty("RepositoryModelLoadResponse")),
    _v2("RepositoryModelUnload", "POST /v2/repository/models/{name}/unload", _repository,
        _empty("RepositoryModelUnloadResponse")),
    Method(_SERVICE, "ModelStatistics", ("GET /v2/models/{name}/stats", "GET /v2/models/stats"),
           "ModelStatisticsRequest", (_model, _model), _plain("ModelStatisticsResponse"),
           choose=lambda request, state: 0 if request.name else 1),
    Method(_HEALTH, "Check", ("GET /v2/health/ready",), "HealthCheckRequest", (_health,), _serving, also=(503,)),
)  # fmt: skip
