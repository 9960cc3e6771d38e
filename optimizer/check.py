"""What a check is: a command that looks at artifacts and answers with a report instead of another artifact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from optimizer.discovery import members
from optimizer.environment import need_modules
from optimizer.errors import MissingPiece, UnknownName
from optimizer.options import Options
from optimizer.ref import Ref
from optimizer.store import Store
from optimizer.types import JSON

__all__ = ["Check", "Report", "Voice", "Writable", "discover", "get_check", "keep"]


class Report(Protocol):
    """The answer of a check.

    Attributes:
        exit_code: 0 when every gate held, 1 when one failed, 3 when nothing can be said.
    """

    @property
    def exit_code(self) -> int: ...

    def to_json(self) -> dict[str, JSON]:
        """The whole report, raw samples included; ``report`` names its sort and ``schema`` its number."""


@runtime_checkable
class Voice(Protocol):
    """What a check that speaks may be given as its ``progress``."""

    def say(self, text: str) -> None:
        """Hand on a piece of the report's text as it comes."""


@dataclass(frozen=True)
class Check:
    """One question about one or more artifacts.

    Attributes:
        name: the one spelling: command, recipe step, function (``verify``).
        help: one sentence.
        options: the parameters it takes.
        run: ``run(refs, options, store, progress)`` → :class:`Report`.
        many: True when it takes several references.
        model: True when it takes what an export takes (a folder, a file, a hub id) as well as a reference.
        files: True when it takes report files and no references.
        url: True when what it takes is the address of a server.
        modules: imports without which it cannot run.
        lines: ``lines(report, options)``: what the command line prints beside the report as it is, for whoever reads
            its log by machine.
        speaks: its report is a text, which it hands on while it is written to a ``progress`` that is a :class:`Voice`.
        command: the words typed after ``ml-opt`` (``("bench", "show")``) where they are not its name.
    """

    name: str
    help: str
    options: type[Options]
    run: Callable[[tuple[str, ...], Any, Any, Any], Report]
    many: bool = False
    model: bool = False
    files: bool = False
    url: bool = False
    modules: tuple[str, ...] = ()
    lines: Callable[[Any, Any], Iterable[str]] | None = None
    speaks: bool = False
    command: tuple[str, ...] = ()
    details: str = ""

    @property
    def takes(self) -> str:
        """What stands behind the command's name: ``REF``, ``REF…``, ``MODEL``, ``FILE``, ``FILE…`` or ``URL``."""
        what = "MODEL" if self.model else "URL" if self.url else "FILE" if self.files else "REF"
        return f"{what}…" if self.many else what

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed after ``ml-opt``."""
        return self.command or (self.name,)

    @property
    def function(self) -> str:
        return self.name.replace("-", "_")

    def apply(self, refs: tuple[str, ...], options: Options, store: Any, progress: Any) -> Report:
        """Run it; raises :class:`MissingPiece` when a module that it needs is not installed."""
        need_modules(self.modules, self.name)
        return self.run(refs, options, store, progress)


class Writable(Report, Protocol):
    """A report that can be kept in a file and then knows where."""

    def written(self, path: Path) -> Self:
        """Write it as JSON, and return it knowing its path."""


W = TypeVar("W", bound=Writable)


def keep(report: W, name: str, ref: str, store: Store) -> W:
    """The report, kept as ``reports/<name>-<UTC>.json`` beside the version of an artifact.

    A store that is only read from keeps no reports; the answer is no worse for it, and comes back as it was.
    """
    about = Ref.parse(ref)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    try:
        return report.written(store.reports_folder(about.name, int(about.at)) / f"{name}-{stamp}.json")
    except MissingPiece:
        return report


@functools.cache
def discover() -> dict[str, Check]:
    """Every check of :mod:`optimizer.checks`, by name."""
    return members("optimizer.checks", "CHECK")


def get_check(name: str) -> Check:
    """The check of that name, or :class:`UnknownName`."""
    checks = discover()
    if name not in checks:
        raise UnknownName("check", name, checks)
    return checks[name]
