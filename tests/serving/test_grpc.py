"""The port of gRPC, asked by tritonclient and by messages that tritonclient's own classes make."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")

from serving.conftest import Process  # noqa: E402 - beside the skips

from optimizer.serving.config import guard_of, read_config  # noqa: E402
from optimizer.serving.guard.keys import KeyFile  # noqa: E402
from optimizer.serving.guard.rates import Rate  # noqa: E402
from optimizer.serving.inference import parse  # noqa: E402
from optimizer.serving.metrics import Metrics  # noqa: E402
from optimizer.serving.problems import Problem  # noqa: E402
from optimizer.serving.repository import Repository  # noqa: E402
from optimizer.serving.route import Scope  # noqa: E402
from optimizer.serving.rpc import messages, translation  # noqa: E402
from optimizer.serving.rpc import server as rpc_server  # noqa: E402
from optimizer.serving.rpc.methods import METHODS  # noqa: E402
from optimizer.serving.state import State  # noqa: E402
from optimizer.store import Store  # noqa: E402
from optimizer.types import TensorSpec  # noqa: E402

SERVICE = "/inference.GRPCInferenceService/"
#: Seconds that a call may take on a machine that is busy with other things.
LONG = 30.0


@pytest.fixture(scope="module")
def client(server: Process) -> Any:
    with triton.InferenceServerClient(server.ready["grpc"]) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server: Process) -> Any:
    with grpc.insecure_channel(server.ready["grpc"]) as made:
        yield made


def send(channel: Any, name: str, message: Any, reply: Any = None, **more: Any) -> Any:
    """One call, its message from tritonclient's classes, or bytes as they are."""
    path = name if name.startswith("/") else SERVICE + name
    data = message if isinstance(message, bytes) else message.SerializeToString()
    got = channel.unary_unary(path)(data, timeout=more.pop("timeout", LONG), **more)
    return got if reply is None else reply.FromString(got)


def failed(channel: Any, name: str, message: Any, **more: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, name, message, **more)
    return caught.value


def by_http(server: Process, path: str) -> Any:
    connection = http.client.HTTPConnection(server.address, timeout=LONG)
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return json.loads(content) if response.getheader("content-type") == "application/json" else content.decode()


def tensor(name: str, array: np.ndarray, datatype: str = "INT64") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_inputs(ids: np.ndarray) -> list[Any]:
    return [tensor(name, array) for name, array in (("input_ids", ids), ("attention_mask", np.ones_like(ids)))]


def asked(model: str = "slow", *, raw: list[bytes] | None = None, id: str = "", **changes: Any) -> Any:
    """A request for a planted model, with typed contents or with raw ones."""
    given = {"name": "x", "datatype": "FP32", "shape": [1, 2], **changes}
    if raw is None and "contents" not in changes:
        given["contents"] = pb.InferTensorContents(fp32_contents=[1, 2])
    return pb.ModelInferRequest(model_name=model, id=id, inputs=[given], raw_input_contents=raw or [])


