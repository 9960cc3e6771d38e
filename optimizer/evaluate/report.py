"""What verifying came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from optimizer.errors import GateFailed
from optimizer.evaluate.parity import CaseResult, Tolerance
from optimizer.types import JSON

__all__ = ["SCHEMA", "VerifyReport"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1


@dataclass(frozen=True)
class VerifyReport:
    """Every case with every difference; nothing is summarized away.

    Attributes:
        ref: what was judged.
        against: what it was compared with.
        task: the task whose measure of agreement was used.
        precision: which row of tolerances applied.
        tolerance: what was allowed.
        cases: one result a case: the golden inputs, the sweep of shapes, then the batches of the data file.
        failures: what is beyond the tolerance, in words.
        facts: what both sessions really ran on, the data's digest, the environment.
    """

    ref: str
    against: str
    task: str
    precision: str
    tolerance: Tolerance
    cases: tuple[CaseResult, ...]
    failures: tuple[str, ...]
    facts: dict[str, JSON] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return GateFailed.exit_code if self.failures else 0

    def agreement(self, measure: str) -> list[float]:
        """Every row's agreement by a measure (``cosine``, ``top1``, ``kl``), over all cases."""
        return [value for case in self.cases for value in case.agreement.get(measure, [])]

    def worst(self) -> dict[str, JSON]:
        """The worst of everything, over all cases: what a summary says."""
        outputs: dict[str, dict[str, JSON]] = {}
        for case in self.cases:
            for name, difference in case.outputs.items():
                kept = outputs.setdefault(name, {"max_abs": 0.0, "p999_abs": 0.0, "mean_abs": 0.0, "cosine": 1.0})
                for key in ("max_abs", "p999_abs", "mean_abs"):
                    kept[key] = max(kept[key], getattr(difference, key))
                kept["cosine"] = min(kept["cosine"], difference.cosine)
                if difference.top1 is not None:
                    kept["top1"] = min(kept.get("top1", 1.0), difference.top1)
        summary: dict[str, JSON] = {"outputs": outputs}
        if cosines := self.agreement("cosine"):
            summary["cosine"] = {"worst": min(cosines), "mean": sum(cosines) / len(cosines), "rows": len(cosines)}
        if top1 := self.agreement("top1"):
            summary["top1"] = {"share": sum(top1) / len(top1), "rows": len(top1)}
        if kl := self.agreement("kl"):
            summary["kl"] = {"worst": max(kl), "mean": sum(kl) / len(kl), "rows": len(kl)}
        return summary

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "verify",
            "schema": SCHEMA,
            "ref": self.ref,
            "against": self.against,
            "passed": not self.failures,
            "exit_code": self.exit_code,
            "task": self.task,
            "precision": self.precision,
            "tolerance": asdict(self.tolerance),
            "worst": self.worst(),
            "failures": list(self.failures),
            "cases": _cases(self.cases),
            "facts": self.facts,
        }


def _cases(cases: Sequence[CaseResult]) -> list[dict[str, JSON]]:
    return [case.to_json() for case in cases]
