"""Kept answers: each request gets its own, byte for byte; bounded, invalid when the model changes, off by default."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from serving.test_app import call
from serving.test_why import ids, play, why

from optimizer.environment import version_of
from optimizer.errors import BadInput
from optimizer.serving import cache
from optimizer.serving import served as opening
from optimizer.serving.cache import Cache, key_of, pack, unpack
from optimizer.serving.inference import HEADER_LENGTH
from optimizer.serving.kept import Memory, Redis, memory_of
from optimizer.serving.served import Served
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.store import Store

CLASSES = "/v2/models/classes/infer"


def memory(state: State, most: int = 1 << 20, **options: Any) -> Memory:
    """Turn the cache of a server on, in memory."""
    kept = Memory(most)
    state.cache = Cache(kept, state.metrics, **options)
    return kept


async def infer(app: Any, body: bytes, path: str = CLASSES, *headers: tuple[bytes, bytes]) -> tuple[bytes, str]:
    """The body of an answer, and its ``Server-Timing``."""
    status, content, found = await call(app, "POST", path, body, *headers)
    assert status == 200, content
    return content, found["server-timing"]


def statistics(state: State, model: str = "classes") -> dict[str, int]:
    found: Any = state.models.get(model).statistics.to_json()["inference_stats"]
    return {name: found[name]["count"] for name in ("success", "queue", "cache_hit", "cache_miss")}


def test_nothing_is_kept_unless_asked(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        assert state.cache is None
        for _ in range(2):
            assert "cache" not in (await infer(app, ids(3)))[1]
        assert statistics(state) == {"success": 2, "queue": 2, "cache_hit": 0, "cache_miss": 0}

    play(tiny_store, scene)


def test_a_kept_answer_is_the_same_and_is_told_of_everywhere(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        plain, _ = await infer(app, ids(4))
        memory(state)
        first, missed = await infer(app, ids(4))
        again, hit = await infer(app, ids(4), CLASSES, (b"x-request-id", b"again"))
        assert plain == first == again
        assert "cache_miss;dur=" in missed
        assert "cache_hit;dur=" in hit
        assert "compute" in missed
        assert "compute" not in hit
        # The same inputs in another form of body, for another form of answer, is the same question.
        asked = json.loads(ids(4)) | {
            "id": "mine",
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
        _, content, headers = await call(app, "POST", CLASSES, json.dumps(asked).encode())
        length = int(headers[HEADER_LENGTH])
        assert json.loads(content[:length])["id"] == "mine"
        logits = np.frombuffer(content[length:], np.float32)
        assert logits.tobytes() == np.array(json.loads(plain)["outputs"][0]["data"], np.float32).tobytes()
        assert "cache_hit" in headers["server-timing"]
        assert statistics(state) == {"success": 4, "queue": 2, "cache_hit": 2, "cache_miss": 1}
        found = await why(app, "again")
        assert found["cache"] == "1 of 1"
        assert [part["part"] for part in found["parts"]] == ["parse", "cache_hit", "serialize", "rest"]
        text = state.metrics.text()[0].decode()
        assert 'ml_cache_hits_total{model="classes",version="2"} 2.0' in text
        assert 'ml_cache_misses_total{model="classes",version="2"} 1.0' in text
        assert "ml_cache_entries 1.0" in text

    play(tiny_store, scene)


def test_rows_of_texts_are_kept_one_by_one(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        async def classify(*texts: str) -> tuple[Any, str]:
            body = json.dumps({"model": "classes", "input": list(texts)}).encode()
            content, timing = await infer(app, body, "/v1/classify")
            return json.loads(content)["data"], timing

        plain, _ = await classify("a bad cab", "fed")
        kept = memory(state)
        one, _ = await classify("a bad cab")
        both, timing = await classify("a bad cab", "fed")
        assert "cache_miss" in timing  # one of them had to be computed
        assert kept.entries == 2
        turned, timing = await classify("fed", "a bad cab")
        assert "cache_hit" in timing
        assert [each["classes"] for each in both] == [each["classes"] for each in reversed(turned)]
        assert one[0]["classes"] == both[0]["classes"]
        for ours, theirs in zip(both, plain, strict=True):
            np.testing.assert_allclose([c["score"] for c in ours["classes"]], [c["score"] for c in theirs["classes"]])

    play(tiny_store, scene)


def test_another_version_and_another_file_have_answers_of_their_own(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        memory(state)
        one, _ = await infer(app, ids(4), "/v2/models/classes/versions/1/infer")
        two, timing = await infer(app, ids(4), "/v2/models/classes/versions/2/infer")
        assert "cache_miss" in timing
        assert json.loads(one)["outputs"][0]["data"] != json.loads(two)["outputs"][0]["data"]
        # Loaded again, the same version is the same model still.
        await state.models.load_by_name("classes")
        assert "cache_hit" in (await infer(app, ids(4), "/v2/models/classes/versions/1/infer"))[1]
        assert (await infer(app, ids(4), "/v2/models/classes/versions/1/infer"))[0] == one

    play(tiny_store, scene, ("classes@1", "classes@2"))


def test_a_file_that_is_no_artifact_is_another_model_when_it_is_loaded_again(tmp_path: Path) -> None:
    planted = tmp_path / "planted.json"
    planted.write_text("{}")

    async def scene(app: Any, state: State) -> None:
        memory(state)
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
        timings = [(await infer(app, body, "/v2/models/planted/infer"))[1] for _ in range(2)]
        assert ["cache_miss" in timings[0], "cache_hit" in timings[1]] == [True, True]
        await state.models.load_by_name("planted")
        assert "cache_miss" in (await infer(app, body, "/v2/models/planted/infer"))[1]

    play(tmp_path, scene, (f"fake:{planted}",))


@pytest.mark.parametrize(
    "library", ["ml-opt", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino",
                "onnxruntime-ep-nv-tensorrt-rtx-cu13", "openvino", "tensorrt", "tensorrt-rtx-cu13"]
)  # fmt: skip
def test_another_version_of_what_computes_has_answers_of_its_own(
    tiny_store: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = SimpleNamespace(facts={"provider": "cpu"})
    served = Served("classes", "2", "classes@2", artifact=Store(tiny_store).get("classes"), session=session)
    before = cache._identity(served)
    monkeypatch.setattr(cache, "version_of", lambda name: "9.9" if name == library else version_of(name))
    assert cache._identity(served) != before


def test_what_a_session_got_is_part_of_whose_answers_they_are(tiny_store: Path) -> None:
    session: Any = SimpleNamespace(facts={"provider": "cuda"})
    served = Served("classes", "2", "classes@2", artifact=Store(tiny_store).get("classes"), session=session)
    seen = {cache._identity(served)}
    for gpu in ({"name": "NVIDIA H100"}, {"name": "NVIDIA L4"}, {"name": "NVIDIA L4", "driver": "580.1"}):
        served.gpus = (gpu,)
        seen.add(cache._identity(served))
    for changed in (
        {"provider": "tensorrt"}, {"precision": "fp16"}, {"threads": 3}, {"tf32": True}, {"flavor": "rtx"},
        {"openvino": "2026.4.1"}, {"onnxruntime": "1.33.0"}, {"tensorrt": "10.13"}, {"tensorrt_rtx": "1.7"},
        {"gpu": {"name": "NVIDIA L4"}},
    ):  # fmt: skip
        session.facts = {"provider": "cuda", **changed}
        seen.add(cache._identity(served))
    assert len(seen) == 14
    session.facts = {"provider": "cuda", "load_seconds": 3.0}  # how long it took shows in no answer
    assert cache._identity(served) in seen


@pytest.mark.parametrize(("provider", "gpus"), [("cuda", 1), ("cpu", 0)])
def test_a_model_on_a_gpu_knows_which(
    tiny_store: Path, provider: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "gpu_facts", lambda: ({"name": "NVIDIA H100"},))
    monkeypatch.setattr(opening, "_open", lambda *given: None)
    served = Served("classes", "2", "classes@2", artifact=Store(tiny_store).get("classes"))
    opening.opened(served, Settings.from_mapping({"provider": provider}))
    assert len(served.gpus) == gpus
    served.close()


# ---------------------------------------------------------------- whole keys


rows = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4)
requests = st.lists(
    st.tuples(rows, st.integers(1, 2), st.sampled_from([{}, {"a": 1}, {"a": "1"}])), min_size=1, max_size=8
)


def test_requests_whose_digests_collide_get_their_own_answers(tmp_path: Path) -> None:
    planted = tmp_path / "planted.json"
    planted.write_text("{}")
    path = "/v2/models/planted/infer"

    async def scene(app: Any, state: State) -> None:
        loop = asyncio.get_running_loop()

        def body(values: list[float], count: int, parameters: Any) -> bytes:
            data = np.array([values] * count, np.float32)
            tensor = {"name": "x", "shape": data.shape, "datatype": "FP32", "data": data.ravel().tolist()}
            return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()

        @given(requests)
        @settings(max_examples=30, deadline=None)
        def ask(asked: list[Any]) -> None:
            async def all_of_them() -> None:
                state.cache = None
                plain = [(await infer(app, body(*each), path))[0] for each in asked]
                state.cache = cache
                for each, expected in zip(asked, plain, strict=True):
                    assert (await infer(app, body(*each), path))[0] == expected
                    content, timing = await infer(app, body(*each), path)  # what was kept last lies there
                    assert "cache_hit" in timing
                    assert content == expected

            asyncio.run_coroutine_threadsafe(all_of_them(), loop).result(60)

        memory(state, digest=lambda key: b"the same for all")
        cache = state.cache
        assert cache is not None
        await asyncio.to_thread(ask)
        assert cache.kept.entries == 1

    play(tmp_path, scene, (f"fake:{planted}",))


names = st.sampled_from(["a", "b", "ab"])
arrays = st.builds(
    lambda kind, shape, value: np.full(shape, value).astype(kind),
    st.sampled_from(["int8", "int32", "int64", "float32", "object"]),
    st.sampled_from([(1,), (2,), (1, 2), (2, 1), (4,)]),
    st.integers(0, 2),
).map(lambda array: np.vectorize(str, otypes=[object])(array) if array.dtype == object else array)
feeds = st.dictionaries(names, arrays, min_size=1, max_size=2)


@given(feeds, feeds)
def test_no_two_inputs_have_one_key(one: dict[str, Any], two: dict[str, Any]) -> None:
    def same() -> bool:
        return one.keys() == two.keys() and all(
            one[name].dtype == two[name].dtype and one[name].shape == two[name].shape and (one[name] == two[name]).all()
            for name in one
        )

    assert (key_of("m", one, {}) == key_of("m", two, {})) == same()
    assert key_of("m", one, {}) != key_of("n", one, {})
    assert key_of("m", one, {"timeout": 5, "binary_data_output": True}) == key_of("m", one, {})


@given(feeds)
def test_what_is_packed_comes_out_the_same(outputs: dict[str, Any]) -> None:
    packed = pack(outputs)
    assert packed is not None
    found = unpack(packed)
    assert list(found) == list(outputs)
    for name, array in outputs.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tolist() == array.tolist()


def test_what_has_no_form_is_not_kept() -> None:
    assert pack({"x": np.array([b"\xff"], object)}) is None
    assert pack({"x": np.array(["2026-01-01"], "datetime64[D]")}) is None


# ---------------------------------------------------------------- bounds


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 900)), max_size=60))
def test_memory_holds_what_it_may_and_forgets_what_was_not_used(puts: list[tuple[int, int]]) -> None:
    async def scene() -> None:
        kept, used = Memory(4000), list[bytes]()
        for number, size in puts:
            key = b"%d" % number
            await kept.put(key, key, bytes(size))
            used = [each for each in used if each != key] + [key]
            assert await kept.get([key, b"none"]) == [(key, bytes(size)), None]
            assert kept.size <= 4000
            held = [each for each in used if each in kept._held]
            assert held == used[len(used) - len(held) :] == list(kept._held)  # those used last, in that order
        await kept.put(b"big", b"big", bytes(5000))
        assert await kept.get([b"big"]) == [None]
        await kept.close()
        assert (kept.size, kept.entries) == (0, 0)

    asyncio.run(scene())


def test_a_full_queue_answers_what_is_kept(tiny_store: Path) -> None:
    async def scene(app: Any, state: State) -> None:
        memory(state)
        batcher = state.models.get("classes").batcher
        assert batcher is not None
        first = asyncio.gather(*(infer(app, ids(3)) for _ in range(2)))  # a whole run: answered at once
        await first
        waits = asyncio.ensure_future(infer(app, ids(5)))
        while not batcher.depth:
            await asyncio.sleep(0.001)
        assert "cache_hit" in (await infer(app, ids(3)))[1]
        assert (await call(app, "POST", CLASSES, json.dumps(
            {"inputs": [{**each, "shape": [2, 5], "data": each["data"] * 2} for each in json.loads(ids(5))["inputs"]]}
        ).encode()))[0] == 429  # fmt: skip
        waits.cancel()

    play(tiny_store, scene, max_queue=2, max_batch=2, delay="30s")


@pytest.mark.parametrize("text", ["256", "0MiB", "much", "-1MB", "http://there", "MiB"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--cache"):
        Settings.from_mapping({"cache": text})


def test_sizes() -> None:
    assert [memory_of(text) for text in ("256MiB", "1 GB", "2kib")] == [256 << 20, 10**9, 2048]


# ---------------------------------------------------------------- Redis


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """A server that speaks Redis' protocol."""
    fakeredis = pytest.importorskip("fakeredis")
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


