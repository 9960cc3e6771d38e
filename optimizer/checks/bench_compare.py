"""bench compare: what is slower in the second of two reports, when they could not be measured in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.benching.gates import share_of
from optimizer.benching.github import annotations_of, github_opt
from optimizer.benching.writing import check_formats, handed_out, report_opt
from optimizer.check import Check
from optimizer.errors import BadInput
from optimizer.options import Options, opt

if TYPE_CHECKING:
    from optimizer.benching.comparison import Comparison
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "BenchCompare"]


class BenchCompare(Options):
    """Options of bench compare."""

    fail_if_slower: str | None = opt(
        None, "Fail when a call takes longer than it did by more than this, e.g. 5%.", metavar="N%"
    )
    cross_machine: bool = opt(False, "Compare although machines, threads or computing libraries differ.")
    report: tuple[Path, ...] = report_opt()
    github: bool = github_opt()

    def check(self) -> None:
        share_of(self.fail_if_slower, "--fail-if-slower", "%", "5%")
        check_formats(self.report)


def _run(refs: tuple[str, ...], options: BenchCompare, store: Store, progress: Progress) -> Comparison:
    from optimizer.benching.comparing import compare_reports
    from optimizer.benching.generation_calls import read_calls

    if len(refs) != 2:
        raise BadInput(
            f"bench compare takes two reports, and got {len(refs)}", "run: ml-opt bench compare BASE.json HEAD.json"
        )
    base, head = (read_calls(Path(ref)) for ref in refs)
    return compare_reports(
        base,
        head,
        tolerance=share_of(options.fail_if_slower, "--fail-if-slower", "%", "5%"),
        cross_machine=options.cross_machine,
    )


CHECK = Check(
    name="bench-compare",
    command=("bench", "compare"),
    help="Compare two reports of bench, candidate by candidate: what became slower, and how sure that is.",
    details="Runs that were not interleaved drift apart: where both hold a row with the same key, times are compared "
    "through it, and a run that measures both (`ml-opt bench HEAD --against BASE`) is always sharper. Exit code 1 when "
    "something is slower than allowed or failed, 3 when that cannot be told.",
    options=BenchCompare,
    run=handed_out(_run),
    lines=annotations_of,
    many=True,
    files=True,
    modules=("numpy",),
)
