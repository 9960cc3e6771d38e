"""Candidates are made in other processes, from the store where it has them, and their end is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from benching.small import small_store

from optimizer.benching.process import CandidateFailed
from optimizer.search.build import build
from optimizer.search.candidates import StepOf
from optimizer.search.rebuild import commands_of, lineage
from optimizer.store import Store

__all__ = ["small_store"]

CAST = (StepOf("cast", {"to": "fp16"}),)


def test_a_chain_is_made_once(small_store: Store, tmp_path: Path) -> None:
    source = small_store.get("small:fp32")
    made = build(source, CAST, small_store, tmp_path / "log", 1, 120.0)
    assert made.ref == "small@1:fp16"
    assert [a.ref for a in lineage(made, small_store)] == ["small@1:fp32", "small@1:fp16"]
    assert commands_of(made, small_store)[1] == "ml-opt cast small@1:fp32 --to fp16"
    # A second time no process has the time to start: the store has it.
    assert build(source, CAST, small_store, tmp_path / "log", 1, 0.001).manifest.key == made.manifest.key


def test_a_stage_that_fails_or_hangs_says_so(small_store: Store, tmp_path: Path) -> None:
    source = small_store.get("small:fp32")
    steps = (*CAST, StepOf("quantize-static", {"calib": str(tmp_path / "none.jsonl")}))
    (tmp_path / "none.jsonl").write_text("{}\n")
    with pytest.raises(CandidateFailed):
        build(source, steps, small_store, tmp_path / "log", 1, 120.0)
    other = (StepOf("cast", {"to": "bf16"}),)
    with pytest.raises(CandidateFailed, match="hung: no answer to 'build'"):
        build(source, other, small_store, tmp_path / "log", 1, 0.01)
    assert small_store.variants("small", 1) == ["fp16", "fp32", "noisy"]
