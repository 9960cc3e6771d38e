"""What timing text generators came to: every sample, and what was made of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optimizer.benching.decoding import Traffic
from optimizer.benching.reading import check_schema
from optimizer.benching.report import Caution, Doubt
from optimizer.benching.roofline import Bandwidth
from optimizer.benching.stats import Ratio, speedup
from optimizer.benching.workload import Writing
from optimizer.errors import BadInput
from optimizer.files import write_report
from optimizer.types import JSON

__all__ = ["REPORT", "SCHEMA", "GenerationBench", "GenerationCell", "GenerationRow", "faster"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1
#: What the document says that it is.
REPORT = "bench-generation"


@dataclass(frozen=True)
class GenerationCell:
    """One candidate at one number of texts, and one length of their prompts.

    Attributes:
        load: how many texts, from how many tokens, of how many.
        first_s: seconds of the first call.
        rounds_ns: nanoseconds of every call from its beginning until all texts are over, one list a round.
        parts: what the worker says of each of them (:mod:`optimizer.benching.generation_worker`).
        faster: than the baseline: ``whole`` calls, ``prefill`` and ``decode`` alone; empty for the baseline itself.
        step_bytes: that the step of decoding in the middle reads; None where it is not known.
        bandwidth: the faster one of a read and a copy of that many bytes in memory, GB/s; None where not measured.
        held: the most memory that a process held which wrote texts of this size alone, bytes; None where there was no
            such process.
    """

    load: Writing
    first_s: float
    rounds_ns: list[list[int]]
    parts: list[list[dict[str, Any]]]
    faster: dict[str, Ratio] = field(default_factory=dict)
    step_bytes: int | None = None
    bandwidth: float | None = None
    held: int | None = None

    @property
    def _calls(self) -> list[tuple[int, dict[str, Any]]]:
        return [
            each for ns, parts in zip(self.rounds_ns, self.parts, strict=True) for each in zip(ns, parts, strict=True)
        ]

    @property
    def first_token_ms(self) -> float:
        """Time to first token: from the beginning of a call, the median of all texts."""
        return _median(ns for _, part in self._calls for ns in part["first_ns"]) / 1e6

    @property
    def token_ms(self) -> float | None:
        """Time per output token behind the first, the median of all texts; None of texts of one token."""
        spans = [
            (last - first) / (count - 1)
            for _, part in self._calls
            for first, last, count in zip(part["first_ns"], part["last_ns"], part["tokens"], strict=True)
            if count > 1
        ]
        return _median(spans) / 1e6 if spans else None

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all texts a second of the whole call, reading prompts and all."""
        return _median(sum(part["tokens"]) / ns for ns, part in self._calls) * 1e9

    @property
    def prefill_per_s(self) -> float:
        """Tokens of prompts a second, of calls that write one token."""
        return self.load.batch * self.load.prompt * 1e9 / _median(part["prefill_ns"] for _, part in self._calls)

    @property
    def decode_per_s(self) -> float | None:
        """New tokens a second beside the first ones, in the time that a whole call takes beyond one of one token.

        None of texts of one token, and where noise made calls of one token the longer ones.
        """
        every = [ns for round_ns in self.decode_ns for ns in round_ns]
        middle = _median(every) if every else 0.0
        return 1e9 / middle if middle > 0 else None

    @property
    def decode_ns(self) -> list[list[float]]:
        """Nanoseconds of a new token in each call, one list a round; empty where texts have one token."""
        if self.load.new == 1:
            return []
        return [
            [
                (whole - part["prefill_ns"]) / (sum(part["tokens"]) - len(part["tokens"]) or 1)
                for whole, part in zip(ns, parts, strict=True)
            ]
            for ns, parts in zip(self.rounds_ns, self.parts, strict=True)
        ]

    @property
    def prefill_ns(self) -> list[list[int]]:
        """Of the calls of one new token, one list a round."""
        return [[part["prefill_ns"] for part in parts] for parts in self.parts]

    @property
    def bandwidth_share(self) -> float | None:
        """The least time that memory allows for a step of decoding, over the time that it took."""
        rate = self.decode_per_s
        if rate is None or not self.step_bytes or not self.bandwidth:
            return None
        # bytes over GB/s are nanoseconds; a step makes a token of each text.
        return self.step_bytes / self.bandwidth / (self.load.batch * 1e9 / rate)

    @property
    def short(self) -> int:
        """Texts that ended before the tokens that were asked for."""
        return sum(count < self.load.new for _, part in self._calls for count in part["tokens"])

    @property
    def peak_rss(self) -> int:
        """The most memory held at this size, bytes: weights and cache, and what the runtime keeps besides.

        Where no process wrote this size alone, it is that of the timed one, with what other sizes have left in it.
        """
        if self.held is not None:
            return self.held
        return max((int(part.get("rss", 0)) for _, part in self._calls), default=0)

    def to_json(self) -> dict[str, JSON]:
        return {
            "batch": self.load.batch,
            "prompt": self.load.prompt,
            "new": self.load.new,
            "first_s": self.first_s,
            "first_token_ms": self.first_token_ms,
            "token_ms": self.token_ms,
            "tokens_per_s": self.tokens_per_s,
            "prefill_per_s": self.prefill_per_s,
            "decode_per_s": self.decode_per_s,
            "faster": {name: ratio.to_json() for name, ratio in self.faster.items()},
            "step_bytes": self.step_bytes,
            "bandwidth": self.bandwidth,
            "bandwidth_share": self.bandwidth_share,
            "peak_rss": self.peak_rss,
            "held": self.held,
            "short": self.short,
            "rounds_ns": self.rounds_ns,
            "parts": self.parts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationCell:
        faster = {name: Ratio.from_json(ratio) for name, ratio in data["faster"].items()}
        load = Writing(data["batch"], data["prompt"], data["new"])
        same = {name: data[name] for name in ("first_s", "rounds_ns", "parts", "step_bytes", "bandwidth")}
        return cls(load=load, faster=faster, held=data.get("held"), **same)


def faster(baseline: GenerationCell, cell: GenerationCell, seed: int) -> dict[str, Ratio]:
    """How many times faster than the baseline, round by round (:func:`~optimizer.benching.stats.speedup`)."""
    pairs: Mapping[str, tuple[Sequence[Any], Sequence[Any]]] = {
        "whole": (baseline.rounds_ns, cell.rounds_ns),
        "prefill": (baseline.prefill_ns, cell.prefill_ns),
        "decode": (baseline.decode_ns, cell.decode_ns),
    }
    return {
        name: speedup(one, other, seed=seed)
        for name, (one, other) in pairs.items()
        if one and other and min(_median(times) for times in (*one, *other)) > 0
    }


@dataclass(frozen=True)
class GenerationRow:
    """One candidate.

    Attributes:
        label: as it was asked for.
        path: what was opened.
        provider: where it ran.
        key: of the artifact; empty where there is none.
        bytes: of its weights on disk.
        load_s: seconds of opening it.
        facts: what it said of itself.
        traffic: what a step reads; None where it is not known.
        cells: one a load; empty when it failed.
        error: why it failed.
        hint: what to do about that.
    """

    label: str
    path: str
    provider: str
    key: str
    bytes: int
    load_s: float = 0.0
    facts: dict[str, JSON] = field(default_factory=dict)
    traffic: Traffic | None = None
    cells: tuple[GenerationCell, ...] = ()
    error: str = ""
    hint: str = ""

    @property
    def why(self) -> str:
        return f"{self.error} ({self.hint})" if self.hint else self.error

    def to_json(self) -> dict[str, JSON]:
        return {
            **vars(self),
            "traffic": self.traffic.to_json() if self.traffic else None,
            "cells": [cell.to_json() for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationRow:
        cells = tuple(GenerationCell.from_json(cell) for cell in data["cells"])
        return cls(**{**data, "traffic": Traffic(**data["traffic"]) if data["traffic"] else None, "cells": cells})


@dataclass(frozen=True)
class GenerationBench:
    """Everything that one run found.

    Attributes:
        created: UTC time, ISO 8601.
        settings: texts, threads, rounds, seconds, seed and the command line; ``ends`` says how texts get their length.
        environment: the machine and the versions.
        baseline: label of the row that the others are compared with.
        rows: one a candidate, the baseline among them.
        cautions: what to know before trusting a number.
        bandwidths: of this machine's memory, every sample in them.
        path: where this report was written; empty when it was not.
    """

    created: str
    settings: dict[str, JSON]
    environment: dict[str, JSON]
    baseline: str
    rows: tuple[GenerationRow, ...]
    cautions: tuple[Caution, ...] = ()
    bandwidths: tuple[Bandwidth, ...] = ()
    path: str = ""

    @property
    def failed(self) -> tuple[GenerationRow, ...]:
        """Candidates that could not be measured to the end."""
        return tuple(row for row in self.rows if row.error)

    @property
    def gates(self) -> tuple[()]:
        """Nothing is asked of text generators here."""
        return ()

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": REPORT,
            "schema": SCHEMA,
            **vars(self),
            "rows": [row.to_json() for row in self.rows],
            "cautions": [caution.to_json() for caution in self.cautions],
            "bandwidths": [each.to_json() for each in self.bandwidths],
        }

    @classmethod
    def from_json(cls, data: JSON, where: str = "this JSON") -> GenerationBench:
        """The report that :meth:`to_json` gave.

        Args:
            data: the parsed document.
            where: the file's name, for errors.

        Raises:
            BadInput: it is no such report, or a newer ml-opt wrote it.
        """
        check_schema(data, REPORT, SCHEMA, where, "ml-opt bench GENERATOR")
        values = {name: value for name, value in data.items() if name not in ("report", "schema")}
        try:
            cautions = tuple(Caution(Doubt(each["doubt"]), each["about"], each["detail"]) for each in data["cautions"])
            rows = tuple(GenerationRow.from_json(row) for row in data["rows"])
            bandwidths = tuple(map(Bandwidth.from_json, data["bandwidths"]))
            return cls(**{**values, "rows": rows, "cautions": cautions, "bandwidths": bandwidths})
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{where} is not a whole report of text generators: {error!r}") from None

    def written(self, path: Path) -> GenerationBench:
        """Write the report as JSON, and return it knowing its path."""
        known = replace(self, path=str(path))
        write_report(path, known.to_json())
        return known


def _median(values: Any) -> float:
    return float(statistics.median(values))
