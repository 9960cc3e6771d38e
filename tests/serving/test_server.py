"""A server in a process of its own, asked by clients that others wrote: tritonclient, openai, and plain HTTP."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("tritonclient.http")
openai = pytest.importorskip("openai")

from serving.artifacts import LABELS  # noqa: E402 - beside the skips
from serving.conftest import Process  # noqa: E402

TEXTS = ["a bad cab", "fed", "abcdefg hij", "a", "deaf egg bead"]


def ask(server: Process, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    found = {name.lower(): value for name, value in response.getheaders()}
    connection.close()
    is_json = found.get("content-type") == "application/json"
    return response.status, json.loads(content) if is_json and content else content, found


def tensor(name: str, array: np.ndarray, datatype: str = "INT64", binary: bool = True) -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def text_inputs(ids: np.ndarray, binary: bool = True) -> list[Any]:
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return [tensor(name, array, binary=binary) for name, array in arrays.items()]


@pytest.fixture(scope="module")
def client(server: Process) -> Any:
    with triton.InferenceServerClient(server.address, concurrency=4) as made:
        yield made


@pytest.fixture(scope="module")
def session(tiny_store: Path) -> Any:
    """The same model, opened here."""
    from optimizer.runtime import Candidate, Provider
    from optimizer.store import Store

    artifact = Store(tiny_store).get("classes@1")
    made = Candidate("classes", artifact.model_file, Provider("cpu"), "", artifact.model_info).open(threads=1)
    yield made
    made.close()


# ---------------------------------------------------------------- V2, by tritonclient


def test_the_server_says_what_it_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "ml-opt"
    assert "binary_tensor_data" in about["extensions"]


def test_a_model_says_what_it_takes(client: Any) -> None:
    about = client.get_model_metadata("classes")
    assert about["versions"] == ["1", "2"]
    assert {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]} in about["inputs"]
    assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert about["parameters"]["ref"] == "classes@2:fp32"
    assert about["parameters"]["batching"] == "padded"
    config = client.get_model_config("classes")
    assert config["max_batch_size"] == 32
    assert {"name": "logits", "data_type": "TYPE_FP32", "dims": [3]} in config["output"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer_answers_as_the_session_does(client: Any, session: Any, binary: bool, compression: str | None) -> None:
    ids = np.array([[2, 5, 6, 7, 3], [2, 9, 9, 8, 3]])
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
    got = client.infer("classes", text_inputs(ids, binary), model_version="1", outputs=wanted, request_id="mine",
                       request_compression_algorithm=compression)  # fmt: skip
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.testing.assert_allclose(got.as_numpy("logits"), session.run(feeds)["logits"], atol=1e-5)
    assert got.get_response()["id"] == "mine"
    assert got.get_response()["model_version"] == "1"


def test_many_at_once_answer_as_each_alone(client: Any, session: Any, server: Process) -> None:
    random = np.random.default_rng(0)
    asked = [random.integers(5, 30, (1, length)) for length in random.integers(1, 30, 48)]

    def infer(ids: np.ndarray) -> np.ndarray:
        with triton.InferenceServerClient(server.address) as own:
            while True:
                try:
                    return own.infer("classes", text_inputs(ids), model_version="1").as_numpy("logits")
                except triton.InferenceServerException as error:
                    assert "queue is full" in str(error)
                    time.sleep(0.01)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(infer, asked))
    for ids, answer in zip(asked, answers, strict=True):
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        np.testing.assert_allclose(answer, session.run(feeds)["logits"], atol=1e-4)
    runs = client.get_inference_statistics("classes", "1")["model_stats"][0]
    assert runs["execution_count"] < runs["inference_count"] + 20
    assert max(each["batch_size"] for each in runs["batch_stats"]) > 1


def test_every_kind_of_number_comes_through(client: Any) -> None:
    whole = np.array([[2**53 + 1, -(2**53) - 1]])
    arrays = {
        "i": (whole, "INT64"),
        "u": (np.array([[2**64 - 1, 1]], np.uint64), "UINT64"),
        "h": (np.array([[0.5, -2]], np.float16), "FP16"),
        "b": (np.array([[True, False]]), "BOOL"),
        "d": (np.array([[1e-300, 1e300]]), "FP64"),
    }
    as_bytes = [tensor(name, array, kind) for name, (array, kind) in arrays.items()]
    as_json = [tensor(name, array, kind, binary=kind == "FP16") for name, (array, kind) in arrays.items()]
    answers = [client.infer("kinds", inputs).as_numpy("y") for inputs in (as_bytes, as_json)]
    np.testing.assert_array_equal(*answers)


def test_statistics_count_what_was_asked(client: Any, server: Process) -> None:
    before = client.get_inference_statistics("vectors")["model_stats"][0]["inference_stats"]
    client.infer("vectors", text_inputs(np.array([[2, 5, 3]])))
    ask(server, "POST", "/v2/models/vectors/infer", {"inputs": []})
    after = client.get_inference_statistics("vectors")["model_stats"][0]["inference_stats"]
    assert after["success"]["count"] == before["success"]["count"] + 1
    assert after["fail"]["count"] == before["fail"]["count"] + 1
    assert {"queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"} < set(after)


def test_models_are_unloaded_and_loaded(client: Any) -> None:
    client.unload_model("kinds")
    assert not client.is_model_ready("kinds")
    states = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert states["kinds"] == "UNAVAILABLE"
    with pytest.raises(triton.InferenceServerException, match="not ready"):
        client.get_model_metadata("kinds")
    assert client.is_server_ready()
    client.load_model("kinds")
    assert client.is_model_ready("kinds")
    with pytest.raises(triton.InferenceServerException, match="unknown artifact"):
        client.load_model("nobody")


# ---------------------------------------------------------------- V2, by hand

GOOD = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def slow(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**GOOD, **changes}]}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "not JSON"),
        (b"[]", "should be a JSON object"),
        (b'{"inputs": "\xff"}', "not JSON"),
        (b'{"inputs":' * 5000 + b"1" + b"}" * 5000, "64 levels"),
        ({}, "inputs should be a list"),
        ({"inputs": []}, "inputs should be a list"),
        ({"inputs": [5]}, "inputs[0]"),
        (slow(name="z"), "unknown input 'z'"),
        (slow(name=7), "inputs[0]"),
        ({"inputs": [GOOD, GOOD]}, "'x' is given twice"),
        (slow(datatype="INT64"), "takes FP32, not INT64"),
        (slow(datatype="FLOAT"), "datatype should be one of"),
        (slow(datatype=["FP32"]), "datatype should be one of"),
        (slow(shape=[1, -2]), "shape should be"),
        (slow(shape=[1, 2.0]), "shape should be"),
        (slow(shape=[1, True]), "shape should be"),
        (slow(shape="2"), "shape should be"),
        (slow(shape=[2**62, 2**62]), "2 values"),
        (slow(shape=[1, 3]), "2 values"),
        (slow(shape=[2]), "takes 2 dimensions"),
        (slow(shape=[0, 0], data=[]), "is empty"),
        (slow(shape=[1] * 40), "40 dimensions"),
        (slow(data=[1, "2"]), "cannot hold"),
        (slow(data=[1, None]), "cannot hold"),
        (slow(data=[[1], [2, 3]]), "differ in length"),
        (slow(data=[[1], [2]]), "nested"),
        (slow(data=[1e300, 1]), "beyond FP32"),
        (slow(data={}), "data should be a list"),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,1]}]}', "not JSON"),
        (slow(parameters={"binary_data_size": 8}), "binary_data_size"),
        (slow(parameters={"shared_memory_region": "r"}), "shared memory"),
        (slow(parameters=[]), "parameters should be"),
        ({**slow(), "outputs": [{"name": "z"}]}, "unknown output 'z'"),
        ({**slow(), "outputs": [{}]}, "outputs[0]"),
        ({**slow(), "outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
        ({**slow(), "id": 5}, "id should be"),
        ({**slow(), "parameters": {"sequence_id": 4}}, "sequences"),
        ({**slow(), "parameters": {"timeout": -4}}, "timeout"),
    ],
)  # fmt: skip
def test_a_bad_request_is_400_and_names_what_is_wrong(server: Process, body: Any, word: str) -> None:
    status, answer, headers = ask(server, "POST", "/v2/models/slow/infer", body)
    assert status == 400, answer
    assert word in answer["error"]
    assert list(answer) == ["error"]
    assert headers["content-type"] == "application/json"


def binary(head: dict[str, Any], *blobs: bytes, length: int | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + b"".join(blobs), {"Inference_Header_Content_Length": str(len(text) if length is None else length)}


@pytest.mark.parametrize(
    ("head", "blobs", "length", "word"),
    [
        ({"binary_data_size": 8}, (b"1234567",), None, "not within the body"),
        ({"binary_data_size": 8}, (b"123456789",), None, "behind the last tensor"),
        ({"binary_data_size": 7}, (b"1234567",), None, "are 8 bytes, not 7"),
        ({"binary_data_size": -1}, (), None, "not within the body"),
        ({"binary_data_size": "8"}, (b"12345678",), None, "not within the body"),
        ({"binary_data_size": 8}, (b"12345678",), 10**9, "no length within the body"),
        ({"binary_data_size": 8}, (b"12345678",), -1, "no length within the body"),
        ({"binary_data_size": 8}, (b"12345678",), 3, "not JSON"),
    ],
)
def test_bad_binary_data_is_400(
    server: Process, head: dict[str, Any], blobs: tuple[bytes, ...], length: int | None, word: str
) -> None:
    inputs = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": head}]}
    body, headers = binary(inputs, *blobs, length=length)
    status, answer, _ = ask(server, "POST", "/v2/models/slow/infer", body, **headers)
    assert status == 400
    assert word in answer["error"]


def test_raw_data_is_the_one_input(server: Process) -> None:
    raw = np.array([1, 2, 3], np.float32).tobytes()
    status, content, headers = ask(server, "POST", "/v2/models/slow/infer", raw, Inference_Header_Content_Length="0")
    assert status == 200
    size = int(headers["inference-header-content-length"])
    assert json.loads(content[:size])["outputs"][0]["shape"] == [1, 4]
    body = slow(shape=[1, 3], data=[1, 2, 3])
    _, by_json, _ = ask(server, "POST", "/v2/models/slow/infer", body)
    np.testing.assert_allclose(np.frombuffer(content[size:], np.float32), by_json["outputs"][0]["data"], rtol=1e-6)
    status, answer, _ = ask(server, "POST", "/v2/models/classes/infer", raw, Inference_Header_Content_Length="0")
    assert status == 400
    assert "one input; this one has 2" in answer["error"]


def test_a_token_beyond_the_vocabulary_fails_alone(server: Process, client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="the model takes 0 to"):
        client.infer("classes", text_inputs(np.array([[2, 10**6, 3]])))


def test_a_body_beyond_the_limit_is_413_before_and_after_decompression(server: Process) -> None:
    large = b" " * (1 << 20) + json.dumps(slow()).encode()
    for body, headers in ((large, {}), (gzip.compress(large), {"Content_Encoding": "gzip"})):
        status, answer, _ = ask(server, "POST", "/v2/models/slow/infer", body, **headers)
        assert status == 413
        assert "1 MiB" in answer["error"]
    packed = gzip.compress(json.dumps(slow()).encode())
    for body, encoding, status in ((packed[:-9], "gzip", 400), (b"no gzip", "gzip", 400), (packed, "br", 415)):
        assert ask(server, "POST", "/v2/models/slow/infer", body, Content_Encoding=encoding)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/classes/versions/3", 404),
        ("GET", "/v2/models/..%2F..%2Fetc/ready", 404),
        ("POST", "/v2/models/%00/infer", 404),
        ("POST", "/v2/repository/models/%2e%2e/load", 400),
        ("POST", "/v2/repository/models/nobody/unload", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/classes/infer", 405),
        ("DELETE", "/v2", 405),
    ],
)
def test_what_is_not_there(server: Process, method: str, path: str, status: int) -> None:
    got, answer, _ = ask(server, method, path)
    assert got == status
    assert isinstance(answer["error"], str)


def test_a_model_that_fails_is_500_and_says_so_in_the_log(server: Process) -> None:
    status, answer, headers = ask(server, "POST", "/v2/models/failing/infer", slow(), X_Request_Id="the-failure")
    assert status == 500
    assert headers["x-request-id"] == "the-failure"
    assert "fails after 0 calls" in answer["error"]
    assert eventually(lambda: [e for e in server.log if e["id"] == "the-failure"])[0]["status"] == 500


def eventually(look: Any, seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


# ---------------------------------------------------------------- the queue, over HTTP


def test_a_full_queue_is_429_with_the_time_to_come_again(server: Process) -> None:
    body, together = slow(), threading.Barrier(32)

    def at_once(_: int) -> tuple[int, Any, dict[str, str]]:
        together.wait(30)
        return ask(server, "POST", "/v2/models/slow/infer", body)

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(at_once, range(32)))
    assert {status for status, _, _ in answers} == {200, 429}
    for status, _, headers in answers:
        assert status == 200 or int(headers["retry-after"]) >= 1


def test_a_request_whose_time_is_too_short_is_refused(server: Process) -> None:
    with ThreadPoolExecutor(3) as pool:
        slept = [pool.submit(ask, server, "POST", "/v2/models/slow/infer", slow()) for _ in range(2)]
        eventually(lambda: "ml_active_requests 3.0" in ask(server, "GET", "/metrics")[1].decode())
        status, answer, _ = ask(server, "POST", "/v2/models/slow/infer", slow(), X_Request_Timeout="0.001")
        assert status in (429, 504), answer
        assert all(each.result()[0] == 200 for each in slept)
    assert ask(server, "POST", "/v2/models/slow/infer", slow(), X_Request_Timeout="never")[0] == 400


def test_a_client_that_hangs_up_leaves_the_queue(server: Process) -> None:
    body = json.dumps(slow()).encode()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "POST", "/v2/models/slow/infer", slow())
        host, port = server.address.split(":")
        time.sleep(0.05)
        with socket.create_connection((host, int(port))) as gone:
            head = "POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: gone"
            gone.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.05)
        assert first.result()[0] == 200
    assert eventually(lambda: [e for e in server.log if e["id"] == "gone"])[0]["status"] == 499
    text = ask(server, "GET", "/metrics")[1].decode()
    assert 'ml_requests_cancelled_total{model="slow",reason="disconnected",version="1"} 1.0' in text


def test_a_request_that_takes_too_long_is_504(server: Process) -> None:
    status, answer, _ = ask(server, "POST", "/v2/models/slow/infer", {**slow(), "parameters": {"timeout": 50_000}})
    assert status in (429, 504)  # by now it may be known how long a run takes
    assert "time" in answer["error"]


def test_a_body_that_is_cut_short_disturbs_nobody(server: Process) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port))) as gone:
        head = "POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: cut\r\n"
        gone.sendall(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        time.sleep(0.05)
    assert eventually(lambda: [e for e in server.log if e["id"] == "cut"])[0]["status"] == 499
    assert ask(server, "POST", "/v2/models/slow/infer", slow())[0] == 200


# ---------------------------------------------------------------- tasks


@pytest.fixture(scope="module")
def by_openai(server: Process) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_embeddings_by_openai(by_openai: Any, tiny_store: Path) -> None:
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import Row
    from optimizer.runtime import Candidate, Provider
    from optimizer.store import Store
    from optimizer.tasks.feature_extraction import vectors

    artifact = Store(tiny_store).get("vectors")
    session = Candidate("v", artifact.model_file, Provider("cpu"), "", artifact.model_info).open(threads=1)
    feeds = Preprocessor.open(artifact.path, artifact.model_info).feeds(
        [Row(Path("t"), place, {"text": text}) for place, text in enumerate(TEXTS)]
    )
    wanted = np.array(vectors(session.run(feeds), feeds, artifact.model_info))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    numbers = by_openai.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    packed = by_openai.embeddings.create(model="vectors", input=TEXTS)  # asks for base64 by itself
    for answer in (numbers, packed):
        np.testing.assert_allclose([each.embedding for each in answer.data], wanted, atol=1e-5)
        assert [each.index for each in answer.data] == list(range(len(TEXTS)))
        assert answer.usage.prompt_tokens == int(feeds["attention_mask"].sum())
    assert [model.id for model in by_openai.models.list()] == ["classes", "vectors", "slow", "kinds", "failing"]
    assert by_openai.models.retrieve("vectors").object == "model"


def test_embeddings_of_token_ids_are_those_of_the_text(by_openai: Any, tiny_store: Path) -> None:
    """A list of ids is one row, a list of lists several, and what is read of them is nothing but the ids."""
    from tokenizers import Tokenizer

    from optimizer.store import Store

    tokenizer = Tokenizer.from_file(str(Store(tiny_store).get("vectors").path / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    texts = by_openai.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    tokens = by_openai.embeddings.create(model="vectors", input=ids, encoding_format="float")
    for one, other in zip(texts.data, tokens.data, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)
    assert tokens.usage == texts.usage
    (one,) = by_openai.embeddings.create(model="vectors", input=ids[0], encoding_format="float").data
    np.testing.assert_allclose(one.embedding, texts.data[0].embedding, atol=1e-6)
    bare = by_openai.embeddings.create(model="vectors", input=ids[0][1:-1])  # no special token is put beside them
    assert bare.usage.prompt_tokens == len(ids[0]) - 2
    assert np.abs(np.subtract(bare.data[0].embedding, texts.data[0].embedding)).max() > 1e-3
    long = by_openai.embeddings.create(model="vectors", input=[5] * 40, extra_body={"truncate": True})
    assert long.usage.prompt_tokens == 32


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([56], "56 is no token of this model, which has 0 to 55"),
        ([5, -1], "-1 is no token"),
        ([5, 2**62], "is no token"),
        ([5] * 33, "1 tokens longer than the 32"),
        ([[5], []], r"input\[1\] should be a text, a list of token ids"),
        ([[5], [True]], r"input\[1\] should be"),
        ([5, "a"], r"input\[0\] should be"),
        ([[[5]]], r"input\[0\] should be"),
    ],
)
def test_token_ids_that_are_none(by_openai: Any, given: Any, word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word) as bad:
        by_openai.embeddings.create(model="vectors", input=given)
    assert bad.value.param == "input"


def test_classes_are_of_texts_and_not_of_token_ids(server: Process) -> None:
    assert ask(server, "POST", "/v1/classify", {"model": "classes", "input": [5, 6]})[0] == 400


def test_problems_have_openais_form(by_openai: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        by_openai.embeddings.create(model="nobody", input="a")
    assert missing.value.code == "model_not_found"
    for wrong in ({"input": []}, {"input": [5.5]}, {"input": "a", "dimensions": 5}, {"input": "a b " * 60}):
        with pytest.raises(openai.BadRequestError) as bad:
            by_openai.embeddings.create(model="vectors", **wrong)
        assert bad.value.param in ("input", "dimensions")
    with pytest.raises(openai.BadRequestError, match="is a model for text-classification"):
        by_openai.embeddings.create(model="classes", input="a")


def test_classify_answers_with_names_and_scores(server: Process, session: Any, tiny_store: Path) -> None:
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import Row
    from optimizer.store import Store

    artifact = Store(tiny_store).get("classes@1")
    preprocessor = Preprocessor.open(artifact.path, artifact.model_info)
    status, answer, headers = ask(server, "POST", "/v1/classify", {"model": "classes@1", "input": TEXTS})
    assert status == 200
    assert "tokenize;dur=" in headers["server-timing"]
    for text, got in zip(TEXTS, answer["data"], strict=True):
        logits = session.run(preprocessor.feeds([Row(Path("t"), 0, {"text": text})]))["logits"][0]
        shares = np.exp(logits) / np.exp(logits).sum()
        assert got["label"] == LABELS[int(logits.argmax())]
        assert got["score"] == pytest.approx(float(shares.max()), abs=1e-5)
        assert [each["score"] for each in got["classes"]] == pytest.approx(sorted(map(float, shares))[::-1], abs=1e-5)
    one = ask(server, "POST", "/v1/classify", {"input": "fed", "top_k": 1})[1]["data"][0]["classes"]
    assert len(one) == 1
    long = {"input": "a b " * 60, "truncate": True}
    assert ask(server, "POST", "/v1/classify", long)[0] == 200
    for wrong in ({"input": {"image": "/etc/passwd"}}, {"input": "a", "top_k": 0}, {"input": {"file": "x"}}, {}):
        assert ask(server, "POST", "/v1/classify", wrong)[0] == 400
    assert ask(server, "POST", "/v1/classify", {"input": "a", "model": ""})[0] == 404
    picture = {"input": {"image": base64.b64encode(b"GIF89a").decode()}}
    assert ask(server, "POST", "/v1/classify", picture)[0] == 400


# ---------------------------------------------------------------- operation


def test_metrics_are_prometheus_own_form(server: Process, client: Any) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client.infer("vectors", text_inputs(np.array([[2, 5, 3]])))
    status, content, headers = ask(server, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    found = {family.name: family for family in text_string_to_metric_families(content.decode())}
    for name in ("ml_requests", "ml_request_duration_seconds", "ml_active_requests", "ml_model_memory_bytes",
                 "ml_tokens_per_second", "ml_queue_depth", "ml_queue_wait_seconds", "ml_batch_rows", "ml_batch_tokens",
                 "ml_padding_tokens", "ml_tokenize_seconds", "ml_compute_seconds", "ml_model_info"):  # fmt: skip
        assert found[name].samples, name
    labels = {"model": "vectors", "version": "1", "endpoint": "/v2/models/{name}/infer", "status": "200"}
    (count,) = [s.value for s in found["ml_requests"].samples if s.name.endswith("_total") and s.labels == labels]
    assert count >= 1


def test_every_request_is_one_line_of_the_log(server: Process) -> None:
    ask(server, "POST", "/v1/classify", {"input": "fed"}, X_Request_Id="the-line")
    (event,) = eventually(lambda: [e for e in server.log if e["id"] == "the-line"])
    assert event["path"] == "/v1/classify"
    assert event["status"] == 200
    assert event["model"] == "classes"
    assert {"ms", "tokenize_ms", "queue_ms", "compute_ms", "serialize_ms", "mates"} < set(event)
    assert "fed" not in json.dumps(event)


def test_health_says_where_each_model_is(server: Process) -> None:
    status, answer, _ = ask(server, "GET", "/health")
    assert status == 200
    assert answer["status"] == "ready"
    proved = {"state": "READY", "proof": "golden inputs: 4 rows", "limits_from": "learned as it runs"}
    assert {"name": "classes", "version": "2", **proved} in answer["models"]