def eventually(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + LONG
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


# ---------------------------------------------------------------- the protocol


def test_our_protocol_has_tritons_numbers() -> None:
    """Every field of ours is one of tritonclient's, with its number, type and label."""
    from tritonclient.grpc import model_config_pb2

    theirs = {**pb.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    ours = messages.message("ModelInferRequest").DESCRIPTOR.file
    own = {"HealthCheckRequest", "HealthCheckResponse", "Detail", "Status", "Duration", "RetryInfo"}
    seen = 0

    def same(one: Any, other: Any) -> None:
        nonlocal seen
        for field in one.fields:
            found = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (found.number, found.type, found.is_repeated), field
            assert (field.containing_oneof is None) == (found.containing_oneof is None), field.full_name
            if field.message_type is not None:
                assert field.message_type.full_name == found.message_type.full_name
            if field.enum_type is not None:
                values = {value.name: value.number for value in field.enum_type.values}
                assert values.items() <= {value.name: value.number for value in found.enum_type.values}.items()
            seen += 1
        for nested in one.nested_types:
            same(nested, other.nested_types_by_name[nested.name])

    for name, message in ours.message_types_by_name.items():
        if name not in own:
            same(message, theirs[name])
    assert seen > 100
    theirs_methods = {m.name: m for m in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    for method in ours.services_by_name["GRPCInferenceService"].methods:
        found = theirs_methods[method.name]
        assert (method.input_type.name, method.output_type.name) == (found.input_type.name, found.output_type.name)
    served = {method.name for method in METHODS if method.service == "inference.GRPCInferenceService"}
    assert served == {method.name for method in ours.services_by_name["GRPCInferenceService"].methods}


def test_what_is_compiled_is_what_is_written() -> None:
    """`make proto` was not forgotten: each line of a field stands in the compiled file, and no other."""
    written = (Path(messages.__file__).parent / "open_inference.proto").read_text()
    text = re.sub(r"//[^\n]*", "", written)
    lines = sorted((name, int(number)) for name, number in re.findall(r"(\w+) = (\d+);", text))
    compiled: list[tuple[str, int]] = []

    def walk(message: Any) -> None:
        compiled.extend((field.name, field.number) for field in message.fields)
        for enum in message.enum_types:
            compiled.extend((value.name, value.number) for value in enum.values)
        for nested in message.nested_types:
            if not nested.GetOptions().map_entry:
                walk(nested)

    file = messages.message("ModelInferRequest").DESCRIPTOR.file
    for message in file.message_types_by_name.values():
        walk(message)
    for enum in file.enum_types_by_name.values():
        compiled.extend((value.name, value.number) for value in enum.values)
    assert lines == sorted(compiled)


def test_server_and_models_say_what_http_says(client: Any, server: Process) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("classes", "1")
    about = client.get_server_metadata(as_json=True)
    assert about == by_http(server, "/v2")
    meta = client.get_model_metadata("classes", as_json=True)
    wanted = by_http(server, "/v2/models/classes")
    for part in ("name", "versions", "platform"):
        assert meta[part] == wanted[part]
    for part in ("inputs", "outputs"):
        assert [{**each, "shape": [int(dim) for dim in each["shape"]]} for each in meta[part]] == wanted[part]
    config = client.get_model_config("classes").config
    wanted = by_http(server, "/v2/models/classes/config")
    assert config.max_batch_size == wanted["max_batch_size"] == 32
    assert [list(each.dims) for each in config.output] == [each["dims"] for each in wanted["output"]]
    assert list(config.version_policy.specific.versions) == [1, 2]
    assert config.output[0].data_type == 11  # TYPE_FP32


def test_infer_answers_as_http_does(client: Any, server: Process) -> None:
    over_http = pytest.importorskip("tritonclient.http")
    ids = np.array([[2, 5, 6, 7, 3], [2, 9, 9, 8, 3]])
    wanted = [triton.InferRequestedOutput("logits")]
    answers = [
        client.infer("classes", text_inputs(ids), model_version="1", outputs=outputs, request_id="mine",
                     compression_algorithm=packed)
        for outputs in (wanted, None) for packed in (None, "gzip", "deflate")
    ]  # fmt: skip
    inputs = [over_http.InferInput(name, list(ids.shape), "INT64") for name in ("input_ids", "attention_mask")]
    for each, array in zip(inputs, (ids, np.ones_like(ids)), strict=True):
        each.set_data_from_numpy(array)
    with over_http.InferenceServerClient(server.address) as other:
        same = other.infer("classes", inputs, model_version="1").as_numpy("logits")
    for got in answers:
        np.testing.assert_array_equal(got.as_numpy("logits"), same)
        response = got.get_response()
        assert (response.model_name, response.model_version, response.id) == ("classes", "1", "mine")


def test_typed_contents_are_as_raw_ones(channel: Any, client: Any) -> None:
    whole = np.array([[2**53 + 1, -(2**53) - 1]])
    arrays = {
        "i": (whole, "INT64", "int64_contents"),
        "u": (np.array([[2**64 - 1, 1]], np.uint64), "UINT64", "uint64_contents"),
        "h": (np.array([[0.5, -2]], np.float16), "FP16", ""),
        "b": (np.array([[True, False]]), "BOOL", "bool_contents"),
        "d": (np.array([[1e-300, 1e300]]), "FP64", "fp64_contents"),
    }
    raw = client.infer("kinds", [tensor(name, array, kind) for name, (array, kind, _) in arrays.items()])
    request = pb.ModelInferRequest(model_name="kinds")
    for name, (array, kind, field) in arrays.items():
        given = request.inputs.add(name=name, datatype=kind, shape=array.shape)
        if field:
            getattr(given.contents, field).extend(array.ravel().tolist())
    # Halves have no field of their own, and raw contents are for all inputs or for none.
    error = failed(channel, "ModelInfer", request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "FP16 has no typed contents" in error.details()
    request.raw_input_contents.extend(array.tobytes() for array, _, _ in arrays.values())
    assert "contents beside raw_input_contents" in failed(channel, "ModelInfer", request).details()
    for given in request.inputs:
        given.ClearField("contents")
    again = send(channel, "ModelInfer", request, pb.ModelInferResponse)
    assert again.raw_output_contents[0] == raw.as_numpy("y").tobytes()
    typed = send(channel, "ModelInfer", asked(), pb.ModelInferResponse)
    by_raw = send(channel, "ModelInfer", asked(raw=[np.array([1, 2], "<f4").tobytes()]), pb.ModelInferResponse)
    assert typed.raw_output_contents == by_raw.raw_output_contents


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -(2.0**127)]),
        ("FP64", "fp64_contents", [1e-300, 1e300]),
        ("BYTES", "bytes_contents", ["ümlaut", ""]),
    ],
)
def test_every_datatype_comes_through_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    request = pb.ModelInferRequest(model_name="m", inputs=[{"name": "x", "datatype": datatype, "shape": [2]}])
    sent = [each.encode() for each in values] if datatype == "BYTES" else values
    getattr(request.inputs[0].contents, field).extend(sent)
    asked = translation.infer_asked(messages.message("ModelInferRequest").FromString(request.SerializeToString()))
    spec = TensorSpec("x", translation.DATATYPES[datatype], ("n",))
    feeds = parse(asked.body, asked.headers["inference-header-content-length"], [spec], [spec], {}).feeds
    assert feeds["x"].tolist() == values


