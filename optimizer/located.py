"""Options whose value is a file, or else the reference of an artifact that holds the same thing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from optimizer.errors import BadInput
from optimizer.options import OptionField, Options
from optimizer.ref import is_name
from optimizer.store import Store

__all__ = ["located", "looks_like_reference"]

O = TypeVar("O", bound=Options)  # noqa: E741 - the conventional letter here is the word itself


def located(options: O, store: Store) -> tuple[O, O]:
    """Options as they are recorded, with full references in them, and as they are worked with, with paths.

    A file or folder that is there is meant, whatever the store holds.

    Args:
        options: as they were given; those that come from here already are left as they are.
        store: where references are looked up.

    Raises:
        BadInput: a value is neither a file nor a reference, or that of another kind of artifact.
        UnknownName: a reference of nothing.
        Damaged: the artifact's files are not what its manifest says.
    """
    named: dict[str, Path] = {}
    paths: dict[str, Path] = {}
    for field in type(options).fields():
        value = getattr(options, field.name)
        if field.opt.kind is None or value is None or value.exists():
            continue
        named[field.name], paths[field.name] = _found(field, value, store)
    if not named:
        return options, options
    return dataclasses.replace(options, **named), dataclasses.replace(options, **paths)  # type: ignore[type-var]


def looks_like_reference(text: str) -> bool:
    """Whether a value can only be a reference: ``minilm:calib-256``, and not ``rows.jsonl``."""
    name = text.partition("@")[0].partition(":")[0]
    return name != text and is_name(name)


def _found(field: OptionField, value: Path, store: Store) -> tuple[Path, Path]:
    """The full reference of an artifact, and its folder."""
    assert field.opt.kind is not None
    text = str(value)
    if not looks_like_reference(text) and text not in store.names():
        raise BadInput(
            f"no such file: {text}",
            f"{field.flag} takes a file, or the reference of {field.opt.kind.phrase} (`ml-opt ls`)",
        )
    artifact = store.get(text)
    artifact.expect(field.opt.kind)
    artifact.check(store.digests)  # here, where its reference is known, and not only where its folder is read
    return Path(artifact.ref), artifact.path
