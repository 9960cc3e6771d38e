"""Training comes last, only where it may win, and is not spoken of as something that is better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benching.small import small_store
from search.test_contest import MODEL, PLAN, rows_of
from stores import leftovers

from optimizer.benching.candidates import Entrant
from optimizer.benching.process import CandidateFailed
from optimizer.runtime import Candidate, Provider
from optimizer.search.candidates import QAT, STATIC, Idea, StepOf
from optimizer.search.contest import Contender, Contest, Rules, hold
from optimizer.search.gates import Outcome
from optimizer.search.kin import Kin
from optimizer.search.making import make
from optimizer.search.options import Optimize
from optimizer.search.run import _trained, _untried
from optimizer.search.trained import Trained, training_of
from optimizer.stage import silent
from optimizer.store import Store
from optimizer.types import Precision

__all__ = ["small_store"]

CPU = Idea("int8-static", Precision.INT8, Provider("cpu"), (StepOf(STATIC, {"calib": "c"}),), "")
OTHER = replace(CPU, name="int8-static-openvino", provider=Provider("openvino-native"))
ENGINE = replace(
    CPU,
    name="int8-static-tensorrt-engine",
    provider=Provider("tensorrt-native"),
    steps=(StepOf(STATIC, {"calib": "c", "symmetric": True}), StepOf("build-trt-engine", {"flavor": "tensorrt"})),
)
TRAINING = {"train": "t"}


class Planted:
    """int8 that is wrong in six of ten rows unless it is trained, and kin that are no better."""

    def __init__(self, folder: Path, static_s: float = 0.001, wrong: float = 0.6) -> None:
        self.folder, self.static_s, self.wrong = folder, static_s, wrong
        self.made: list[str] = []

    def entrant(self, name: str, **does: Any) -> Entrant:
        path = self.folder / f"{name}.json"
        logits = {"name": "logits", "dtype": "float32", "shape": ["batch", 4]}
        path.write_text(json.dumps({"outputs": [logits], "wait": "sleep", **does}))
        return Entrant(Candidate(name, path, Provider("fake")))

    def contend(self, idea: Idea) -> Contender:
        trained = any(step.stage == QAT for step in idea.steps)

        def make() -> Entrant:
            self.made.append(idea.name)
            # On another provider it takes half as long again: more than a busy machine hides.
            seconds = self.static_s * (1.0 if idea.provider == CPU.provider else 1.5)
            return self.entrant(idea.name, latency_s=seconds, wrong=0.0 if trained else self.wrong)

        return Contender(idea.name, make, idea.family)

    def hold(self, ideas: list[Idea], *others: Entrant) -> tuple[Contest, dict[str, str]]:
        """The contest, and what was left out."""
        kin = {idea.family: Kin([idea], self.contend, lambda: ("m@1:ranking", [])) for idea in ideas}
        trained = {idea.family: Trained(idea, TRAINING, self.contend) for idea in ideas}
        contenders = [self.contend(idea) for idea in ideas]
        contenders += [Contender(each.label, lambda each=each: each) for each in others]
        rules = Rules("latency", PLAN, min_agreement=0.9)
        original = self.entrant("original", latency_s=0.005)
        rows = rows_of(self.folder, 200)
        found = hold(original, contenders, rows, MODEL, rules, silent, kin, resort=trained)
        return found, {each.name: each.reason for each in _untried(kin, trained, found)}


def test_it_comes_after_everything_else_of_every_family(tmp_path: Path) -> None:
    plant = Planted(tmp_path)
    found, left_out = plant.hold([CPU, OTHER])
    after = ["int8-static", "int8-static-openvino", "int8-static-entropy", "int8-static-openvino-entropy"]
    assert plant.made[:5] == [*after, "int8-qat"]
    assert (found.decision.verdict, found.decision.best) == (Outcome.PASS, "int8-qat")
    assert plant.made[5:] == [], "the other's times say that it is not faster"
    assert list(left_out) == ["int8-qat-openvino"], "what was tried is not left out"
    assert "int8-qat" in left_out["int8-qat-openvino"]
    assert "which keeps the budgets" in left_out["int8-qat-openvino"]


def test_where_int8_misses_no_budget_nothing_is_trained(tmp_path: Path) -> None:
    plant = Planted(tmp_path, wrong=0.0)
    found, left_out = plant.hold([CPU])
    assert (plant.made, found.decision.best) == (["int8-static"], "int8-static")
    assert left_out == {"int8-qat": "int8-static misses no budget without training"}


def test_what_could_not_win_is_not_trained(tmp_path: Path) -> None:
    plant = Planted(tmp_path, static_s=0.004)
    found, left_out = plant.hold([CPU], plant.entrant("bf16", latency_s=0.001))
    assert (plant.made, found.decision.best) == (["int8-static"], "bf16")
    assert set(left_out) == {"int8-static-entropy and -mixed-N", "int8-qat"}
    assert left_out["int8-qat"].startswith("int8-static itself takes ")


def test_it_takes_the_place_of_calibrating() -> None:
    last = Trained(ENGINE, TRAINING, lambda idea: Contender(idea.name, lambda: None))  # type: ignore[arg-type, return-value]
    assert last([]) is not None
    assert last([]) is None, "once is enough"
    (idea,) = last.made.values()
    assert idea.name == "int8-qat-tensorrt-engine"
    assert idea.steps == (StepOf(QAT, {"train": "t", "smooth": True, "target": "tensorrt"}), ENGINE.steps[1])
    assert (idea.family, idea.provider, idea.asked) == (ENGINE.family, ENGINE.provider, "int8")


def test_as_many_bits_are_trained_as_were_calibrated() -> None:
    """On a processor whose sums saturate, static int8 has 7-bit weights; 8 of them would be trained for nothing."""
    seven = replace(CPU, steps=(StepOf(STATIC, {"calib": "c", "reduce_range": True}),))
    last = Trained(seven, TRAINING, lambda idea: Contender(idea.name, lambda: None))  # type: ignore[arg-type, return-value]
    assert last([]) is not None
    (idea,) = last.made.values()
    assert idea.steps == (StepOf(QAT, {"train": "t", "smooth": True, "reduce_range": True}),)


def test_what_cannot_be_trained_is_left_out_with_the_reason(small_store: Store, tmp_path: Path) -> None:
    options = Optimize(allow_training=tmp_path / "train.jsonl", eval=tmp_path / "eval.jsonl")
    imported = small_store.get("small:fp32")

    def reason(task: str, type_: str, ideas: list[Idea]) -> str:
        model = {**imported.manifest.model, "task": task, "source": {"type": type_}}
        artifact = replace(imported, manifest=replace(imported.manifest, model=model))
        found, (left,) = _trained(ideas, lambda idea: pytest.fail("made"), artifact, options)
        assert (found, left.name) == ({}, "int8-qat")
        return left.reason

    assert reason("text-classification", "file", [CPU]).startswith("an .onnx file cannot be trained")
    assert reason("question-answering", "folder", [CPU]).startswith("question-answering cannot be trained here; text-")
    assert "static int8, which is left out" in reason("text-classification", "folder", [])


def test_what_is_made_when_the_time_budget_ends_is_left_where_it_is(
    small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.search.making.patience", lambda rules: 60.0)
    idea = replace(CPU, name="fp16", steps=(StepOf("cast", {"to": "fp16"}),))
    rules = Rules("latency", PLAN, min_agreement=0.9, budget_s=0.0)
    with pytest.raises(CandidateFailed, match="the time budget was spent while it was made") as found:
        make(idea, small_store.get("small:fp32"), small_store, rules, tmp_path, silent)
    assert "goes on where it was" in found.value.hint
    assert leftovers(small_store) == []


def test_the_model_is_opened_as_it_was_for_the_export(small_store: Store) -> None:
    export = small_store.get("small:fp32")
    given = {**export.manifest.options, "task": "fill-mask", "revision": "v2", "opset": 19}
    export = replace(export, manifest=replace(export.manifest, options=given))
    wanted = {"train": "t.jsonl", "column": ["text=body"], "task": "fill-mask", "revision": "v2"}
    assert training_of(Path("t.jsonl"), ("text=body",), export) == wanted
