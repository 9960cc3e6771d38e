"""The training loop: Hugging Face's Trainer, with what a long run on somebody's own machine needs around it."""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from optimizer.errors import GateFailed, MissingPiece
from optimizer.files import disk_is_full, fsync_tree
from optimizer.hf import quiet_libraries
from optimizer.stage import Progress
from optimizer.training.distill import distillation_loss, has_classes, label_loss, mix_rows
from optimizer.training.quantized import QuantizedModel
from optimizer.training.rows import TrainingRows
from optimizer.types import JSON

__all__ = ["Plan", "Run", "train"]

#: Of the steps between levels: a share of themselves that one step of the optimizer changes them by, at most. Weights
#: are pretrained and move by --lr; ranges were only guessed.
_RANGE_LR = 1e-3
#: Share of the steps in which the learning rate rises.
_WARMUP = 0.1
#: Written into a checkpoint when all of it is on the disk.
_WHOLE = "whole"
#: How many points a curve of losses has.
_POINTS = 60


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        epochs: times to see every row.
        max_steps: steps after which to stop; None to see every row so often.
        lr: the highest learning rate, of weights.
        batch: rows in a step.
        seed: of the order of rows.
        distill: learn from the float model, otherwise from labels.
        pooling: how the model's states become a row's vector; empty where they do not.
        checkpoints: a folder for what a killed run goes on from.
        checkpoint_every: seconds between two of them.
        resume: go on from there, where something is there.
    """

    epochs: int
    max_steps: int | None
    lr: float
    batch: int
    seed: int
    distill: bool
    pooling: str
    checkpoints: Path
    checkpoint_every: float
    resume: bool


@dataclass(frozen=True)
class Run:
    """What training came to.

    Attributes:
        curve: in the order of steps: ``step`` with ``loss``, or with the numbers of a judgement.
        steps: how many were made.
        resumed_at: the step that this process went on from; 0 where it started.
        step_seconds: the median time of a step in this process, judging and checkpoints left out.
        device: ``cpu`` or ``cuda``.
    """

    curve: list[dict[str, JSON]]
    steps: int
    resumed_at: int
    step_seconds: float | None
    device: str


def train(
    model: QuantizedModel,
    rows: TrainingRows,
    plan: Plan,
    judge: Callable[[], Mapping[str, float]] | None,
    progress: Progress,
) -> Run:
    """Train a calibrated model in place.

    Args:
        model: weights of lookups stay as they are: few of their rows are met in training, and each is rounded alone.
        rows: to learn from.
        plan: how.
        judge: what the model is worth now, asked after every epoch.
        progress: told of every step.

    Returns:
        the curve; the same for the same seed on the same machine, whether or not it was interrupted.

    Raises:
        GateFailed: the loss is no number any more; the last good checkpoint is kept.
        MissingPiece: the disk has no room for checkpoints, or not any more; the last good one is kept.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last whole step is kept.
    """
    teacher = copy.deepcopy(model.module).requires_grad_(False) if plan.distill else None
    model.clip_weights()
    _need_room(model, plan.checkpoints)
    found = _last_whole(plan.checkpoints) if plan.resume else None
    if not plan.resume:
        shutil.rmtree(plan.checkpoints, ignore_errors=True)
    with _interruptible() as stop, quiet_libraries():
        trainer = _Trainer(model, teacher, rows, plan, judge, stop, progress)
        if teacher is not None:
            teacher.to(trainer.args.device)
        try:
            done = trainer.train(resume_from_checkpoint=str(found) if found else None)
        except Exception as error:
            if not disk_is_full(error):
                raise
            raise _out_of_room(plan) from error
        finally:
            # Half precision is for training: who asks the model afterwards wants what the graph will answer.
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if not _finite(model):
            raise _diverged(plan, f"a weight is no number after step {trainer.state.global_step}")
        if stop.is_set():
            raise KeyboardInterrupt(
                f"the training stopped after step {trainer.state.global_step}; the same command goes on from there"
            )
    times = sorted(trainer.times)
    # Resumed at the last step within an epoch, the Trainer makes one more before it looks, at a learning rate of 0.
    steps = min(int(done.global_step), trainer.steps)
    return Run(
        [line for line in _curve(trainer.state.log_history) if line["step"] <= steps],
        steps,
        int(found.name.rpartition("-")[2]) if found else 0,
        times[len(times) // 2] if times else None,
        trainer.args.device.type,
    )


class _Trainer(Trainer):
    """The Trainer, told what our rows, losses and learning rates are."""

    def __init__(
        self,
        model: QuantizedModel,
        teacher: torch.nn.Module | None,
        rows: TrainingRows,
        plan: Plan,
        judge: Callable[[], Mapping[str, float]] | None,
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        self.epoch_steps = -(-len(rows) // plan.batch)
        steps = self.steps = plan.max_steps or plan.epochs * self.epoch_steps
        gpu = torch.cuda.is_available()
        args = TrainingArguments(
            output_dir=str(plan.checkpoints),
            per_device_train_batch_size=plan.batch,
            num_train_epochs=plan.epochs,
            max_steps=plan.max_steps or -1,
            learning_rate=plan.lr,
            lr_scheduler_type="linear",
            warmup_steps=round(_WARMUP * steps),
            weight_decay=0.0,
            seed=plan.seed,
            data_seed=plan.seed,
            use_cpu=not gpu,
            bf16=gpu and torch.cuda.is_bf16_supported(),
            logging_steps=max(1, steps // _POINTS),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=gpu,
        )
        callbacks = [_Judging(self, judge, stop, progress), _Watch(self, plan, stop, progress, judge is not None)]
        args._n_gpu = min(args.n_gpu, 1)  # copies of a model for several GPUs have none of its names
        super().__init__(model, args, data_collator=rows.collate, train_dataset=rows, callbacks=callbacks)
        self.model_accepts_loss_kwargs = False
        self._teacher, self.plan = teacher, plan
        self.latest = 0.0
        self.said = ""
        self.times: list[float] = []

    @property
    def between_epochs(self) -> bool:
        """Whether the last step was an epoch's last one, or the last of all."""
        step = int(self.state.global_step)
        return step % self.epoch_steps == 0 or step >= self.steps

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        feeds = inputs["feeds"]
        if self._teacher is None:
            loss = label_loss(model(**feeds).logits, inputs["classes"])
        else:
            feeds = mix_rows(feeds)
            with torch.no_grad():
                theirs = self._teacher(**feeds, output_hidden_states=True)
            ours = model(**feeds, output_hidden_states=True)
            loss = distillation_loss(
                ours, theirs, feeds.get("attention_mask"), self.plan.pooling, exclusive=has_classes(self.model.config)
            )
        self.latest = float(loss.detach())
        if not math.isfinite(self.latest):
            raise _diverged(self.plan, f"its loss is {self.latest} at step {self.state.global_step + 1}")
        return loss

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW; ranges have a learning rate of their own."""
        ours = self.model
        ranges = [quantizer.log_scale for quantizer in ours.quantizers]
        tables = {id(weight) for name, weight in ours.module.named_parameters() if name in ours.tables}
        for weight in ours.module.parameters():
            weight.requires_grad_(id(weight) not in tables)
        weights = [weight for weight in ours.module.parameters() if weight.requires_grad]
        groups = [{"params": weights, "lr": self.plan.lr}]
        if ranges:
            groups.append({"params": ranges, "lr": _RANGE_LR})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        """Weights that share memory are written once: safetensors refuses them."""
        seen: dict[int, str] = {}
        whole = state_dict if state_dict is not None else self.model.state_dict()
        super()._save(output_dir, {n: t for n, t in whole.items() if seen.setdefault(t.data_ptr(), n) == n})

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return _Order(self.train_dataset, self.plan)


class _Order(torch.utils.data.Sampler[int]):
    """The order of an epoch's rows, which follows from the seed and the epoch's number alone: a resumed run has it."""

    def __init__(self, rows: TrainingRows, plan: Plan) -> None:
        self._rows, self._plan, self._epoch = rows, plan, 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows.order(self._plan.seed, self._epoch, self._plan.batch))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch


class _Judging(TrainerCallback):
    """What the model is worth after every epoch, as a line of the curve."""

    def __init__(
        self,
        trainer: _Trainer,
        judge: Callable[[], Mapping[str, float]] | None,
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        self._trainer, self._judge, self._stop, self._progress = trainer, judge, stop, progress

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer ends an epoch wherever it is stopped; only one that is over is judged.
        if self._judge is None or not self._trainer.between_epochs:
            return
        if not _finite(self._trainer.model):  # nor is it kept in place of what was good
            raise _diverged(self._trainer.plan, f"a weight is no number after step {state.global_step}")
        self._progress("judging", state.global_step, state.max_steps)
        found = dict(self._judge())
        name, value = next(iter(found.items()))
        self._trainer.said = f", {name} {value:.4f}"
        self._trainer.log(found)
        control.should_save = True  # a judgement is not made twice


class _Watch(TrainerCallback):
    """Progress, checkpoints by the clock, and stopping after a whole step.

    After the last step of an epoch that is judged none is written: the one after the judgement would take its place
    while it counts as whole, and a run that went on from it would never make the judgement.
    """

    def __init__(self, trainer: _Trainer, plan: Plan, stop: threading.Event, progress: Progress, judged: bool) -> None:
        self._trainer, self._plan, self._stop, self._progress = trainer, plan, stop, progress
        self._judged = judged
        self._saved = self._began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer.times.append(time.monotonic() - self._began)
        self._progress(f"training, loss {trainer.latest:.4f}{trainer.said}", state.global_step, state.max_steps)
        stopping = self._stop.is_set()
        control.should_training_stop = control.should_training_stop or stopping
        due = time.monotonic() - self._saved >= self._plan.checkpoint_every
        if (stopping or due) and not (self._judged and trainer.between_epochs) and _finite(trainer.model):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call a checkpoint whole once it is on the disk, and only then remove older ones."""
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        fsync_tree(newest)
        (newest / _WHOLE).touch()
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != newest:
                shutil.rmtree(other, ignore_errors=True)
        self._saved = time.monotonic()


