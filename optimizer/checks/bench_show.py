"""bench show: a report of ``bench`` or ``bench compare`` again, in a terminal or another format, from its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.benching.github import annotations_of, github_opt
from optimizer.benching.writing import check_formats, handed_out, report_opt
from optimizer.check import Check
from optimizer.errors import BadInput
from optimizer.options import Options

if TYPE_CHECKING:
    from optimizer.benching.comparison import Comparison
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.benching.report import BenchReport
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "BenchShow"]


class BenchShow(Options):
    """Options of bench show."""

    report: tuple[Path, ...] = report_opt()
    github: bool = github_opt()

    def check(self) -> None:
        check_formats(self.report)


def _run(
    refs: tuple[str, ...], options: BenchShow, store: Store, progress: Progress
) -> BenchReport | Comparison | GenerationBench:
    from optimizer.benching.comparison import read_report

    if len(refs) != 1:
        raise BadInput(f"bench show takes one report, and got {len(refs)}", "run: ml-opt bench show FILE.json")
    return read_report(Path(refs[0]))


CHECK = Check(
    name="bench-show",
    command=("bench", "show"),
    help="Show a report of bench or bench compare again, and write it in any other format, from its JSON alone.",
    details="Files of every earlier schema are read. The exit code is that of the run which wrote it: 1 when a "
    "candidate could not be measured or a gate failed, 3 when one is undecided.",
    options=BenchShow,
    run=handed_out(_run),
    lines=annotations_of,
    files=True,
)
