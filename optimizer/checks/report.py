"""report: the verdict of ``optimize`` again, from what is kept beside the version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.check import Check
from optimizer.errors import Damaged
from optimizer.options import Options, opt
from optimizer.ref import Ref
from optimizer.search.options import check_formats

if TYPE_CHECKING:
    from optimizer.search.report import OptimizeReport
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "KeptReport"]


class KeptReport(Options):
    """Options of report."""

    report: tuple[Path, ...] = opt((), "Where to write it: FILE.html or FILE.json; repeatable.", key=False)

    def check(self) -> None:
        check_formats(self.report)


def _run(refs: tuple[str, ...], options: KeptReport, store: Store, progress: Progress) -> OptimizeReport:
    from optimizer.search.html import to_html
    from optimizer.search.keep import kept, write_copies

    name, version, _ = store.locate(Ref.parse(refs[0]))
    report = kept(name, version, store)
    try:
        to_html(report.to_json())
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Types are right by now, and what lies in its free-form parts (data, environment, bench) is not.
        raise Damaged(
            f"{report.path} cannot be drawn: {type(error).__name__}: {error}",
            f"reach a verdict again: ml-opt optimize {name}@{version} --eval FILE",
        ) from error
    write_copies(report, options.report)
    return report


CHECK = Check(
    name="report",
    help="Show the verdict that optimize reached on a version, and make its report again.",
    details="It is read from verdict.json beside the version, and needs neither ONNX Runtime nor the data. "
    "Exit code 0, 1 or 3 as the verdict says; 2 when the version has none, 5 when it cannot be read.",
    options=KeptReport,
    run=_run,
)
