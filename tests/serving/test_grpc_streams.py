"""Many requests on one stream of gRPC (`ModelStreamInfer`), by tritonclient and by messages of its classes."""

from __future__ import annotations

import json
import queue
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")

from served_texts import put_text  # noqa: E402 - beside the skips
from serving.conftest import Process  # noqa: E402
from serving.test_grpc import (  # noqa: E402
    LONG,
    SERVICE,
    Inside,
    asked,
    bearer,
    by_http,
    eventually,
    inside,
    keys,
    tensor,
    text_inputs,
)

from optimizer.serving.guard.keys import KeyFile  # noqa: E402
from optimizer.serving.rpc import streams  # noqa: E402
from optimizer.store import Store  # noqa: E402

__all__ = ["inside", "keys"]

PROMPT = "    if self."


class Told:
    """What a client's stream calls back: results, or errors, in the order that they come."""

    def __init__(self) -> None:
        self._came: queue.Queue[Any] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._came.put(error if result is None else result)

    def next(self) -> Any:
        return self._came.get(timeout=LONG)

    @property
    def empty(self) -> bool:
        return self._came.empty()


def stream(channel: Any, messages: Any, **more: Any) -> Any:
    call = channel.stream_stream(SERVICE + "ModelStreamInfer")
    data = (each if isinstance(each, bytes) else each.SerializeToString() for each in messages)
    return call(data, timeout=LONG, **more)


def answers(channel: Any, messages: Any, **more: Any) -> list[Any]:
    return [pb.ModelStreamInferResponse.FromString(each) for each in stream(channel, messages, **more)]


def last(response: Any) -> bool:
    return bool(response.parameters["triton_final_response"].bool_param)


@pytest.fixture(scope="module")
def channel(server: Process) -> Any:
    with grpc.insecure_channel(server.ready["grpc"]) as made:
        yield made


def test_each_request_has_one_answer_in_order(server: Process) -> None:
    """Of whatever length, among others that cannot be answered, which do not end the stream."""
    random = np.random.default_rng(3)
    told = Told()
    with triton.InferenceServerClient(server.ready["grpc"]) as client:
        lengths = [int(length) for length in random.integers(1, 30, 6)]
        inputs = [text_inputs(random.integers(5, 30, (1, length))) for length in lengths]
        alone = [client.infer("classes", each).as_numpy("logits") for each in inputs]
        client.start_stream(told)
        for place, each in enumerate(inputs):
            client.async_stream_infer("classes", each, request_id=f"r{place}", enable_empty_final_response=True)
            client.async_stream_infer("nobody", each, request_id=f"n{place}")
        for place, wanted in enumerate(alone):
            result = told.next()
            np.testing.assert_allclose(result.as_numpy("logits"), wanted, atol=1e-4)
            assert result.get_response().id == f"r{place}"
            assert last(result.get_response())
            assert "there is no model 'nobody'" in str(told.next())
        client.stop_stream()
    assert told.empty, "one answer for a request, whatever is asked of its end"


def test_an_error_names_its_request_and_what_is_wrong(channel: Any) -> None:
    messages = [asked("kinds", id="a"), asked("slow", id="b", name="z"), asked("slow", id="c")]
    one, two, three = answers(channel, messages)
    assert (one.infer_response.id, two.infer_response.id, three.infer_response.id) == ("a", "b", "c")
    assert "unknown input" in one.error_message
    assert "unknown input 'z'" in two.error_message
    assert not three.error_message
    assert three.infer_response.raw_output_contents
    assert answers(channel, []) == []


def test_requests_of_a_stream_share_runs(tmp_path: Path, keys: KeyFile) -> None:
    inside = Inside(tmp_path, '{"latency_s": 0.3, "wait": "sleep"}')
    try:
        got = answers(inside.channel, [asked("fake", id=str(place)) for place in range(8)])
        assert [each.infer_response.id for each in got] == [str(place) for place in range(8)]
        assert not any(each.error_message for each in got)
        assert inside.state.models.get("fake").statistics.executions < 8
    finally:
        inside.close()


def test_so_many_of_a_stream_are_under_way_and_no_more(
    tmp_path: Path, keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_AT_ONCE", 2)
    inside = Inside(tmp_path, '{"latency_s": 0.05, "wait": "sleep"}')
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, inside.state.in_flight)

    inside.state.watchers.append(look)
    try:
        assert len(answers(inside.channel, [asked("fake")] * 6)) == 6
    finally:
        inside.close()
    assert most <= 2


