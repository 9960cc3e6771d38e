"""A speed without its accuracy is not a result: how far a candidate's answers are from the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import GateFailed
from optimizer.task import get_task
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Answer = Mapping[str, NDArray[np.generic]]

__all__ = ["Agreement", "compare", "compare_rows", "read_arrays"]


@dataclass(frozen=True)
class Agreement:
    """How a candidate's answers compare with the reference's, over rows.

    Attributes:
        rows: how many were compared.
        cosine_worst: of the row that differs most.
        cosine_mean: over rows.
        top1: share of rows with the same decision; None where the task has none.
    """

    rows: int
    cosine_worst: float
    cosine_mean: float
    top1: float | None = None

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


def compare(
    reference: Sequence[Path], candidate: Sequence[Path], feeds: Sequence[Path], model: Mapping[str, JSON]
) -> Agreement:
    """Compare two sets of answers, batch by batch.

    Args:
        reference: ``.npz`` files, one a batch, an array by output name.
        candidate: the same of the one that is judged.
        feeds: the inputs that both answer.
        model: the manifest's ``model``; its ``task`` says how answers are compared.

    Raises:
        GateFailed: no output in common, other shapes, or numbers that are not finite where the reference's are.
    """
    every = compare_rows(reference, candidate, feeds, model)
    cosine = every["cosine"]
    return Agreement(
        rows=int(cosine.size),
        cosine_worst=float(cosine.min()),
        cosine_mean=float(cosine.mean()),
        top1=float(every["top1"].mean()) if "top1" in every else None,
    )


def compare_rows(
    reference: Sequence[Path], candidate: Sequence[Path], feeds: Sequence[Path], model: Mapping[str, JSON]
) -> dict[str, NDArray[np.float64]]:
    """What :func:`compare` adds up: each of the task's measures, one number a row, in the order of the batches."""
    import numpy as np

    task = get_task(str(model.get("task") or "generic"))
    measures: dict[str, list[NDArray[Any]]] = {}
    for files in zip(reference, candidate, feeds, strict=True):
        answer, judged, given = (read_arrays(path) for path in files)
        left, right = _comparable(answer, judged)
        for name, values in task.agree(left, right, given, model).items():
            measures.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: np.concatenate(values) for name, values in measures.items()}


def _comparable(reference: Answer, candidate: Answer) -> tuple[Answer, Answer]:
    """The outputs that both have, once they are known to be of one shape and of finite numbers."""
    import numpy as np

    common = [name for name in reference if name in candidate]
    if not common:
        raise GateFailed(f"no output in common with the baseline: {', '.join(candidate)} and {', '.join(reference)}")
    for name in common:
        left, right = reference[name], candidate[name]
        if left.shape != right.shape:
            raise GateFailed(
                f"output {name!r} has shape {_times(right.shape)}, the baseline's has {_times(left.shape)}"
            )
        if right.dtype.kind == "f" and not np.isfinite(right[np.isfinite(left)]).all():
            raise GateFailed(f"output {name!r} holds NaN or infinity where the baseline's does not")
    return {name: reference[name] for name in common}, {name: candidate[name] for name in common}


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of an ``.npz`` file, by name."""
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
