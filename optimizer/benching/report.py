"""The report is the JSON: every sample, what was made of it, and on which machine. The format is schema-numbered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from optimizer.benching.agreement import Agreement
from optimizer.benching.gates import Accuracy, Floor, Gate, Outcome, exit_code_of, worst_of
from optimizer.benching.openloop import OpenLoop
from optimizer.benching.position import Position
from optimizer.benching.reading import check_schema, read_json
from optimizer.benching.roofline import Roofline
from optimizer.benching.stats import Ratio, Summary, brief
from optimizer.errors import BadInput
from optimizer.files import write_report
from optimizer.types import JSON

__all__ = ["SCHEMA", "BenchReport", "Caution", "Cell", "Doubt", "Row"]

#: Raised by one whenever a reader of the older number would misread the file. 2 added ``roofline`` and ``position``;
#: 3 ``gates``, ``floors``, ``accuracy``, ``peak_vram``, ``open_loop`` and the scenario.
SCHEMA = 3


class Doubt(StrEnum):
    """Why a number should be read with care; the value is its name in JSON."""

    LOAD = "load"
    NOISY = "noisy"
    UNSTABLE = "unstable"
    FEW_ROUNDS = "few-rounds"
    SYNTHETIC = "synthetic-inputs"
    DIFFERENT = "different-answers"
    ABOVE_PEAK = "above-peak"
    NO_PEAK = "no-peak"
    UNCOUNTED = "uncounted"
    INVALID = "invalid"
    SHORT = "short-texts"
    FEW_PLACES = "few-places"
    SHARED_MEMORY = "shared-memory"

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self]


_ADVICE = {
    Doubt.LOAD: "something else kept the machine busy meanwhile; close it, or measure elsewhere",
    Doubt.NOISY: "the slowest round took over 1.25 times the fastest; raise --duration, or quieten the machine",
    Doubt.UNSTABLE: "calls were still changing speed when the warm-up ended; raise --duration",
    Doubt.FEW_ROUNDS: "an interval needs at least three rounds; raise --rounds",
    Doubt.SYNTHETIC: "inputs are made up, as the model brought no examples; real ones may take another time",
    Doubt.DIFFERENT: "answers differ from the baseline's; run `ml-opt verify` before trusting the speed",
    Doubt.ABOVE_PEAK: "faster than the GEMM that was measured as this machine's peak: that measurement is doubtful, or "
    "another library multiplies faster here",
    Doubt.INVALID: "latencies under this load are no property of the candidate; ask for fewer --qps, or quieten the "
    "machine where the generator was late",
    Doubt.SHARED_MEMORY: "its memory has in it what other sizes left: a process that writes this one alone failed",
    Doubt.FEW_PLACES: "texts waited for each other: fewer are written at once than were begun",
    Doubt.SHORT: "texts ended before the tokens that were asked for, so that candidates did not write equally many",
    Doubt.NO_PEAK: "the GEMM peak of what it computes in could not be measured, so that no share of it is known",
    Doubt.UNCOUNTED: "operators that are not counted: GFLOP/s and the share of the peak are lower bounds",
}


@dataclass(frozen=True)
class Caution:
    """One doubt about one number.

    Attributes:
        doubt: which.
        about: what it is about: a candidate, a candidate at a shape, or empty for the whole report.
        detail: the number that raised it.
    """

    doubt: Doubt
    about: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, JSON]:
        return {"doubt": self.doubt.value, "about": self.about, "detail": self.detail, "advice": self.doubt.advice}


@dataclass(frozen=True)
class Cell:
    """One candidate at one shape.

    Attributes:
        shape: as it was asked for, ``8x128``.
        batch: rows in a call.
        first_s: seconds of the first call at this shape.
        warm_ns: medians of the warm-up's windows, nanoseconds.
        rounds_ns: every sample, nanoseconds, one list a round.
        summary: what the samples say.
        speedup: against the baseline; None for the baseline itself, or when it failed. Of medians; of the offline
            scenario, of means.
        position: under this machine's roofs; None when they were not asked for, or there is no graph to count.
        workload: of a pass over a data file: ``rows``, ``file``, ``batching`` (``tokens:2048``), ``batches``,
            ``padding`` (steps computed for every step of a row) and ``prepare_ms`` (milliseconds that making the inputs
            of a pass takes: tokenizing, decoding); None for a shape.
        against: of such a pass: the ratio to each way in which the baseline got the same rows.
        copy_ms: milliseconds that copying inputs and outputs adds to a call, the median of pairs, which noise can make
            negative; None of a pass, which has its copies in it.
        open_loop: of the server scenario: how the arrivals went; None otherwise.
        throughput: of the offline scenario: rows a second with their interval; None otherwise.
    """

    shape: str
    batch: int
    first_s: float
    warm_ns: list[int]
    rounds_ns: list[list[int]]
    summary: Summary
    speedup: Ratio | None = None
    position: Position | None = None
    workload: dict[str, JSON] | None = None
    against: dict[str, Ratio] = field(default_factory=dict)
    open_loop: OpenLoop | None = None
    copy_ms: float | None = None
    throughput: Ratio | None = None

    @property
    def valid(self) -> bool:
        """Whether its times may be judged: an open loop that fell behind, or whose generator did, may not."""
        return self.open_loop is None or self.open_loop.valid

    @property
    def rows_per_s(self) -> float:
        """Throughput of one call after another, from the mean; of an open loop, what was answered."""
        if self.open_loop is not None:
            return self.batch * self.open_loop.achieved_qps
        return self.throughput.value if self.throughput else self.batch / self.summary.mean_ms * 1e3

    @property
    def batching(self) -> str:
        """Of a pass over a data file: ``tokens:2048``; else empty."""
        return str(self.workload["batching"]) if self.workload else ""

    @property
    def figure(self) -> str:
        """What a table says: median milliseconds of a call, or rows a second where throughput is what counts."""
        if not self.valid:
            return "INVALID"
        return f"{self.rows_per_s:.0f}/s" if self.workload or self.throughput else brief(self.summary.p50_ms)

    def to_json(self) -> dict[str, JSON]:
        return {
            "shape": self.shape,
            "batch": self.batch,
            **self.summary.to_json(),
            "rows_per_s": self.rows_per_s,
            "speedup": self.speedup.to_json() if self.speedup else None,
            "first_s": self.first_s,
            "position": self.position.to_json() if self.position else None,
            "warm_ns": self.warm_ns,
            "rounds_ns": self.rounds_ns,
            "workload": self.workload,
            "against": {name: ratio.to_json() for name, ratio in self.against.items()},
            "open_loop": self.open_loop.to_json() if self.open_loop else None,
            "copy_ms": self.copy_ms,
            "throughput": self.throughput.to_json() if self.throughput else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        return cls(
            shape=data["shape"],
            batch=data["batch"],
            first_s=data["first_s"],
            warm_ns=data["warm_ns"],
            rounds_ns=data["rounds_ns"],
            summary=Summary(**{name: data[name] for name in Summary.__dataclass_fields__}),
            position=Position.from_json(data["position"]) if data.get("position") else None,
            speedup=Ratio.from_json(data["speedup"]) if data["speedup"] else None,
            workload=data.get("workload"),
            against={name: Ratio.from_json(ratio) for name, ratio in data.get("against", {}).items()},
            open_loop=OpenLoop.from_json(loop) if (loop := data.get("open_loop")) else None,
            copy_ms=data.get("copy_ms"),
            throughput=Ratio.from_json(data["throughput"]) if data.get("throughput") else None,
        )


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        label: its name in tables.
        path: the file or folder that was opened.
        provider: back end and precision that were asked for (and, as the runtimes see to it, got).
        key: the artifact's key, of ``source`` the digest of its files; empty for what has neither.
        bytes: size of graph and weights.
        load_s: seconds that opening took, imports included.
        peak_rss: most memory its process held, bytes.
        facts: what the session says of itself.
        agreement: with the baseline's answers; None for the baseline itself, or where there is nothing to compare.
        cells: one a shape; empty when it failed.
        beside: the same rows of a data file in other batches than its own.
        error: why it failed.
        hint: what to do about that.
        accuracy: on labelled rows; None where that was not asked for.
        peak_vram: most memory of a GPU that its process held, bytes; None where there is none.
    """

    label: str
    path: str
    provider: str
    key: str
    bytes: int
    load_s: float = 0.0
    peak_rss: int = 0
    facts: dict[str, JSON] = field(default_factory=dict)
    agreement: Agreement | None = None
    cells: tuple[Cell, ...] = ()
    beside: tuple[Cell, ...] = ()
    error: str = ""
    hint: str = ""
    accuracy: Accuracy | None = None
    peak_vram: int | None = None

    @property
    def why(self) -> str:
        """Why it failed, and what to do about that; empty while it has not."""
        return f"{self.error} (try: {self.hint})" if self.error and self.hint else self.error

    @property
    def first_s(self) -> float:
        """Seconds of the very first call."""
        return self.cells[0].first_s if self.cells else 0.0

    def to_json(self) -> dict[str, JSON]:
        return {
            **vars(self),
            "agreement": self.agreement.to_json() if self.agreement else None,
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
            "cells": [cell.to_json() for cell in self.cells],
            "beside": [cell.to_json() for cell in self.beside],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        values = dict(data)
        agreement, accuracy = values.pop("agreement"), values.pop("accuracy", None)
        cells, beside = (tuple(Cell.from_json(cell) for cell in values.pop(name, ())) for name in ("cells", "beside"))
        return cls(
            **values,
            agreement=Agreement(**agreement) if agreement else None,
            accuracy=Accuracy.from_json(accuracy) if accuracy else None,
            cells=cells,
            beside=beside,
        )


@dataclass(frozen=True)
class BenchReport:
    """Everything that one run of ``bench`` found.

    Attributes:
        created: UTC time, ISO 8601.
        settings: shapes, threads, rounds, seconds, samples, seed, scenario and the command line.
        inputs: where timed inputs came from (``golden`` or ``synthetic``), and what answers were compared on.
        environment: the machine and the versions.
        baseline: label of the row that the others are compared with.
        rows: one a candidate, the baseline among them.
        cautions: what to know before trusting a number.
        path: where this report was written; empty when it was not.
        roofline: this machine's peaks and bandwidths, every sample in them; None when they were not asked for.
        gates: what candidates were held to; empty when nothing was asked for.
        floors: the noise floor at each shape; empty when it was not asked for.
    """

    created: str
    settings: dict[str, JSON]
    inputs: dict[str, JSON]
    environment: dict[str, JSON]
    baseline: str
    rows: tuple[Row, ...]
    cautions: tuple[Caution, ...] = ()
    path: str = ""
    roofline: Roofline | None = None
    gates: tuple[Gate, ...] = ()
    floors: tuple[Floor, ...] = ()

    @property
    def verdict(self) -> Outcome | None:
        """Over all gates; None without any."""
        return worst_of(self.gates)

    @property
    def failed(self) -> tuple[Row, ...]:
        """Candidates that could not be measured to the end."""
        return tuple(row for row in self.rows if row.error)

    @property
    def exit_code(self) -> int:
        """1 when a candidate could not be measured to the end or a gate failed, 3 when a gate is undecided."""
        return 1 if self.failed else exit_code_of(self.verdict)

    @property
    def rounds(self) -> int:
        """How many there were in the end."""
        return max((len(cell.rounds_ns) for row in self.rows for cell in row.cells), default=0)

    @property
    def scenario(self) -> str:
        """``single-stream``, ``offline`` or ``server``."""
        return str(self.settings.get("scenario", "single-stream"))

    @property
    def shapes(self) -> list[str]:
        return [str(shape) for shape in self.settings["shapes"]]

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "bench",
            "schema": SCHEMA,
            **vars(self),
            "rows": [row.to_json() for row in self.rows],
            "cautions": [caution.to_json() for caution in self.cautions],
            "roofline": self.roofline.to_json() if self.roofline else None,
            "verdict": self.verdict.value if self.verdict else None,
            "gates": [gate.to_json() for gate in self.gates],
            "floors": [floor.to_json() for floor in self.floors],
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "this JSON") -> BenchReport:
        """The report that :meth:`to_json` wrote.

        Raises:
            BadInput: it is no bench report, or a newer ml-opt wrote it.
        """
        check_schema(data, "bench", SCHEMA, where, "ml-opt bench")
        values = {name: value for name, value in data.items() if name not in ("report", "schema", "verdict")}
        try:
            values["rows"] = tuple(Row.from_json(row) for row in values["rows"])
            values["cautions"] = tuple(
                Caution(Doubt(c["doubt"]), c["about"], c["detail"]) for c in values.get("cautions", ())
            )
            if roofline := values.get("roofline"):
                values["roofline"] = Roofline.from_json(roofline)
            values["gates"] = tuple(Gate.from_json(gate) for gate in values.get("gates", ()))
            values["floors"] = tuple(Floor.from_json(floor) for floor in values.get("floors", ()))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{where} is not a bench report: {type(error).__name__} {error}") from None

    @classmethod
    def read(cls, path: Path) -> BenchReport:
        """Read a report's JSON file."""
        return cls.from_json(read_json(path), str(path))

    def written(self, path: Path) -> BenchReport:
        """Write the report as JSON, and return it knowing its path."""
        known = replace(self, path=str(path))
        write_report(path, known.to_json())
        return known
