"""What a stage is: a function from files and options to files, and what the house must know about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimizer.artifact import Artifact, Source
from optimizer.discovery import members
from optimizer.errors import UnknownName
from optimizer.options import Options
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    from optimizer.store import Store

__all__ = ["Content", "Outcome", "Progress", "Redirected", "Stage", "discover", "get_stage", "silent"]


class Progress(Protocol):
    """Where a stage says how far it is; the command line draws it, and everyone else ignores it."""

    def __call__(self, doing: str, done: float | None = None, total: float | None = None) -> None:
        """Say what is being done, and how far it is when that is known."""


def silent(doing: str, done: float | None = None, total: float | None = None) -> None:
    """The :class:`Progress` of someone who does not look."""


@dataclass(frozen=True)
class Outcome:
    """What a stage knows that its files cannot say.

    Attributes:
        facts: numbers the stage counted itself (fusions, calibration rows, casts); they join the read-back facts.
        model: what the model is; only a stage that starts from a source gives it, others hand theirs down.
        warnings: what a reader should know before trusting the artifact.
        stored: called when the artifact is in the store, and what it was made with is needed no more.
    """

    facts: dict[str, JSON] = field(default_factory=dict)
    model: dict[str, JSON] | None = None
    warnings: list[str] = field(default_factory=list)
    stored: Callable[[], None] | None = None


@dataclass(frozen=True)
class Redirected:
    """Where a stage starts instead of what was named.

    Attributes:
        source: the artifact.
        options: the stage's options.
        note: why, for the user; empty when nothing was exchanged.
        stage: the name of another stage that does it, with options of its own; empty for the one that was asked.
    """

    source: Artifact
    options: Any
    note: str = ""
    stage: str = ""


@dataclass(frozen=True)
class Content:
    """Options that only say where something comes from: what comes from there stands in the key for them.

    Two ways to the same content (a file with how to choose from it, an artifact that holds what was chosen) then end in
    the same key.

    Attributes:
        options: their names; the first, where it is None, says that there is no content.
        digest: ``digest(options, source)`` → sha256 of the content. It may read files and import heavy libraries: the
            answer is remembered for as long as the source, those files and the stage's libraries are the same.
    """

    options: tuple[str, ...]
    digest: Callable[[Any, Any], str]


@dataclass(frozen=True)
class Stage:
    """One step from an artifact to the next.

    Attributes:
        name: the one spelling: command, recipe step, manifest and file name (``quantize-static``).
        help: one sentence.
        options: the parameters it takes.
        accepts: kinds of artifact it starts from.
        produces: the kind it makes.
        run: ``run(source, out, options, progress)``: writes the model and what belongs beside it into the empty
            folder ``out``, and nothing anywhere else but what is kept to save time (:mod:`optimizer.quantizing.kept`).
        variant: names the result from its options and source (``int8-static``).
        verify: ``verify(options, facts, source)`` raises :class:`GateFailed` when what was read back is not what was
            asked for.
        version: raised when the same options would give another result.
        needs: distributions whose versions decide the result; they go into the key.
        modules: imports without which it cannot run; the error for a missing one names the extra.
        device_bound: ``device_bound(options)``: whether the result belongs to one GPU and driver.
        command: the words typed after ``ml-opt`` (``("quantize", "static")``).
        aliases: other words for the same command.
        contents: options that the key knows by what comes from them.
        redirect: ``redirect(source, options, store)`` → where it really starts, for a stage that does not take every
            artifact as it is; it may be another artifact of the lineage, with other options, and even another stage.
        first: ``first(options)`` → the name and the options of a stage whose result this one starts from, when it is
            given a source model: one command that makes two artifacts.
    """

    name: str
    help: str
    options: type[Options]
    accepts: frozenset[Kind]
    produces: Kind
    run: Callable[[Any, Path, Any, Progress], Outcome]
    variant: Callable[[Any, Source], str]
    verify: Callable[[Any, Mapping[str, JSON], Source], None]
    version: int
    needs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    device_bound: Callable[[Any], bool] | None = None
    command: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    contents: tuple[Content, ...] = ()
    redirect: Callable[[Artifact, Any, Store], Redirected] | None = None
    first: Callable[[Any], tuple[str, Options]] | None = None
    details: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed after ``ml-opt``."""
        return self.command or (self.name,)

    @property
    def function(self) -> str:
        """The name of the Python function: ``export-onnx`` → ``export_onnx``."""
        return self.name.replace("-", "_")


@functools.cache
def discover() -> dict[str, Stage]:
    """Every stage of :mod:`optimizer.stages`, by name. A new file there is all that a new stage needs."""
    return members("optimizer.stages", "STAGE")


def get_stage(name: str) -> Stage:
    """The stage of that name, or :class:`UnknownName` with the nearest ones."""
    stages = discover()
    spelled = name.replace("_", "-")
    if spelled not in stages:
        raise UnknownName("stage", name, stages)
    return stages[spelled]
