"""The reports that are kept beside the versions of a model, as series over time; no server has to be asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optimizer.benching.facts import machine_name, scenario_name
from optimizer.benching.generation_calls import read_calls
from optimizer.benching.report import BenchReport, Cell, Row
from optimizer.benching.scenario import Scenario
from optimizer.benching.shift import Shift, find_shift, least_p
from optimizer.errors import BadInput
from optimizer.ref import Ref
from optimizer.store import Store
from optimizer.types import JSON

__all__ = ["ALARM", "History", "Run", "Series", "history", "sparkline"]

SCHEMA = 1
#: Probability that any series at all gets a note although nothing shifted in any of them.
ALARM = 0.05
_BARS = "▁▂▃▄▅▆▇█"
#: Runs that a sparkline shows, the last ones.
_SHOWN = 24
#: ``bench-20260102T030405000000Z.json``, and not what another check keeps beside it.
_KEPT = re.compile(r"bench-\d{8}T\d+Z\.json")


@dataclass(frozen=True)
class Run:
    """One candidate at one shape in one report.

    Attributes:
        created: UTC time, ISO 8601.
        version: of the model whose report it is.
        ms: the median call, or the mean one of the offline scenario.
        key: the artifact's; empty for what is not of the store.
        path: of the report.
    """

    created: str
    version: int
    ms: float
    key: str
    path: str


@dataclass(frozen=True)
class Series:
    """The runs of one candidate at one shape on one machine, oldest first.

    Attributes:
        machine: processor, cores, GPU and threads in words; runs of different machines are different series.
        label: the candidate's.
        shape: where, and in which batches.
        scenario: how queries came.
        runs: at least one.
        shift: where the series shifted; None where that is not known.
    """

    machine: str
    label: str
    shape: str
    scenario: str
    runs: tuple[Run, ...]
    shift: Shift | None = None

    @property
    def last_ms(self) -> float:
        return self.runs[-1].ms

    @property
    def change(self) -> float | None:
        """Share by which the last run took longer than the one before; None for the first."""
        return self.last_ms / self.runs[-2].ms - 1 if len(self.runs) > 1 else None

    @property
    def note(self) -> str:
        """The shift in words; empty where there is none."""
        if self.shift is None:
            return ""
        first = self.runs[self.shift.at]
        more = "slower" if self.shift.share > 0 else "faster"
        return (
            f"{abs(self.shift.share):.1%} {more} since {first.created[:16].replace('T', ' ')} (version {first.version})"
        )

    def to_json(self) -> dict[str, JSON]:
        return {
            "machine": self.machine,
            "label": self.label,
            "shape": self.shape,
            "scenario": self.scenario,
            "runs": [dict(vars(run)) for run in self.runs],
            "last_ms": self.last_ms,
            "change": self.change,
            "shift": dict(vars(self.shift)) if self.shift else None,
            "note": self.note,
        }


@dataclass(frozen=True)
class History:
    """All series of a model.

    Attributes:
        ref: as it was asked for.
        series: by machine, in the order in which candidates and shapes first came up.
        unreadable: reports that could not be read, and why.
    """

    ref: str
    series: tuple[Series, ...]
    unreadable: tuple[str, ...] = ()
    exit_code: int = 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "bench-history",
            "schema": SCHEMA,
            "ref": self.ref,
            "alarm": ALARM,
            "series": [each.to_json() for each in self.series],
            "unreadable": list(self.unreadable),
        }


def history(ref: str, store: Store) -> History:
    """Every report that ``bench`` kept beside the versions of a model.

    Args:
        ref: the model; with a version only its reports, with a variant only candidates that name it.
        store: where it is.

    Raises:
        UnknownName: no such model, version or variant.
        BadInput: there are no reports of it.
    """
    asked = Ref.parse(ref)
    name, version, variant = store.locate(asked)
    reports, unreadable = _read(name, [version] if asked.at else store.versions(name), store)
    found: dict[tuple[str, str, str, str], list[Run]] = {}
    for number, report in reports:
        for row, cell in _cells(report, variant):
            place = " in ".join(filter(None, (cell.shape, cell.batching)))
            series = (machine_name(report), row.label, place, scenario_name(report))
            by_mean = report.scenario == Scenario.OFFLINE
            ms = cell.summary.mean_ms if by_mean else cell.summary.p50_ms
            found.setdefault(series, []).append(Run(report.created, number, ms, row.key, report.path))
    if not found:
        raise BadInput(f"no report of {ref} is kept in {store.root}", f"measure it: ml-opt bench {ref}")
    series_of = [Series(*which, tuple(runs)) for which, runs in sorted(found.items(), key=lambda each: each[0][0])]
    return History(ref, tuple(_with_shifts(series_of)), tuple(unreadable))


def _read(name: str, versions: Sequence[int], store: Store) -> tuple[list[tuple[int, BenchReport]], list[str]]:
    """Reports with the version that they lie beside, oldest first, and those that are none."""
    reports, unreadable = [], []
    for version in versions:
        for path in store.reports_folder(name, version).glob("bench-*.json"):
            if not _KEPT.fullmatch(path.name):
                continue
            try:
                reports.append((version, replace(read_calls(path), path=str(path))))
            except BadInput as error:
                unreadable.append(error.message)
    return sorted(reports, key=lambda each: each[1].created), sorted(unreadable)


def _cells(report: BenchReport, variant: str) -> Iterator[tuple[Row, Cell]]:
    """What may be compared over time: cells whose times are valid, of candidates that name the variant."""
    for row in report.rows:
        if variant and _variant(row.label) != variant:
            continue
        for cell in (*row.cells, *row.beside):
            if cell.valid:
                yield row, cell


def _variant(label: str) -> str:
    """``int8`` of ``mini@1:int8+openvino:bf16``."""
    return label.partition("+")[0].partition(" #")[0].partition(":")[2]


def _with_shifts(series: Sequence[Series]) -> Iterator[Series]:
    """Each series with its shift where that is evident.

    The probability of a false note is shared among those that could get one (Bonferroni, leaving out what is too short
    as Tarone does, *Biometrics* 46, 1990): a short series takes nothing from a long one.
    """
    able = max(1, sum(least_p(len(each.runs)) <= ALARM for each in series))
    for each in series:
        shift = find_shift([run.ms for run in each.runs])
        yield replace(each, shift=shift) if shift is not None and shift.p <= ALARM / able else each


def sparkline(values: Sequence[float]) -> str:
    """The last values as bars from the smallest to the largest of them; level where they differ by less than 1 %."""
    shown = values[-_SHOWN:]
    low, high = min(shown), max(shown)
    if high < low * 1.01:
        return _BARS[len(_BARS) // 2] * len(shown)
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / (high - low) * len(_BARS)))] for value in shown)
