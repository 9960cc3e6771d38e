"""From measured rows to gates: what is slower, larger or otherwise worse than the baseline by more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.benching.evidence import ERROR, Evidence, decided, evidence, holm
from optimizer.benching.gates import Floor, Gate, Limits, Outcome
from optimizer.benching.report import Cell, Row
from optimizer.benching.shape import shape_text
from optimizer.benching.stats import speedup
from optimizer.types import JSON

__all__ = ["Counts", "Look", "floor_of", "hard_gates", "slower_gates"]


@dataclass(frozen=True)
class Counts:
    """What noise cannot touch in a graph, and in the session that was made of it.

    Attributes:
        nodes: of the graph.
        fused: nodes of operators beyond the standard: each stands for several of those.
        quantized: nodes that compute in, or read weights of, fewer bits.
        fell_back: nodes that run on another provider than the one asked for.
    """

    nodes: int
    fused: int
    quantized: int
    fell_back: int

    @classmethod
    def of(cls, graph: Mapping[str, JSON], session: Mapping[str, JSON]) -> Counts:
        """From the facts of a file (:mod:`optimizer.graph.facts`) and those of the session that opened it."""
        by_provider = dict(session.get("nodes") or {})
        asked = session.get("provider")
        return cls(
            nodes=int(graph["nodes"]),
            fused=sum(count for name, count in graph["ops"].items() if "." in name),
            quantized=int(graph["quantized"]["total"]),
            fell_back=sum(count for provider, count in by_provider.items() if provider != asked),
        )


@dataclass(frozen=True)
class Look:
    """One of the times at which rounds are looked at; each may be wrong with an equal part of the error.

    Attributes:
        looks: how many there may be.
        busy: why times say nothing at all; empty while they do.
        of_means: throughput is judged, which rounds' means are compared for, and not their medians.
        seed: of the bootstrap.
    """

    looks: int = 1
    busy: str = ""
    of_means: bool = False
    seed: int = 0

    @property
    def error(self) -> float:
        return ERROR / self.looks


def floor_of(cell: Cell, twin: Sequence[Sequence[int]], about: str, look: Look) -> Floor:
    """What comes out when a candidate is compared with a second process of itself.

    Args:
        cell: of the candidate.
        twin: the other process's samples, one list a round.
        about: the candidate's label.
        look: how times are compared.
    """
    ratio = speedup(cell.rounds_ns, twin, seed=look.seed, of_means=look.of_means)
    rounds = [list(each) for each in twin]
    if math.isinf(ratio.high):
        return Floor(cell.shape, about, ratio.value, None, None, None, rounds)
    share = math.expm1(max(abs(math.log(ratio.low)), abs(math.log(ratio.high))))
    return Floor(cell.shape, about, ratio.value, ratio.low, ratio.high, share, rounds)


def slower_gates(base: Row, rows: Sequence[Row], tolerance: float, floors: Sequence[Floor], look: Look) -> list[Gate]:
    """One gate for every candidate at every shape.

    REGRESSION when it is known to be slower by more than the tolerance and the noise floor, PASS when it is known not
    to be and the floor lies below the tolerance, INCONCLUSIVE otherwise; see docs/benchmarks.md.

    Args:
        base: the baseline.
        rows: what is judged; those that failed, and the baseline itself, get no gate.
        tolerance: share by which a call may take longer.
        floors: noise floors, by shape; empty where none were measured.
        look: how times are compared, how many looks there may be, and whether times say anything.
    """
    by_shape = {floor.shape: floor for floor in floors}
    pairs = [
        (row, cell, theirs)
        for row in rows
        if row.label != base.label and not row.error and not base.error
        for cell, theirs in zip(row.cells, base.cells, strict=True)
    ]
    found = [
        evidence(theirs.rounds_ns, cell.rounds_ns, seed=look.seed, of_means=look.of_means) for _, cell, theirs in pairs
    ]
    beyond = [max(tolerance, _share(by_shape.get(cell.shape))) for _, cell, _ in pairs]
    slower = holm([each.p_slower(limit) for each, limit in zip(found, beyond, strict=True)], look.error)
    gates = []
    for (row, cell, theirs), each, is_slower in zip(pairs, found, slower, strict=True):
        if unknowable := look.busy or _invalid(cell, theirs):
            outcome, why = Outcome.INCONCLUSIVE, unknowable
        else:
            outcome, why = _decided(each, tolerance, _share(by_shape.get(cell.shape)), is_slower, look.error)
        interval = f"{_signed(each.low)} to {_signed(each.high)}"
        says = f"{_signed(each.value)} time a call at {shape_text(cell.shape)} ({interval}), {why}"
        high = each.high if math.isfinite(each.high) else None
        gates.append(Gate("slower", row.label, outcome, says, tolerance, each.value, each.low, high, cell.shape))
    return gates


def _share(floor: Floor | None) -> float:
    """Below which nothing is told apart; 0 where it was not measured."""
    if floor is None:
        return 0.0
    return floor.share if floor.share is not None else math.inf


def _invalid(*cells: Cell) -> str:
    """Why the arrivals of an open loop make its latencies worthless; empty when they do not."""
    reasons = [cell.open_loop.reason for cell in cells if cell.open_loop is not None and not cell.valid]
    return f"but the run is INVALID: {reasons[0]}" if reasons else ""


def _decided(found: Evidence, tolerance: float, floor: float, is_slower: bool, error: float) -> tuple[Outcome, str]:
    """What is known of one time, and the end of the sentence about it; nothing passes below the noise floor."""
    if not is_slower and floor > tolerance:
        return Outcome.INCONCLUSIVE, (
            f"but a tolerance of {_percent(tolerance)} is below the noise floor of {_percent(floor)}: allow more, "
            "measure longer (--duration), or quieten the machine"
        )
    is_within = found.p_within(tolerance) <= error
    return decided(is_slower, is_within, _percent(tolerance), "raise --max-rounds or --duration")


def hard_gates(base: Row, rows: Sequence[Row], limits: Limits, counts: Mapping[str, Counts]) -> list[Gate]:
    """Gates on what no noise touches: size, graph, providers, and answers on the compared rows.

    Args:
        base: the baseline.
        rows: what is judged.
        limits: what is asked.
        counts: by label, of those that have a graph.
    """
    gates: list[Gate] = []
    for row in rows:
        if row.error:
            says = f"could not be measured: {row.error}"
            gates.append(Gate("measured", row.label, Outcome.REGRESSION, says))
        if row.error or row.label == base.label:
            continue
        if limits.larger is not None:
            gates.append(_larger(base, row, limits.larger))
        if limits.degraded:
            gates += _degraded(base, row, counts)
        if limits.min_agreement is not None:
            top1 = row.agreement.top1 if row.agreement else None
            gates.append(_at_least("agreement", row, top1, limits.min_agreement, "decisions that are the baseline's"))
        if limits.min_cosine is not None:
            worst = row.agreement.cosine_worst if row.agreement else None
            gates.append(_at_least("cosine", row, worst, limits.min_cosine, "worst cosine to the baseline's answer"))
    return gates


def _larger(base: Row, row: Row, limit: float) -> Gate:
    more = row.bytes / base.bytes - 1 if base.bytes else 0.0
    outcome = Outcome.REGRESSION if row.bytes - base.bytes > limit * base.bytes else Outcome.PASS
    says = f"{row.bytes:,} bytes, {_signed(more)} against {base.bytes:,}; {_percent(limit)} more is allowed"
    return Gate("larger", row.label, outcome, says, limit, more)


def _degraded(base: Row, row: Row, counts: Mapping[str, Counts]) -> list[Gate]:
    """Four comparisons of graphs that were made by the same recipe."""
    mine, theirs = counts.get(row.label), counts.get(base.label)
    if mine is None or theirs is None:
        which = row.label if mine is None else base.label
        return [Gate("nodes", row.label, Outcome.INCONCLUSIVE, f"{which} has no graph whose nodes could be counted")]
    found = []
    for name, what, sign in (
        ("nodes", "nodes", 1),
        ("fused", "fused nodes", -1),
        ("quantized", "quantized nodes", -1),
        ("fell_back", "nodes that fell back to another provider", 1),
    ):
        here, there = getattr(mine, name), getattr(theirs, name)
        outcome = Outcome.REGRESSION if sign * (here - there) > 0 else Outcome.PASS
        allowed = "at most" if sign > 0 else "at least"
        says = f"{here} {what}, {allowed} the baseline's {there} are wanted"
        found.append(Gate("fallback" if name == "fell_back" else name, row.label, outcome, says, there, here))
    return found


def _at_least(name: str, row: Row, value: float | None, limit: float, what: str) -> Gate:
    if value is None:
        return Gate(name, row.label, Outcome.INCONCLUSIVE, f"{what}: there is nothing to compare", limit)
    outcome = Outcome.PASS if value >= limit else Outcome.REGRESSION
    rows = row.agreement.rows if row.agreement else 0
    return Gate(name, row.label, outcome, f"{what}: {value:.5g} over {rows} rows, {limit:g} is wanted", limit, value)


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %" if math.isfinite(share) else "unknown height"


def _signed(share: float) -> str:
    return f"{share * 100:+.3g} %" if math.isfinite(share) else "any"
