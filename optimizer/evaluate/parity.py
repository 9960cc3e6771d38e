"""Whether two sessions give the same answers: differences by output, agreement by the task's own measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import unpadded
from optimizer.errors import GateFailed
from optimizer.runtime import Session
from optimizer.task import Task
from optimizer.types import JSON, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOLERANCES", "Case", "CaseResult", "Difference", "Tolerance", "compare", "judge", "measure_difference"]


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same answer.

    Attributes:
        max_abs: largest difference of any entry, relative to the larger of 1 and the output's largest magnitude;
            None leaves it unjudged.
        min_cosine: smallest cosine similarity of any row, by the task's own measure.
        min_top1: smallest share of rows with the same decision, for tasks that have one.
    """

    max_abs: float | None = None
    min_cosine: float | None = None
    min_top1: float | None = None


#: fp32 differs by summation order alone. The others are what well-made conversions of transformer encoders reach;
#: a model that misses them deserves a look, and ``--max-abs``, ``--min-cosine`` and ``--min-top1`` the last word.
TOLERANCES: Mapping[Precision, Tolerance] = {
    Precision.FP32: Tolerance(max_abs=1e-4, min_cosine=0.99999),
    Precision.FP16: Tolerance(max_abs=5e-2, min_cosine=0.999, min_top1=0.99),
    Precision.BF16: Tolerance(min_cosine=0.995, min_top1=0.98),
    Precision.INT8: Tolerance(min_cosine=0.95, min_top1=0.95),
}


@dataclass(frozen=True)
class Case:
    """One input to compare answers on."""

    name: str
    feeds: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """How far apart one output is, padding left out.

    Attributes:
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        p999_abs: 99.9th percentile of the absolute difference.
        scale: largest magnitude in the reference.
        cosine: smallest cosine similarity between rows.
        top1: share of positions with the same decision (largest entry of the last axis); None without decisions.
        finite: False when the candidate holds NaN or infinity where the reference does not.
    """

    max_abs: float
    mean_abs: float
    p999_abs: float
    scale: float
    cosine: float
    top1: float | None
    finite: bool


@dataclass(frozen=True)
class CaseResult:
    """One case: how far apart each output is, and how well the rows agree by the task's measure."""

    name: str
    shapes: dict[str, list[int]]
    outputs: dict[str, Difference]
    agreement: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)


def compare(
    reference: Session, candidate: Session, cases: Iterable[Case], task: Task, model: Mapping[str, JSON]
) -> Iterable[CaseResult]:
    """Run both sessions on every case.

    Raises:
        GateFailed: the candidate lacks an output, or gives one of another shape.
    """
    wanted = {spec.name for spec in candidate.outputs}
    for case in cases:
        want = {name: array for name, array in reference.run(case.feeds).items() if name in wanted}
        if not want:
            raise GateFailed(
                f"no output in common: the reference has {[s.name for s in reference.outputs]}, the candidate {sorted(wanted)}"
            )
        got = candidate.run(case.feeds)
        decides = {name for name in want if name.endswith("logits") or task.name == "generic"}
        outputs = {
            name: measure_difference(name, want[name], got[name], case.feeds, decides=name in decides) for name in want
        }
        agreement = {k: [float(x) for x in v] for k, v in task.agree(want, got, case.feeds, model).items()}
        shapes = {name: list(array.shape) for name, array in case.feeds.items()}
        yield CaseResult(case.name, shapes, outputs, agreement)


def measure_difference(
    name: str, want: NDArray[Any], got: NDArray[Any], feeds: Mapping[str, NDArray[Any]], *, decides: bool = False
) -> Difference:
    """How far ``got`` is from ``want``, padding left out; both ``[batch, …]``.

    ``decides`` says that the largest entry of the last axis is a decision, so that its agreement means something.
    """
    import numpy as np

    if want.shape != got.shape:
        raise GateFailed(f"output {name!r} has shape {list(got.shape)}; the reference gives {list(want.shape)}")
    keep = unpadded(want, feeds)
    a = np.where(keep, want, 0).astype(np.float64)
    b = np.where(keep, got, 0).astype(np.float64)
    finite = bool(np.isfinite(b[np.isfinite(a)]).all())
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    delta = np.abs(a - b)[keep] if keep.any() else np.zeros(1)
    top1 = None
    if decides and want.ndim >= 2 and want.shape[-1] > 1:
        rows = keep[..., 0]
        same = a.argmax(-1) == b.argmax(-1)
        top1 = float(same[rows].mean()) if rows.any() else None
    return Difference(
        max_abs=float(delta.max(initial=0.0)),
        mean_abs=float(delta.mean()) if delta.size else 0.0,
        p999_abs=float(np.quantile(delta, 0.999)) if delta.size else 0.0,
        scale=float(np.abs(a).max(initial=0.0)),
        cosine=_worst_cosine(a, b),
        top1=top1,
        finite=finite,
    )


def _worst_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Smallest cosine similarity between rows (axis 0); two zero rows agree, a zero and a non-zero one do not."""
    import numpy as np

    if a.ndim == 0 or a.size == 0:
        return 1.0
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
    cosine = np.where(both_zero, 1.0, (a * b).sum(1) / np.where(norms == 0, 1.0, norms))
    return float(cosine.min())


def judge(results: Iterable[CaseResult], tolerance: Tolerance) -> list[str]:
    """What is beyond the tolerance, in words; empty when nothing is."""
    failures = []
    for result in results:
        for name, difference in result.outputs.items():
            where = f"{result.name}, output {name}"
            if not difference.finite:
                failures.append(f"{where}: NaN or infinity where the reference is finite")
            elif tolerance.max_abs is not None:
                allowed = tolerance.max_abs * max(1.0, difference.scale)
                if difference.max_abs > allowed:
                    failures.append(f"{where}: max difference {difference.max_abs:.2e}, allowed {allowed:.2e}")
        cosines = result.agreement.get("cosine", [])
        if tolerance.min_cosine is not None and cosines and not min(cosines) >= tolerance.min_cosine:
            failures.append(f"{result.name}: worst cosine {min(cosines):.5f}, at least {tolerance.min_cosine} is asked")
        top1 = result.agreement.get("top1", [])
        # A share of a handful of rows says little: one row in eight is 12 %.
        if tolerance.min_top1 is not None and len(top1) >= 20:
            share = sum(top1) / len(top1)
            if share < tolerance.min_top1:
                failures.append(f"{result.name}: {share:.1%} top-1 agreement, at least {tolerance.min_top1:.0%} is asked")
    return failures
