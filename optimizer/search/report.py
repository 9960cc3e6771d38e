"""The report of ``optimize``: the JSON is the report, every sample and every row's score in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer.benching.stats import Ratio
from optimizer.errors import BadInput, Damaged
from optimizer.files import write_report
from optimizer.search.candidates import Plan
from optimizer.search.decode import decoded
from optimizer.search.gates import Bounded, Gate, Outcome, is_drop
from optimizer.types import JSON

__all__ = ["SCHEMA", "CandidateReport", "OptimizeReport", "PlanReport", "Speed", "TextSpeed"]

#: Raised by one whenever a reader of the older number would misread the file.
SCHEMA = 1

_AGAIN = "reach a verdict again: ml-opt optimize REF --eval FILE; what is in the store is not made again"
_EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}


@dataclass(frozen=True)
class TextSpeed:
    """How fast a text generator wrote so many texts at once.

    Attributes:
        load: ``8x128+64``: texts, tokens of each prompt, new tokens of each.
        tokens_per_s: new tokens of all texts a second, reading prompts and all.
        first_token_ms: to a text's first token, the median.
        prefill_per_s: tokens of prompts a second.
        decode_per_s: new tokens a second behind the first ones; None where noise hid it.
        bandwidth_share: of what memory allows a step of decoding; None where it is not known.
    """

    load: str
    tokens_per_s: float
    first_token_ms: float
    prefill_per_s: float
    decode_per_s: float | None = None
    bandwidth_share: float | None = None


@dataclass(frozen=True)
class Speed:
    """What was measured of one candidate at the objective's shape.

    Attributes:
        p50_ms: median latency of a call, or of a pass over data.
        rows_per_s: rows in a second, one call after another.
        ratio: times faster than the original, with its interval; 1 for the original itself.
        bytes: graph and weights.
        load_s: seconds that opening took.
        peak_rss: most memory its process held, bytes.
        gflops: 10⁹ operations a second; None when its graph was not counted.
        peak_share: of what a GEMM gets on this machine in the same arithmetic; None when that was not measured.
        batching: how a pass got its rows (``tokens:2048``); empty for a shape.
        against: of a pass: the ratio to each way in which the original got the same rows.
        texts: of a text generator: by how many texts it wrote at once; empty for what answers rows.
    """

    p50_ms: float
    rows_per_s: float
    ratio: Ratio
    bytes: int
    load_s: float
    peak_rss: int
    gflops: float | None = None
    peak_share: float | None = None
    batching: str = ""
    against: Mapping[str, Ratio] = field(default_factory=dict)
    texts: Mapping[str, TextSpeed] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        against = {way: ratio.to_json() for way, ratio in self.against.items()}
        texts = {count: dict(vars(speed)) for count, speed in self.texts.items()}
        return {**vars(self), "ratio": self.ratio.to_json(), "against": against, "texts": texts}


@dataclass(frozen=True)
class CandidateReport:
    """One candidate.

    Attributes:
        name: what it is called in tables.
        ref: its artifact; empty when it was not made.
        provider: where it ran.
        precision: what it computed in.
        outcome: PASS, FAIL or INCONCLUSIVE by its gates; None when it was not measured to the end.
        reason: why it won or lost.
        hint: what to do about an error.
        gates: one a budget.
        accuracy: the metric (:attr:`OptimizeReport.metric`) with its bounds; None without labels, and unless it
            answered every row.
        agreement: share of the original's decisions; None without decisions.
        cosine: ``worst`` and ``mean`` over rows; empty when it gave no answers.
        kl: KL divergence from the original, nats: ``worst`` and ``mean`` over rows; empty without decisions.
        speed: None when it was not timed.
        seconds: that making it and answering took.
        commands: that make it again, in order.
        rows: ``cosine``, ``top1``, ``kl`` and ``right`` (:attr:`Metric.score`) of every row that it answered, in the
            data's order; ``places`` says which rows those are when they are not all.
        seen: how many rows it answered; less than all of them for one that was cut early or could not win.
        runs: products by what they were really computed in, read from the loaded session, and ``fell_back``, the names
            of those that were to run in int8 and did not; None where the provider does not say.
    """

    name: str
    ref: str
    provider: str
    precision: str
    outcome: Outcome | None
    reason: str
    hint: str = ""
    gates: tuple[Gate, ...] = ()
    accuracy: Bounded | None = None
    agreement: Bounded | None = None
    cosine: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)
    speed: Speed | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    rows: Mapping[str, JSON] = field(default_factory=dict)
    seen: int = 0
    runs: Mapping[str, JSON] | None = None

    def to_json(self) -> dict[str, JSON]:
        return {
            **vars(self),
            "outcome": self.outcome.value if self.outcome else None,
            "gates": [gate.to_json() for gate in self.gates],
            "accuracy": _bounded(self.accuracy),
            "agreement": _bounded(self.agreement),
            "cosine": dict(self.cosine),
            "kl": dict(self.kl),
            "speed": self.speed.to_json() if self.speed else None,
            "seconds": dict(self.seconds),
            "commands": list(self.commands),
            "rows": dict(self.rows),
            "runs": None if self.runs is None else dict(self.runs),
        }


@dataclass(frozen=True)
class OptimizeReport:
    """The verdict and its proof.

    Attributes:
        created: UTC time, ISO 8601.
        command: that was run.
        model: as it was typed.
        verdict: PASS, FAIL or INCONCLUSIVE.
        best: reference of the winner; empty without one.
        provider: where the winner runs; empty without one.
        metric: what right answers are counted by (``accuracy``, ``f1``, …), or ``fidelity``: likeness to the original,
            which is not accuracy.
        objective: what the best has most of.
        shape: of the timed calls.
        budgets: what was asked.
        confidence: of every bound.
        original: what everything is compared with.
        candidates: best first; those that were not measured last.
        left_out: what was not worth trying here, and why.
        rows_needed: of an inconclusive verdict.
        notes: what to know before trusting a number, in sentences.
        data: what was judged and calibrated on, and what training was allowed on.
        environment: the machine and the versions.
        seconds: where the time went: ``export``, ``make``, ``answer``, ``time`` and ``total``.
        bench: the report of the timing, every sample in it.
        recipe: path of the recipe that makes the winner again; empty without one.
        path: where this report was written; empty when it was not.
        winner_s: seconds of ``seconds`` that the export and making, judging and timing the winner alone took: what the
            search would take if its end were known; None without a winner.
        quick: the report of the short timing that sorted candidates; empty where there was nothing to sort.
        rivals: candidates that the confidence was shared among: each bound on all rows holds with
            1 - (1 - ``confidence``) / ``rivals``.
        sensitivity: the nodes that lose most in int8 (``node``, ``op_type``, ``noise``, …), worst first; empty where no
            candidate needed to know.
    """

    created: str
    command: str
    model: str
    verdict: Outcome
    best: str
    provider: str
    metric: str
    objective: str
    shape: str
    budgets: Mapping[str, JSON]
    confidence: float
    original: CandidateReport
    candidates: tuple[CandidateReport, ...]
    left_out: tuple[Mapping[str, JSON], ...]
    rows_needed: int | None
    notes: tuple[str, ...]
    data: Mapping[str, JSON]
    environment: Mapping[str, JSON]
    seconds: Mapping[str, float]
    bench: Mapping[str, JSON]
    recipe: str = ""
    path: str = ""
    winner_s: float | None = None
    quick: Mapping[str, JSON] = field(default_factory=dict)
    rivals: int = 1
    sensitivity: tuple[Mapping[str, JSON], ...] = ()

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.verdict]

    @property
    def winner(self) -> CandidateReport | None:
        """The candidate that the verdict is about."""
        if not self.best:
            return None
        return next(c for c in self.candidates if (c.ref, c.provider) == (self.best, self.provider))

    def to_json(self) -> dict[str, JSON]:
        winner = self.winner
        return {
            "report": "optimize",
            "schema": SCHEMA,
            **vars(self),
            "verdict": self.verdict.value,
            "exit_code": self.exit_code,
            "best": self.best or None,
            "provider": self.provider or None,
            "speedup": {**winner.speed.ratio.to_json(), "shape": self.shape} if winner and winner.speed else None,
            "accuracy": self._accuracy(winner),
            "agreement": _bounded(winner.agreement) if winner else None,
            "cosine": dict(winner.cosine) if winner else None,
            "kl": dict(winner.kl) if winner else None,
            "budgets": dict(self.budgets),
            "original": self.original.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "left_out": [dict(each) for each in self.left_out],
            "notes": list(self.notes),
            "data": dict(self.data),
            "environment": dict(self.environment),
            "seconds": dict(self.seconds),
            "bench": dict(self.bench),
            "quick": dict(self.quick),
            "sensitivity": [dict(node) for node in self.sensitivity],
        }

    def _accuracy(self, winner: CandidateReport | None) -> JSON:
        if winner is None or winner.accuracy is None:
            return None
        drop = next((gate for gate in winner.gates if is_drop(gate.name)), None)
        return {
            **vars(winner.accuracy),
            "original": _bounded(self.original.accuracy),
            "drop": {"value": drop.value, "low": drop.low, "high": drop.high} if drop else None,
        }

    @classmethod
    def from_json(cls, data: JSON, where: str = "this JSON") -> OptimizeReport:
        """The report that :meth:`to_json` gave.

        Args:
            data: the parsed document.
            where: the file's name, for errors.

        Raises:
            BadInput: a newer ml-opt wrote it.
            Damaged: it is no report of optimize, or a field is missing or of the wrong type.
        """
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema is None or data.get("report") != "optimize" or type(schema) is not int or schema < 1:
            raise Damaged(f"{where} is not a report of optimize", _AGAIN)
        if schema > SCHEMA:
            raise BadInput(
                f"{where} has report schema {schema}; this ml-opt reads up to {SCHEMA}",
                "run: pip install --upgrade ml-opt",
            )
        try:
            report: OptimizeReport = decoded(
                cls, {**data, **{key: data.get(key) or "" for key in ("best", "provider")}}
            )
            if report.best and not any(
                (c.ref, c.provider) == (report.best, report.provider) for c in report.candidates
            ):
                raise ValueError(f"best is {report.best} on {report.provider}, which is none of the candidates")
        except ValueError as error:
            raise Damaged(f"{where} is not a whole report of optimize: {error}", _AGAIN) from None
        return report

    @classmethod
    def read(cls, path: Path) -> OptimizeReport:
        """Read a report's JSON file; raises what :meth:`from_json` raises, and :class:`Damaged` for what is no JSON."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise Damaged(f"{path} cannot be read: {error}", _AGAIN) from None
        return cls.from_json(data, str(path))

    def written(self, path: Path) -> OptimizeReport:
        """Write the report as JSON, and return it knowing its path."""
        known = replace(self, path=str(path))
        write_report(path, known.to_json())
        return known


@dataclass(frozen=True)
class PlanReport:
    """What ``--dry-run`` answers.

    Attributes:
        model: as it was typed.
        plan: what would be tried, and what would not.
        timing_s: about how many seconds of it would be timing.
        environment: the machine.
    """

    model: str
    plan: Plan
    timing_s: float
    environment: Mapping[str, JSON]

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "optimize-plan",
            "schema": SCHEMA,
            "model": self.model,
            "candidates": [idea.to_json() for idea in self.plan.ideas],
            "left_out": [each.to_json() for each in self.plan.left_out],
            "timing_s": self.timing_s,
            "environment": dict(self.environment),
        }


def _bounded(found: Bounded | None) -> dict[str, JSON] | None:
    return dict(vars(found)) if found else None
