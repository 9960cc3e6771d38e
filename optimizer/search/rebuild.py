"""How an artifact was made, from its manifest back to the source: as a recipe, and as commands."""

from __future__ import annotations

import json
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.ref import Ref
from optimizer.stage import get_stage
from optimizer.store import Store
from optimizer.types import JSON

__all__ = ["commands_of", "lineage", "recipe_of"]


def lineage(artifact: Artifact, store: Store) -> list[Artifact]:
    """An artifact and all that it was made from, the export first."""
    chain = [artifact]
    while chain[0].manifest.source.get("type") == "artifact":
        chain.insert(0, store.get(str(chain[0].manifest.source["ref"])))
    return chain


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
    source = chain[0].manifest.source
    spec = source["spec"] if source.get("type") == "hub" else str(Path(str(source["path"])).resolve())
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    lines += ["", "[recipe]", f"model = {_toml(spec)}", f"name = {_toml(Ref.parse(artifact.ref).name)}"]
    for parent, each in zip([None, *chain], chain, strict=False):
        stage = get_stage(str(each.manifest.stage["name"]))
        options = stage.options.from_mapping(each.manifest.options, stage.name)
        lines += ["", "[[step]]", f"run = {_toml(stage.name)}", f"id = {_toml(each.variant)}"]
        if parent is not None:
            lines.append(f"from = {_toml(parent.variant)}")
        lines += [f"{name} = {_toml(value)}" for name, value in options.changed().items() if value is not None]
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
