"""Recipes: a chain of stages and checks written down in TOML, run step by step, cached steps skipped.

::

    [recipe]
    model = "path/to/model"
    name = "minilm"

    [[step]]
    run = "export-onnx"
    id = "fp32"

    [[step]]
    run = "quantize-static"
    id = "int8"
    from = "fp32"
    calib = "calib.jsonl"

    [[step]]
    run = "bench"
    of = ["fp32", "int8"]
    shape = ["1x16", "8x128"]
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer import check as checks
from optimizer import stage as stages
from optimizer.check import Check, Report
from optimizer.errors import BadInput, MlOptError, UnknownName
from optimizer.located import looks_like_reference
from optimizer.options import Options
from optimizer.pipeline import Result, apply
from optimizer.ref import Ref, check_name, is_name, safe_name
from optimizer.stage import Progress, Stage, silent
from optimizer.store import Store
from optimizer.types import JSON, Kind

__all__ = ["Recipe", "RecipeReport", "Step", "read_recipe", "run_recipe"]


@dataclass(frozen=True)
class Step:
    """One step: what to run, on what, with which options.

    Attributes:
        id: what later steps call its result.
        does: the stage or check.
        sources: the model, a step's id or a reference; a check may have several.
        options: checked before the first step runs.
        variant: the result's name in the store, when the recipe chooses it.
    """

    id: str
    does: Stage | Check
    sources: tuple[str, ...]
    options: Options
    variant: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A chain that was read and checked whole, before anything runs."""

    model: str
    name: str | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class RecipeReport:
    """What every step came to.

    Attributes:
        steps: one record a step, in order.
        exit_code: 0, or the code of the first check that did not pass.
    """

    steps: tuple[dict[str, JSON], ...]
    exit_code: int

    def to_json(self) -> dict[str, JSON]:
        return {"report": "recipe", "schema": 1, "exit_code": self.exit_code, "steps": list(self.steps)}


def read_recipe(path: Path, *, model: str | None = None, name: str | None = None) -> Recipe:
    """Read and check a recipe; paths in it are relative to its own folder.

    Args:
        path: the TOML file.
        model: stands in for the recipe's own ``model``: the same chain for another model.
        name: stands in for the recipe's own ``name``.

    Raises:
        BadInput: it is not TOML, or a key, stage, option or step name in it is wrong (the step is named).
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no such recipe: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path} is not a recipe: {error}") from None
    _only(data, {"recipe", "step"}, str(path))
    head = data.get("recipe", {})
    if not isinstance(head, dict) or not isinstance(data.get("step", []), list):
        raise BadInput(f"{path}: [recipe] is a table and [[step]] a list of tables")
    _only(head, {"model", "name"}, f"{path}: [recipe]")
    if model is None:
        if not isinstance(head.get("model"), str) or not head["model"]:
            raise BadInput(
                f"{path}: [recipe] needs a model: a folder, an .onnx file or a hub id",
                f"write it there, or run: ml-opt run {path} --model MODEL",
            )
        model = _source(head["model"], path.parent)
    name = name if name is not None else head.get("name")
    if name is not None:
        check_name("model", _text(name, f"{path}: name"))
    if not data.get("step"):
        raise BadInput(f"{path} has no [[step]]")
    steps: list[Step] = []
    for number, table in enumerate(data["step"], 1):
        steps.append(_step(table, number, steps, model, name, path))
    return Recipe(model, name, tuple(steps))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where} takes a string, not {value!r}")
    return value


def _source(typed: str, folder: Path) -> str:
    """A model as the recipe names it: a path that is there is taken from the recipe's folder."""
    return str(folder / typed) if (folder / typed).exists() else typed


def _step(table: Any, number: int, before: list[Step], model: str, name_of_model: str | None, path: Path) -> Step:
    where = f"{path}: step {number}"
    if not isinstance(table, dict) or not isinstance(table.get("run"), str):
        raise BadInput(f'{where} needs run = "STAGE"')
    values = dict(table)
    name = values.pop("run").replace("_", "-")
    known: dict[str, Stage | Check] = {**stages.discover(), **checks.discover()}
    if name not in known:
        raise UnknownName(f"stage or check (step {number} of {path})", name, known)
    does = known[name]
    step_id = _text(values.pop("id", name), f"{where}: id")
    if step_id in {s.id for s in before}:
        raise BadInput(f"{where}: the id {step_id!r} is taken; give this step another id")
    variant = values.pop("variant", None) if isinstance(does, Stage) else None
    if variant is not None:
        check_name("variant", _text(variant, f"{where}: variant"))
    wanted = does.accepts if isinstance(does, Stage) else {Kind.ONNX}
    made = [s for s in before if isinstance(s.does, Stage) and s.does.produces in wanted]
    if isinstance(does, Stage) and Kind.SOURCE in does.accepts:
        sources = [_source(_text(values.pop("from", model), f"{where}: from"), path.parent)]
    elif isinstance(does, Stage):
        sources = [values.pop("from", made[-1].id if made else None)]
    else:
        of_itself = [model] if does.model else [made[-1].id] if made and not does.files else []
        sources = values.pop("of", of_itself)
        sources = [sources] if isinstance(sources, str) else sources
    if isinstance(does, Check) and (does.model or does.files):
        sources = [_source(s, path.parent) if isinstance(s, str) else s for s in sources]
        if does.model and name_of_model is not None:
            values.setdefault("name", name_of_model)
    if not sources or not all(isinstance(s, str) for s in sources):
        raise BadInput(f"{where} has nothing to start from", 'add from = "STEP" (or of = ["STEP", …] to a check)')
    values = _anchored(does.options, values, path.parent, {s.id for s in before})
    options = does.options.from_mapping(values, f"{where} ({name})")
    return Step(step_id, does, tuple(sources), options, variant)


