"""The clients of the server's benchmarks: what they count is what was asked and answered."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import Any

import pytest

from benchmarks.serving import load_tools, tables
from benchmarks.serving.load import closed, post
from benchmarks.serving.load_tools import Missing, Told, compared, hey_told, wrk_told
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


@pytest.mark.parametrize(("tool", "most"), [("hey", {"requests": 80}), ("wrk", {"seconds": 1})])
def test_the_tools_of_others_count_what_the_server_does(server: Any, tool: str, most: dict[str, int]) -> None:
    """Over kept connections and over new ones; where one of them is not installed, it says what installs it."""
    judge = getattr(load_tools, tool)
    if shutil.which(tool) is None:
        with pytest.raises(Missing, match=f"apt-get install {tool}"):
            judge(server.url, "vectors", **most)
        return
    said = judge(server.url, "vectors", clients=4, **most)
    kept, new = (int(word) for word in said.split() if word.isdigit() and word != "200")
    assert kept > 0
    assert new > 0
    if tool == "hey":
        assert (kept, new) == (160, 160)


def test_a_tool_that_is_not_there_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for judge in (load_tools.hey, load_tools.wrk):
        with pytest.raises(Missing, match=f"apt-get install {judge.__name__}"):
            judge("http://127.0.0.1:1", "vectors")


@pytest.mark.parametrize(
    ("answered", "counted", "under_way", "words"),
    [
        (0, {}, 0, "nothing was answered"),
        (9, {200: 9, 429: 1}, 4, "429"),
        (9, {200: 8}, 4, "the server counted 8"),
        (9, {200: 8, 499: 1}, 4, "the server counted 8"),
        (9, {200: 10}, 0, "1 more than the 9"),
        (9, {200: 10, 499: 4}, 4, "5 more than the 9"),
    ],
)
def test_counts_that_do_not_agree_are_a_fault(answered: int, counted: Any, under_way: int, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        compared(Told(answered, {}), Counter(counted), under_way)


def test_counts_that_agree_are_none() -> None:
    assert compared(Told(9, {}), Counter({200: 9}), 0) == 9
    assert compared(Told(9, {}), Counter({200: 11, 499: 2}), 4) == 9, "what was under way when the tool ended"
    with pytest.raises(AssertionError, match="'read': 2"):
        compared(Told(9, {"read": 2}), Counter({200: 9}), 4)


def test_what_the_tools_print_is_read() -> None:
    text = "Status code distribution:\n  [200]\t90 responses\n  [429]\t8 responses\n\n"
    assert hey_told(text) == Told(98, {"429": 8})
    text += 'Error distribution:\n  [2]\tPost "http://x/": dial tcp: connect: connection refused\n'
    assert hey_told(text) == Told(98, {"429": 8, 'Post "http://x/": dial tcp: connect: connection refused': 2})
    line = {"requests": 9, "connect": 0, "read": 1, "write": 0, "timeout": 0, "status": 2, "others": 2}
    assert wrk_told(f"Running 1s test\n{json.dumps(line)}\n") == Told(9, {"read": 1, "status": 2, "others": 2})


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
