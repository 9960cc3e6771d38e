"""Cases of Triton's own protocol tests that no other test of ours had; docs/conformance.md lists all of them."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving.conftest import Process
from serving.test_app import call

from optimizer.serving.app import build_app
from optimizer.serving.metrics import Metrics
from optimizer.serving.problems import Problem
from optimizer.serving.repository import Repository
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store

GOOD = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
INFER = "/v2/models/m/infer"


def ask(server: Process, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, data, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def scene(tmp_path: Path, planted: dict[str, Any], play: Callable[[State, Any], Awaitable[None]], **more: Any) -> None:
    """Play with the application over one planted model, ``m``, on an event loop of its own."""
    (tmp_path / "m.json").write_text(json.dumps(planted))
    settings = Settings.from_mapping({"access_log": False, **more}, "serve")
    metrics = Metrics()

    async def run() -> None:
        state = State(settings, Repository(Store(tmp_path / "models"), settings, metrics), metrics)
        await state.models.start([f"fake:{tmp_path / 'm.json'}"])
        try:
            await play(state, build_app(state))
        finally:
            await state.models.close()

    asyncio.run(run())


# ---------------------------------------------------------------- L0_http


@pytest.mark.parametrize("shape", [[2**4, 2**60 + 2], [2**2, 2**60 + 2], [2**63, 2], [2**64 - 1]])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_buffer_size_overflow(server: Process, shape: list[int], as_bytes: bool) -> None:
    """Shapes whose number of elements or bytes is small again in 64 bits."""
    tensor: dict[str, Any] = {**GOOD, "shape": shape, "data": [1.0]}
    body, headers = json.dumps({"inputs": [tensor]}).encode(), {}
    if as_bytes:
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": 8}
        head = json.dumps({"inputs": [tensor]}).encode()
        body, headers = head + bytes(8), {"Inference_Header_Content_Length": str(len(head))}
    status, content = ask(server, "/v2/models/slow/infer", body, **headers)
    assert status == 400, content
    assert b"says" in content or b"bytes" in content


def test_repository_index_deeply_nested_json(server: Process) -> None:
    body = b'{"ready":' + b"[" * 100_000 + b"true" + b"]" * 100_000 + b"}"
    status, content = ask(server, "/v2/repository/index", body)
    assert (status, b"nested too deeply" in content) == (400, True)


@pytest.mark.parametrize("length", ["99999999999", str(2**31), str(2**64), "-1", "1e1", " 3", "٣"])
def test_inference_header_content_length_out_of_range(server: Process, length: str) -> None:
    body = json.dumps({"inputs": [GOOD]}).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(f"{head}Inference-Header-Content-Length: {length}\r\n\r\n".encode() + body)
        assert raw.recv(65536).startswith(b"HTTP/1.1 400")


def test_chunked_infer_in_many_chunks(server: Process) -> None:
    """A body in as many pieces as it has bytes is the body."""
    body = json.dumps({"inputs": [{**GOOD, "name": "no" * 5000}]}).encode()
    head = "POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(head.encode() + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        assert (answer.status, b"unknown input 'nono" in answer.read()) == (400, True)


def test_load_with_files_or_another_configuration_is_refused(server: Process) -> None:
    """The store says what a model is; nothing is written that a stranger sends."""
    for parameters in ({"file:" + "A" * 256: "YQ==", "config": "{}"}, {"config": "{}"}, {"file:../../x": "YQ=="}):
        status, content = ask(server, "/v2/repository/models/kinds/load", {"parameters": parameters})
        assert (status, b"as the store has it" in content) == (400, True)
    status, _ = ask(server, "/v2/repository/models/kinds/load", b"x" * (2 << 20))
    assert status == 413
    assert ask(server, "/v2/repository/models/kinds/load", {"parameters": {}})[0] == 200


def test_python_http_aio(server: Process) -> None:
    aio = pytest.importorskip("tritonclient.http.aio")

    async def main() -> None:
        async with aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("slow")
            assert (await client.get_server_metadata())["name"] == "ml-opt"
            assert (await client.get_model_metadata("slow"))["name"] == "slow"
            assert (await client.get_model_config("slow"))["name"] == "slow"
            assert await client.get_model_repository_index()
            assert (await client.get_inference_statistics("slow"))["model_stats"]
            await client.unload_model("kinds")
            await client.load_model("kinds")
            for missing in (client.get_trace_settings, client.get_system_shared_memory_status):
                with pytest.raises(aio.InferenceServerException, match="there is nothing at"):
                    await missing()
            given = aio.InferInput("x", [1, 2], "FP32")
            given.set_data_from_numpy(np.ones((1, 2), np.float32))
            assert (await client.infer("slow", [given])).as_numpy("y").shape == (1, 4)

    asyncio.run(main())


# ---------------------------------------------------------------- L0_input_validation


@pytest.mark.parametrize(
    "name", ["../etc", "a/../b", "..", "/etc/passwd", "model/", " ..", ".. ", " ", "\t", "\n", "\v"]
)
def test_model_name_invalid_load(server: Process, name: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    status, content = ask(server, f"/v2/repository/models/{quoted}/load", b"")
    assert status in (400, 404), content
    assert b"etc/passwd" not in content or b"there is nothing at" in content


# ---------------------------------------------------------------- L0_batcher

TWO = {
    "outputs": [{"name": name, "dtype": "float32", "shape": ["batch", size]} for name, size in (("a", 2), ("b", 3))],
    "latency_s": 0.05, "wait": "sleep",
}  # fmt: skip


def test_multi_different_outputs_in_different_orders(tmp_path: Path) -> None:
    """Each request of a run gets the outputs that it asked for, in its order, and nobody else's."""
    orders = [["a"], ["b"], ["a", "b"], ["b", "a"], [], ["b"]]

    async def play(state: State, app: Any) -> None:
        def body(place: int) -> bytes:
            tensor = {**GOOD, "data": [place, place + 1]}
            wanted = [{"name": name} for name in orders[place]]
            return json.dumps({"inputs": [tensor], "outputs": wanted, "id": str(place)}).encode()

        async def infer(place: int) -> dict[str, Any]:
            status, content, _ = await call(app, "POST", INFER, body(place))
            assert status == 200, content
            return dict(json.loads(content))

        alone = [await infer(place) for place in range(len(orders))]
        together = await asyncio.gather(*(infer(place) for place in range(len(orders))))
        served = state.models.get("m")
        assert served.batcher is not None
        assert max(served.statistics.batches) > 1
        for order, one, other in zip(orders, alone, together, strict=True):
            assert [each["name"] for each in other["outputs"]] == (order or ["a", "b"])
            assert other["id"] == one["id"]
            for a, b in zip(one["outputs"], other["outputs"], strict=True):
                np.testing.assert_allclose(a["data"], b["data"], rtol=1e-6)

    scene(tmp_path, TWO, play)


