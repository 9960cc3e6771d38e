"""What two reports say of each other, and the JSON of it: all that a format needs to draw it, and no samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.benching.gates import Gate, Outcome, exit_code_of, worst_of
from optimizer.benching.generation_report import REPORT as OF_TEXTS
from optimizer.benching.generation_report import GenerationBench
from optimizer.benching.reading import check_schema, read_json
from optimizer.benching.report import BenchReport, Row
from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["SCHEMA", "Change", "Comparison", "Measured", "Side", "read_report"]

#: Raised by one whenever a reader of the older number would misread the file.
SCHEMA = 1
#: What the JSON says that it is.
REPORT = "bench-comparison"


@dataclass(frozen=True)
class Change:
    """One candidate at one shape, in both reports.

    Attributes:
        label: the candidate's.
        shape: where.
        base_ms: what counts in the first report: the median call, or the mean one of the offline scenario.
        head_ms: the same in the second.
        value: share by which a call takes longer in the second: .05 is 5 %, negative when it is faster.
        low: lower end of its 95 % interval, the allowance in it; None where too few rounds say nothing of it.
        high: upper end of it.
        through: label of the reference whose drift is taken out; empty when times were compared as they are.
    """

    label: str
    shape: str
    base_ms: float
    head_ms: float
    value: float
    low: float | None
    high: float | None
    through: str = ""

    @property
    def interval(self) -> str:
        """The interval in words."""
        if self.low is None or self.high is None:
            return "not known"
        return f"{self.low:+.1%} to {self.high:+.1%}"


@dataclass(frozen=True)
class Side:
    """One of the two runs, without what it measured; attributes are those of :class:`BenchReport`."""

    created: str
    path: str
    settings: dict[str, JSON]
    environment: dict[str, JSON]
    baseline: str = ""
    inputs: dict[str, JSON] = field(default_factory=dict)

    @classmethod
    def of(cls, report: BenchReport) -> Side:
        return cls(**{name: getattr(report, name) for name in cls.__dataclass_fields__})

    @property
    def scenario(self) -> str:
        return str(self.settings.get("scenario", "single-stream"))


@dataclass(frozen=True)
class Measured:
    """A candidate of the second run.

    Attributes:
        label: its name in tables.
        seconds: of all its calls; 0 where that was not written down.
        error: why it failed.
        hint: what to do about that.
    """

    label: str
    seconds: float = 0.0
    error: str = ""
    hint: str = ""

    @classmethod
    def of(cls, row: Row) -> Measured:
        return cls(row.label, sum(sum(map(sum, cell.rounds_ns)) for cell in row.cells) / 1e9, row.error, row.hint)

    @property
    def why(self) -> str:
        """Why it failed, and what to do about that; empty while it has not."""
        return f"{self.error} (try: {self.hint})" if self.error and self.hint else self.error


@dataclass(frozen=True)
class Comparison:
    """What two reports say of each other.

    Attributes:
        base: the first run.
        head: the second one, which is judged.
        measured: every candidate of the second run.
        changes: every candidate at every shape that both hold.
        reference: label of the row whose drift is taken out; empty where there is none.
        drift: of the reference itself, by shape: how much longer its call took in the second run.
        tolerance: share by which a call may take longer; None where nothing was asked.
        gates: one for each change, where a tolerance was asked.
        cautions: what to know before trusting a number.
        path: where this was written; empty when it was not.
    """

    base: Side
    head: Side
    measured: tuple[Measured, ...]
    changes: tuple[Change, ...]
    reference: str
    drift: dict[str, float]
    tolerance: float | None
    gates: tuple[Gate, ...]
    cautions: tuple[str, ...]
    path: str = ""

    @property
    def failed(self) -> tuple[Measured, ...]:
        """Candidates that the second run could not measure."""
        return tuple(each for each in self.measured if each.error)

    @property
    def outcomes(self) -> dict[tuple[str, str], str]:
        """What is known of each change, by label and shape; empty where nothing was asked."""
        return {(gate.about, gate.shape): gate.outcome.value for gate in self.gates}

    @property
    def verdict(self) -> Outcome | None:
        """Over all gates; None without any."""
        return worst_of(self.gates)

    @property
    def exit_code(self) -> int:
        """1 when a candidate of the second report failed or a gate did, 3 when a gate is undecided."""
        return 1 if self.failed else exit_code_of(self.verdict)

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": REPORT,
            "schema": SCHEMA,
            "verdict": self.verdict.value if self.verdict else None,
            "reference": self.reference,
            "drift": self.drift,
            "tolerance": self.tolerance,
            "changes": [dict(vars(change)) for change in self.changes],
            "gates": [gate.to_json() for gate in self.gates],
            "failed": [{"label": each.label, "error": each.error, "hint": each.hint} for each in self.failed],
            "measured": [dict(vars(each)) for each in self.measured],
            "cautions": list(self.cautions),
            "path": self.path,
            "base": dict(vars(self.base)),
            "head": dict(vars(self.head)),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "this JSON") -> Comparison:
        """The comparison that :meth:`to_json` wrote.

        Raises:
            BadInput: it is none, or a newer ml-opt wrote it.
        """
        check_schema(data, REPORT, SCHEMA, where, "ml-opt bench compare")
        try:
            changes = tuple(Change(**change) for change in data["changes"])
            named = [{"label": label} for label in dict.fromkeys(change.label for change in changes)]
            return cls(
                base=Side(**data["base"]),
                head=Side(**data["head"]),
                # The first files said only what failed.
                measured=tuple(Measured(**each) for each in data.get("measured", [*named, *data["failed"]])),
                changes=changes,
                reference=data["reference"],
                drift=data["drift"],
                tolerance=data["tolerance"],
                gates=tuple(Gate.from_json(gate) for gate in data["gates"]),
                cautions=tuple(data["cautions"]),
                path=data["path"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{where} is not a comparison: {type(error).__name__} {error}") from None


def read_report(path: Path) -> BenchReport | Comparison | GenerationBench:
    """A report's JSON file, whichever of them wrote it.

    Raises:
        BadInput: it is none of them, or a newer ml-opt wrote it.
    """
    data = read_json(path)
    if isinstance(data, Mapping) and data.get("report") == REPORT:
        return Comparison.from_json(data, str(path))
    if isinstance(data, Mapping) and data.get("report") == OF_TEXTS:
        return GenerationBench.from_json(data, str(path))
    return BenchReport.from_json(data, str(path))