def test_halves_and_strings_come_raw_as_they_are() -> None:
    for datatype, blob in (
        ("BF16", b"\xc0\x3f\x00\xc0"),
        ("FP16", b"\x00\x3c\x00\xc0"),
        ("BYTES", b"\1\0\0\0a\2\0\0\0bc"),
    ):
        request = pb.ModelInferRequest(inputs=[{"name": "x", "datatype": datatype, "shape": [2]}])
        request.raw_input_contents.append(blob)
        asked = translation.infer_asked(messages.message("ModelInferRequest").FromString(request.SerializeToString()))
        length = int(asked.headers["inference-header-content-length"])
        (said,) = json.loads(asked.body[:length])["inputs"]
        assert said == {"name": "x", "datatype": datatype, "shape": [2], "parameters": {"binary_data_size": len(blob)}}
        assert asked.body[length:] == blob


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (b"\xff\xff\xff", "the message is no ModelInferRequest"),
        (pb.ModelInferRequest(model_name="slow"), "inputs should be a list"),
        (asked(name="z"), "unknown input 'z'"),
        (asked(datatype="INT64"), "INT64 comes in int64_contents, not fp32_contents"),
        (asked(datatype="FLOAT"), "datatype should be one of"),
        (asked(datatype="INT64", contents={"int64_contents": [1, 2]}), "takes FP32, not INT64"),
        (asked(shape=[1, -2]), "shape should be"),
        (asked(shape=[1, 3]), "are 12 bytes, not 8"),
        (asked(shape=[2]), "takes 2 dimensions"),
        (asked(shape=[1] * 40), "40 dimensions"),
        (asked(raw=[b"1234567"]), "are 8 bytes, not 7"),
        (asked(raw=[b"12345678"] * 2), "raw_input_contents has 2"),
        (asked(contents={"fp32_contents": [float("nan")], "int_contents": [1]}), "not int_contents"),
        (asked(parameters={"shared_memory_region": {"string_param": "r"}}), "shared memory"),
        (asked(parameters={"binary_data_size": {}}), "has no value"),
    ],
)
def test_a_bad_message_is_invalid_and_names_what_is_wrong(channel: Any, message: Any, word: str) -> None:
    error = failed(channel, "ModelInfer", message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert word in error.details()


def test_a_bad_request_names_its_outputs_and_parameters(channel: Any) -> None:
    for change, word in (
        ({"outputs": [{"name": "z"}]}, "unknown output 'z'"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": {"int64_param": 1}}}]}, "classification"),
        ({"parameters": {"sequence_id": {"int64_param": 7}}}, "sequences"),
        ({"parameters": {"timeout": {"string_param": "soon"}}}, "timeout"),
    ):
        message = asked()
        message.MergeFrom(pb.ModelInferRequest(**change))
        error = failed(channel, "ModelInfer", message)
        assert (error.code(), word in error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True), error


def test_each_problem_has_its_code(channel: Any) -> None:
    code = grpc.StatusCode
    for name, message, wanted in (
        ("ModelInfer", asked("nobody"), code.NOT_FOUND),
        ("ModelReady", pb.ModelReadyRequest(name="nobody"), code.NOT_FOUND),
        ("ModelMetadata", pb.ModelMetadataRequest(name="classes", version="9"), code.NOT_FOUND),
        ("ModelMetadata", pb.ModelMetadataRequest(name="../v2/models/stats"), code.NOT_FOUND),
        ("ModelMetadata", pb.ModelMetadataRequest(name="classes/ready"), code.NOT_FOUND),
        ("ModelConfig", pb.ModelConfigRequest(), code.NOT_FOUND),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nobody"), code.NOT_FOUND),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=".."), code.INVALID_ARGUMENT),
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="other"), code.INVALID_ARGUMENT),
        ("ModelInfer", asked("failing"), code.INTERNAL),
        ("TraceSetting", pb.TraceSettingRequest(), code.UNIMPLEMENTED),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), code.UNIMPLEMENTED),
        ("ModelInfer", asked(raw=[b"1" * (2 << 20)]), code.RESOURCE_EXHAUSTED),
        ("/grpc.health.v1.Health/Check", b"\x0a\x01x", code.NOT_FOUND),
    ):
        assert failed(channel, name, message).code() is wanted, name
    assert send(channel, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"  # SERVING


def test_models_are_unloaded_and_loaded(client: Any) -> None:
    client.unload_model("kinds")
    assert not client.is_model_ready("kinds")
    states = {each.name: each.state for each in client.get_model_repository_index().models}
    assert states["kinds"] == "UNAVAILABLE"
    with pytest.raises(triton.InferenceServerException, match="not ready") as caught:
        client.get_model_metadata("kinds")
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert client.is_server_ready()
    client.load_model("kinds")
    assert client.is_model_ready("kinds")
    with pytest.raises(triton.InferenceServerException, match="another configuration"):
        client.load_model("kinds", config='{"max_batch_size": 3}')
    assert client.is_model_ready("kinds")


def test_statistics_count_what_was_asked(client: Any, channel: Any, server: Process) -> None:
    def inference() -> Any:
        return client.get_inference_statistics("vectors").model_stats[0]

    before = inference()
    client.infer("vectors", text_inputs(np.array([[2, 5, 3]])))
    failed(channel, "ModelInfer", pb.ModelInferRequest(model_name="vectors"))
    after = inference()
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert len(client.get_inference_statistics().model_stats) > 2
    labels = f'endpoint="{SERVICE}ModelInfer",model="vectors",status="200",version="1"'
    assert f"ml_requests_total{{{labels}}}" in by_http(server, "/metrics")


# ---------------------------------------------------------------- the queue


def test_a_full_queue_is_exhausted_and_says_when_to_come_again(channel: Any) -> None:
    rpc_status = pytest.importorskip("grpc_status.rpc_status")
    details = pytest.importorskip("google.rpc.error_details_pb2")

    def ask(_: int) -> Any:
        try:
            return send(channel, "ModelInfer", asked(), pb.ModelInferResponse)
        except grpc.RpcError as error:
            return error

    def burst() -> list[Any]:
        with ThreadPoolExecutor(16) as pool:
            return [each for each in pool.map(ask, range(16)) if isinstance(each, grpc.RpcError)]

    refused = eventually(burst)  # on a machine with other work the sixteen may come one after another
    assert 0 < len(refused) < 16
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = dict(error.trailing_metadata())
        after = int(found["grpc-retry-pushback-ms"])
        assert after > 0
        status = rpc_status.from_call(error)
        assert status.message == error.details()
        retry = details.RetryInfo()
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == after
        assert found["x-request-id"]
        assert int(found["retry-after"]) >= 1


def test_the_deadline_of_a_call_is_that_of_its_request(channel: Any, server: Process) -> None:
    error = failed(channel, "ModelInfer", asked(), timeout=0.05, metadata=(("x-request-id", "in-a-hurry"),))
    assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    (event,) = eventually(lambda: [e for e in server.log if e["id"] == "in-a-hurry"])
    assert event["status"] in (429, 499, 504)
    message = asked()
    message.parameters["timeout"].int64_param = 50_000
    assert failed(channel, "ModelInfer", message).code() in (
        grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED
    )  # fmt: skip


def test_many_at_once_answer_as_each_alone(client: Any) -> None:
    random = np.random.default_rng(0)
    asked = [random.integers(5, 30, (1, length)) for length in random.integers(1, 30, 24)]
    alone = [client.infer("classes", text_inputs(ids)).as_numpy("logits") for ids in asked]

    def infer(ids: np.ndarray) -> np.ndarray:
        while True:
            try:
                return client.infer("classes", text_inputs(ids)).as_numpy("logits")
            except triton.InferenceServerException as error:
                assert "queue is full" in str(error)
                time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(infer, asked), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


# ---------------------------------------------------------------- the guard


class Inside:
    """A port of gRPC in this process, with a guard: its event loop runs in a thread of its own."""

    def __init__(self, tmp_path: Path, planted: str = "{}", **more: Any) -> None:
        (tmp_path / "fake.json").write_text(planted)
        config = read_config(None, {"access_log": False, **more})
        metrics = Metrics()
        repository = Repository(Store(tmp_path / "models"), config.server, metrics)
        self.state = State(config.server, repository, metrics, guard=guard_of(config))
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.port = self.call(rpc_server.listen(self.state, "127.0.0.1", 0))
        self.call(repository.start([f"fake:{tmp_path / 'fake.json'}"]))
        self.channel = grpc.insecure_channel(self.port.address)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LONG)

    def close(self) -> None:
        self.channel.close()
        self.call(self.port.close())
        self.call(self.state.models.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LONG)
        self.loop.close()


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyFile:
    monkeypatch.setenv("ML_OPT_KEYS", str(tmp_path / "keys.json"))
    return KeyFile()


