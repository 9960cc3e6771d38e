"""The clients of the server's benchmarks: what they count is what was asked and answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.serving import tables
from benchmarks.serving.load import closed, post
from benchmarks.serving.overload import overloaded
from benchmarks.serving.throughput import Server


@pytest.fixture
def port(server: Any) -> int:
    return int(server.address.rpartition(":")[2])


def test_each_request_once_by_several_clients(port: int) -> None:
    texts = ["a b", "b c d", "e", "f g"]
    asked = [post(port, "/v1/embeddings", json.dumps({"model": "vectors", "input": text}).encode()) for text in texts]
    asked.append(post(port, "/v1/nowhere", b"{}"))
    loaded = closed(port, asked, 3, None, keep=True)
    assert sorted(answer.asked for answer in loaded.answers) == [0, 1, 2, 3, 4]
    assert {answer.status for answer in loaded.answers if answer.asked < 4} == {200}
    assert {answer.status for answer in loaded.answers if answer.asked == 4} == {404}
    for answer in loaded.answers:
        assert ("data" in json.loads(answer.body)) == (answer.asked < 4)
    assert loaded.per_second == pytest.approx(4 / loaded.seconds)
    assert 0 < loaded.quantile(0.5) <= loaded.quantile(0.99) <= loaded.seconds


def test_clients_go_on_until_the_time_is_over(port: int) -> None:
    request = post(port, "/v1/embeddings", json.dumps({"model": "vectors", "input": "a b"}).encode())
    loaded = closed(port, [request], 2, 0.3)
    assert len(loaded.answers) > 2
    assert loaded.seconds >= 0.25


def test_arrivals_wait_for_nobody_and_count_from_when_they_were_due(server: Any, port: int) -> None:
    """Forty a second, where one run after another takes a fifth of a second and eight rows may wait."""
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
    request = post(port, "/v2/models/slow/infer", body)
    planted = Server("planted", (), "", lambda text: text, lambda said: said)
    planted.port = port
    arrivals = overloaded(planted, [request], rate=400.0, seconds=0.5)
    statuses = [answer.status for answer in arrivals.answers]
    assert len(statuses) == len(arrivals.due)
    assert arrivals.unsent == 0
    assert set(statuses) == {200, 429}, "more came than may wait"
    accepted = [answer.seconds for answer in arrivals.answers if answer.status == 200]
    assert max(accepted) > 0.2, "some waited for the run before theirs, and have it run"


def test_tables_of_what_was_found() -> None:
    machine = {"cpu": {"model": "Some CPU", "cores": 2, "features": ["avx2"]}}
    row = {"per_second": [10.0, 12.0], "p50_ms": [1.0, 2.0], "p99_ms": [3.0, 4.0], "one_client_ms": [5.0, 6.0]}
    slower = {**row, "per_second": [5.0, 4.0]}
    said = {"largest_difference": 1e-6, "worst_cosine": 0.99999}
    made = tables.throughput(
        {
            "environment": machine, "threads": 2, "clients": 64, "seconds": 6.0, "best": "m@best",
            "best_provider": "cpu", "rows": {"ours": row, "theirs": slower}, "answers": {"ours": said, "theirs": said},
            "memory_bytes": {"ours": 2**20, "theirs": 2**21},
        }
    )  # fmt: skip
    assert "\n| theirs | 4 | 2.50 | 2 | 4 | 5.50 | 2 | 1.0e-06 | 1.0000 |\n" in made
    assert "The best is `m@best` on cpu." in made
    found = {"together": [30.0, 20.0], "one_by_one": [10.0, 10.0], "freed_steps": [1.0, 2.0]}
    assert "Some CPU, 2 cores (avx2), " in made, "what a processor can do decides who is fast"
    written = tables.streams({"environment": machine, "streams": 8, "rows": {"fp32": found}})
    assert "\n| fp32 | 25 | 10 | 2.50 | 2.2 | 1.5 |\n" in written