def test_queue_timeout_is_answered_at_once(tmp_path: Path) -> None:
    """A request whose time is over in the queue does not wait for the run before it."""

    async def play(state: State, app: Any) -> None:
        body = {"inputs": [GOOD]}
        first = asyncio.ensure_future(call(app, "POST", INFER, json.dumps(body).encode()))
        while not state.in_flight:
            await asyncio.sleep(0)
        late = json.dumps({**body, "parameters": {"timeout": 50_000}}).encode()
        second = asyncio.ensure_future(call(app, "POST", INFER, late))
        done, _ = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
        assert done == {second}
        assert second.result()[0] in (429, 504)
        assert (await first)[0] == 200

    scene(tmp_path, {"latency_s": 1.0, "wait": "sleep"}, play)


# ---------------------------------------------------------------- L0_lifecycle


def test_model_availability_on_reload(tmp_path: Path) -> None:
    """While a model loads again the one before it answers."""

    async def play(state: State, app: Any) -> None:
        body = json.dumps({"inputs": [GOOD]}).encode()
        before = state.models.get("m")
        loading = asyncio.ensure_future(state.models.load_by_name("m"))
        asked = 0
        while not loading.done():
            status, content, _ = await call(app, "POST", INFER, body)
            assert status == 200, content
            asked += 1
        assert asked > 1
        assert state.models.get("m") is await loading is not before
        assert (await call(app, "POST", INFER, body))[0] == 200

    scene(tmp_path, {"load_s": 0.3, "latency_s": 0.01, "wait": "sleep"}, play)


@pytest.mark.parametrize("word", ["load", "unload"])
def test_what_was_accepted_is_answered_before_its_model_goes(tmp_path: Path, word: str) -> None:
    """Requests in the queue of a model that is unloaded, or that another takes the place of, are no 503."""

    async def play(state: State, app: Any) -> None:
        def body(length: int) -> bytes:
            return json.dumps({"inputs": [{**GOOD, "shape": [1, length], "data": [1] * length}]}).encode()

        served = state.models.get("m")
        assert served.batcher is not None
        asked = [asyncio.ensure_future(call(app, "POST", INFER, body(length))) for length in range(1, 5)]
        while served.batcher.depth < 2:
            await asyncio.sleep(0)
        assert (await call(app, "POST", f"/v2/repository/models/m/{word}"))[0] == 200
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [200] * 4
        assert (await call(app, "POST", INFER, body(1)))[0] == (200 if word == "load" else 503)

    scene(tmp_path, {"latency_s": 0.1, "wait": "sleep"}, play)


def test_concurrent_same_model_load_unload_stress(tmp_path: Path) -> None:
    """However loads, unloads and requests of one model cross: each is answered, and the last word counts."""

    async def play(state: State, app: Any) -> None:
        body = json.dumps({"inputs": [GOOD]}).encode()

        async def turn(place: int) -> None:
            word = ("load", "unload", "")[place % 3]
            path = f"/v2/repository/models/m/{word}" if word else INFER
            status, content, _ = await call(app, "POST", path, b"" if word else body)
            assert status in (200, 503) or (status == 400 and b"cannot be loaded" in content), (word, status, content)

        await asyncio.gather(*(turn(place) for place in range(60)))
        await state.models.unload("m")
        assert (await call(app, "POST", INFER, body))[0] == 503
        with pytest.raises(Problem):
            state.models.get("m").need_ready()
        await state.models.load_by_name("m")
        assert (await call(app, "POST", INFER, body))[0] == 200
        index = json.loads((await call(app, "POST", "/v2/repository/index"))[1])
        assert [(each["name"], each["state"]) for each in index] == [("m", "READY")]

    scene(tmp_path, {"load_s": 0.01, "latency_s": 0.002, "wait": "sleep"}, play)
