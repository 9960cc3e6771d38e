"""What was asked, made concrete: the rows that are judged on and their metric, what is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.artifact import Artifact
from optimizer.benching.measure import Plan as Timing
from optimizer.benching.shape import Shape
from optimizer.benching.timed import plan_of
from optimizer.benching.workload import Load, Workload
from optimizer.data.batching import ONE_BY_ONE, budgets
from optimizer.data.calibration import digest_data
from optimizer.data.columns import ANSWERS, named_columns
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import kept_set, read_rows
from optimizer.errors import BadInput
from optimizer.evalset import EvalSet, refuse_overlap
from optimizer.search.bootstrap import HIGHEST_CONFIDENCE
from optimizer.search.options import Optimize
from optimizer.stage import Progress
from optimizer.task import Metric, get_task
from optimizer.types import JSON

__all__ = ["columns_of", "data_notes", "load_of", "rows_of", "timing_of"]

#: Fewest timed calls in a round: a slow model should not take minutes for percentiles that nothing is decided by.
_CALLS_A_ROUND = 3
#: Rows of a pass one by one: enough to have every length, and few enough for many passes.
_ROWS_ONE_BY_ONE = 64


def rows_of(
    artifact: Artifact,
    info: Mapping[str, JSON],
    options: Optimize,
    calib: Path | None,
    columns: tuple[str, ...],
    progress: Progress,
) -> tuple[EvalSet, Metric | None, dict[str, JSON]]:
    """The rows that are judged on, the metric that judges them, and what a report says of both files.

    Args:
        artifact: the export.
        info: its ``model``.
        options: what is asked.
        calib: where the calibration data lies.
        columns: what its columns are, as ``--column`` has it.
        progress: told that data is read.

    Raises:
        BadInput: the data cannot be read or answered on, or calibration or training rows are among those that are
            judged on.
    """
    progress("reading the data")
    metric = None
    if options.labelled:
        metric = get_task(str(info.get("task") or "generic")).metric(options.metric, info)
        if not metric.binary and options.confidence > HIGHEST_CONFIDENCE:
            raise BadInput(
                f"--confidence {options.confidence} is more than the bounds of {metric.name} can be drawn for",
                f"ask for {HIGHEST_CONFIDENCE} at most",
            )
    preprocessor = Preprocessor.open(artifact.path, info, columns=named_columns(options.column))
    path = options.eval or calib
    assert path is not None
    rows = EvalSet.open(path, preprocessor, metric, info)
    data: dict[str, JSON] = {"eval": rows.summary, "calib": None}
    if options.calib is not None and calib is not None and options.eval is not None:
        if not options.allow_overlap:
            of_calib = Preprocessor.open(artifact.path, info, columns=named_columns(columns))
            refuse_overlap(calib, rows, preprocessor, of_calib)
        data["calib"] = {"file": options.calib.name, "sha256": digest_data(calib)}
    if (train := options.allow_training) is not None:
        if not options.allow_overlap:
            of_train = Preprocessor.open(artifact.path, info, columns=named_columns(columns_of(train, options)))
            refuse_overlap(train, rows, preprocessor, of_train, "training")
        data["train"] = {"file": train.name, "sha256": digest_data(train)}
    return rows, metric, data


def load_of(artifact: Artifact, info: Mapping[str, JSON], rows: EvalSet, options: Optimize) -> Load:
    """What is timed: a shape, or passes over the rows of a file.

    Raises:
        BadInput: the shape is none that the model takes, or the file cannot be read.
    """
    if options.shapes_from is not None:
        # In batches, each candidate will get its own: see `timed_quickly`.
        batching = budgets(1)[-1] if options.objective == "throughput" else ONE_BY_ONE
        count = {} if options.objective == "throughput" else {"rows": _ROWS_ONE_BY_ONE}
        columns = named_columns(columns_of(options.shapes_from, options))
        preprocessor = Preprocessor.open(artifact.path, info, columns=columns)
        return Workload.open(options.shapes_from, preprocessor, batching, info, **count)
    if options.shape is not None and "+" in options.shape:
        raise BadInput(
            f"--shape {options.shape}: new tokens are for models that write text", "write rows × steps: --shape 1x128"
        )
    shape = Shape.parse(options.shape) if options.shape else _usual_shape(rows, options.objective, info)
    shape.check(info)
    return shape


def _usual_shape(rows: EvalSet, objective: str, info: Mapping[str, JSON]) -> Shape:
    """The shape of the data itself: its median length, and one row, or eight where throughput counts."""
    batch = min(8 if objective == "throughput" else 1, int(info.get("max_batch") or 8))
    return Shape(batch, rows.median_length)


def columns_of(path: Path | None, options: Optimize) -> tuple[str, ...]:
    """``--column`` for other data than ``--eval``: what is right is not asked there, so that it may be missing there.

    The columns of a calibration set are called what they are to the model already.
    """
    if not options.column or path is None or kept_set(path) is not None:
        return ()
    (first,) = read_rows(path, limit=1)
    chosen = named_columns(options.column)
    return tuple(f"{role}={name}" for role, name in chosen.items() if role not in ANSWERS or name in first.values)


def timing_of(options: Optimize, load: Load) -> Timing:
    """How candidates are timed at what is timed."""
    # A pass over data is many calls by itself.
    calls = 1 if isinstance(load, Workload) else _CALLS_A_ROUND
    return plan_of(options, (load,), calls * options.rounds)


def data_notes(
    options: Optimize, metric: Metric | None, right: Sequence[Any] | None, labels: Sequence[int] | None
) -> list[str]:
    """What to know of the data before trusting the verdict.

    Args:
        options: what was asked.
        metric: that judged; None where fidelity was judged.
        right: the original's scores; None where fidelity was judged.
        labels: the classes of the rows, where they have some.
    """
    notes = []
    if metric is None or right is None:
        notes.append(
            "Judged by likeness to the original's answers; that is not accuracy: nothing here knows the right ones."
        )
    elif labels and sum(right) < (most := max(labels.count(each) for each in set(labels))):
        notes.append(
            f"The original is right in {sum(right) / len(labels):.1%} of rows, less than always giving the commonest "
            f"label ({most / len(labels):.1%}): are the labels those of this model?"
        )
    elif metric.value(right) <= 0:
        notes.append(f"The original's {metric.name} is {metric.value(right):.2f}: are the labels those of this model?")
    if options.eval is None:
        notes.append("Judged on the calibration data, for want of --eval: static candidates have seen these rows.")
    elif options.calib is not None and options.allow_overlap:
        what = "Calibration" if options.allow_training is None else "Calibration, training"
        notes.append(f"{what} and evaluation data may share rows (--allow-overlap): accuracy may look too good.")
    return notes
