"""Keeping a verdict: the report beside the version, the recipe that makes the winner again, and the alias ``best``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.errors import BadInput, MissingPiece
from optimizer.files import disk_errors, write_text
from optimizer.ref import Ref
from optimizer.search.gates import Outcome
from optimizer.search.html import to_html
from optimizer.search.options import Optimize
from optimizer.search.rebuild import recipe_of
from optimizer.search.report import OptimizeReport
from optimizer.store import Store

__all__ = ["BEST_ALIAS", "RECIPE_NAME", "VERDICT_NAME", "check_writable", "keep", "kept", "write_copies"]

#: What is written into the folder of the version, and the alias that names the winner.
VERDICT_NAME, RECIPE_NAME, BEST_ALIAS = "verdict.json", "best.toml", "best"
_ELSEWHERE = "free some room there, or name a file in a folder of your own: --report DIR/report.html"


def _stale(report: OptimizeReport, store: Store, name: str) -> str:
    """What the alias ``best`` points at, where this verdict has no winner and shows that this one fails; else empty."""
    target = store.aliases(name).get(BEST_ALIAS)
    if target is None or report.verdict is Outcome.PASS:
        return ""
    ref = f"{name}@{target}"
    outcomes = {candidate.outcome for candidate in report.candidates if candidate.ref == ref}
    return ref if outcomes == {Outcome.FAIL} else ""


def keep(report: OptimizeReport, artifact: Artifact, store: Store, options: Optimize) -> OptimizeReport:
    """Write the verdict, and after it what points at the winner: an interruption leaves nothing that says too much."""
    ref = Ref.parse(artifact.ref)
    folder = store.version_folder(ref.name, int(ref.at))
    stale = _stale(report, store, ref.name)
    if stale:
        said = f"{stale} was the best by an earlier verdict and misses a budget now: the alias {BEST_ALIAS} is removed."
        report = replace(report, notes=(*report.notes, said))
        (folder / RECIPE_NAME).unlink(missing_ok=True)
        store.drop_alias(ref.name, BEST_ALIAS)
    if report.verdict is Outcome.PASS:
        report = replace(report, recipe=str(folder / RECIPE_NAME))
        winner = store.get(report.best)
        head = (
            f"Makes {report.best} again, the winner of {report.created}:\n{report.command}\n"
            f"Run it there: {report.best}{'' if report.provider == 'cpu' else '+' + report.provider}"
        )
        with disk_errors("writing the recipe", folder):
            write_text(folder / RECIPE_NAME, recipe_of(winner, store, head))
    report = report.written(folder / VERDICT_NAME)
    if report.verdict is Outcome.PASS:
        store.set_alias(BEST_ALIAS, report.best)
    write_copies(report, options.report)
    return report


def kept(name: str, version: int, store: Store) -> OptimizeReport:
    """The verdict that is kept beside a version, knowing where it and the recipe lie now.

    Raises:
        BadInput: there is none, or a newer ml-opt wrote it.
        Damaged: it cannot be read.
    """
    path = store.version_folder(name, version) / VERDICT_NAME
    if not path.is_file():
        others = [f"{name}@{each}" for each in store.versions(name) if _has_verdict(store, name, each)]
        raise BadInput(
            f"{name}@{version} has no verdict",
            f"these have one: {', '.join(others)}"
            if others
            else f"reach one: ml-opt optimize {name}@{version}:VARIANT --eval FILE --min-cosine 0.999",
        )
    report = OptimizeReport.read(path)
    recipe = path.with_name(RECIPE_NAME)
    return replace(report, path=str(path), recipe=str(recipe) if report.recipe and recipe.is_file() else "")


def _has_verdict(store: Store, name: str, version: int) -> bool:
    return (store.version_folder(name, version) / VERDICT_NAME).is_file()


def check_writable(paths: Sequence[Path]) -> None:
    """Raise now what :func:`write_copies` would raise after minutes of work."""
    for path in paths:
        with _writing(path), tempfile.TemporaryFile(dir=path.parent):
            pass


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """With the folder of a report made; whatever the system has against writing there is said about that file.

    Raises:
        MissingPiece: no room, or no permission.
        BadInput: nothing can be written there at all.
    """
    try:
        with disk_errors("writing a report", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield
    except MissingPiece as error:
        error.hint = _ELSEWHERE  # its own is about the store
        raise
    except OSError as error:
        raise BadInput(f"--report {path} cannot be written: {error.strerror}", _ELSEWHERE) from error


def write_copies(report: OptimizeReport, paths: Sequence[Path]) -> None:
    """Write a report where it was asked for too, in the format that each name's ending says."""
    for path in paths:
        with _writing(path):
            if path.suffix == ".html":
                write_text(path, to_html(report.to_json()))
            else:
                report.written(path)
