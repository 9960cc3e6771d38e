"""Requests that share runs, over real sockets: each is answered as it would be alone, whatever its mates ask.

What hypothesis draws is a crowd: sizes, padding of their own, outputs and their form, ids, times, and some that cannot
be answered. What they should be answered is computed by a session of this process, one request after another.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving.conftest import Process

from optimizer.runtime import Provider, SessionOptions, get_runtime
from optimizer.store import Store

OUTPUTS = ("last_hidden_state", "pooler_output")
#: Absolute, as the promise for float32 is.
NEAR = 1e-4
#: Some of MiniLM's vocabulary.
FIRST, LAST = 1000, 20000
#: A token that it has not.
BEYOND = 10**6


@dataclass(frozen=True)
class Asked:
    """One request of a crowd.

    Attributes:
        lengths: of its rows without padding.
        padding: columns of its own behind the longest row.
        seed: of its tokens.
        id: its name for itself; None for none.
        header: the id that its headers say; None for none.
        outputs: name → whether it comes as bytes, in the order asked for; None asks for all, in JSON.
        fate: how it ends: answered, or too late, or refused.
        note: a parameter that means nothing to the server, and is nobody else's.
    """

    lengths: tuple[int, ...]
    padding: int
    seed: int
    id: str | None
    header: str | None
    outputs: tuple[tuple[str, bool], ...] | None
    fate: str
    note: str

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        width = max(self.lengths) + self.padding
        mask = (np.arange(width)[None] < np.array(self.lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(self.seed).integers(FIRST, LAST, mask.shape) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}

    @property
    def body(self) -> bytes:
        feeds = self.feeds
        if self.fate == "refused":
            feeds["input_ids"][0, 0] = BEYOND
        inputs = [
            {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in feeds.items()
        ]
        document: dict[str, Any] = {"inputs": inputs, "parameters": {"note": self.note}}
        if self.fate == "late":
            document["parameters"]["timeout"] = 1  # a millionth of a second
        if self.id is not None:
            document["id"] = self.id
        if self.outputs is not None:
            document["outputs"] = [{"name": n, "parameters": {"binary_data": raw}} for n, raw in self.outputs]
        return json.dumps(document).encode()


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
wanted = st.lists(st.tuples(st.sampled_from(OUTPUTS), st.booleans()), min_size=1, unique_by=lambda each: each[0])
crowds = st.lists(
    st.builds(
        Asked,
        lengths=st.lists(st.integers(1, 14), min_size=1, max_size=2).map(tuple),
        padding=st.integers(0, 3),
        seed=st.integers(0, 2**31),
        id=st.none() | names,
        header=st.none() | st.text("abc-123", min_size=1, max_size=8),
        outputs=st.none() | wanted.map(tuple),
        fate=st.sampled_from(["answered"] * 6 + ["late", "refused"]),
        note=names,
    ),
    min_size=2,
    max_size=8,
)


@pytest.fixture(scope="module")
def process(minilm_store: Store) -> Iterator[Process]:
    made = Process(["minilm:fp32", "--store", str(minilm_store.root), "--delay", "5ms"])
    assert made.ready
    yield made
    made.end()


@pytest.fixture(scope="module")
def alone(minilm_store: Store) -> Iterator[Any]:
    """MiniLM in this process, of which one request at a time is asked."""
    file = minilm_store.get("minilm:fp32").path / "model.onnx"
    session = get_runtime(Provider("cpu")).open(Path(file), SessionOptions(Provider("cpu"), threads=1), model={})
    yield session
    session.close()


def together(process: Process, crowd: list[Asked]) -> list[tuple[int, dict[str, str], bytes]]:
    """What each is answered when all are sent at once, each over a connection of its own."""
    barrier = Barrier(len(crowd))

    def ask(each: Asked) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(process.address, timeout=60)
        connection.connect()
        headers = {} if each.header is None else {"X-Request-Id": each.header}
        body = each.body
        barrier.wait(60)
        try:
            connection.request("POST", "/v2/models/minilm/infer", body, headers)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(crowd)) as pool:
        return list(pool.map(ask, crowd))


def read(headers: dict[str, str], content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray], set[str]]:
    """A V2 answer: its JSON, the arrays of its outputs in their order, and which of them came as bytes."""
    length = int(headers.get("inference-header-content-length", len(content)))
    document, place = json.loads(content[:length]), length
    arrays, raw = {}, set()
    for each in document["outputs"]:
        assert each["datatype"] == "FP32"
        if "data" in each:
            assert not each.get("parameters")
            flat = np.array(each["data"], np.float32)
        else:
            size = each["parameters"]["binary_data_size"]
            assert set(each["parameters"]) == {"binary_data_size"}
            flat, place = np.frombuffer(content[place : place + size], "<f4"), place + size
            raw.add(each["name"])
        arrays[each["name"]] = flat.reshape(each["shape"])
    assert place == len(content), "there is something behind the last output"
    return document, arrays, raw


def held(asked: Asked, answer: tuple[int, dict[str, str], bytes], session: Any) -> None:
    """An answer is that of its own request."""
    status, headers, content = answer
    if asked.header is not None:
        assert headers["x-request-id"] == asked.header
    if asked.fate != "answered":
        assert status in ((429, 504) if asked.fate == "late" else (400,)), content
        assert set(json.loads(content)) == {"error"}
        return
    assert status == 200, content
    document, arrays, raw = read(headers, content)
    assert document.get("id") == asked.id
    assert set(document) <= {"model_name", "model_version", "id", "outputs", "parameters"}
    assert (document["model_name"], document["model_version"]) == ("minilm", "1")
    assert not document.get("parameters"), "what a request says of itself is said to nobody"
    order = tuple((name, False) for name in OUTPUTS) if asked.outputs is None else asked.outputs
    assert list(arrays) == [name for name, _ in order]
    assert raw == {name for name, as_bytes in order if as_bytes}
    truth = session.run(asked.feeds)
    for name, array in arrays.items():
        assert array.shape == truth[name].shape
        real = asked.feeds["attention_mask"].astype(bool) if array.ndim == 3 else slice(None)
        np.testing.assert_allclose(array[real], truth[name][real], atol=NEAR, rtol=0)


def test_batched_equals_unbatched_over_http(process: Process, alone: Any) -> None:
    @given(crowds)
    @settings(
        max_examples=60, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    def scene(crowd: list[Asked]) -> None:
        for asked, answer in zip(crowd, together(process, crowd), strict=True):
            held(asked, answer, alone)

    scene()
    connection = http.client.HTTPConnection(process.address, timeout=30)
    connection.request("GET", "/v2/models/minilm/stats")
    (found,) = json.loads(connection.getresponse().read())["model_stats"]
    connection.close()
    assert max(each["batch_size"] for each in found["batch_stats"]) > 2, (
        "more rows than one request has: runs were shared"
    )
