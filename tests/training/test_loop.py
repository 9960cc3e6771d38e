"""The training loop: what it learns from, what it keeps, and how it ends when something goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import phrases, two_layers, write

from optimizer.data.preprocess import Preprocessor
from optimizer.errors import GateFailed, MissingPiece
from optimizer.stage import silent
from optimizer.training.loop import Plan, train
from optimizer.training.quantized import QuantizedModel
from optimizer.training.rows import TrainingRows, batch_of, open_rows
from optimizer.training.scheme import SCHEMES
from optimizer.types import JSON

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("loop")
    two_layers(home / "model")
    write(home / "train.jsonl", [{"text": " ".join(words)} for words in phrases(40, 1)])
    return home


def about() -> dict[str, JSON]:
    inputs = [
        {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    return {"task": "feature-extraction", "pooling": "mean", "inputs": inputs, "max_length": 64, "labels": []}


def started(folder: Path) -> tuple[QuantizedModel, TrainingRows]:
    import transformers

    preprocessor = Preprocessor.open(folder / "model", about())
    rows, _ = open_rows(folder / "train.jsonl", preprocessor, about())
    module = transformers.BertModel.from_pretrained(folder / "model", attn_implementation="eager")
    learned = TrainingRows(rows, about(), labelled=False)
    model = QuantizedModel(module, SCHEMES["w8a8-sym"], batch_of(rows.feeds(range(4))))
    model.calibrate([batch_of(rows.feeds(range(8)))], lambda done: None)
    return model, learned


def plan(checkpoints: Path, **changes: Any) -> Plan:
    usual = Plan(
        epochs=2, max_steps=None, lr=1e-3, batch=8, seed=0, distill=True, pooling="mean", checkpoints=checkpoints,
        checkpoint_every=0.0, resume=True,
    )  # fmt: skip
    return replace(usual, **changes)


def weights(model: QuantizedModel) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_the_float_models_answers_and_is_repeatable(folder: Path, tmp_path: Path) -> None:
    ends = []
    for turn in range(2):
        model, rows = started(folder)
        before = weights(model)
        run = train(model, rows, plan(tmp_path / str(turn), epochs=6), None, silent)
        losses = [line["loss"] for line in run.curve if "loss" in line]
        assert run.steps == 30
        assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
        ends.append(weights(model))
        tables = [name for name in before if "embeddings.weight" in name]
        assert len(tables) == 3
        assert all(torch.equal(before[name], ends[-1][name]) for name in tables)
        assert not same(before, ends[-1])
    assert same(*ends)


class Stop:
    """Ends the process's training after so many steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, doing: str, done: float | None = None, total: float | None = None) -> None:
        if doing.startswith("training") and done == self.after:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_training_that_is_stopped_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    whole, rows = started(folder)
    judged: list[int] = []

    def judge() -> Mapping[str, float]:
        judged.append(1)
        return {"cosine": 0.5}

    told = train(whole, rows, plan(tmp_path / "whole"), judge, silent)
    assert judged == [1, 1]
    model, rows = started(folder)
    # In the midst of the second epoch, and with checkpoints by the clock too far apart to help.
    seldom = plan(tmp_path / "parts", checkpoint_every=1000.0)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7; the same command goes on"):
        train(model, rows, seldom, judge, Stop(7))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model, rows = started(folder)
    run = train(model, rows, seldom, judge, silent)
    assert run.resumed_at == 7
    assert same(weights(model), weights(whole))
    assert run.curve == told.curve


def test_half_a_checkpoint_is_none(folder: Path, tmp_path: Path) -> None:
    model, rows = started(folder)
    with pytest.raises(KeyboardInterrupt):
        train(model, rows, plan(tmp_path), None, Stop(3))
    (kept,) = tmp_path.glob("checkpoint-*")
    shutil.copytree(kept, tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "whole").unlink()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    model, rows = started(folder)
    assert train(model, rows, plan(tmp_path), None, silent).resumed_at == 3
    model, rows = started(folder)
    assert train(model, rows, plan(tmp_path, resume=False), None, silent).resumed_at == 0