def test_a_full_queue_says_when_to_come_again_and_the_stream_goes_on(channel: Any) -> None:
    def refused() -> list[str]:
        got = answers(channel, [asked("slow")] * 24)
        assert len(got) == 24
        return [each.error_message for each in got if each.error_message]

    words = eventually(refused)
    assert len(words) < 24
    assert all("(come again in " in each for each in words), words


def test_a_client_that_hangs_up_leaves_the_queue(tmp_path: Path, keys: KeyFile) -> None:
    inside = Inside(tmp_path, '{"latency_s": 1.0, "wait": "sleep"}')
    try:
        served = inside.state.models.get("fake")

        def gone() -> float:
            labels = {"model": "fake", "version": "1", "reason": "disconnected"}
            return inside.state.metrics.registry.get_sample_value("ml_requests_cancelled_total", labels) or 0.0

        def cancelled() -> bool:
            before, hold = gone(), threading.Event()

            def requests() -> Iterator[Any]:
                yield from [asked("fake")] * 4
                hold.wait(LONG)

            call = stream(inside.channel, requests())
            eventually(lambda: inside.state.in_flight == 4 or not call.is_active())
            call.cancel()
            hold.set()
            eventually(lambda: not inside.state.in_flight)
            assert served.batcher.depth == 0
            return gone() - before == 4

        eventually(cancelled)
    finally:
        inside.close()


def test_whoever_is_not_let_in_has_no_stream(inside: Inside, keys: KeyFile) -> None:
    code = grpc.StatusCode
    keyed = {scope: keys.create(scopes=[scope])[1] for scope in ("infer", "metrics")}

    def ended(messages: Any, **more: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            answers(inside.channel, messages, **more)
        return caught.value.code()

    assert ended([asked("fake")]) is code.UNAUTHENTICATED
    assert ended([b"\xff\xff\xff"]) is code.UNAUTHENTICATED
    assert ended([asked("fake")], metadata=bearer(keyed["metrics"])) is code.PERMISSION_DENIED
    assert ended([b"\xff\xff\xff"], metadata=bearer(keyed["infer"])) is code.INVALID_ARGUMENT
    (answer,) = answers(inside.channel, [asked("fake")], metadata=bearer(keyed["infer"]))
    assert not answer.error_message


def test_each_request_has_an_id_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    server = Process([f"fake:{tmp_path / 'm.json'}", "--grpc-port", "0"])
    try:
        with grpc.insecure_channel(server.ready["grpc"]) as channel:
            answers(channel, [asked("m"), asked("nobody")], metadata=(("x-request-id", "mine"),))
        found = eventually(lambda: len(server.log) == 2 and server.log)
        assert {(each["id"], each["status"]) for each in found} == {("mine-1", 200), ("mine-2", 404)}
        labels = f'endpoint="{SERVICE}ModelStreamInfer",model="m",status="200",version="1"'
        assert f"ml_requests_total{{{labels}}} 1.0" in by_http(server, "/metrics")
    finally:
        server.end()


def test_a_server_that_ends_answers_what_it_read_and_ends_the_stream(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"latency_s": 0.05, "wait": "sleep"}))
    server = Process([f"fake:{tmp_path / 'm.json'}", "--grpc-port", "0", "--quiet"])
    hold = threading.Event()

    def requests() -> Iterator[Any]:
        yield from [asked("m")] * 3
        hold.wait(LONG)  # the stream stays open, and nothing more comes

    with grpc.insecure_channel(server.ready["grpc"]) as channel:
        call = stream(channel, requests())
        got = [pb.ModelStreamInferResponse.FromString(next(call))]
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            for each in call:
                got.append(pb.ModelStreamInferResponse.FromString(each))
        hold.set()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [each.error_message for each in got] == ["", "", ""]
    assert server.process.wait(20) == 0, "an open stream does not hold the end up until the grace is over"


# ---------------------------------------------------------------- models that write text


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, llama_generator: Path) -> Iterator[Process]:
    root = tmp_path_factory.mktemp("texts") / "models"
    put_text(Store(root), llama_generator, "llama")
    process = Process(["llama", "--store", str(root), "--grpc-port", "0"])
    assert process.ready
    yield process
    process.end()


def text_input(text: str) -> Any:
    return tensor("text_input", np.array([text.encode()], object), "BYTES")


def whole(writer: Process, **parameters: Any) -> str:
    body = json.dumps({"text_input": PROMPT, "parameters": parameters}).encode()
    with urllib.request.urlopen(f"{writer.url}/v2/models/llama/generate", body, timeout=LONG) as answer:
        return str(json.load(answer)["text_output"])


