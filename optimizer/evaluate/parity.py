"""Whether two sessions give the same answers: differences by output, agreement by the task's own measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import unpadded
from optimizer.errors import BadInput, GateFailed
from optimizer.runtime import Session
from optimizer.task import Task
from optimizer.types import JSON, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "TOLERANCES",
    "Case",
    "CaseResult",
    "Difference",
    "Inputs",
    "Tolerance",
    "as_computed",
    "compare",
    "judge",
    "measure_difference",
]

#: Of fewer rows than this, one may decide otherwise: a share of a handful says little.
_FEW = 20


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same answer.

    Attributes:
        max_abs: largest difference of any entry, relative to the larger of 1 and the output's largest magnitude;
            None leaves it unjudged.
        min_cosine: smallest cosine similarity of any row, by the task's own measure.
        min_top1: smallest share of rows with the same decision, for tasks that have one; over all rows together.
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
    Precision.FP8: Tolerance(min_cosine=0.95, min_top1=0.95),
    Precision.INT8: Tolerance(min_cosine=0.95, min_top1=0.95),
    Precision.INT4: Tolerance(min_cosine=0.85, min_top1=0.9),
}


def as_computed(own: Precision, facts: Mapping[str, JSON]) -> Precision:
    """The coarsest number format on the way to an answer: what a session computes in, or the artifact's own.

    TF32, which NVIDIA's GPUs make fp32 products in unless they are told not to, keeps as many digits of their factors
    as fp16 (10 bits: NVIDIA, *A100 Tensor Core GPU Architecture*, 2020).

    Args:
        own: what most weights of the artifact are stored in.
        facts: of the session.
    """
    if own is Precision.FP32 and facts.get("tf32"):
        return Precision.FP16
    got = str(facts.get("precision") or "")
    return Precision(got) if got in ("bf16", "fp16") and own in (Precision.FP32, Precision.FP16) else own


class Inputs(StrEnum):
    """Where the inputs of a case come from."""

    GOLDEN = "golden"
    SWEEP = "sweep"
    DATA = "data"


@dataclass(frozen=True)
class Case:
    """One input to compare answers on."""

    name: str
    feeds: Mapping[str, NDArray[Any]]
    inputs: Inputs = Inputs.SWEEP


@dataclass(frozen=True)
class Difference:
    """How far apart one output is, padding left out.

    Attributes:
        max_abs: largest absolute difference, where both sides are finite.
        mean_abs: mean absolute difference.
        p999_abs: 99.9th percentile of the absolute difference.
        scale: largest finite magnitude in the reference.
        cosine: smallest cosine similarity between rows.
        top1: share of positions with the same decision (largest entry of the last axis); None without decisions.
        finite: False when either side holds a NaN or an infinity that the other has not in the same place.
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
    """One case: how far apart each output is, and how well the rows agree by the task's measure.

    Attributes:
        name: the shape, or which rows of the data.
        inputs: where the inputs come from.
        shapes: of the inputs, by name.
        outputs: differences by output.
        agreement: measure → one number a row.
        error: why the candidate has no answer to inputs that the reference answers; empty when it has one.
    """

    name: str
    inputs: Inputs
    shapes: dict[str, list[int]]
    outputs: dict[str, Difference] = field(default_factory=dict)
    agreement: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)


def compare(
    reference: Session, candidate: Session, cases: Iterable[Case], task: Task, model: Mapping[str, JSON]
) -> Iterable[CaseResult]:
    """Run both sessions on every case.

    A candidate that refuses inputs which the reference answers, lacks an output, has one too many or gives one of
    another shape has failed the case, and the others still count.

    Raises:
        MlOptError: the reference cannot answer.
    """
    #: Outputs whose second dimension is written into the graph: classes or features, not steps that could be padding.
    flat = {spec.name for spec in candidate.outputs if len(spec.shape) > 1 and isinstance(spec.shape[1], int)}
    for case in cases:
        shapes = {name: list(array.shape) for name, array in case.feeds.items()}
        want = reference.run(case.feeds)
        try:
            got = candidate.run(case.feeds)
            outputs = _differences(want, got, case.feeds, task, flat)
        except (BadInput, GateFailed) as error:
            yield CaseResult(case.name, case.inputs, shapes, error=error.message)
            continue
        agreement = task.agree(want, got, case.feeds, model)
        rows = {measure: [float(x) for x in values] for measure, values in agreement.items()}
        yield CaseResult(case.name, case.inputs, shapes, outputs, rows)


def _differences(
    want: Mapping[str, NDArray[Any]],
    got: Mapping[str, NDArray[Any]],
    feeds: Mapping[str, NDArray[Any]],
    task: Task,
    flat: set[str],
) -> dict[str, Difference]:
    if set(want) != set(got):
        raise GateFailed(f"the reference answers with {', '.join(sorted(want))}; this with {', '.join(sorted(got))}")
    found = {}
    for name in want:
        decides = name.endswith("logits") or task.name == "generic"
        found[name] = measure_difference(name, want[name], got[name], {} if name in flat else feeds, decides=decides)
    return found


