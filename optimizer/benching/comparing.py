"""Two reports beside each other: what is slower in the second, and how sure that is.

The two runs were not interleaved, so that a ratio between them carries whatever drifted from one to the other: clock,
neighbours, temperature. Where both hold the same reference (a row with the same key), its drift is everybody's, and the
ratios to it are compared. Beyond that, every process of a run has a layout of its own in memory and caches, which
rounds within a run do not vary (Mytkowicz et al., *Producing wrong data without doing anything obviously wrong!*,
ASPLOS 2009; Kalibera and Jones, *Rigorous benchmarking in reasonable time*, ISMM 2013): :data:`ALLOWANCE` is added for
that. docs/benchmarks.md has the rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from optimizer.benching.comparison import Change, Comparison, Measured, Side
from optimizer.benching.evidence import ERROR, Evidence, apart, decided, holm
from optimizer.benching.facts import doubts, scenario_name
from optimizer.benching.gates import Gate
from optimizer.benching.report import BenchReport, Cell, Doubt, Row
from optimizer.benching.scenario import Scenario
from optimizer.benching.stats import log_ratios
from optimizer.errors import BadInput

__all__ = ["ALLOWANCE", "compare_reports"]

#: Share by which the ends of an interval are moved outwards, by whether times were compared through a reference.
ALLOWANCE = {True: 0.02, False: 0.10}
#: Libraries that compute: with others of them it is another machine that was measured.
_COMPUTING = ("torch", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "openvino", "tensorrt")


def compare_reports(
    base: BenchReport, head: BenchReport, *, tolerance: float | None = None, cross_machine: bool = False
) -> Comparison:
    """Compare candidates of the same label, shape by shape.

    Args:
        base: what was.
        head: what is, and is judged.
        tolerance: share by which a call may take longer; None to judge nothing.
        cross_machine: compare although they were measured on different machines or with other computing libraries.

    Raises:
        BadInput: they are of different scenarios or machines, or hold no candidate at a shape in common.
    """
    if base.scenario != head.scenario or base.settings.get("qps") != head.settings.get("qps"):
        raise BadInput(
            f"times of different scenarios do not compare: {scenario_name(base)} and {scenario_name(head)}",
            "measure both with the same --scenario and --qps",
        )
    differing = _machines(base, head)
    if differing and not cross_machine:
        raise BadInput(
            f"the two were measured on different machines: {'; '.join(differing)}",
            "measure both on one machine, best in one run (ml-opt bench HEAD --against BASE), or add --cross-machine",
        )
    reference = _reference(base, head)
    pairs = list(_pairs(base, head))
    if reference is not None:
        others = [pair for pair in pairs if pair[0].label != reference[0].label]
        # Where nothing else is in both, the reference itself is what is compared, and through nothing.
        reference, pairs = (reference, others) if others else (None, pairs)
    if not pairs:
        raise BadInput(
            "the two reports hold no candidate at a shape in common",
            f"the first has {_contents(base)}; the second {_contents(head)}",
        )
    by_mean = Scenario(head.scenario) is Scenario.OFFLINE
    seed = int(head.settings.get("seed", 0))
    found = [_change(*pair, reference, by_mean, seed) for pair in pairs]
    return Comparison(
        base=Side.of(base),
        head=Side.of(head),
        measured=tuple(map(Measured.of, head.rows)),
        changes=tuple(change for change, _ in found),
        reference=reference[0].label if reference else "",
        drift=_drift(reference, by_mean),
        tolerance=tolerance,
        gates=() if tolerance is None else tuple(_gates(found, tolerance)),
        cautions=(*differing, *_cautions(base, head, reference)),
    )


def _contents(report: BenchReport) -> str:
    return ", ".join(f"{row.label} at {' and '.join(c.shape for c in row.cells) or 'nothing'}" for row in report.rows)


def _machines(base: BenchReport, head: BenchReport) -> list[str]:
    """What makes them measurements of two machines, in words."""
    first, second = (_identity(report) for report in (base, head))
    return [
        f"{name} {first[name] or 'none'} and {second[name] or 'none'}" for name in first if first[name] != second[name]
    ]


def _identity(report: BenchReport) -> dict[str, str]:
    cpu, versions = report.environment["cpu"], report.environment["versions"]
    return {
        "processor": cpu["model"],
        "cores": str(cpu["cores"]),
        "GPU": ", ".join(gpu["name"] for gpu in report.environment["gpus"]),
        "threads": str(report.settings["threads"]),
        **{name: versions.get(name, "") for name in _COMPUTING},
    }


def _reference(base: BenchReport, head: BenchReport) -> tuple[Row, Row] | None:
    """The row that both measured and that is the same thing in both: the baseline where it is, else the first one."""
    theirs = {row.label: row for row in head.rows}
    both = [(row, theirs[row.label]) for row in base.rows if row.label in theirs]
    same = [(one, two) for one, two in both if one.cells and two.cells and one.key and one.key == two.key]
    first = [pair for pair in same if pair[0].label in (base.baseline, head.baseline)]
    return next(iter([*first, *same]), None)


def _pairs(base: BenchReport, head: BenchReport) -> Iterator[tuple[Row, Cell, Cell]]:
    """Every candidate at every shape (and in the same batches) that both measured, and whose times may be judged."""
    theirs = {(row.label, c.shape, c.batching): c for row in head.rows for c in (*row.cells, *row.beside)}
    for row in base.rows:
        for cell in (*row.cells, *row.beside):
            found = theirs.get((row.label, cell.shape, cell.batching))
            if found is not None and cell.valid and found.valid:
                yield row, cell, found


def _change(
    row: Row, cell: Cell, theirs: Cell, reference: tuple[Row, Row] | None, by_mean: bool, seed: int
) -> tuple[Change, Evidence]:
    """The change, and what its gate is decided by."""
    beside = _beside(reference, cell.shape)
    speeds = [_log_speeds(each, of, by_mean) for each, of in zip((cell, theirs), beside or (None, None), strict=True)]
    found = apart(*speeds, seed=seed, allowance=math.log1p(ALLOWANCE[beside is not None]))
    low, high = (found.low, found.high) if found.draws.size else (None, None)
    through = reference[0].label if reference is not None and beside is not None else ""
    base_ms, head_ms = _ms(cell, by_mean), _ms(theirs, by_mean)
    return Change(row.label, _place(cell), base_ms, head_ms, found.value, low, high, through), found


def _place(cell: Cell) -> str:
    return " in ".join(filter(None, (cell.shape, cell.batching)))


def _beside(reference: tuple[Row, Row] | None, shape: str) -> tuple[Cell, Cell] | None:
    """The reference's own cells at a shape; None where one of the reports has none."""
    if reference is None:
        return None
    first, second = (
        next((cell for cell in row.cells if cell.shape == shape and cell.valid), None) for row in reference
    )
    return (first, second) if first is not None and second is not None else None


