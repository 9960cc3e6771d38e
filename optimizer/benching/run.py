"""From references to a report: who takes part, what they are fed, and what the measured lanes add up to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from optimizer.benching.agreement import Agreement, compare
from optimizer.benching.busy import Others, busy_now, is_busy
from optimizer.benching.candidates import Entrant, file_bytes, with_model_of_first
from optimizer.benching.gates import Floor, Gate, Limits, Outcome
from optimizer.benching.inputs import Examples, save
from optimizer.benching.judging import Counts, Look, floor_of, hard_gates, slower_gates
from optimizer.benching.measure import Feeds, Lane, Plan, measure
from optimizer.benching.openloop import judge
from optimizer.benching.report import BenchReport, Caution, Cell, Doubt, Row
from optimizer.benching.roofs import find_roofs
from optimizer.benching.scenario import Scenario
from optimizer.benching.stats import Ratio, speedup, summarize, throughput
from optimizer.benching.workload import Load, Workload
from optimizer.data.golden import Golden
from optimizer.environment import describe
from optimizer.errors import GateFailed
from optimizer.graph.facts import model_facts
from optimizer.stage import Progress
from optimizer.types import TensorSpec

__all__ = ["bench"]

#: Rounds whose medians differ by more than this are called noisy.
_NOISY = 1.25
#: Below this worst cosine, a candidate's speed is reported with a caution.
_DIFFERENT = 0.99


def bench(
    taking_part: Sequence[Entrant],
    baseline: str,
    plan: Plan,
    progress: Progress,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    self_check: bool = False,
) -> BenchReport:
    """Measure candidates against each other and against the baseline among them.

    Args:
        taking_part: every candidate, the baseline too; labels are unique.
        baseline: its label.
        plan: how to measure.
        progress: told of every step.
        data: rows to compare answers on, instead of the artifact's examples.
        columns: role → column of that data, where the usual names do not fit.
        limits: what candidates are held to, beside the baseline [nothing].
        self_check: also time the baseline against a second process of itself, whose difference is noise.

    Raises:
        BadInput: inputs cannot be made. A candidate that fails is no error here but a row that says why.
    """
    limits = limits or Limits()
    if limits.slower is not None:
        progress("waiting for the machine to come to rest")
        busy_now(plan.threads)
    entrants = with_model_of_first(taking_part)
    timed = [*entrants, *(_twin(entrant) for entrant in entrants if self_check and entrant.label == baseline)]
    others = Others()
    loads = [_loads(entrant, plan) for entrant in timed]
    with tempfile.TemporaryDirectory(prefix="ml-opt-bench-") as name:
        scratch = Path(name)
        feeds = _Feeding(entrants, loads, plan, data, columns or {}, scratch)

        def times_of(lanes: Sequence[Lane], busy: str) -> tuple[list[Floor], list[Gate]]:
            look = Look(len(plan.looks), busy, plan.scenario is Scenario.OFFLINE, plan.seed)
            return _judged_times(len(entrants), lanes, baseline, plan, limits, look)

        lanes = measure(
            [entrant.candidate for entrant in timed],
            plan,
            feeds,
            scratch,
            progress,
            loads=loads,
            # On a busy machine more rounds decide nothing.
            undecided=lambda lanes: (
                not _busy(others, plan) and any(gate.outcome is Outcome.INCONCLUSIVE for gate in times_of(lanes, "")[1])
            ),
            others=others,
        )
        floors, gates = times_of(lanes, _busy(others, plan))
        lanes = lanes[: len(entrants)]
        base = next(lane for lane in lanes if lane.candidate.label == baseline)
        agreements = {id(lane): _agreement(lane, base, scratch) for lane in lanes}
        roofs = find_roofs(entrants, lanes, feeds.timed, plan, scratch, progress) if plan.roofline else None
    rows = tuple(
        feeds.prepared(_row(lane, base, plan, file_bytes(entrant), agreements[id(lane)]))
        for entrant, lane in zip(entrants, lanes, strict=True)
    )
    if roofs is not None:
        rows = roofs.over(rows)
    of_base = next(row for row in rows if row.label == baseline)
    gates += hard_gates(of_base, rows, limits, _counts(entrants, rows) if limits.degraded else {})
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings={
            "shapes": [str(shape) for shape in plan.shapes],
            "threads": plan.threads,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "samples": plan.samples,
            "seed": plan.seed,
            "scenario": plan.scenario.value,
            **({"qps": plan.qps, "streams": plan.streams} if plan.scenario is Scenario.SERVER else {}),
            "max_rounds": plan.looks[-1],
            "limits": limits.to_json(),
        },
        inputs={"timed": feeds.source, "compared": str(data) if data else feeds.source},
        environment=describe(),
        baseline=baseline,
        rows=rows,
        cautions=(*_cautions(rows, lanes, plan, feeds.source, others), *(roofs.cautions(rows) if roofs else ())),
        roofline=roofs.roofline if roofs else None,
        gates=tuple(gates),
        floors=tuple(floors),
    )


class _Feeding:
    """Makes the input files, once it is known what candidates take.

    Attributes:
        timed: by load; empty before it was called.
        prepare_ms: by the batching of a pass, what making its inputs takes.
        source: where inputs came from, ``golden`` or ``synthetic``; empty before it was called.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        loads: Sequence[Sequence[Sequence[Load]]],
        plan: Plan,
        data: Path | None,
        columns: Mapping[str, str],
        scratch: Path,
    ) -> None:
        self._model = entrants[0].candidate.model
        self._artifact = next((entrant.artifact for entrant in entrants if entrant.artifact is not None), None)
        self._every = dict.fromkeys(load for each in loads for beside in each for load in beside)
        self._plan, self._data, self._columns, self._scratch = plan, data, columns, scratch
        self.timed: dict[Load, list[Path]] = {}
        self.prepare_ms: dict[str, float] = {}
        self.source = ""

    def prepared(self, row: Row) -> Row:
        """The row, its passes with what making their inputs takes: the same for every candidate."""

        def told(cell: Cell) -> Cell:
            if cell.workload is None:
                return cell
            return replace(cell, workload={**cell.workload, "prepare_ms": self.prepare_ms[cell.batching]})

        return replace(row, cells=tuple(map(told, row.cells)), beside=tuple(map(told, row.beside)))

    def __call__(self, specs: tuple[TensorSpec, ...]) -> Feeds:
        # The artifact's own description says which dimension is what; a file of another origin may not.
        described = {s["name"]: TensorSpec.from_json(s) for s in self._model.get("inputs", ())}
        named = tuple(described.get(spec.name, spec) for spec in specs)
        place = self._artifact.path if self._artifact else None
        golden = Golden.load(place) if place else None
        made = Examples(named, self._model, golden, place, self._data, self._plan.seed, self._columns)
        for number, load in enumerate(self._every):
            self.timed[load] = save(self._scratch, f"load-{number}", made.of(load))
            if isinstance(load, Workload):
                began = time.perf_counter()
                load.feeds()
                self.prepare_ms[load.batching.spelled] = (time.perf_counter() - began) * 1e3
        compared = save(self._scratch, "compared", made.to_compare(self._plan.shapes[0]))
        self.source = made.source
        return Feeds(self.timed, compared)