def _diverged(plan: Plan, why: str) -> GateFailed:
    kept = _last_whole(plan.checkpoints)
    return GateFailed(
        f"the training diverged: {why}",
        f"lower --lr (it is {plan.lr:g}), with which the training begins anew"
        + (f"; the last good checkpoint is kept: {kept}" if kept else "; no checkpoint was written yet"),
    )


def _out_of_room(plan: Plan) -> MissingPiece:
    """For a disk that became full while a checkpoint was written: half of one is of no use, and takes room."""
    kept = _last_whole(plan.checkpoints)
    for each in plan.checkpoints.glob("checkpoint-*"):
        if each != kept:
            shutil.rmtree(each, ignore_errors=True)
    return MissingPiece(
        f"no room on the disk of {plan.checkpoints} while writing a checkpoint",
        "free some space (`ml-opt gc` clears leftovers), and type the same command again: "
        + (f"it goes on from the last good checkpoint, {kept}" if kept else "no checkpoint was written yet"),
    )


def _finite(model: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def _last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [each for each in folder.glob("checkpoint-*") if (each / _WHOLE).exists()]
    return max(found, key=lambda each: int(each.name.rpartition("-")[2]), default=None)


def _need_room(model: QuantizedModel, folder: Path) -> None:
    """Fail before training, not in the midst of it: two checkpoints lie side by side for a moment.

    One holds the weights, and the two moments that Adam keeps of each.
    """
    numbers = sum(weight.numel() for weight in model.parameters())
    trained = sum(w.numel() for name, w in model.module.named_parameters() if name not in model.tables)
    need = 2 * 4 * (numbers + 2 * trained)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise MissingPiece(
            f"no room for checkpoints on the disk of {folder}: {free / 2**20:.0f} MiB free, and two of them take "
            f"{need / 2**20:.0f} MiB",
            "free some space (`ml-opt gc` clears leftovers) or choose another --store",
        )


def _curve(history: list[dict[str, Any]]) -> list[dict[str, JSON]]:
    """The Trainer's log as a manifest keeps it: steps, losses and judgements."""
    left_out = {"epoch", "grad_norm", "learning_rate", "step"}
    lines = [{"step": line["step"], **{k: v for k, v in line.items() if k not in left_out}} for line in history]
    return [line for line in lines if "train_runtime" not in line]


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C is taken as a wish to stop after the step that is being made; the second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def wish(number: int, frame: Any) -> None:
        if stop.is_set() and callable(before):
            before(number, frame)
        stop.set()

    signal.signal(signal.SIGINT, wish)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
