"""How large runs are and how long requests wait: by what was measured on this machine, or as given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from serving import artifacts
from serving.test_app import call
from serving.test_batcher import PLAN, Gate, x
from serving.test_repository import within
from serving.test_why import play

from optimizer.artifact import Artifact
from optimizer.check import get_check
from optimizer.environment import describe
from optimizer.errors import BadInput
from optimizer.serving.batcher import Batcher
from optimizer.serving.curve import Curve
from optimizer.serving.measured import Measured, Timed
from optimizer.serving.pacing import limits_of
from optimizer.serving.problems import Problem
from optimizer.serving.repository import Repository
from optimizer.serving.settings import Settings
from optimizer.serving.state import State
from optimizer.serving.tickets import Limits
from optimizer.stage import silent
from optimizer.store import Store

#: Ten milliseconds, and ten for each token: in half of 400 ms there are 19 tokens.
SLOW = {"1x4": 50.0, "1x16": 170.0}
#: With one thread there are no runs side by side.
ONE = {"threads": 1, "verify": False}


def write_report(artifact: Artifact, times: Mapping[str, float], stamp: str = "20260102T030405000000Z", key: str = "",
                 cpu: str = "", facts: Mapping[str, Any] | None = None, **cell: Any) -> None:  # fmt: skip
    """What ``bench`` would have kept of an artifact: median milliseconds by shape."""
    from optimizer.runtime import Candidate, Provider

    opened = Candidate("c", artifact.model_file, Provider("cpu"), "", artifact.model_info).open(threads=1)
    known = dict(opened.facts)
    opened.close()
    environment = describe()
    if cpu:
        environment = {**environment, "cpu": {**environment["cpu"], "model": cpu}}
    row = {
        "key": key or artifact.manifest.key,
        "facts": {**known, **(facts or {})},
        "cells": [{"shape": shape, "p50_ms": ms, "copy_ms": -0.1, **cell} for shape, ms in times.items()],
    }
    document = {"report": "bench", "schema": 3, "created": "2026-01-02T03:04:05+00:00", "environment": environment,
                "rows": [{"key": "another", "facts": known, "cells": []}, row]}  # fmt: skip
    path = artifact.path.parent / "reports" / f"bench-{stamp}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


async def first_run(repository: Repository, count: int = 12) -> int:
    """How many of so many requests of four tokens are in the first run."""
    served = repository.get("classes")
    ids = np.full((1, 4), 5)
    request = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    assert served.batcher is not None
    tickets = served.batcher.submit_all([request] * count)
    await asyncio.gather(*(ticket.answer for ticket in tickets))
    return tickets[0].mates


def told(store: Store, look: Callable[[Repository], Awaitable[Any]] = first_run, **options: Any) -> tuple[Any, str]:
    """What a look at a repository that has just started finds, and where its limits come from."""

    async def scene(repository: Repository) -> tuple[Any, str]:
        await repository.start(["classes"])
        return await look(repository), repository.get("classes").limits_from

    return within(store, scene, **{**ONE, "slo": "400ms", **options})


def test_what_bench_measured_is_what_the_server_begins_with(store: Store) -> None:
    artifacts.put(store, "classes")
    check = get_check("bench")
    asked = {"shape": ("1x4", "4x16"), "duration": 0.05, "min_samples": 8, "rounds": 3, "threads": 1, "roofline": False}
    report = check.run(("classes:fp32",), check.options.from_mapping(asked), store, silent)
    cells = [(cell, cell.summary.p50_ms + max(0.0, cell.copy_ms)) for row in report.rows for cell in row.cells]
    known = Curve.of((4 if cell.batch == 1 else 64, ms / 1e3) for cell, ms in cells)

    async def predicted(repository: Repository) -> float:
        batcher = repository.get("classes").batcher
        assert batcher is not None
        return batcher._alone_lane.curve.seconds(64)

    seconds, limits_from = told(store, predicted)
    assert limits_from == f"measured by bench on {report.created[:10]}, 2 sizes up to 64 tokens"
    assert len(cells) == 2
    assert seconds == pytest.approx(known.seconds(64))


def test_a_planted_curve_says_how_large_the_first_run_is_and_runs_say_it_from_then_on(store: Store) -> None:
    write_report(artifacts.put(store, "classes"), SLOW)

    async def look(repository: Repository) -> tuple[int, int]:
        first = await first_run(repository)
        for _ in range(100):
            if (later := await first_run(repository)) == 12:
                break
        return first, later

    assert told(store, look) == ((4, 12), "measured by bench on 2026-01-02, 2 sizes up to 16 tokens")


@pytest.mark.parametrize(
    "other",
    [
        {"cpu": "Another Processor"},
        {"key": "0" * 64},
        {"facts": {"threads": 3}},
        {"facts": {"onnxruntime": "1.0.0"}},
        {"facts": {"provider": "openvino"}},
        {"workload": {"rows": 40}},
        {"open_loop": {"valid": True}},
    ],
    ids=["processor", "artifact", "threads", "runtime", "provider", "a pass over a file", "under load"],
)
def test_what_was_measured_of_something_else_says_nothing(store: Store, other: dict[str, Any]) -> None:
    write_report(artifacts.put(store, "classes"), SLOW, **other)
    first, limits_from = told(store)
    assert first == 12
    assert limits_from.startswith("measured at load, ")


def test_the_newest_time_of_each_size_counts_and_what_cannot_be_read_costs_nothing(store: Store) -> None:
    artifact = artifacts.put(store, "classes")
    write_report(artifact, {"1x4": 50.0, "8": 1.0, "1x16": 0.001})
    write_report(artifact, {"1x16": 170.0}, "20260103T030405000000Z")
    for number, text in enumerate(("{", "[]", "{}", '{"report": "bench", "rows": 1}')):
        artifact.path.parent.joinpath(f"reports/bench-2999010{number + 1}T000000000000Z.json").write_text(text)
    first, limits_from = told(store)
    assert (first, limits_from) == (4, "measured by bench on 2026-01-02, 2 sizes up to 16 tokens")


@pytest.mark.parametrize(
    ("given", "first", "said"),
    [
        ({"max_batch": 2}, 2, "--max-batch"),
        ({"max_tokens": 8}, 2, "--max-tokens"),
        ({"delay": "200ms"}, 2, "--delay"),  # which leaves 100 ms for a run: nine tokens
        ({"max_batch": 3, "max_tokens": 9999}, 3, "--max-batch, --max-tokens"),
    ],
)
def test_what_is_given_wins(store: Store, given: dict[str, Any], first: int, said: str) -> None:
    write_report(artifacts.put(store, "classes"), SLOW)
    found, limits_from = told(store, **given)
    assert found == first
    assert limits_from.endswith(f"; given: {said}")


def test_without_a_time_to_keep_to_the_times_are_known_and_runs_are_as_large_as_ever(store: Store) -> None:
    artifact = artifacts.put(store, "classes")
    assert told(store, slo=None) == (12, "learned as it runs")
    write_report(artifact, SLOW)
    first, limits_from = told(store, slo=None)
    assert first == 12
    assert limits_from.startswith("measured by bench")


def test_a_delay_that_leaves_nothing_of_the_time_is_refused() -> None:
    with pytest.raises(BadInput, match="leaves nothing of --slo"):
        Settings(slo="20ms", delay="20ms")


def by(*runs: tuple[int, int, float]) -> Measured:
    return Measured(tuple(Timed(*run) for run in runs), "by hand")


def test_runs_are_no_larger_than_pays_off_and_no_larger_than_was_measured() -> None:
    settings = Settings(slo="10s")
    # A run costs as much as a hundred tokens beside its own: 4,900 of them are 98 % of what there is to gain.
    costly = by((1, 100, 0.02), (64, 9900, 1.0))
    assert limits_of(settings, {}, costly).tokens == pytest.approx(4900, abs=1)
    assert limits_of(settings, {}, costly).rows == 64
    assert limits_of(settings, {"max_batch": 48}, costly).rows == 48
    assert limits_of(Settings(slo="10s", max_batch=16), {}, costly).rows == 16
    assert limits_of(Settings(slo="10s", max_tokens=300), {}, costly).tokens == 300
    assert limits_of(settings, {}, by((1, 100, 0.02), (8, 900, 0.1))).tokens == 2048, "larger ones were never seen"
    assert limits_of(settings, {}, by((1, 9, 0.01), (1, 99, 0.1))).tokens == pytest.approx(49, abs=1)
    assert limits_of(settings, {}, by((64, 9900, 1.0))).tokens == 9900, "of one size nothing is known of the start"
    for unknown in (limits_of(settings, {}), limits_of(Settings(), {}, costly)):
        assert (unknown.rows, unknown.tokens, unknown.total_s) == (32, 2048, None)


def test_a_run_moves_what_was_measured_by_a_tenth() -> None:
    curve = Curve.of([(16, 0.1)])
    curve.add(16, 0.0)
    assert curve.seconds(16) == pytest.approx(0.09)


def test_what_a_run_leaves_of_the_time_is_for_waiting(store: Store) -> None:
    async def longest(repository: Repository) -> float:
        batcher = repository.get("classes").batcher
        assert batcher is not None
        return batcher.longest_wait

    artifact = artifacts.put(store, "classes")
    write_report(artifact, SLOW)
    assert told(store, longest, slo="2s", max_tokens=16)[0] == pytest.approx(1.8 - 0.17)
    assert told(store, longest, slo="2s", max_tokens=16, delay="100ms")[0] == pytest.approx(1.7 - 0.17)
    assert told(store, longest, slo="100ms")[0] == pytest.approx(0.05), "half of it, however long a run is"
    assert told(store, longest, slo=None)[0] == float("inf")


def test_who_waits_no_longer_than_a_run_leaves_is_let_in() -> None:
    gate = Gate()

    async def scene() -> tuple[int, str]:
        batcher = Batcher(gate, PLAN, Limits(rows=1, tokens=3))
        batcher.begin_with(Limits(rows=1, tokens=3, run_s=0.05, wait_s=0.05, total_s=0.2), Curve.of([(3, 0.02)]))
        batcher.submit_all([x(1, 3)])
        await asyncio.to_thread(gate.begun.wait, 20)
        accepted, why = 0, ""
        while not why:
            try:
                batcher.submit_all([x(1, 3)])
                accepted += 1
            except Problem as problem:
                why = problem.reason
        gate.open.set()
        batcher.close()
        return accepted, why

    accepted, why = asyncio.run(scene())
    assert accepted in (8, 9, 10), "a fifth of a second, less the fiftieth that each one's run takes"
    assert why == "slo"


def test_a_model_that_nothing_is_known_of_learns_as_it_runs(tmp_path: Path, store: Store) -> None:
    planted = tmp_path / "planted.json"
    planted.write_text("{}")

    async def scene(repository: Repository) -> str:
        await repository.start([f"fake:{planted}"])
        return repository.get("planted").limits_from

    assert within(store, scene, slo="1s") == "learned as it runs"


def test_clients_are_told_where_the_limits_come_from(store: Store) -> None:
    write_report(artifacts.put(store, "classes"), {**SLOW, "64x4": 900.0})
    measured = "measured by bench on 2026-01-02, 3 sizes up to 256 tokens"

    async def scene(app: Any, state: State) -> None:
        config = json.loads((await call(app, "GET", "/v2/models/classes/config"))[1])
        assert config["parameters"] == {"limits_from": {"string_value": measured}}
        assert config["max_batch_size"] == 64
        health = json.loads((await call(app, "GET", "/health"))[1])
        assert health["models"][0]["limits_from"] == measured

    play(store.root, scene, slo="400ms")
