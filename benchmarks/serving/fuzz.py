"""Bodies made by hypothesis for a server that runs: every one has to be answered, and none with 500.

Used by ``make conformance`` (20,000 of them) and by the tests (some hundred).
"""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["described", "fuzz_grpc", "fuzz_http"]

#: Seconds in which a body has to be answered.
_LONG = 60.0
#: After so many seconds without a request the server is about to close a connection, which is no fault of its.
_IDLE = 3.0
_FIELDS = [
    "name", "shape", "datatype", "data", "parameters", "inputs", "outputs",
    "id", "input", "model", "prompt", "messages", "role", "content",
    "text", "image", "stream", "stop", "n", "seed", "logprobs",
    "temperature", "top_p", "top_k", "response_format", "type", "json_schema", "schema",
    "regex", "echo", "text_input", "truncate", "ready", "timeout", "binary_data_size",
    "binary_data", "binary_data_output", "classification", "shared_memory_region", "sequence_id",
]  # fmt: skip
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["FP32", "INT64", "json_object", "regex", "(", "a{9999}", "user", "\ud7ff"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
_SIZE = st.integers(-3, 40) | st.integers(-(2**65), 2**65)


def _mostly(good: Any, share: int = 12) -> st.SearchStrategy[Any]:
    """What fits, more often than what does not: most bodies should come further than their first field.

    Hypothesis takes the ends of a range more often than what lies between; junk is in the middle.
    """
    strategy = good if isinstance(good, st.SearchStrategy) else st.just(good)
    return st.integers(0, share).flatmap(lambda roll: _JUNK if roll == share // 2 else strategy)


def _tensors(name: str, datatype: str, values: list[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "name": _mostly(name),
            "shape": _mostly([1, len(values)]) | st.lists(_SIZE, max_size=4),
            "datatype": _mostly(datatype) | st.sampled_from(["FP32", "INT64", "BYTES", "BF16", "BOOL", "UINT64"]),
        },
        optional={
            "data": _mostly(values) | st.lists(_SIZE | st.floats(allow_nan=False, allow_infinity=False), max_size=4),
            "parameters": _JUNK
            | st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region"]), _SIZE | _JUNK, max_size=2),
        },
    )


def _infer(tensors: Sequence[tuple[str, str, list[Any]]]) -> st.SearchStrategy[Any]:
    every = st.tuples(*(_tensors(*each) for each in tensors)).map(list)
    good = [{"name": n, "datatype": kind, "shape": [1, len(data)], "data": data} for n, kind, data in tensors]
    return st.fixed_dictionaries(
        {"inputs": st.just(good) | every | st.lists(_tensors(*tensors[0]), max_size=3) | _JUNK},
        optional={
            "outputs": _JUNK
            | st.lists(st.fixed_dictionaries({"name": _JUNK}, optional={"parameters": _JUNK}), max_size=2),
            "parameters": _JUNK | st.dictionaries(st.sampled_from(_FIELDS), _JUNK, max_size=3),
            "id": _JUNK,
        },
    )


def _rows(model: str) -> st.SearchStrategy[Any]:
    text = st.text(max_size=60) | st.text(st.characters(codec="utf-8", categories=("Cc", "Cf", "So", "Mn")), max_size=9)
    row = text | st.dictionaries(st.sampled_from(["text", "text_pair", "image"]), text, max_size=3)
    return st.fixed_dictionaries(
        {"input": _mostly(row | st.lists(row, max_size=5)), "model": _mostly(model)},
        optional={"truncate": _mostly(True), "top_k": _mostly(2), "encoding_format": _mostly("base64")},
    )


def _entities(model: str) -> st.SearchStrategy[Any]:
    more = {
        "aggregation_strategy": _mostly(st.sampled_from(["simple", "none"])),
        "ignore_labels": _mostly(st.lists(st.sampled_from(["O", "LABEL_0"]), max_size=2)),
    }
    return st.builds(lambda body, also: {**body, **also}, _rows(model), st.fixed_dictionaries({}, optional=more))


def _questions(model: str) -> st.SearchStrategy[Any]:
    """In the body itself, or as rows; contexts of many tokens are read in windows."""
    text = st.text(max_size=40) | st.text("ab c.", min_size=1, max_size=200)
    asked = st.fixed_dictionaries({"question": _mostly(text), "context": _mostly(text)})
    rows = st.fixed_dictionaries({"input": _mostly(asked | st.lists(asked, max_size=4))})
    more = st.fixed_dictionaries(
        {"model": _mostly(model)},
        optional={
            "top_k": _mostly(st.integers(1, 5)),
            "max_answer_len": _mostly(st.integers(1, 30)),
            "handle_impossible_answer": _mostly(st.booleans()),
        },
    )
    return st.builds(lambda body, also: {**body, **also}, asked | rows, more)


def _masked(model: str) -> st.SearchStrategy[Any]:
    words = st.lists(st.sampled_from(["[MASK]", "a", "b c", "ß", "[SEP]", ""]), max_size=6)
    text = words.map(lambda found: " ".join([*found, "[MASK]"])) | words.map(" ".join)
    row = text | st.fixed_dictionaries({"text": _mostly(text)})
    return st.fixed_dictionaries(
        {"input": _mostly(row | st.lists(row, max_size=4)), "model": _mostly(model)},
        optional={
            "top_k": _mostly(st.integers(1, 1000)),
            "targets": _mostly(st.lists(st.sampled_from(["a", "##b", "[MASK]", "nobody"]), max_size=3)),
            "truncate": _mostly(st.booleans()),
        },
    )


def _written(model: str, field: str) -> st.SearchStrategy[Any]:
    text = st.text(max_size=40)
    message = st.fixed_dictionaries({"role": _mostly("user"), "content": _mostly(text)})
    asked = _mostly({"messages": st.lists(message, max_size=3)}.get(field, text))
    return st.fixed_dictionaries(
        {field: asked, "model": _mostly(model), "max_tokens": _mostly(st.integers(1, 4))},
        optional={
            "temperature": _mostly(st.floats(0, 2)),
            "top_p": _mostly(st.floats(0, 1)),
            "n": _mostly(st.integers(1, 3)),
            "seed": _mostly(_SIZE),
            "stop": _mostly(text | st.lists(text, max_size=5)),
            "stream": _mostly(st.booleans()),
            "logprobs": _mostly(st.integers(-1, 6) | st.booleans()),
            "echo": _mostly(st.booleans()),
            "response_format": _mostly(st.sampled_from([{"type": "json_object"}, {"type": "text"}])),
        },
    )  # fmt: skip


#: Task → the route that asks it, and bodies for that.
_READ: dict[str, tuple[str, Callable[[str], st.SearchStrategy[Any]]]] = {
    "feature-extraction": ("/v1/embeddings", _rows),
    "text-classification": ("/v1/classify", _rows),
    "token-classification": ("/v1/ner", _entities),
    "question-answering": ("/v1/answer", _questions),
    "fill-mask": ("/v1/fill", _masked),
}


def _bodies(models: Sequence[dict[str, Any]]) -> st.SearchStrategy[tuple[str, bytes, dict[str, str]]]:
    """Path, body and headers of a request, by what the models are."""
    ways: list[st.SearchStrategy[tuple[str, Any]]] = []
    for model in models:
        name, task = model["name"], model["task"]
        if model["tensors"]:
            path = st.sampled_from([f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/{model['version']}/infer"])
            ways.append(st.tuples(path, _infer(model["tensors"])))
        if task in _READ:
            path, made = _READ[task]
            ways.append(st.tuples(st.just(path), made(name)))
        if task == "text-generation":
            for path, field in (("/v1/completions", "prompt"), ("/v1/chat/completions", "messages"),
                                ("/generate", "prompt"), (f"/v2/models/{name}/generate", "text_input")):  # fmt: skip
                ways.append(st.tuples(st.just(path), _written(name, field)))
    # A repository's index may be asked for; loading and unloading would end the others' models.
    ways.append(st.tuples(st.just("/v2/repository/index"), _JUNK))
    ways.append(
        st.tuples(st.text(max_size=9).map(lambda name: f"/v2/repository/models/no{name.encode().hex()}/load"), _JUNK)
    )

    def written(
        way: tuple[str, Any], raw: bytes, cut: int, headers: dict[str, str]
    ) -> tuple[str, bytes, dict[str, str]]:
        body = json.dumps(way[1]).encode("utf-8", "surrogatepass")
        if cut == 10:
            body = raw
        elif cut == 11:
            body = body[: len(body) // 2]
        elif cut == 12:
            body += raw
        return way[0], body, headers

    lengths = st.integers(-5, 300).map(str) | st.sampled_from(["x", "0", "1e3", "+5"])
    headers = st.dictionaries(
        st.sampled_from(["Inference-Header-Content-Length"]), lengths, max_size=1
    ) | st.dictionaries(
        st.sampled_from(["Content-Encoding"]), st.sampled_from(["gzip", "deflate", "br", "identity"]), max_size=1
    )
    mostly_none = st.integers(0, 4).flatmap(lambda roll: headers if roll == 2 else st.just({}))
    return st.builds(written, st.one_of(ways), st.binary(max_size=200), st.integers(0, 20), mostly_none)


def _run(count: int, number: int, strategy: st.SearchStrategy[Any], ask: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def fuzz(case: Any) -> None:
        # Not raised in here: hypothesis would ask again to make it smaller, and a server is not the same twice.
        if len(faults) < 5:
            try:
                ask(case)
            except AssertionError as fault:
                faults.append(fault)

    faults: list[AssertionError] = []
    fuzz()
    if faults:
        raise faults[0]


def described(address: str, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """Name, version, task and tensors of a server's models, but of those named."""
    connection = http.client.HTTPConnection(address, timeout=_LONG)
    found = []
    connection.request("GET", "/health")
    for each in json.loads(connection.getresponse().read())["models"]:
        if each["name"] in but:
            continue
        connection.request("GET", f"/v2/models/{each['name']}")
        about = json.loads(connection.getresponse().read())
        kinds = {"FP": 0.5, "BO": True, "BY": "a"}
        tensors = [
            (spec["name"], spec["datatype"], [kinds.get(spec["datatype"][:2], 1)] * max(spec["shape"][-1], 2))
            for spec in about["inputs"]
        ]
        found.append({**each, "task": about["parameters"]["task"], "tensors": tensors})
    connection.close()
    return found


def fuzz_http(address: str, count: int, number: int = 0, but: Collection[str] = ()) -> dict[str, int]:
    """Ask a server with so many bodies.

    Args:
        address: ``host:port``.
        count: of bodies.
        number: the seed.
        but: names of models that are not asked.

    Returns:
        how often each status came.

    Raises:
        AssertionError: one was answered with 500, or not at all, or the answer is no JSON where it should be.
    """
    statuses: Counter[str] = Counter()
    connection = http.client.HTTPConnection(address, timeout=_LONG)
    used = time.monotonic()

    def ask(case: tuple[str, bytes, dict[str, str]]) -> None:
        nonlocal used
        path, body, headers = case
        idle = time.monotonic() - used
        if idle > _IDLE:
            connection.close()
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise AssertionError(f"no answer to {path} {headers} {body!r} after {idle:.1f} s: {error!r}") from error
        used = time.monotonic()
        statuses[str(response.status)] += 1
        assert response.status < 500 or response.status in (503, 504), (response.status, path, headers, body, content)
        if response.getheader("content-type") == "application/json":
            json.loads(content)
        assert response.status == 200 or b"error" in content, content

    _run(count, number, _bodies(described(address, but)), ask)
    connection.close()
    return dict(sorted(statuses.items()))


def _messages(model: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An infer request of gRPC that fits, of which some fields are others."""
    kinds = {"FP32": 4, "INT64": 8}
    good = {
        "model_name": model["name"],
        "inputs": [{"name": name, "datatype": kind, "shape": [1, 2]} for name, kind, _ in model["tensors"]],
        "raw_input_contents": [bytes(2 * kinds.get(kind, 1)) for _, kind, _ in model["tensors"]],
    }
    values: dict[str, Any] = {
        "int64_contents": st.integers(0, 5),
        "fp32_contents": st.floats(width=32),
        "bytes_contents": st.binary(max_size=4),
        "bool_contents": st.booleans(),
    }
    contents = st.fixed_dictionaries({}, optional={name: st.lists(each, max_size=3) for name, each in values.items()})
    held = [{}, {"bool_param": True}, {"int64_param": -7}, {"string_param": "x"}, {"double_param": 1e300}]
    parameters = st.dictionaries(st.sampled_from(_FIELDS), st.sampled_from(held), max_size=2)
    names = st.sampled_from([name for name, _, _ in model["tensors"]]) | st.text(max_size=3)
    tensor = st.fixed_dictionaries(
        {
            "name": names,
            "datatype": st.sampled_from([*kinds, "BYTES", "FP16", "INT8", "BOOL", "X"]),
            "shape": st.just([1, 2]) | st.lists(st.integers(-2, 4), max_size=4),
        },
        optional={"contents": contents, "parameters": parameters},
    )
    others = {
        "model_version": st.text(max_size=2),
        "inputs": st.lists(tensor, max_size=3),
        "raw_input_contents": st.lists(st.binary(max_size=16), max_size=4),
        "id": st.text(max_size=4),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.text(max_size=3)}, optional={"parameters": parameters})),
        "parameters": parameters,
    }

    def changed(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({name: others[name] for name in names}).map(lambda found: {**good, **found})

    return st.lists(st.sampled_from([*others]), max_size=2, unique=True).flatmap(changed)


def _texts(model: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A request for a text, of which some fields are others."""
    values = [{"int64_param": 3}, {"double_param": 0.5}, {"bool_param": True}, {"string_param": "a"}, {}]
    names = st.sampled_from(
        ["max_tokens", "temperature", "details", "stop", "triton_enable_empty_final_response", *"ab"]
    )
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1]}
    return st.builds(
        lambda text, changes, parameters: {
            "model_name": model["name"],
            "inputs": [{**tensor, "contents": {"bytes_contents": [text]}, **changes}],
            "parameters": {"max_tokens": {"int64_param": 4}, **parameters},
        },
        st.binary(max_size=8) | st.text(max_size=8).map(str.encode),
        st.just({}) | st.fixed_dictionaries({}, optional={"name": st.text(max_size=3), "shape": st.just([2])}),
        st.dictionaries(names, st.sampled_from(values), max_size=2),
    )


def fuzz_grpc(
    address: str, http_address: str, count: int, number: int = 0, but: Collection[str] = ()
) -> dict[str, int]:
    """Send a server's port of gRPC so many messages, as :func:`fuzz_http` does; statuses by their names.

    A message for a model goes by itself or on a stream; there ``error_message`` counts those that were refused.
    """
    import grpc

    from optimizer.serving.rpc.messages import message
    from optimizer.serving.rpc.methods import METHODS

    codes: Counter[str] = Counter()
    single, many = (f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer"))
    kind, part = message("ModelInferRequest"), message("ModelStreamInferResponse")
    infer = [
        st.tuples(st.sampled_from([single, many]), _messages(model) if model["tensors"] else _texts(model)).map(
            lambda case: (case[0], kind(**case[1]).SerializeToString())
        )
        for model in described(http_address, but)
    ]
    quiet = [each.path for each in METHODS if "Load" not in each.name and "Unload" not in each.name]
    anything = st.tuples(st.sampled_from(quiet), st.binary(max_size=60))
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    with grpc.insecure_channel(address) as channel:

        def ask(case: tuple[str, bytes]) -> None:
            call = channel.stream_stream(case[0])(iter([case[1]]), timeout=_LONG)
            try:
                answers = list(call)
            except grpc.RpcError:
                answers = []
            code = call.code().name
            codes[code] += 1
            assert code in allowed, (code, call.details(), case)
            assert answers or code != "OK", case
            if case[0] == many:  # what is wrong with a request is said in its answer
                words = [part.FromString(each).error_message for each in answers]
                codes["error_message"] += any(words)
                assert not any("the server failed" in each for each in words), (words, case)

        _run(count, number, st.one_of(*infer, anything), ask)
    return dict(sorted(codes.items()))
