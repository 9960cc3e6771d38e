"""How an artifact was made, from its manifest back to the source: as a recipe, and as commands."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.errors import UnknownName
from optimizer.located import looks_like_reference
from optimizer.ref import Ref
from optimizer.stage import discover, get_stage
from optimizer.store import Store
from optimizer.types import JSON

__all__ = ["commands_of", "lineage", "recipe_of"]


def lineage(artifact: Artifact, store: Store) -> list[Artifact]:
    """An artifact and all that it was made from, each after what it was made from itself: the export first.

    A calibration set or ranking that is not in the store any more is left out: the artifact stands without it. So is
    what one command makes on its way (:attr:`Stage.first`): that command starts from the source model itself.

    Raises:
        UnknownName: a model that it was made from is gone.
    """
    chain: list[Artifact] = []
    stage = discover().get(str(artifact.manifest.stage["name"]))
    whole = stage is not None and stage.first is not None
    if artifact.manifest.source.get("type") == "artifact" and not whole:
        chain += lineage(store.get(str(artifact.manifest.source["ref"])), store)
    for ref in _named(artifact).values():
        with contextlib.suppress(UnknownName):
            chain += lineage(store.get(ref), store)
    return [*{each.ref: each for each in chain}.values(), artifact]


def _named(artifact: Artifact) -> dict[str, str]:
    """Options of an artifact's stage that name another artifact, and its reference."""
    stage = discover().get(str(artifact.manifest.stage["name"]))
    kinds = {field.name for field in stage.options.fields() if field.opt.kind is not None} if stage else set()
    values = {name: str(artifact.manifest.options.get(name)) for name in kinds}
    return {name: value for name, value in sorted(values.items()) if looks_like_reference(value)}


def commands_of(artifact: Artifact, store: Store) -> tuple[str, ...]:
    """The command lines that make it, in order."""
    return tuple(each.manifest.command for each in lineage(artifact, store))


def recipe_of(artifact: Artifact, store: Store, head: str) -> str:
    """A recipe, in TOML, whose last step makes this artifact again (or finds it in the store).

    Args:
        artifact: of the store.
        store: where its ancestors are.
        head: comment lines for the top, without their ``#``.
    """
    chain = lineage(artifact, store)
    source = artifact.model_info["source"]
    spec = source["spec"] if source.get("type") == "hub" else str(Path(str(source["path"])).resolve())
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    lines += ["", "[recipe]", f"model = {_toml(spec)}", f"name = {_toml(Ref.parse(artifact.ref).name)}"]
    # A calibration set of another model is named by its reference: this recipe has one model.
    version = artifact.ref.rpartition(":")[0]
    steps = [each for each in chain if each.ref.rpartition(":")[0] == version]
    ids = {each.ref: each.variant for each in steps}
    for each in steps:
        stage = get_stage(str(each.manifest.stage["name"]))
        options = stage.options.from_mapping(each.manifest.options, stage.name)
        lines += ["", "[[step]]", f"run = {_toml(stage.name)}", f"id = {_toml(each.variant)}"]
        if (parent := str(each.manifest.source.get("ref"))) in ids:
            lines.append(f"from = {_toml(ids[parent])}")
        named = {name: ids.get(ref, ref) for name, ref in _named(each).items()}
        given = {**options.changed(), **named}
        lines += [f"{name} = {_toml(value)}" for name, value in given.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: JSON) -> str:
    """One value as TOML writes it; a path is made whole, as a recipe reads it from its own folder."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Path):
        value = value.resolve()
    return json.dumps(str(value), ensure_ascii=False)
