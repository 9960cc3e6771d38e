"""The training itself: what it keeps, what it brings back, and how it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from qat_cases import case

import optimizer
from optimizer.errors import GateFailed
from optimizer.store import Store


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    case(folder, "classifier")
    return folder


def test_the_trained_model_is_a_folder_like_any_other(tmp_path: Path) -> None:
    """Also one whose batch normalization was folded: loaded from it, it answers in float as what was trained did."""
    import torch
    import transformers

    source, train, _ = case(tmp_path, "resnet")
    store = Store(tmp_path / "models")
    made = optimizer.train_qat(str(source), name="m", store=store, train=train, epochs=1, lr=0.0)
    kept = made.artifact
    assert kept.kind == "checkpoint"
    assert kept.manifest.facts["weights"]["float32"] > 10000
    before, after = (
        transformers.AutoModelForImageClassification.from_pretrained(folder).eval() for folder in (source, kept.path)
    )
    pixels = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(before(pixels).logits, after(pixels).logits, atol=1e-5)
    exported = optimizer.export_onnx(str(kept.path), name="again", store=store)
    assert exported.artifact.manifest.facts["quantized"]["total"] == 0


def test_training_brings_back_what_rounding_lost(tmp_path: Path) -> None:
    source, train, judged = case(tmp_path, "embedder")
    made = optimizer.train_qat(
        str(source), name="m", store=Store(tmp_path / "models"), train=train, eval=judged, all_ops=True,
        per_channel=False, scheme="w8a8-sym", epochs=15, batch=8, lr=1e-3,
    )  # fmt: skip
    scores = made.artifact.manifest.facts["training"]["scores"]
    lost, left = (1 - scores[when]["cosine"] for when in ("calibrated", "trained"))
    assert left < 0.6 * lost


def test_judging_by_rows_that_were_learned_can_be_insisted_on(classifier: Path, tmp_path: Path) -> None:
    data = classifier / "train.jsonl"
    made = optimizer.train_qat(
        str(classifier / "classifier"), name="m", store=Store(tmp_path / "models"), train=data, eval=data,
        allow_overlap=True, max_steps=1,
    )  # fmt: skip
    assert made.artifact.manifest.facts["training"]["steps"] == 1


def test_a_loss_that_is_no_number_ends_a_command_with_what_to_change(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    steps: list[int] = []

    def loss(ours: object, *given: object, **more: object) -> torch.Tensor:
        steps.append(1)
        made = ours.logits.square().sum()  # type: ignore[attr-defined]
        return made * float("nan") if len(steps) == 4 else made

    monkeypatch.setattr("optimizer.training.loop.distillation_loss", loss)
    store = Store(tmp_path / "models")
    given: dict[str, object] = {"train": classifier / "train.jsonl", "epochs": 2, "checkpoint_every": 0.0, "batch": 8}
    with pytest.raises(GateFailed, match="the training diverged: its loss is nan at step 4") as failed:
        optimizer.train_qat(str(classifier / "classifier"), name="m", store=store, **given)
    assert failed.value.exit_code == 1
    assert "lower --lr (it is 1e-05)" in failed.value.hint
    (kept,) = (tmp_path / "models" / ".ml-opt").glob("training/*/checkpoint-*")
    assert kept.name == "checkpoint-3"
    assert str(kept) in failed.value.hint
    assert store.refs() == []


def command(classifier: Path, store: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "optimizer", "train-qat", str(classifier / "classifier"), "--name", "m", "--json"),
        *("--train", str(classifier / "train.jsonl"), "--epochs", "12", "--batch", "8", "--store", str(store), *more),
    ]


def begun(classifier: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    """A training that has its first whole checkpoint."""
    process = subprocess.Popen(
        command(classifier, store, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not list((store / ".ml-opt" / "training").glob("*/checkpoint-*/whole")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_a_command_that_was_killed_goes_on_to_the_same_weights(classifier: Path, tmp_path: Path) -> None:
    process = begun(classifier, tmp_path / "cut", "--checkpoint-every", "0")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list((tmp_path / "cut").glob("m/*/*/manifest.json"))
    facts, weights = [], []
    for store in ("cut", "whole"):
        done = subprocess.run(command(classifier, tmp_path / store), capture_output=True, text=True, check=True)
        facts.append(json.loads(done.stdout)["facts"]["training"])
        kept = Store(tmp_path / store).get("m:checkpoint-qat")
        weights.append({name: kept.manifest.files[name]["sha256"] for name in ("model.safetensors", "ranges.json")})
    assert 0 < facts[0]["resumed_at"] < 72
    assert facts[1]["resumed_at"] == 0
    assert weights[0] == weights[1]
    assert facts[0]["curve"] == facts[1]["curve"]


def test_ctrl_c_says_where_it_goes_on(classifier: Path, tmp_path: Path) -> None:
    process = begun(classifier, tmp_path, "--checkpoint-every", "0")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert Store(tmp_path).refs() == []
