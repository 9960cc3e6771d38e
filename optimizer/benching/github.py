"""GitHub Actions: the report in the job's summary, and an annotation for every gate that did not hold.

Formats: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.files import disk_errors
from optimizer.options import opt

if TYPE_CHECKING:
    from optimizer.benching.comparison import Comparison
    from optimizer.benching.gates import Gate
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.benching.report import BenchReport

__all__ = ["add_summary", "annotation", "annotations_of", "github_opt", "summary_file"]

_VARIABLE = "GITHUB_STEP_SUMMARY"


def github_opt() -> Any:
    """The option ``--github``, the same for every check that writes reports of measurements."""
    return opt(
        False,
        "In GitHub Actions: add the report to the job's summary, and annotate every gate that did not hold.",
        key=False,
    )


def summary_file() -> Path:
    """Where the runner wants the summary of this step; :class:`BadInput` outside of GitHub Actions."""
    named = os.environ.get(_VARIABLE)
    if not named:
        raise BadInput(
            f"--github is for a step of GitHub Actions, which sets {_VARIABLE}; it is not set here",
            "leave --github out, or name a file yourself: --report FILE.md",
        )
    return Path(named)


def add_summary(markdown: str) -> None:
    """Append a report, as Markdown, to the summary of this step."""
    path = summary_file()
    with disk_errors("adding to the job's summary", path.parent), path.open("a", encoding="utf-8") as summary:
        summary.write(markdown + "\n")


def annotations_of(report: BenchReport | Comparison | GenerationBench, options: Any) -> Iterator[str]:
    """Workflow commands: an error for every candidate and gate that failed, a warning for what is undecided."""
    if not options.github:
        return
    for row in report.failed:
        yield annotation("error", f"{row.label} could not be measured", f"{row.error} {row.hint}".strip())
    for gate in report.gates:
        yield from _of_gate(gate)


def _of_gate(gate: Gate) -> Iterator[str]:
    level = {"REGRESSION": "error", "INCONCLUSIVE": "warning"}.get(gate.outcome.value)
    if level:
        yield annotation(level, f"{gate.outcome.value}: {gate.about}, {gate.title}", gate.says)


def annotation(level: str, title: str, message: str) -> str:
    """One workflow command, escaped as ``@actions/core`` does it (``toolkit/packages/core/src/command.ts``).

    Args:
        level: ``error``, ``warning`` or ``notice``.
        title: a property, so that colons and commas are escaped too.
        message: what is shown.
    """

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return f"::{level} title={data(title).replace(':', '%3A').replace(',', '%2C')}::{data(message)}"
