"""The roofs of one run put over what it measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer.benching.candidates import Entrant
from optimizer.benching.gemm import ARITHMETICS
from optimizer.benching.measure import Lane, Plan
from optimizer.benching.position import Counted, count, place
from optimizer.benching.report import Caution, Doubt, Row
from optimizer.benching.roofline import Roofline, measure_roofline
from optimizer.benching.workload import Load
from optimizer.errors import MlOptError
from optimizer.stage import Progress

__all__ = ["Roofs", "find_roofs"]


@dataclass(frozen=True)
class Roofs:
    """What the machine can do, and what each call asks of it.

    Attributes:
        roofline: peaks and bandwidths.
        counted: by candidate's label and shape.
        failed: why a candidate could not be counted, by its label.
    """

    roofline: Roofline
    counted: Mapping[tuple[str, str], Counted]
    failed: Mapping[str, str] = field(default_factory=dict)

    def over(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """The rows, every cell that was counted with its position."""
        placed = []
        for row in rows:
            cells = []
            for cell in row.cells:
                found = self.counted.get((row.label, cell.shape))
                position = place(found, self.roofline, cell.summary.p50_ms) if found else None
                cells.append(replace(cell, position=position))
            placed.append(replace(row, cells=tuple(cells)))
        return tuple(placed)

    def cautions(self, rows: Sequence[Row]) -> Iterator[Caution]:
        """What makes a share doubtful."""
        for row in rows:
            lacking: Counter[str] = Counter()
            for cell in row.cells:
                position = cell.position
                if position is None:
                    continue
                if position.peak_share is not None and position.peak_share > 1:
                    detail = f"{position.peak_share:.0%}"
                    yield Caution(Doubt.ABOVE_PEAK, f"{row.label} at {cell.shape}", detail)
                lacking |= Counter(str(each["op"]) for each in position.uncounted if each["product"])
            if lacking:
                detail = ", ".join(f"{op} ({nodes})" for op, nodes in sorted(lacking.items()))
                yield Caution(Doubt.UNCOUNTED, row.label, detail)
        for label, why in self.failed.items():
            yield Caution(Doubt.UNCOUNTED, label, why)
        for peak in self.roofline.peaks:
            if peak.error:
                yield Caution(Doubt.NO_PEAK, f"{peak.arithmetic} on {peak.provider}", peak.error)


def find_roofs(
    entrants: Sequence[Entrant],
    lanes: Sequence[Lane],
    timed: Mapping[Load, Sequence[Path]],
    plan: Plan,
    scratch: Path,
    progress: Progress,
) -> Roofs:
    """Count what was timed, and measure the roofs of what it computes in.

    Args:
        entrants: every candidate.
        lanes: their measurements, over by now: nothing else runs beside the roofs.
        timed: the files of one timed call or pass, by shape.
        plan: that of the candidates.
        scratch: a folder for files.
        progress: told of every step.
    """
    counted: dict[tuple[str, str], Counted] = {}
    failed: dict[str, str] = {}
    for entrant, lane in zip(entrants, lanes, strict=True):
        for load in (loads[0] for loads in lane.loads if lane.alive):
            progress(f"counting the operations of {entrant.label}")
            try:
                found = count(entrant, lane, timed[load])
            except MlOptError as error:  # a file that a runtime opens and onnx_ir does not: its time still counts
                failed[entrant.label] = error.message
                continue
            if found is not None:
                counted[entrant.label, str(load)] = found
    keys = dict.fromkeys(key for each in counted.values() for key in each.keys.values() if key[1] in ARITHMETICS)
    if not keys:
        return Roofs(Roofline((), ()), counted, failed)
    return Roofs(measure_roofline(list(keys), plan, scratch, progress), counted, failed)
