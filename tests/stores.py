"""A store with something in it, for the tests of what reads and keeps stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimizer.artifact import Artifact
from optimizer.digest import digest_file
from optimizer.manifest import Manifest
from optimizer.store import Store, file_entries
from optimizer.types import Kind

__all__ = ["KEY", "commit", "leftovers", "put", "tree"]

KEY = "0123456789abcdef" * 4


def put(
    store: Store,
    name: str = "toy",
    source: str = "s1",
    variant: str = "fp32",
    key: str = KEY,
    content: bytes = b"model",
) -> Artifact:
    """Commit an artifact the way the pipeline does."""
    with store.scratch() as scratch:
        (scratch.path / "model.onnx").write_bytes(content)
        return commit(store, scratch, name, {"digest": source}, variant, key)


def commit(
    store: Store,
    scratch: Any,
    name: str,
    source: dict[str, Any],
    variant: str,
    key: str,
    *,
    kind: Kind = Kind.ONNX,
    model: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> Artifact:
    """Commit what was written into a scratch folder, with a manifest that says so."""
    Manifest(
        kind=kind,
        key=key,
        stage={"name": "toy-make", "version": 1},
        source=source,
        model=model or {},
        options={},
        facts=facts or {},
        files=file_entries(scratch.path, digest_file),
        environment={},
        command="ml-opt toy make",
        seconds=0.0,
        created="2026-11-24T00:00:00+00:00",
    ).write(scratch.path)
    return store.commit(scratch, name, source, variant, key)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def leftovers(store: Store) -> list[Path]:
    return [p for part in ("scratch", "trash") for p in (store.root / ".ml-opt" / part).glob("*")]