def test_two_servers_share_answers_in_redis(tiny_store: Path, redis: str) -> None:
    from redis import Redis as Client

    said: list[str] = []
    digest = {"digest": lambda key: key[-1:]}  # many collide

    async def first(app: Any, state: State) -> None:
        state.cache = Cache(Redis(redis, said.append), state.metrics, **digest)
        answers.append((await infer(app, ids(4)))[0])
        await state.cache.close()

    async def second(app: Any, state: State) -> None:
        state.cache = Cache(Redis(redis, said.append), state.metrics, **digest)
        content, timing = await infer(app, ids(4))
        assert "cache_hit" in timing
        answers.append(content)
        other, timing = await infer(app, ids(4, seed=9))  # lies in the same place
        assert "cache_miss" in timing
        assert other != content
        with Client.from_url(redis) as client:
            (name,) = client.keys("ml-opt:answer:*")
            assert 0 < client.ttl(name) <= 86400
            for junk in (b"", b"short", bytes(30), b"\xff" * 40, bytes(client.get(name))[:-3]):
                client.set(name, junk)
                assert (await infer(app, ids(4, seed=9)))[0] == other
        await state.cache.close()

    answers: list[bytes] = []
    play(tiny_store, first)
    play(tiny_store, second)
    assert answers[0] == answers[1]
    assert said == []


