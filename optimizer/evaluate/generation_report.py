"""What verifying a text generator came to, and what it is held to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from optimizer.errors import GateFailed, Inconclusive
from optimizer.evaluate.generation import Compared
from optimizer.types import JSON, Precision

__all__ = ["LIMITS", "SCHEMA", "GenerationLimits", "GenerationReport", "judge_generation"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1


@dataclass(frozen=True)
class GenerationLimits:
    """What still counts as the same decoder.

    Attributes:
        max_drop: by what share perplexity may rise: .03 for 3 %.
        max_kl: largest mean divergence of a token from the original, nats; None leaves it unjudged.
        min_top1: smallest share of tokens with the same likeliest one; None leaves it unjudged.
    """

    max_drop: float
    max_kl: float | None = None
    min_top1: float | None = None


#: fp32 differs by summation order alone; the others are what a conversion that is worth having keeps to.
LIMITS: Mapping[Precision, GenerationLimits] = {
    Precision.FP32: GenerationLimits(max_drop=0.001, max_kl=1e-3, min_top1=0.995),
    Precision.FP16: GenerationLimits(max_drop=0.005, max_kl=5e-3, min_top1=0.98),
    Precision.BF16: GenerationLimits(max_drop=0.01, max_kl=1e-2, min_top1=0.95),
    Precision.FP8: GenerationLimits(max_drop=0.01),
    Precision.INT8: GenerationLimits(max_drop=0.005),
    Precision.INT4: GenerationLimits(max_drop=0.03),
}


@dataclass(frozen=True)
class GenerationReport:
    """Everything that was found, document by document.

    Attributes:
        ref: what was judged.
        against: what it was compared with.
        precision: which row of limits applied.
        limits: what was allowed.
        compared: the numbers.
        failures: what is beyond a limit, in words.
        doubts: what cannot be told from these documents, in words.
        facts: what both decoders really ran on, the data, the environment.
    """

    ref: str
    against: str
    precision: str
    limits: GenerationLimits
    compared: Compared
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    facts: dict[str, JSON] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when a limit is broken, 3 when it cannot be told whether one is."""
        return GateFailed.exit_code if self.failures else Inconclusive.exit_code if self.doubts else 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "verify-generation",
            "schema": SCHEMA,
            "ref": self.ref,
            "against": self.against,
            "passed": self.exit_code == 0,
            "exit_code": self.exit_code,
            "precision": self.precision,
            "limits": asdict(self.limits),
            "compared": self.compared.to_json(),
            "failures": list(self.failures),
            "doubts": list(self.doubts),
            "facts": self.facts,
        }


def judge_generation(compared: Compared, limits: GenerationLimits) -> tuple[list[str], list[str]]:
    """What is beyond the limits, and what cannot be told, in words.

    Perplexity has failed when the lower bound of its ratio is beyond the limit, and has passed when the upper bound is
    not: in between the documents are too few, or too different. The others are means over all tokens, and judged as
    they are.
    """
    failures, doubts = [], []
    ratio, allowed = compared.ratio, 1 + limits.max_drop
    said = (
        f"perplexity {compared.candidate:.4g} is {ratio.value - 1:+.2%} of the original's {compared.original:.4g} "
        f"({ratio.low - 1:+.2%} to {ratio.high - 1:+.2%}), and {limits.max_drop:+.2%} is allowed"
    )
    if ratio.low > allowed or not math.isfinite(ratio.value):
        failures.append(said)
    elif not ratio.high <= allowed:
        doubts.append(f"{said}; more documents would tell")
    if limits.max_kl is not None and not compared.kl <= limits.max_kl:
        failures.append(f"mean divergence {compared.kl:.2e} nats a token, at most {limits.max_kl:g} is allowed")
    if limits.min_top1 is not None and not compared.top1 >= limits.min_top1:
        failures.append(f"the same likeliest token in {compared.top1:.2%}, at least {limits.min_top1:.2%} is asked")
    return failures, doubts