def measure_difference(
    name: str, want: NDArray[Any], got: NDArray[Any], feeds: Mapping[str, NDArray[Any]], *, decides: bool = False
) -> Difference:
    """How far ``got`` is from ``want``, padding left out; both ``[batch, …]``.

    Strings are as far apart as equal (0) or not (1). ``decides`` says that the largest entry of the last axis is a
    decision, so that its agreement means something.
    """
    import numpy as np

    if want.shape != got.shape:
        raise GateFailed(f"output {name!r} has shape {list(got.shape)}; the reference gives {list(want.shape)}")
    if want.dtype.kind not in "fiub" or got.dtype.kind not in "fiub":
        want, got = np.zeros(want.shape), (want != got).astype(np.float64)
    keep = unpadded(want, feeds)
    a = np.where(keep, want, 0).astype(np.float64)
    b = np.where(keep, got, 0).astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    top1 = None
    if decides and want.ndim >= 2 and want.shape[-1] > 1:
        rows = keep[..., 0]
        agree = (a.argmax(-1) == b.argmax(-1))[rows]
        top1 = float(agree.mean()) if agree.size else None
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
    delta = np.abs(a - b)[keep]
    return Difference(
        max_abs=float(delta.max(initial=0.0)),
        mean_abs=float(delta.mean()) if delta.size else 0.0,
        p999_abs=float(np.quantile(delta, 0.999)) if delta.size else 0.0,
        scale=float(scale),
        cosine=_worst_cosine(a, b),
        top1=top1,
        finite=bool((both | same).all()),
    )


def _worst_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Smallest cosine similarity between rows (axis 0); two zero rows agree, a zero and a non-zero one do not."""
    import numpy as np

    if a.ndim == 0 or a.size == 0:
        return 1.0
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    cosine = np.where(both_zero, 1.0, (a * b).sum(1) / np.where(product == 0, 1.0, product))
    return float(cosine.min())


def judge(results: Sequence[CaseResult], tolerance: Tolerance, *, every_cosine: bool = False) -> list[str]:
    """What is beyond the tolerance, in words; empty when nothing is. Nothing compared is nothing proven.

    Where decisions are judged, the worst cosine of real data is not, unless ``every_cosine``: among many rows some are
    undecided in the reference already, and one that tips over turns its logits round and would fail every coarser
    number format by itself. Such rows are counted by the share of decisions.
    """
    if not results:
        return ["nothing was compared"]
    failures = []
    for result in results:
        if result.error:
            failures.append(f"{result.name}: {result.error}")
        for name, difference in result.outputs.items():
            where = f"{result.name}, output {name}"
            if not difference.finite:
                failures.append(f"{where}: NaN or infinity on one side only")
            elif tolerance.max_abs is not None:
                allowed = tolerance.max_abs * max(1.0, difference.scale)
                if not difference.max_abs <= allowed:
                    failures.append(f"{where}: max difference {difference.max_abs:.2e}, allowed {allowed:.2e}")
        decided = tolerance.min_top1 is not None and "top1" in result.agreement and result.inputs is Inputs.DATA
        cosines = result.agreement.get("cosine", []) if every_cosine or not decided else []
        beyond = [c for c in cosines if tolerance.min_cosine is not None and not c >= tolerance.min_cosine]
        if beyond:
            failures.append(f"{result.name}: worst cosine {min(beyond):.5f}, at least {tolerance.min_cosine} is asked")
    return failures + _judge_decisions(results, tolerance)


def _judge_decisions(results: Sequence[CaseResult], tolerance: Tolerance) -> list[str]:
    """Decisions are judged over all rows together, real data apart: repeated golden rows must not outvote it."""
    if tolerance.min_top1 is None:
        return []
    failures = []
    real = [result for result in results if result.inputs is Inputs.DATA]
    rest = [result for result in results if result.inputs is not Inputs.DATA]
    for what, group in (("the data", real), ("golden inputs and sweep", rest)):
        rows = [value for result in group for value in result.agreement.get("top1", [])]
        differing = len(rows) - sum(rows)
        allowed = (1 - tolerance.min_top1) * len(rows)
        if len(rows) < _FEW and tolerance.min_top1 < 1:
            allowed = max(allowed, 1.0)
        if not differing <= allowed + 1e-9:
            share = sum(rows) / len(rows)
            failures.append(
                f"{what}: {share:.1%} top-1 agreement over {len(rows)} rows, at least {tolerance.min_top1:.1%} is asked"
            )
    return failures