def test_rows_of_a_request_are_one_question_to_redis(tiny_store: Path, redis: str) -> None:
    async def scene(app: Any, state: State) -> None:
        kept, asked = Redis(redis, lambda text: None), list[int]()
        state.cache = Cache(kept, state.metrics)
        mget = kept._redis.mget

        async def counted(names: list[str]) -> Any:
            asked.append(len(names))
            return await mget(names)

        kept._redis.mget = counted
        texts = ["a bad cab", "fed", "egg", "deaf"]
        for known, shown in ((texts[:2], "0 of 2"), (texts, "2 of 4"), (texts[::-1], "4 of 4")):
            body = json.dumps({"model": "classes", "input": known}).encode()
            status, _, _ = await call(app, "POST", "/v1/classify", body, (b"x-request-id", b"rows"))
            assert status == 200
            assert (await why(app, "rows"))["cache"] == shown
        assert asked == [2, 4, 4]
        asked.clear()
        assert await kept.get([b"%d" % number for number in range(130)]) == [None] * 130
        assert asked == [64, 64, 2]
        await state.cache.close()

    play(tiny_store, scene)


def test_without_redis_everything_is_answered(tiny_store: Path) -> None:
    said: list[str] = []

    async def scene(app: Any, state: State) -> None:
        state.cache = Cache(Redis("redis://127.0.0.1:1/0", said.append), state.metrics)
        for _ in range(3):
            assert "cache_miss" in (await infer(app, ids(4)))[1]
        await state.cache.close()

    play(tiny_store, scene)
    assert len(said) == 1  # and then it is left alone for a while
    assert "cannot be reached" in said[0]