def _anchored(options: type[Options], values: Mapping[str, Any], folder: Path, ids: set[str]) -> dict[str, Any]:
    """Make relative paths start at the recipe's folder, so that a recipe works from anywhere.

    Where an artifact may be named instead, the id of an earlier step and a reference stay what they are.
    """
    paths = {f.name: f for f in options.fields() if f.element is Path}

    def names_artifact(value: Any) -> bool:
        return isinstance(value, str) and (
            value in ids or (looks_like_reference(value) and not (folder / value).exists())
        )

    out = {}
    for key, value in values.items():
        field = paths.get(key.replace("-", "_"))
        if field is None or (field.opt.kind is not None and names_artifact(value)):
            out[key] = value
        elif field.many and isinstance(value, list):
            out[key] = [str(folder / v) if isinstance(v, str) else v for v in value]
        else:
            out[key] = str(folder / value) if isinstance(value, str) and value else value
    return out


def _only(table: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise UnknownName(f"key of {where}", key, allowed)


def run_recipe(
    recipe: Recipe | Path | str,
    *,
    store: Store | Path | str | None = None,
    progress: Progress = silent,
    seen: Callable[[Step, Result | Report], None] | None = None,
) -> RecipeReport:
    """Run every step; what is in the store already is not made again.

    A check that fails is remembered and the rest still runs; an error ends the recipe at its step.

    Args:
        recipe: a recipe, or the path of one.
        store: the folder of artifacts.
        progress: told what is being done.
        seen: called after every step with what it came to.

    Returns:
        one record a step, and the exit code of the first check that did not pass.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe))
    store = store if isinstance(store, Store) else Store(store)
    _find_sources(recipe, store)
    refs: dict[str, str] = {}
    records: list[dict[str, JSON]] = []
    exit_code = 0
    for number, step in enumerate(recipe.steps, 1):
        sources = tuple(_resolved(source, refs) for source in step.sources)
        options = _with_refs(step.options, refs)
        try:
            outcome: Result | Report
            if isinstance(step.does, Stage):
                name = recipe.name if Kind.SOURCE in step.does.accepts else None
                outcome = apply(
                    step.does, sources[0], options, store, name=name, variant=step.variant, progress=progress
                )
                refs[step.id] = outcome.artifact.ref
            else:
                outcome = step.does.apply(sources, options, store, progress)
                exit_code = exit_code or outcome.exit_code
        except MlOptError as error:
            error.message = f"step {number} ({step.id}): {error.message}"
            raise
        records.append({"id": step.id, "run": step.does.name, **outcome.to_json()})
        if seen is not None:
            seen(step, outcome)
    return RecipeReport(tuple(records), exit_code)


def _find_sources(recipe: Recipe, store: Store) -> None:
    """Refuse a bare name that is neither an earlier step nor in the store, before hours of work and not after."""
    known = {*store.names(), recipe.name or safe_name(recipe.model)}
    for number, step in enumerate(recipe.steps, 1):
        for source in step.sources:
            head = source.partition("+")[0]
            takes_artifact = isinstance(step.does, Stage) and Kind.SOURCE not in step.does.accepts
            if takes_artifact and is_name(head) and head not in known:
                raise UnknownName(f"step or artifact (step {number}, {step.id})", head, known)
        for field in type(step.options).fields():
            value = str(getattr(step.options, field.name))
            if (
                field.opt.kind is not None
                and looks_like_reference(value)
                and (name := Ref.parse(value).name) not in known
            ):
                raise UnknownName(f"artifact in {field.flag} (step {number}, {step.id})", name, known)
        known.add(step.id)


def _with_refs(options: Options, refs: Mapping[str, str]) -> Options:
    """Options that name an artifact (``against``, ``calib``), with step ids replaced by what those steps made."""
    named = {f.name: getattr(options, f.name) for f in type(options).fields() if f.opt.ref or f.opt.kind}
    found = {name: _resolved(str(value), refs) for name, value in named.items() if value is not None}
    return dataclasses.replace(options, **found) if found else options  # type: ignore[type-var]


def _resolved(source: str, refs: Mapping[str, str]) -> str:
    """A step's id replaced by the reference it made; ``id+provider`` keeps its provider."""
    head, plus, provider = source.partition("+")
    if head in refs:
        return refs[head] + plus + provider
    return source
