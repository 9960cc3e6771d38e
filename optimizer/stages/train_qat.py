"""train-qat: train a model to answer well in int8; its weights stay float, and learn to live with rounding."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import Source, SourceModel
from optimizer.data.columns import column_opt, named_columns
from optimizer.digest import digest_json
from optimizer.environment import version_of
from optimizer.errors import BadInput
from optimizer.exporting.options import allow_pickle_opt, revision_opt, task_opt, trust_remote_code_opt
from optimizer.layout import Layout
from optimizer.options import Options, opt
from optimizer.quantizing.options import per_channel_opt, reduce_range_opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.training.scheme import SCHEMES, Scheme
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    from optimizer.data.preprocess import Preprocessor
    from optimizer.training.quantized import QuantizedModel
    from optimizer.training.rows import Judge, TrainingRows

__all__ = ["STAGE", "TrainQat", "scheme_of", "words_of"]

#: What a scheme is called in a variant's name.
_WORDS = {"w8a8": "", "w8a8-sym": "sym", "w4a16": "w4a16"}
#: Rows that a batch of calibration has.
_BATCH = 8


class TrainQat(Options):
    """Options of train-qat."""

    train: Path = opt(
        help="Data to learn from, like the model will see: jsonl, csv, parquet, npz, txt or a folder of images.",
        data=True,
        metavar="FILE",
    )
    eval: Path | None = opt(None, "Other data, to judge by after every epoch.", data=True, metavar="FILE")
    column: tuple[str, ...] = column_opt()
    task: str | None = task_opt()
    epochs: int = opt(3, "Times to see every row.", ge=1, le=1000)
    max_steps: int | None = opt(None, "Stop after so many steps [when every epoch is over].", ge=1)
    lr: float = opt(1e-5, "Highest learning rate of weights.", ge=0, le=1)
    batch: int = opt(16, "Rows in a step.", ge=1, le=4096)
    distill: bool = opt(True, "Learn from the float model's own answers and states, which takes no labels.")
    scheme: str | None = opt(
        None,
        "Bits of weights and activations; sym is what TensorRT takes [w8a8, for TensorRT w8a8-sym].",
        choices=tuple(SCHEMES),
    )
    target: str = opt("ort", "What the graph is for.", choices=("ort", "openvino", "tensorrt"))
    per_channel: bool = per_channel_opt()
    all_ops: bool = opt(False, "Also round sums, normalized values, softmax, products of activations and the head.")
    reduce_range: bool = reduce_range_opt()
    smooth: bool | None = opt(
        None, "SmoothQuant: move outlier channels of activations into the weights first [for w8a8-sym]."
    )
    quantize_head: bool = opt(False, "Also quantize the weights of the task's own head.")
    samples: int = opt(200, "Rows to find the first ranges on.", ge=1, le=100000)
    seed: int = opt(0, "Another seed orders rows otherwise.", ge=0)
    revision: str | None = revision_opt()
    trust_remote_code: bool = trust_remote_code_opt()
    allow_pickle: bool = allow_pickle_opt()
    allow_overlap: bool = opt(False, "Judge even by rows that were trained on.")
    resume: bool = opt(True, "Go on from where the same training was stopped, instead of starting over.", key=False)
    checkpoint_every: float = opt(60.0, "Time between two checkpoints.", ge=0, key=False, time=True)

    def check(self) -> None:
        named_columns(self.column)
        if self.target == "tensorrt" and self.scheme == "w8a8":
            raise BadInput(
                "--scheme w8a8 has unsigned activations with a zero point, which TensorRT does not take",
                "use --scheme w8a8-sym, or leave --scheme out",
            )
        if self.name_of_scheme == "w4a16":
            for flag, given in (
                ("--all-ops", self.all_ops),
                ("--no-per-channel", not self.per_channel),
                ("--reduce-range", self.reduce_range),
                ("--smooth", bool(self.smooth)),
            ):
                if given:
                    raise BadInput(f"{flag} is about 8-bit numbers, and --scheme w4a16 has none", "leave it out")

    @property
    def name_of_scheme(self) -> str:
        return self.scheme or ("w8a8-sym" if self.target == "tensorrt" else "w8a8")

    @property
    def smooths(self) -> bool:
        """Whether activations are smoothed; by default signed ones, which lose the most to an outlier."""
        return self.name_of_scheme == "w8a8-sym" if self.smooth is None else self.smooth


def scheme_of(options: TrainQat) -> Scheme:
    """What is rounded, as the options say."""
    return replace(
        SCHEMES[options.name_of_scheme],
        per_channel=options.per_channel,
        every=options.all_ops,
        head=options.quantize_head,
        reduce_range=options.reduce_range,
        smooth=options.smooths,
    )


def _run(source: Source, out: Path, options: TrainQat, progress: Progress) -> Outcome:
    import torch

    from optimizer.training.checkpoint import save_quantized
    from optimizer.training.left import left_in_float, said_of
    from optimizer.training.loop import Plan, train
    from optimizer.training.probe import probe_batches, write_probe
    from optimizer.training.quantized import QuantizedModel
    from optimizer.training.rows import answers

    if not isinstance(source, SourceModel):
        raise TypeError("train-qat starts from a model")
    torch.manual_seed(options.seed)
    module, inputs, about, preprocessor, warnings = _opened(source, out, options, progress)
    rows, judge = _data(options, preprocessor, about, progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    scores: dict[str, JSON] = {}
    original: list[Any] = []
    if judge is not None:
        progress("judging the float model")
        original = judge.answers(module, device)
        scores["float"] = judge.score(original, original)
    model = QuantizedModel(module, scheme_of(options), {n: t.to(device) for n, t in inputs.items()}).to(device)
    _calibrate(model, rows, options, device, progress)
    left = left_in_float(model)
    warnings += said_of(left, sum(weight.numel() for weight in module.parameters()))

    def judged() -> Mapping[str, float]:
        assert judge is not None
        return judge.score(judge.answers(model, device), original)

    if judge is not None:
        progress("judging what calibrating alone comes to")
        scores["calibrated"] = dict(judged())
    checkpoints = _checkpoints(source, options, out)
    plan = Plan(
        epochs=options.epochs,
        max_steps=options.max_steps,
        lr=options.lr,
        batch=options.batch,
        seed=options.seed,
        distill=options.distill,
        pooling=str(about["pooling"]),
        checkpoints=checkpoints,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
    )
    run = train(model, rows, plan, judged if judge is not None else None, progress)
    if judge is not None:
        progress("judging the trained model")
        scores["trained"] = dict(judged())
    progress("writing the trained model")
    model.to("cpu")
    save_quantized(model, out)
    batches = list(probe_batches(judge.rows if judge is not None else rows.rows, None))
    write_probe(out, batches, answers(model, batches))
    facts: dict[str, JSON] = {
        "training": {
            "data": rows.rows.summary,
            "eval": judge.rows.summary if judge is not None else None,
            "judged_by": judge.name if judge is not None else None,
            "scores": scores,
            "curve": run.curve,
            "steps": run.steps,
            "resumed_at": run.resumed_at,
            "step_seconds": run.step_seconds,
            "device": run.device,
            "float_weights": model.float_weights(),
            "float_modules": left,
            "smoothed": model.smoothed_sites(),
        }
    }
    if judge is None:
        warnings.append("nothing was judged: add --eval FILE with rows that are not trained on")
    return Outcome(facts, about, warnings, stored=lambda: shutil.rmtree(checkpoints, ignore_errors=True))


def _opened(
    source: SourceModel, out: Path, options: TrainQat, progress: Progress
) -> tuple[Any, dict[str, Any], dict[str, JSON], Preprocessor, list[str]]:
    """The model, inputs to trace it with, what a manifest says of it, what makes its inputs, and what is to be said."""
    from optimizer.data.preprocess import Preprocessor
    from optimizer.exporting.companions import write_companions, write_golden
    from optimizer.exporting.samples import make_sample
    from optimizer.hf import infer_task, load_model, read_config
    from optimizer.training.batchnorm import fold_batch_norms
    from optimizer.training.distill import has_classes
    from optimizer.training.tasks import TASKS

    if source.type == "file":
        raise BadInput(
            f"{source.spec} is an .onnx file, which cannot be trained",
            "give the model folder it was exported from; for the file itself: ml-opt quantize static REF --calib FILE",
        )
    task = options.task or infer_task(read_config(source.path))
    if task not in TASKS:
        raise BadInput(
            f"{task} cannot be trained here; {', '.join(TASKS)} can",
            "quantize it after training: ml-opt quantize static REF --calib FILE",
        )
    progress("loading the model")
    loaded = load_model(source.path, task, attention="eager", trust_remote_code=options.trust_remote_code)
    if loaded.class_name.endswith(".encoder"):
        raise BadInput(
            f"{loaded.class_name} is half a model, and its other half would be lost",
            "save the encoder as a model of its own, and train that",
        )
    if not options.distill and not has_classes(loaded.config):
        raise BadInput(
            f"{loaded.class_name} answers with numbers or several labels, and --no-distill learns single classes",
            "leave --no-distill out: the float model's own answers need no labels",
        )
    sample = make_sample(loaded, source.path, task, None)
    progress("asking PyTorch for the golden answers")
    write_golden(loaded, sample, out)
    about, warnings = write_companions(
        loaded, sample, source, out, task, max_batch=None, trust_remote_code=options.trust_remote_code
    )
    about["inputs"] = [spec.to_json() for spec in sample.specs]
    inputs = sample.tensors
    fold_batch_norms(loaded.module, inputs)
    preprocessor = Preprocessor.open(out, about, columns=named_columns(options.column))
    return loaded.module, inputs, about, preprocessor, [*loaded.warnings, *sample.warnings, *warnings]


def _data(
    options: TrainQat, preprocessor: Preprocessor, about: Mapping[str, JSON], progress: Progress
) -> tuple[TrainingRows, Judge | None]:
    from optimizer.evalset import refuse_leak
    from optimizer.training.rows import Judge, TrainingRows, open_rows

    progress("reading the training data")
    learned, _ = open_rows(options.train, preprocessor, about, labelled=not options.distill)
    rows = TrainingRows(learned, about, labelled=not options.distill)
    if options.eval is None:
        return rows, None
    progress("reading the evaluation data")
    judged, metric = open_rows(options.eval, preprocessor, about)
    if not options.allow_overlap:
        refuse_leak(learned, judged, preprocessor)
    return rows, Judge(judged, metric, about)


def _calibrate(model: QuantizedModel, rows: TrainingRows, options: TrainQat, device: Any, progress: Progress) -> None:
    from optimizer.training.rows import batch_of

    places = rows.order(options.seed, 0, _BATCH)[: options.samples]
    batches = [batch_of(batch.feeds, device) for batch in rows.rows.batches(_BATCH, places)]
    model.calibrate(batches, lambda done: progress("finding ranges", done, len(batches)))


def _checkpoints(source: SourceModel, options: TrainQat, out: Path) -> Path:
    """The folder that this very training goes on from, when it is stopped."""
    from optimizer.data.calibration import digest_data

    decides = {
        "version": STAGE.version,
        "source": source.digest,
        "options": options.for_key(digest_data),
        "libraries": {name: version_of(name) for name in STAGE.needs},
    }
    layout = Layout.around(out)
    folder = layout.training if layout is not None else Path(tempfile.gettempdir()) / "ml-opt-training"
    return folder / digest_json(decides)[:32]


def _verify(options: TrainQat, facts: Mapping[str, JSON], source: Source) -> None:
    """Every gate on a trained model is one on its graph."""


def _variant(options: TrainQat, source: Source) -> str:
    return "-".join(["checkpoint", *words_of(options)])


def words_of(options: TrainQat) -> list[str]:
    """What a variant's name says of how it was trained."""
    words = ["qat", _WORDS[options.name_of_scheme]]
    words += (
        ["per-tensor"] * (not options.per_channel)
        + ["all"] * options.all_ops
        + ["7bit"] * options.reduce_range
        + ["head"] * options.quantize_head
        + ["smooth"] * (options.name_of_scheme == "w8a8" and options.smooths)
        + ["unsmoothed"] * (options.name_of_scheme == "w8a8-sym" and not options.smooths)
    )
    words += [f"seed{options.seed}"] * bool(options.seed) + ["labels"] * (not options.distill)
    return [word for word in words if word]


STAGE = Stage(
    name="train-qat",
    help="Train a model for int8 (quantization-aware training), and keep its weights; quantize qat does it all.",
    details="Weights and activations are rounded in every step as the int8 graph will round them, and the float model "
    "says what is right. The result is a model folder like any other, with the ranges beside it. A training that was "
    "stopped goes on when the same command is typed again.",
    options=TrainQat,
    accepts=frozenset({Kind.SOURCE}),
    produces=Kind.CHECKPOINT,
    run=_run,
    variant=_variant,
    verify=_verify,
    # 2: signed activations are smoothed; 3: scales of softmax that its kernel takes as they are; 4: tables beside
    # weights of 4 bits have 8
    version=4,
    needs=("torch", "transformers", "accelerate", "tokenizers"),
    modules=("torch", "transformers", "accelerate"),
)
