"""The OpenAPI document: valid, complete, and kept by what the running server answers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from serving.conftest import SLOW, Process
from serving.promised import Promised, closed
from serving.test_app import made

from optimizer.serving.app import routes
from optimizer.serving.form import TEXT, object_of, spoken
from optimizer.serving.inference import written
from optimizer.serving.openapi import document
from optimizer.serving.route import Route, Scope

#: Routes that models answer which are not served here: text/test_promised.py and test_reading.py ask them.
ELSEWHERE = (
    "/generate",
    "/generate_stream",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/ner",
    "/v1/answer",
    "/v1/fill",
)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Iterator[Asked]:
    """A server of its own, as models are loaded and unloaded here, with a queue that is soon full."""
    home = tmp_path_factory.mktemp("promised")
    (home / "slow.json").write_text(json.dumps(SLOW))
    (home / "failing.json").write_text(json.dumps({"fail_after": 0}))
    planted = [f"fake:{home / name}.json" for name in ("slow", "failing")]
    words = ["classes@1", "vectors", *planted, "--store", str(tiny_store), "--max-queue", "8", "--max-body", "1"]
    process = Process(words)
    assert process.ready
    yield Asked(process)
    process.end()


class Asked:
    """A server and its promises: every answer is held to them."""

    def __init__(self, process: Process) -> None:
        self.address = process.address
        _, body, headers = self.raw("GET", "/openapi.json")
        self.promised = Promised(json.loads(body))
        self.promised.check("GET", "/openapi.json", 200, headers, body)

    def raw(self, method: str, path: str, body: Any = None, **more: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in more.items()})
        response = connection.getresponse()
        found = response.status, response.read(), dict(response.getheaders())
        connection.close()
        return found

    def __call__(self, status: int, method: str, path: str, body: Any = None, **more: str) -> Any:
        got, content, headers = self.raw(method, path, body, **more)
        assert got == status, content
        return self.promised.check(method, path, got, headers, content)


def test_every_route_says_what_it_takes_and_answers(tmp_path: Path) -> None:
    found = document(routes(made(tmp_path)))
    schemas = found["components"]["schemas"]
    for route in routes(made(tmp_path)):
        assert route.form is not None, route.path
        for method in route.methods:
            path = route.path.replace(":path}", "}")
            operation = found["paths"][path][method.lower()]
            content = operation["responses"]["200"]["content"]
            assert content, path
            assert all(answer["schema"] for answer in content.values()), path
            assert ("requestBody" in operation) == (method == "POST"), path
            if route.scope is Scope.OPEN:
                assert operation["security"] == []
                assert {"401", "403", "429"}.isdisjoint(operation["responses"])
            else:
                assert operation["security"] == [{"Bearer": [route.scope]}, {"ApiKey": [route.scope]}]
                assert f"`{route.scope}`" in operation["description"]
                assert {"401", "403", "429", "503"} <= set(operation["responses"])
            if method == "POST":
                assert {"400", "413", "415"} <= set(operation["responses"])
                for media in operation["requestBody"]["content"].values():
                    jsonschema.Draft202012Validator.check_schema(media["schema"])
    assert {"Error", "OpenAIError", "InferResponse", "Classes"} <= set(schemas)
    limited = found["components"]["responses"]["OpenAIError429"]
    assert limited["headers"]["Retry-After"]["required"] is True
    assert "required" not in found["components"]["responses"]["Error503"]["headers"]["Retry-After"]


def test_the_document_is_valid(tmp_path: Path) -> None:
    """By the schema of OpenAPI 3.1 itself, which has no eye for references: each of them leads somewhere."""
    definitions = pytest.importorskip("schemathesis.specs.openapi.definitions")
    found = document(routes(made(tmp_path)))
    assert [str(error) for error in definitions.OPENAPI_31_VALIDATOR.iter_errors(found)] == []
    operations = [each for methods in found["paths"].values() for each in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert found["servers"] == [{"url": "/"}]
    used = _references(found)
    for name in used:
        kind, _, part = name.removeprefix("#/components/").partition("/")
        assert part in found["components"][kind], name
    kept = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    assert kept <= used, "a schema that nothing names"
    assert all(set(operation["tags"]) <= {tag["name"] for tag in found["tags"]} for operation in operations)


def _references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_references, value))
    if not isinstance(value, dict):
        return set()
    found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return found.union(*map(_references, value.values()))


def test_no_two_schemas_share_a_name() -> None:
    one, other = (spoken(object_of("Twice", {name: TEXT})) for name in ("a", "b"))
    table = [Route(f"/{place}", ("GET",), Scope.OPEN, None, "", each) for place, each in enumerate((one, other))]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Twice"):
        document(table)


def test_what_no_schema_names_is_a_fault() -> None:
    """The judge of these tests is itself strict."""
    schema = closed(object_of("", {"inner": object_of("", {"a": TEXT})}))
    jsonschema.validate({"inner": {"a": ""}}, schema)
    for wrong in ({"inner": {"a": "", "b": 1}}, {"inner": {}}, {"inner": {"a": ""}, "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_server_without_keys_says_that_none_is_needed(asked: Asked) -> None:
    _, operation = asked.promised.operation("POST", "/v1/classify")
    assert operation["security"] == [{}, {"Bearer": ["infer"]}, {"ApiKey": ["infer"]}]
    assert asked.promised.operation("GET", "/health")[1]["security"] == []


def test_answers_are_as_the_document_has_them(asked: Asked) -> None:
    """Every route that a classifier or an embedder answers, and all that are about no model."""
    ids = np.array([[2, 5, 6, 3]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    body, length = written(feeds)
    tensors = [
        {"name": name, "shape": [1, 4], "datatype": "INT64", "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]
    for path in ("/v2/models/classes", "/v2/models/classes/versions/1"):
        asked(200, "GET", path)
        asked(200, "GET", f"{path}/ready")
        asked(200, "GET", f"{path}/config")
        asked(200, "POST", f"{path}/infer", body, Inference_Header_Content_Length=length)
        answer = asked(200, "POST", f"{path}/infer", {"inputs": tensors, "id": "mine"}, X_Request_Id="r1")
        assert answer["id"] == "mine"
        asked(200, "GET", f"{path}/stats")
    for text in ("a bad cab", [{"text": "fed", "text_pair": "a"}, "cab"]):
        asked(200, "POST", "/v1/classify", {"model": "classes", "input": text, "top_k": 2})
        for form in ("float", "base64"):
            asked(200, "POST", "/v1/embeddings", {"model": "vectors", "input": text, "encoding_format": form})
    for path in ("/", "/docs", "/health", "/metrics", "/v1/models", "/v1/models/classes", "/v2", "/v2/health/live",
                 "/v2/health/ready", "/v2/models/stats", "/v2/requests"):  # fmt: skip
        asked(200, "GET", path)
    record = asked(200, "GET", "/v2/requests/r1")
    assert record["runs"]
    assert asked(200, "POST", "/v2/repository/index", {"ready": True})
    asked(200, "POST", "/v2/repository/models/vectors/unload", {})
    asked(503, "GET", "/v2/models/vectors/ready")
    asked(503, "POST", "/v1/embeddings", {"model": "vectors", "input": "a"})
    assert {entry["state"] for entry in asked(200, "POST", "/v2/repository/index")} == {"READY", "UNAVAILABLE"}
    asked(200, "POST", "/v2/repository/models/vectors/load", {})
    listed = {
        (method.upper(), path) for path, methods in asked.promised.document["paths"].items() for method in methods
    }
    answered = {(method, path) for method, path, status in asked.promised.seen if status == "200"}
    assert {(method, path) for method, path in listed - answered if not path.endswith(ELSEWHERE)} == set()


def test_refusals_are_as_the_document_has_them(asked: Asked) -> None:
    slow = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 0, 0, 0]}]}
    name = asked(200, "GET", "/v2/models/slow")["inputs"][0]
    slow["inputs"][0] |= {"name": name["name"], "datatype": name["datatype"]}
    shape = [1 if dim < 0 else dim for dim in name["shape"]]
    slow["inputs"][0] |= {"shape": shape, "data": [0] * int(np.prod(shape))}
    asked(200, "POST", "/v2/models/slow/infer", slow)
    reads = ("/v1/classify", "/v1/embeddings", "/v1/completions", "/v1/chat/completions", "/generate")
    for path in (*reads, "/v2/models/classes/infer"):
        asked(400, "POST", path, {"model": 1, "input": []})
        asked(413, "POST", path, b" " * (1 << 20) + b"{}")
        asked(415, "POST", path, b"{}", Content_Encoding="br")
    asked(400, "POST", "/v2/models/classes/generate", {"text_input": "a"})
    asked(400, "POST", "/v2/repository/index", {"ready": []})
    asked(400, "POST", "/v2/repository/models/classes/load", {"parameters": []})
    asked(404, "POST", "/v1/classify", {"model": "nobody", "input": "a"})
    asked(404, "GET", "/v1/models/nobody")
    asked(404, "GET", "/v2/models/nobody/versions/1/config")
    asked(404, "GET", "/v2/requests/nobody")
    asked(413, "POST", "/v1/classify", {"model": "classes", "input": ["a"] * 9})
    asked(400, "POST", "/v2/repository/models/classes/load", {"parameters": {"config": "{}"}})
    asked(500, "POST", "/v2/models/failing/infer", slow)
    assert {
        ("POST", "/v2/models/{name}/infer", status) for status in ("400", "413", "415", "500")
    } <= asked.promised.seen
    status, content, headers = asked.raw("POST", "/v2/models/slow/infer", slow, X_Request_Timeout="0.01")
    assert status in (429, 504)  # it is predicted to take longer, or it did
    asked.promised.check("POST", "/v2/models/slow/infer", status, headers, content)