@pytest.fixture
def inside(tmp_path: Path, keys: KeyFile) -> Any:
    made = Inside(tmp_path)
    yield made
    made.close()


def test_a_client_that_cancels_leaves_the_queue(tmp_path: Path, keys: KeyFile) -> None:
    inside = Inside(tmp_path, '{"latency_s": 1.0, "wait": "sleep"}')
    try:
        served = inside.state.models.get("fake")
        batcher, statistics = served.batcher, served.statistics
        infer = inside.channel.unary_unary(SERVICE + "ModelInfer")
        data = asked("fake").SerializeToString()

        def gone() -> float:
            labels = {"model": "fake", "version": "1", "reason": "disconnected"}
            return inside.state.metrics.registry.get_sample_value("ml_requests_cancelled_total", labels) or 0.0

        def cancelled_in_the_queue() -> bool:
            """Three that wait for the one that runs are cancelled before its end; again where the machine was late."""
            before, ran = gone(), statistics.executions
            first, *others = [infer.future(data, timeout=LONG) for _ in range(4)]
            eventually(lambda: batcher.depth == 3 or first.done())
            for each in (first, *others):
                each.cancel()
            eventually(lambda: not inside.state.in_flight)
            assert batcher.depth == 0
            if gone() - before < 4:
                return False
            eventually(lambda: statistics.executions > ran)  # the one that ran is finished and thrown away
            return statistics.executions == ran + 1

        eventually(cancelled_in_the_queue)
    finally:
        inside.close()


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def test_every_method_asks_for_the_scope_of_its_route(inside: Inside, keys: KeyFile) -> None:
    by_scope = {s: keys.create(scopes=[s])[1] for s in ("infer", "admin", "metrics")}
    code = grpc.StatusCode
    closed = 0
    from optimizer.serving.app import routes

    scopes = {f"{verb} {route.path}": route.scope for route in routes(inside.state) for verb in route.methods}
    for method in METHODS:
        # A message that cannot be read: whoever is not let in never learns that it was not.
        junk = b"\xff\xff\xff"
        (scope,) = {scopes[route] for route in method.routes}
        if scope is Scope.OPEN:
            send(inside.channel, method.path, b"")
            continue
        closed += 1
        error = failed(inside.channel, method.path, junk)
        assert error.code() is code.UNAUTHENTICATED, method
        assert dict(error.trailing_metadata())["www-authenticate"].startswith("Bearer")
        assert failed(inside.channel, method.path, junk, metadata=bearer("mlo_x")).code() is code.UNAUTHENTICATED
        for other, key in by_scope.items():
            wanted = code.INVALID_ARGUMENT if other == scope else code.PERMISSION_DENIED
            assert failed(inside.channel, method.path, junk, metadata=bearer(key)).code() is wanted, (method, other)
    assert closed == 9
    assert send(inside.channel, "ModelInfer", asked("fake"), metadata=(("x-api-key", by_scope["infer"]),))


