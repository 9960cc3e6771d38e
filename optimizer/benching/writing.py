"""Reports in files: the format is found by the suffix, and a new file in ``formats/`` is all that a new one needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.benching.github import add_summary, summary_file
from optimizer.discovery import members
from optimizer.errors import BadInput, UnknownName
from optimizer.files import disk_errors, write_text
from optimizer.options import opt

if TYPE_CHECKING:
    from optimizer.benching.comparison import Comparison
    from optimizer.benching.generation_report import GenerationBench
    from optimizer.benching.report import BenchReport

__all__ = [
    "Format",
    "check_formats",
    "format_of",
    "formats",
    "hand_out",
    "handed_out",
    "no_generation",
    "report_opt",
    "write_copies",
]

R = TypeVar("R", bound="BenchReport | Comparison | GenerationBench")


@dataclass(frozen=True)
class Format:
    """One way to write a report.

    Attributes:
        name: the end of the file's name: ``.csv``, or ``.smaller.json``.
        help: what it is, in a few words.
        bench: the file's content for a report of ``bench``.
        comparison: the same for a report of ``bench compare``.
        generation: the same for a report of ``bench`` about text generators; None where there is none.
    """

    name: str
    help: str
    bench: Callable[[BenchReport], str]
    comparison: Callable[[Comparison], str]
    generation: Callable[[GenerationBench], str] | None = None

    def text(self, report: BenchReport | Comparison | GenerationBench) -> str:
        """A report in this format; raises :class:`BadInput` where there is none for it."""
        from optimizer.benching.generation_report import GenerationBench
        from optimizer.benching.report import BenchReport

        if isinstance(report, GenerationBench):
            if self.generation is None:
                raise no_generation(self.name)
            return self.generation(report)
        return self.bench(report) if isinstance(report, BenchReport) else self.comparison(report)


def no_generation(name: str) -> BadInput:
    """The error for a format that texts are not reported in."""
    able = [each.name for each in formats().values() if each.generation is not None]
    return BadInput(f"text generators are not reported as {name}", f"name a file that ends in {' or '.join(able)}")


@functools.cache
def formats() -> dict[str, Format]:
    """Every format of :mod:`optimizer.benching.formats`, by its suffix."""
    return members("optimizer.benching.formats", "FORMAT")


def format_of(path: Path) -> Format:
    """The format with the longest suffix that a file's name ends in; :class:`UnknownName` when there is none."""
    fitting = [suffix for suffix in formats() if path.name.endswith(suffix) and path.name != suffix]
    if not fitting:
        raise UnknownName("report format", path.suffix or str(path), formats())
    return formats()[max(fitting, key=len)]


def check_formats(paths: Iterable[Path]) -> None:
    """Refuse a file that no format is for, before anything is measured (:class:`UnknownName`)."""
    for path in paths:
        format_of(path)


def report_opt() -> Any:
    """The option ``--report``, the same for every check that writes reports of measurements."""
    return opt(
        (),
        "Where to write the report: FILE.json, .csv, .md, .html, .xml (JUnit) or .smaller.json "
        "(github-action-benchmark); repeatable.",
        key=False,
    )


def write_copies(report: BenchReport | Comparison | GenerationBench, paths: Sequence[Path]) -> None:
    """Write a report to files, each in the format that its name says.

    Raises:
        UnknownName: a file that no format is for.
        MissingPiece: the disk is full, or a folder may not be written to.
    """
    for path in paths:
        with disk_errors("writing a report", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, format_of(path).text(replace(report, path=str(path))))


def hand_out(report: BenchReport | Comparison | GenerationBench, paths: Sequence[Path], *, github: bool) -> None:
    """Bring a report wherever it was asked for: into files, and into the summary of a step of GitHub Actions.

    Raises:
        UnknownName: a file that no format is for.
        MissingPiece: the disk is full, or a folder may not be written to.
        BadInput: there is no such summary here.
    """
    write_copies(report, paths)
    if github:
        add_summary(formats()[".md"].text(report))


def handed_out(run: Callable[[tuple[str, ...], Any, Any, Any], R]) -> Callable[[tuple[str, ...], Any, Any, Any], R]:
    """A check's ``run`` whose report is brought wherever its options ask for it (:func:`report_opt`, ``github_opt``).

    Raises:
        BadInput: ``--github`` outside of GitHub Actions, before anything is measured.
    """

    @functools.wraps(run)
    def whole(refs: tuple[str, ...], options: Any, store: Any, progress: Any) -> R:
        if options.github:
            summary_file()
        report = run(refs, options, store, progress)
        hand_out(report, options.report, github=options.github)
        return report

    return whole