def _twin(entrant: Entrant) -> Entrant:
    """The same once more, in a process of its own."""
    return replace(entrant, candidate=replace(entrant.candidate, label=f"{entrant.label} (twin)"))


def _judged_times(
    count: int, lanes: Sequence[Lane], baseline: str, plan: Plan, limits: Limits, look: Look
) -> tuple[list[Floor], list[Gate]]:
    """The noise floors and the gates on times, from the rounds so far.

    Args:
        count: how many take part.
        lanes: theirs, and behind them the baseline's twin where there is one.
        baseline: its label.
        plan: how it was measured.
        limits: what is asked.
        look: how times are compared, how many looks there may be, and whether times say anything.
    """
    base = next(lane for lane in lanes if lane.candidate.label == baseline)
    # Sizes are read from disk, and times are looked at again and again.
    rows = [_row(lane, base, plan) for lane in lanes[:count]]
    of_base = next(row for row in rows if row.label == baseline)
    floors = [
        floor_of(cell, twin.rounds[loads[0]], baseline, look)
        for twin in lanes[count:]
        if twin.alive
        for cell, loads in zip(of_base.cells, twin.loads, strict=True)
    ]
    if limits.slower is None:
        return floors, []
    return floors, slower_gates(of_base, rows, limits.slower, floors, look)


def _busy(others: Others, plan: Plan) -> str:
    """Why times say nothing; empty while they do."""
    if others.used is None or not is_busy(others.used, plan.threads):
        return ""
    return f"but something else used {others.used:.1f} cores meanwhile, which leaves too little to measure on"


def _counts(entrants: Sequence[Entrant], rows: Sequence[Row]) -> dict[str, Counts]:
    """Of every row that has a graph."""
    found = {}
    for entrant, row in zip(entrants, rows, strict=True):
        path = entrant.candidate.path
        if path.suffix == ".onnx" and not row.error:
            found[row.label] = Counts.of(model_facts(path), row.facts)
    return found