def test_a_loss_that_is_no_number_ends_it_and_keeps_the_last_good_checkpoint(folder: Path, tmp_path: Path) -> None:
    model, rows = started(folder)

    def poisoned(doing: str, done: float | None = None, total: float | None = None) -> None:
        if doing.startswith("training") and done == 3:
            with torch.no_grad():
                model.module.encoder.layer[0].output.dense.weight.fill_(float("nan"))

    with pytest.raises(GateFailed, match="diverged: its loss is nan at step 4") as failed:
        train(model, rows, plan(tmp_path), None, poisoned)
    assert "lower --lr (it is 0.001)" in failed.value.hint
    assert "checkpoint-2" in failed.value.hint
    assert [each.name for each in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_weights_that_are_no_numbers_at_an_epochs_end_take_no_good_checkpoints_place(
    folder: Path, tmp_path: Path
) -> None:
    model, rows = started(folder)
    judged: list[int] = []

    def poisoned(doing: str, done: float | None = None, total: float | None = None) -> None:
        if doing.startswith("training") and done == 5:
            with torch.no_grad():
                model.module.encoder.layer[0].output.dense.weight.fill_(float("nan"))

    with pytest.raises(GateFailed, match="diverged: a weight is no number after step 5") as failed:
        train(model, rows, plan(tmp_path), lambda: judged.append(1) or {"cosine": 0.5}, poisoned)
    assert "checkpoint-4" in failed.value.hint
    assert [each.name for each in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not judged


def test_one_that_is_killed_while_it_is_judged_is_judged_again(folder: Path, tmp_path: Path) -> None:
    """What lies on the disk meanwhile is a whole checkpoint of before, and no other is written in its place."""
    whole, rows = started(folder)
    told = train(whole, rows, plan(tmp_path / "whole"), lambda: {"cosine": 0.5}, silent)
    lying: list[list[str]] = []

    def killed() -> Mapping[str, float]:
        lying.append([each.parent.name for each in (tmp_path / "parts").glob("*/whole")])
        if len(lying) == 1:
            raise InterruptedError("killed")
        return {"cosine": 0.5}

    model, rows = started(folder)
    with pytest.raises(InterruptedError):
        train(model, rows, plan(tmp_path / "parts"), killed, silent)
    model, rows = started(folder)
    run = train(model, rows, plan(tmp_path / "parts"), killed, silent)
    assert lying == [["checkpoint-4"], ["checkpoint-4"], ["checkpoint-9"]]
    assert run.resumed_at == 4
    assert run.curve == told.curve
    assert same(weights(model), weights(whole))


def test_one_that_was_over_within_an_epoch_makes_no_more_steps(folder: Path, tmp_path: Path) -> None:
    ends = []
    for resumed_at in (0, 3):
        model, rows = started(folder)
        run = train(model, rows, plan(tmp_path, max_steps=3), lambda: {"cosine": 0.5}, silent)
        assert (run.steps, run.resumed_at) == (3, resumed_at)
        ends.append((weights(model), run.curve))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert [line["cosine"] for line in ends[0][1] if "cosine" in line] == [0.5]


def test_too_little_room_is_said_before_the_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = started(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**20))  # type: ignore[attr-defined]
    with pytest.raises(MissingPiece, match=r"no room for checkpoints.*1 MiB free"):
        train(model, rows, plan(tmp_path), None, silent)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        # What torch's writer says on a disk that is full.
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
    ids=["the system's", "torch's"],
)
def test_a_disk_that_becomes_full_within_a_checkpoint_costs_no_more_than_that_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole, rows = started(folder)
    train(whole, rows, plan(tmp_path / "whole"), None, silent)
    model, rows = started(folder)
    saved: list[Path] = []
    save = torch.save

    def full(what: Any, path: Any, *given: Any, **more: Any) -> None:
        if Path(path).name == "optimizer.pt":
            saved.append(Path(path).parent)
            if len(saved) == 3:
                Path(path).write_bytes(b"half")
                raise error
        save(what, path, *given, **more)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MissingPiece, match=r"no room on the disk of .* while writing a checkpoint") as failed:
        train(model, rows, plan(tmp_path / "cut"), None, silent)
    assert failed.value.exit_code == 4
    assert "ml-opt gc" in failed.value.hint
    assert f"goes on from the last good checkpoint, {tmp_path / 'cut' / 'checkpoint-2'}" in failed.value.hint
    assert [each.name for each in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    model, rows = started(folder)
    assert train(model, rows, plan(tmp_path / "cut"), None, silent).resumed_at == 2
    assert same(weights(model), weights(whole))


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    model, rows = started(folder)
    with pytest.raises(MissingPiece) as failed:
        train(model, rows, plan(tmp_path), None, silent)
    assert failed.value.hint.endswith("no checkpoint was written yet")
    assert not list(tmp_path.glob("checkpoint-*"))


def test_other_errors_of_a_training_stay_what_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", broken)
    model, rows = started(folder)
    with pytest.raises(RuntimeError, match="something else"):
        train(model, rows, plan(tmp_path), None, silent)


def test_an_epochs_order_shares_batches_by_length_and_follows_from_its_number(folder: Path) -> None:
    _, rows = started(folder)
    orders = [rows.order(0, epoch, 8) for epoch in (0, 1)]
    assert rows.order(0, 1, 8) == orders[1]
    assert rows.order(1, 1, 8) != orders[1]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(40))
    lengths = rows.rows.lengths
    assert lengths is not None

    def spread(order: Callable[[int], int]) -> int:
        found = [[lengths[order(place)] for place in range(start, start + 8)] for start in range(0, 40, 8)]
        return sum(max(each) - min(each) for each in found)

    assert spread(orders[0].__getitem__) < 0.6 * spread(lambda place: place)


def test_another_thread_trains_without_taking_signals(folder: Path, tmp_path: Path) -> None:
    model, rows = started(folder)
    steps: list[int] = []
    worker = threading.Thread(target=lambda: steps.append(train(model, rows, plan(tmp_path), None, silent).steps))
    worker.start()
    worker.join()
    assert steps == [10]
