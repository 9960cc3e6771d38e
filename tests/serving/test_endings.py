"""Servers that end under load, as benchmarks/serving/endings.py has it: their requests, and the next start."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from benchmarks.serving.endings import Ended, killed, terminated

PATH = "/v2/models/quick/infer"
BODIES = [
    json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, place]}]}).encode()
    for place in range(5)
]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "quick.json").write_text(json.dumps({"latency_s": 0.01, "wait": "sleep"}))
    return [f"fake:{tmp_path / 'quick.json'}"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_loses_nothing_though_clients_come_again_at_once(words: list[str], workers: str) -> None:
    """Nor do they hold its end up: the grace period is longer than this test may take."""
    for _ in range(2):
        found = terminated([*words, "--workers", workers, "--grace", "2000s"], PATH, BODIES, clients=12)
        assert (found["lost"], found["raced_new"], found["code"]) == (0, 0, 0)
        assert found["answered"] >= 60


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_start_after_kill_9_is_clean(words: list[str], workers: str) -> None:
    for _ in range(2):
        found = killed([*words, "--workers", workers], PATH, BODIES, clients=12)
        assert (found["ready"], found["answers"], found["left"]) == (1, 1, 0)
        assert found["answered"] >= 60


def test_what_the_server_read_and_did_not_answer_is_lost_and_what_it_never_read_is_not() -> None:
    ended = Ended(["a", "b"], ["c"], {"d": True, "e": False, "f": True, "g": False}, ["h"])
    wanted = Counter(answered=2, refused=1, raced_kept=1, raced_new=1, lost=3)
    assert ended.counts({"a", "b", "c", "d", "e", "h"}) == wanted