def test_rates_and_budgets_are_the_keys_own(inside: Inside, keys: KeyFile) -> None:
    _, key = keys.create(name="slow", rate=Rate.parse("2/hour"))
    for _ in range(2):
        send(inside.channel, "ModelInfer", asked("fake"), metadata=bearer(key))
    error = failed(inside.channel, "ModelInfer", asked("fake"), metadata=bearer(key))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = dict(error.trailing_metadata())
    assert int(found["grpc-retry-pushback-ms"]) > 1000
    assert "r=0" in found["ratelimit"]


def test_what_a_proxy_forwards_is_refused_without_keys(inside: Inside) -> None:
    error = failed(inside.channel, "ModelInfer", asked("fake"), metadata=(("x-forwarded-for", "10.0.0.1"),))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    # What says how a body is to be read is ours to say.
    lies = (("content-encoding", "gzip"), ("inference-header-content-length", "3"), ("host", "evil.example"))
    assert send(inside.channel, "ModelInfer", asked("fake"), metadata=lies)


def test_a_server_that_ends_is_live_and_not_ready(inside: Inside) -> None:
    inside.state.draining = True
    ready = send(inside.channel, "ServerReady", b"", pb.ServerReadyResponse)
    live = send(inside.channel, "ServerLive", b"", pb.ServerLiveResponse)
    assert (ready.ready, live.live) == (False, True)
    assert send(inside.channel, "/grpc.health.v1.Health/Check", b"") == b"\x08\x02"  # NOT_SERVING