@pytest.mark.parametrize("told_of_its_end", [False, True])
def test_a_text_comes_in_parts(writer: Process, told_of_its_end: bool) -> None:
    asked_for = {"max_tokens": 12, "temperature": 0.0, "exclude_input_in_output": False}
    wanted, told = whole(writer, **asked_for), Told()
    with triton.InferenceServerClient(writer.ready["grpc"]) as client:
        client.start_stream(told)
        for place in range(2):
            client.async_stream_infer(
                "llama", [text_input(PROMPT)], request_id=f"t{place}",
                parameters={**asked_for, "details": True},
                enable_empty_final_response=told_of_its_end,
            )  # fmt: skip
        for place in range(2):
            parts: list[str] = []
            while True:
                response = told.next()
                message = response.get_response()
                assert (message.model_name, message.model_version, message.id) == ("llama", "1", f"t{place}")
                assert not last(message)
                parts.append(response.as_numpy("text_output")[0].decode())
                if "finish_reason" in message.parameters:
                    break
            assert "".join(parts) == wanted
            assert len(parts) > 1
            assert parts[0] == PROMPT, "what was asked comes before what is written"
            assert message.parameters["finish_reason"].string_param == "length"
            assert message.parameters["generated_tokens"].int64_param == 12
            if told_of_its_end:
                end = told.next().get_response()
                assert (end.id, list(end.outputs), last(end)) == (f"t{place}", [], True)
        client.stop_stream()
    assert told.empty


def test_a_client_that_hangs_up_after_the_first_part_stops_its_text(writer: Process) -> None:
    """The first part is there before the text is over; tried again where the text was over sooner than the client."""
    message = pb.ModelInferRequest(model_name="llama", inputs=[{"name": "text_input", "datatype": "BYTES", "shape": [1],
                                   "contents": {"bytes_contents": [b"a"]}}])  # fmt: skip
    message.parameters["max_tokens"].int64_param = 110
    message.parameters["temperature"].double_param = 0.0

    def total(name: str) -> float:
        lines = by_http(writer, "/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def disconnected() -> bool:
        hold, before = threading.Event(), total("ml_requests_cancelled_total")

        def requests() -> Iterator[Any]:
            yield message
            hold.wait(LONG)

        with grpc.insecure_channel(writer.ready["grpc"]) as channel:
            call = stream(channel, requests())
            assert pb.ModelStreamInferResponse.FromString(next(call)).infer_response.raw_output_contents
            call.cancel()
            hold.set()
        eventually(lambda: total("ml_texts_active") == 0)
        return total("ml_requests_cancelled_total") > before

    eventually(disconnected)


def test_what_is_no_text_is_refused_by_name(writer: Process) -> None:
    def request(**changes: Any) -> Any:
        given = {"name": "text_input", "datatype": "BYTES", "shape": [1], **changes}
        contents = None if changes.get("contents") else pb.InferTensorContents(bytes_contents=[b"a"])
        return pb.ModelInferRequest(model_name="llama", inputs=[{"contents": contents, **given}])

    def more(**fields: Any) -> Any:
        made = request()
        made.MergeFrom(pb.ModelInferRequest(**fields))
        return made

    raw = request(contents={})
    raw.inputs[0].ClearField("contents")
    raw.raw_input_contents.append(b"\x09\0\0\0a")
    cases = [
        (request(name="x"), "takes one input, text_input"),
        (pb.ModelInferRequest(model_name="llama"), "takes one input, text_input"),
        (request(datatype="FP32"), "should be BYTES"),
        (request(shape=[2]), "of the shape [1]"),
        (request(contents={"bytes_contents": [b"a", b"b"]}), "should hold one string"),
        (request(contents={"bytes_contents": [b"\xff"]}), "is no UTF-8"),
        (raw, "should hold one string"),
        (more(raw_input_contents=[b"\x01\0\0\0a"]), "contents beside raw_input_contents"),
        (more(outputs=[{"name": "logits"}]), "unknown output 'logits'"),
        (more(parameters={"max_tokens": {"int64_param": 0}}), "max_tokens"),
        (more(parameters={"colour": {"string_param": "red"}}), "colour"),
    ]
    with grpc.insecure_channel(writer.ready["grpc"]) as channel:
        got = answers(channel, [message for message, _ in cases])
        assert len(got) == len(cases)
        for each, (_, words) in zip(got, cases, strict=True):
            assert words in each.error_message
        asked_once = channel.unary_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError, match="writes text"):
            asked_once(request().SerializeToString(), timeout=LONG)


def test_whatever_comes_is_answered_and_never_by_a_failure(writer: Process) -> None:
    from benchmarks.serving.fuzz import fuzz_grpc

    codes = fuzz_grpc(writer.ready["grpc"], writer.address, 80)
    assert codes["OK"] > codes["error_message"] > 0, codes