def _log_speeds(cell: Cell, of: Cell | None, by_mean: bool) -> list[float]:
    """Round by round, the logarithm of speed, or of the speed-up to a reference that the same rounds measured."""
    one_ns = [[1]] * len(cell.rounds_ns)
    return log_ratios(of.rounds_ns if of is not None else one_ns, cell.rounds_ns, of_means=by_mean)


def _drift(reference: tuple[Row, Row] | None, by_mean: bool) -> dict[str, float]:
    """How much longer the reference's own call took in the second run, by shape."""
    shapes = [cell.shape for cell in reference[0].cells] if reference else []
    found = {}
    for shape in shapes:
        if pair := _beside(reference, shape):
            before, after = (_ms(cell, by_mean) for cell in pair)
            found[shape] = after / before - 1
    return found


def _ms(cell: Cell, by_mean: bool) -> float:
    """What counts: the median call, or the mean one."""
    return cell.summary.mean_ms if by_mean else cell.summary.p50_ms


def _gates(found: Sequence[tuple[Change, Evidence]], tolerance: float) -> Iterator[Gate]:
    """One gate a change, by the rule of ``bench --fail-if-slower``, with the allowance on both sides.

    REGRESSION when the slowdown is above the tolerance even so, PASS when it is within it even so, INCONCLUSIVE
    otherwise. Any false REGRESSION at all has at most the error of one end of a 95 % interval: that is shared among the
    changes by Holm's procedure. PASS needs no sharing, as all of them must.
    """
    slower = holm([known.p_slower(tolerance) for _, known in found], ERROR)
    advice = "measure both in one run, ml-opt bench HEAD --against BASE --fail-if-slower"
    for (change, known), is_slower in zip(found, slower, strict=True):
        outcome, why = decided(is_slower, known.p_within(tolerance) <= ERROR, f"{tolerance:.1%}", advice)
        how = f"through {change.through}" if change.through else "as they are"
        says = f"{change.value:+.1%} time a call ({change.interval}), compared {how}, {why}"
        yield Gate(
            "slower", change.label, outcome, says, tolerance, change.value, change.low, change.high, change.shape
        )


def _cautions(base: BenchReport, head: BenchReport, reference: tuple[Row, Row] | None) -> Iterator[str]:
    yield (
        f"The two runs were not interleaved: {base.created} and {head.created}. Measuring both in one run is sharper."
    )
    if reference is None:
        yield (
            f"No other row has the same key in both, so that times are compared as they are, drift and all; "
            f"{ALLOWANCE[False]:.0%} is allowed for it on both sides of every interval."
        )
    versions = [report.environment["versions"] for report in (base, head)]
    for name in sorted({*versions[0], *versions[1]} - set(_COMPUTING)):
        if versions[0].get(name) != versions[1].get(name):
            yield f"{name} {versions[0].get(name, 'none')} and {versions[1].get(name, 'none')}"
    for name, of, other in (("first", base, head), ("second", head, base)):
        alone = [row.label for row in of.rows if row.label not in {each.label for each in other.rows}]
        if alone:
            yield f"Only in the {name}: {', '.join(alone)}"
        for doubt, words in doubts(of):
            if doubt in (Doubt.LOAD.value, Doubt.NOISY.value):
                yield f"The {name} run: {words}"