def test_calls_that_the_servers_end_cuts_are_unavailable(tmp_path: Path) -> None:
    (tmp_path / "stuck.json").write_text(json.dumps({"hang_after": 0}))
    server = Process([f"fake:{tmp_path / 'stuck.json'}", "--grace", "200ms", "--grpc-port", "0", "--quiet"])
    with grpc.insecure_channel(server.ready["grpc"]) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        call = infer.future(asked("stuck").SerializeToString(), timeout=LONG)
        eventually(lambda: "ml_active_requests 2.0" in by_http(server, "/metrics"))
        server.process.send_signal(signal.SIGTERM)
        error = call.exception()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the server ended before this request was answered"
    assert server.process.wait(30) == 0


def test_a_port_that_is_taken_is_named(inside: Inside, tmp_path: Path) -> None:
    from optimizer.errors import MissingPiece

    port = int(inside.port.address.rpartition(":")[2])
    with pytest.raises(MissingPiece, match=f"cannot listen on 127.0.0.1:{port} for gRPC"):
        inside.call(rpc_server.listen(inside.state, "127.0.0.1", port))


def test_contents_beyond_their_datatype_are_refused() -> None:
    kind = messages.message("ModelInferRequest")
    for datatype, field, value in (("INT8", "int_contents", 128), ("UINT16", "uint_contents", 2**16)):
        request = kind(inputs=[{"name": "x", "datatype": datatype, "shape": [1]}])
        getattr(request.inputs[0].contents, field).append(value)
        with pytest.raises(Problem, match=f"beyond {datatype}"):
            translation.infer_asked(request)
