"""Candidates are made in other processes, from the store where it has them, and their end is not ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from benching.small import mean_of_embeddings, small_store
from stores import leftovers

import optimizer
from optimizer.benching.process import CandidateFailed
from optimizer.errors import BadInput, MlOptError
from optimizer.recipe import run_recipe
from optimizer.search.build import build, export, ranked
from optimizer.search.candidates import StepOf
from optimizer.search.rebuild import commands_of, lineage, recipe_of
from optimizer.store import Store
from optimizer.types import Kind
from optimizer.upkeep import remove

__all__ = ["small_store"]


def write(path: Path, rows: list[dict[str, list[int]]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CAST = (StepOf("cast", {"to": "fp16"}),)


def test_a_chain_is_made_once(small_store: Store, tmp_path: Path) -> None:
    source = small_store.get("small:fp32")
    said: list[str] = []
    made = build(source, CAST, small_store, tmp_path / "log", 1, 120.0, lambda doing, *how_far: said.append(doing))
    assert made.ref == "small@1:fp16"
    assert said[-1] == "reading the result back", "what a stage says in its process is heard here"
    assert [a.ref for a in lineage(made, small_store)] == ["small@1:fp32", "small@1:fp16"]
    assert commands_of(made, small_store)[1] == "ml-opt cast small@1:fp32 --to fp16"
    # A second time no process has the time to start: the store has it.
    assert build(source, CAST, small_store, tmp_path / "log", 1, 0.001).manifest.key == made.manifest.key


def test_a_stage_that_fails_or_hangs_says_so(small_store: Store, tmp_path: Path) -> None:
    source = small_store.get("small:fp32")
    far = write(tmp_path / "far.jsonl", [{"input_ids": [10**6], "attention_mask": [1]}])
    steps = (*CAST, StepOf("quantize-static", {"calib": str(far)}))
    with pytest.raises(CandidateFailed):
        build(source, steps, small_store, tmp_path / "log", 1, 120.0)
    steps = (*CAST, StepOf("quantize-static", {"calib": str(write(tmp_path / "none.jsonl", [{}]))}))
    with pytest.raises(BadInput, match=r"none\.jsonl, row 1"):
        build(source, steps, small_store, tmp_path / "log", 1, 120.0)
    other = (StepOf("cast", {"to": "bf16"}),)
    with pytest.raises(CandidateFailed, match="hung: no answer to 'build'"):
        build(source, other, small_store, tmp_path / "log", 1, 0.01)
    assert small_store.variants("small", 1) == ["fp16", "fp32", "noisy"]
    assert leftovers(small_store) == []


def test_a_ranking_is_made_once_and_made_again_from_the_model_alone(tmp_path: Path) -> None:
    mean_of_embeddings(tmp_path / "small.onnx")
    store = Store(tmp_path / "models")
    source = optimizer.export_onnx(str(tmp_path / "small.onnx"), store=store).artifact
    rows = [{"input_ids": [3 + i, 4, 5], "attention_mask": [1, 1, 1]} for i in range(8)]
    calib = write(tmp_path / "calib.jsonl", rows)
    data, other = ({"calib": str(each)} for each in (calib, write(tmp_path / "other.jsonl", rows[1:])))
    ref, ranking = ranked(source, data, store, tmp_path / "log", 1, 120.0)
    assert store.get(ref).kind is Kind.RANKING
    assert {node.op_type for node in ranking} == {"MatMul", "Gather"}
    # A second time no process has the time to start.
    assert ranked(source, data, store, tmp_path / "log", 1, 0.001) == (ref, ranking)
    with pytest.raises(CandidateFailed, match="hung"):
        ranked(store.get(source.ref), other, store, tmp_path / "log", 1, 0.001)
    # What uses both a ranking and rows that are artifacts has both in its recipe.
    kept = optimizer.calibration_set(source.ref, data=calib, samples=8, store=store).artifact
    step = (StepOf("quantize-static", {"calib": kept.ref, "exclude_worst": 1, "sensitivity": ref}),)
    made = build(source, step, store, tmp_path / "log", 1, 120.0)
    assert made.manifest.facts["left_out"][0]["node"] == ranking[0].node
    assert [a.ref for a in lineage(made, store)] == [source.ref, kept.ref, ref, made.ref]
    (tmp_path / "best.toml").write_text(recipe_of(made, store, "Makes it again."))
    # Somewhere else, where another model of that name was first: nothing can be found under its old reference.
    elsewhere = Store(tmp_path / "elsewhere")
    mean_of_embeddings(tmp_path / "other.onnx", noise=0.1)
    optimizer.export_onnx(str(tmp_path / "other.onnx"), name="small", store=elsewhere)
    run_recipe(tmp_path / "best.toml", store=elsewhere)
    assert elsewhere.variants("small", 2) == store.variants("small", 1)
    again = elsewhere.get(made.ref.replace("@1", "@2")).manifest
    assert (again.key, again.files["model.onnx"]) == (made.manifest.key, made.manifest.files["model.onnx"])
    # Without the ranking the artifact still stands.
    remove(store, ref)
    assert [a.ref for a in lineage(made, store)] == [source.ref, kept.ref, made.ref]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """``broken(statement)``: a process that exports runs this first."""

    def make(statement: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\nif 'optimizer.search.build' in sys.orig_argv:\n    " + statement + "\n"
        )
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    return make


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "cannot be exported: .*SIGKILL"),
        ("import time; time.sleep(600)", "cannot be exported: hung: no answer to 'export' within 2 s"),
    ],
)
def test_an_export_that_dies_or_hangs_leaves_nothing(
    broken: Callable[[str], None], tmp_path: Path, small_store: Store, statement: str, message: str
) -> None:
    broken(statement)
    source = tmp_path / "mine.onnx"
    mean_of_embeddings(source)
    store = Store(tmp_path / "other")
    with pytest.raises(BadInput, match=message):
        export(str(source), None, store, 1, 2.0)
    assert store.refs() == []


def test_what_a_killed_stage_had_begun_is_cleared_away(
    broken: Callable[[str], None], tmp_path: Path, small_store: Store
) -> None:
    """It dies in the middle of its work, and its scratch folder goes with it."""
    broken(
        "import os; sys.addaudithook(lambda event, args: os.kill(os.getpid(), 9) "
        "if event == 'open' and str(args[0]).endswith('manifest.json') and 'scratch' in str(args[0]) else None)"
    )
    with pytest.raises(CandidateFailed, match="SIGKILL"):
        build(small_store.get("small:fp32"), (StepOf("cast", {"to": "bf16"}),), small_store, tmp_path / "log", 1, 120.0)
    assert leftovers(small_store) == []


def test_an_export_keeps_its_errors_and_is_made_once(tmp_path: Path) -> None:
    source = tmp_path / "mine.onnx"
    mean_of_embeddings(source)
    store = Store(tmp_path / "other")
    made = export(str(source), None, store, 1, 120.0)
    assert made.ref == "mine@1:fp32"
    assert export(str(source), None, store, 1, 0.001).manifest.key == made.manifest.key
    with pytest.raises(BadInput) as found:
        export(str(tmp_path / "none.onnx"), None, store, 1, 120.0)
    assert "none.onnx" in found.value.message
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(MlOptError):
        export(str(tmp_path / "empty.onnx"), None, store, 1, 120.0)
    assert store.refs() == ["mine@1:fp32"]
