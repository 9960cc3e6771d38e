"""bench server against small real servers, with planted latency, capacity and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from servers import Server

from optimizer.benching.gates import Outcome
from optimizer.benching.remote import Sent
from optimizer.benching.report import BenchReport, Doubt
from optimizer.benching.serving import tail_gate
from optimizer.check import get_check
from optimizer.checks.bench_server import BenchServer
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.stage import silent
from optimizer.store import Store


def bench(url: str, store: Store | None = None, **options: Any) -> BenchReport:
    asked = BenchServer.from_mapping({"model": "m", "qps": 100.0, "duration": 0.5, **options})
    report = get_check("bench-server").run((url,), asked, store or Store("none"), silent)
    assert isinstance(report, BenchReport)
    return report


def test_an_answered_run(tmp_path: Path) -> None:
    with Server(latency_s=0.02) as server:
        report = bench(server.url, shape="2x5", report=(tmp_path / "r.json", tmp_path / "r.md"))
    (cell,) = report.rows[0].cells
    assert (report.exit_code, report.scenario, cell.batch) == (0, "server", 2)
    assert cell.summary.samples == cell.open_loop.queries == 64
    assert cell.summary.min_ms >= 20
    assert cell.open_loop.errors == {}
    assert cell.open_loop.lag_ms["p50"] < 20
    assert [gate.title for gate in report.gates] == ["errors at 2x5"]
    assert BenchReport.read(tmp_path / "r.json").rows == report.rows
    assert "| 100 |" in (tmp_path / "r.md").read_text()
    assert len(server.asked) == 64 + 3  # the first three are not timed
    for path, body in server.asked:
        assert path == "/v2/models/m/infer"
        assert [(each["name"], each["shape"], each["datatype"]) for each in body["inputs"]] == [
            ("ids", [2, 5], "INT64"), ("mask", [2, 5], "INT64")
        ]  # fmt: skip
        assert all(len(each["data"]) == 10 for each in body["inputs"])
    assert len(server.connections) < 30, "connections are used again"


def test_slow_answers_are_sent_for_in_parallel() -> None:
    """30 a second of half a second each: 15 at a time, and nobody waits for another."""
    with Server(latency_s=0.5) as server:
        report = bench(server.url, qps=30.0, duration=2.0)
    (cell,) = report.rows[0].cells
    assert not cell.open_loop.reason.startswith("overloaded")
    assert 500 <= cell.summary.p50_ms < 900


def test_more_than_it_can_answer_is_invalid() -> None:
    with Server(latency_s=0.02, alone=True) as server:
        report = bench(server.url, qps=150.0, duration=2.0, fail_if_p99="5s")
    (cell,) = report.rows[0].cells
    assert cell.open_loop.reason.startswith("overloaded: asked")
    assert cell.open_loop.achieved_qps < 52
    assert cell.summary.p50_ms > 200, "what waited counts from its scheduled time"
    assert report.cautions[0].doubt is Doubt.INVALID
    assert report.gates[1].outcome is Outcome.INCONCLUSIVE
    assert report.exit_code == 3


def test_errors_are_counted_by_kind_and_are_no_latency(tmp_path: Path) -> None:
    """Every fourth query fails at once: the fast failures would halve the smallest latency."""
    table = tmp_path / "r.md"
    with Server(latency_s=0.02, fails=lambda number: 0 if number < 3 or number % 4 else 503) as server:
        report = bench(server.url, report=(table,))
    assert "- without an answer: 16 HTTP 503" in table.read_text()
    (cell,) = report.rows[0].cells
    assert cell.open_loop.errors == {"HTTP 503": 16}
    assert (cell.open_loop.queries, cell.summary.samples) == (64, 48)
    assert cell.summary.min_ms >= 20
    (gate,) = report.gates
    assert (gate.outcome, report.exit_code) == (Outcome.REGRESSION, 1)
    assert gate.says == "16 of 64 queries without an answer (16 HTTP 503)"
    with Server(fails=lambda number: 0 if number < 3 or number % 4 else 503) as server:
        assert bench(server.url, max_errors=0.3).exit_code == 0


def test_answers_that_take_too_long_are_timeouts() -> None:
    with Server(hangs=lambda number: number >= 3 and number % 8 == 0) as server:
        report = bench(server.url, timeout=0.6)
    (cell,) = report.rows[0].cells
    assert cell.open_loop.errors == {"timeout": 8}
    assert cell.summary.samples == 56
    assert max(max(times) for times in cell.rounds_ns) < 600_000_000
    with Server(latency_s=0.3) as server, pytest.raises(BadInput, match="answers the first query with timeout"):
        bench(server.url, timeout=0.1)


def test_when_nothing_is_answered_the_row_says_why() -> None:
    with Server(fails=lambda number: 500 if number >= 3 else 0) as server:
        report = bench(server.url)
    assert report.rows[0].error == "none of 64 queries was answered: 64 HTTP 500"
    assert report.exit_code == 1


def test_rows_go_through_the_artifacts_tokenizer(tmp_path: Path, minilm_store: Store) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("short", "a much longer row of text")))
    inputs = [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")]
    with Server(inputs=inputs) as server:
        report = bench(server.url, minilm_store, data=rows, ref="minilm:fp32")
    assert report.inputs["timed"] == "rows.jsonl"
    lengths = [body["inputs"][0]["shape"][1] for _, body in server.asked]
    assert lengths[0] == 3, "[CLS] short [SEP]"
    assert set(lengths) == {3, 8}
    assert {each["name"] for each in server.asked[0][1]["inputs"]} == {"input_ids", "attention_mask"}


def test_openai_embeddings(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"review": "good"}\n{"review": "bad"}\n')
    with Server() as server:
        bench(server.url, protocol="openai", data=tmp_path / "rows.jsonl", column=("text=review",))
    assert {path for path, _ in server.asked} == {"/v1/embeddings"}
    assert [body for _, body in server.asked[:2]] == [
        {"model": "m", "input": ["good"]},
        {"model": "m", "input": ["bad"]},
    ]


def test_openai_chat_gives_times_to_the_first_token_and_between_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(latency_s=0.03, pieces=5) as server:
        words = ["bench", "server", server.url, "--model", "m", "--qps", "20", "--duration", "1", "--max-tokens", "7"]
        assert run([*words, "--protocol", "openai", "--endpoint", "chat"]) == 0
        report = bench(server.url, protocol="openai", endpoint="chat", qps=20.0)
    assert server.asked[0][1]["max_tokens"] == 7
    assert server.asked[0][1]["stream"] is True
    shown = capsys.readouterr().out
    assert "to the first token: p50" in shown
    more = report.rows[0].cells[0].open_loop.more
    assert more["pieces"] == 64 * 5
    assert 30 <= more["ttft_ms"]["p50"] < report.rows[0].cells[0].summary.p50_ms - 90, "four more pieces came after it"
    assert more["itl_ms"]["p50"] == pytest.approx(30, rel=0.5)
    assert report.rows[0].cells[0].summary.min_ms >= 150


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with Server(cut=True) as server, pytest.raises(BadInput, match="first query with a stream without its end"):
        bench(server.url, protocol="openai", endpoint="chat")


def test_what_is_no_server_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "server", "http://127.0.0.1:9", "--model", "m", "--qps", "5"]) == 2
    shown = capsys.readouterr().err
    assert "no server answers at http://127.0.0.1:9/v2/health/ready" in shown
    assert "http://HOST:PORT" in shown
    with Server(ready=False) as server, pytest.raises(BadInput, match="health/ready answers HTTP 503"):
        bench(server.url)
    with Server() as server, pytest.raises(BadInput, match="models/other answers HTTP 404"):
        bench(server.url, model="other")
    with Server(fails=lambda number: 400) as server, pytest.raises(BadInput, match=r"HTTP 400: .*planted"):
        bench(server.url)
    words = [{"name": "x", "datatype": "BYTES", "shape": [1]}]
    with Server(inputs=words) as server, pytest.raises(BadInput, match="takes BYTES, which cannot be made up"):
        bench(server.url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fail_if_p99": "fast"}, "'fast' is no time"),
        ({"fail_if_p99": "-5ms"}, "is no time"),
        ({"ref": "minilm"}, "rows of --data go through the tokenizer of --ref"),
        ({"column": ("text=a",)}, "which is not given"),
        ({"protocol": "grpc"}, "grpc"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        BenchServer.from_mapping({"model": "m", "qps": 1.0, **options})


@pytest.mark.parametrize(
    ("late", "total"), [(0, 367), (0, 368), (3, 1000), (4, 1000), (17, 1000), (18, 1000), (9, 100)]
)
def test_the_tail_is_judged_by_the_exact_binomial_test(late: int, total: int) -> None:
    """scipy's test of the share 1 in 100 against the two alternatives, each at 1 in 40."""
    sent = [Sent(0, 0, 60_000_000 if place < late else 40_000_000) for place in range(total)]
    less, greater = (scipy.stats.binomtest(late, total, 0.01, alternative=side).pvalue for side in ("less", "greater"))
    wanted = Outcome.PASS if less <= 0.025 else Outcome.REGRESSION if greater <= 0.025 else Outcome.INCONCLUSIVE
    assert tail_gate("m", "1", sent, 50.0, "").outcome is wanted
    assert tail_gate("m", "1", sent, 50.0, "overloaded").outcome is Outcome.INCONCLUSIVE
    if late == 0:
        assert wanted is (Outcome.PASS if total == 368 else Outcome.INCONCLUSIVE)
        unanswered = [Sent(0, 0, 1, error="timeout")] * 20 + sent[20:]
        assert tail_gate("m", "1", unanswered, 50.0, "").outcome is Outcome.REGRESSION