def _loads(entrant: Entrant, plan: Plan) -> list[tuple[Load, ...]]:
    """For each shape of the plan, what this one is timed at: a pass over data goes by its own batches."""
    return [
        tuple(shape.batched(batching) for batching in entrant.batchings)
        if isinstance(shape, Workload) and entrant.batchings
        else (shape,)
        for shape in plan.shapes
    ]


def _agreement(lane: Lane, base: Lane, scratch: Path) -> Agreement | None:
    """How this lane's answers compare with the baseline's; a lane whose answers cannot be compared fails."""
    if lane is base or not lane.alive or not base.alive:
        return None
    compared = [scratch / f"compared-{number}.npz" for number in range(len(base.answers))]
    model = base.candidate.model or lane.candidate.model
    try:
        return compare(base.answers, lane.answers, compared, model)
    except GateFailed as failed:
        lane.fail(failed.message, failed.hint)
        return None


def _row(lane: Lane, base: Lane, plan: Plan, size: int = 0, agreement: Agreement | None = None) -> Row:
    candidate = lane.candidate
    row = Row(candidate.label, str(candidate.path), str(candidate.provider), candidate.key, size)
    if lane.opened:
        row = replace(row, load_s=float(lane.opened["load_s"]), peak_rss=lane.peak_rss, facts=lane.opened["facts"])
        row = replace(row, peak_vram=lane.peak_vram)
    if not lane.alive:
        return replace(row, error=lane.error, hint=lane.hint)
    cells, beside = [], []
    for mine, theirs in zip(lane.loads, base.loads, strict=True):
        first, *others = (_cell(load, lane, base, theirs, plan) for load in mine)
        cells.append(first)
        beside += others
    return replace(row, cells=tuple(cells), beside=tuple(beside), agreement=agreement)


def _cell(load: Load, lane: Lane, base: Lane, theirs: Sequence[Load], plan: Plan) -> Cell:
    """One candidate at one shape; the baseline's own time there is ``theirs[0]``, the others are of the same rows."""
    compared = base.alive and lane is not base
    rounds = lane.rounds[load]
    return Cell(
        shape=str(load),
        batch=load.batch,
        first_s=lane.first_s[load],
        copy_ms=lane.copy_ns[load] / 1e6 if load in lane.copy_ns else None,
        warm_ns=lane.warm[load],
        rounds_ns=rounds,
        summary=summarize(rounds),
        speedup=_ratio(base.rounds[theirs[0]], rounds, plan) if compared else None,
        workload=load.to_json() if isinstance(load, Workload) else None,
        against={
            other.batching.spelled: _ratio(base.rounds[other], rounds, plan)
            for other in theirs
            if compared and isinstance(other, Workload)
        },
        open_loop=judge(lane.served[load], plan.qps, plan.streams) if lane.served else None,
        throughput=throughput(rounds, load.batch, seed=plan.seed) if plan.scenario is Scenario.OFFLINE else None,
    )


def _ratio(baseline: list[list[int]], candidate: list[list[int]], plan: Plan) -> Ratio:
    return speedup(baseline, candidate, seed=plan.seed, of_means=plan.scenario is Scenario.OFFLINE)


def _cautions(rows: Sequence[Row], lanes: Sequence[Lane], plan: Plan, source: str, others: Others) -> list[Caution]:
    found = []
    if others.used is not None and is_busy(others.used, plan.threads):
        found.append(Caution(Doubt.LOAD, detail=f"{others.used:.1f} cores"))
    if plan.rounds < 3:
        found.append(Caution(Doubt.FEW_ROUNDS, detail=f"{plan.rounds} rounds"))
    if source == "synthetic":
        found.append(Caution(Doubt.SYNTHETIC))
    for row, lane in zip(rows, lanes, strict=True):
        if row.error:
            continue
        found += [Caution(Doubt.UNSTABLE, f"{row.label} at {shape}") for shape in lane.unstable]
        for cell in row.cells:
            if cell.open_loop is not None and not cell.valid:
                found.append(Caution(Doubt.INVALID, f"{row.label} at {cell.shape}", cell.open_loop.reason))
            if cell.summary.spread > _NOISY:
                detail = f"{cell.summary.spread:.2f} times"
                found.append(Caution(Doubt.NOISY, f"{row.label} at {cell.shape}", detail))
        if row.agreement and row.agreement.cosine_worst < _DIFFERENT:
            found.append(Caution(Doubt.DIFFERENT, row.label, f"worst cosine {row.agreement.cosine_worst:.4f}"))
    return found
