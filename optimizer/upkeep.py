"""Keeping a store in order: removing, collecting what died half-way, and reading everything again."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.errors import BadInput, MlOptError
from optimizer.files import Lock, disk_errors, write_json
from optimizer.layout import OWNER_LOCK, Layout, user_cache
from optimizer.ref import Ref
from optimizer.store import Store

__all__ = ["Garbage", "check", "clear_scratch", "gc", "remove"]

#: A folder without its lock is somebody's who is just making it, until it is this old.
_NEWBORN_S = 5.0
#: A file beside the one it was to replace, left by a write that was killed before its rename, once it is this old.
_STRAY_S = 60.0
#: Checkpoints of a training that was stopped are kept for so long after the last one was written: a week.
_FORGOTTEN_S = 7 * 24 * 3600.0
#: What is kept for a machine in the user's cache goes when nothing used it for so long. Another machine's or version's
#: folder is not told by its name: a home may be shared by several machines, and environments of several versions.
_UNUSED_S = 30 * 86400.0


@dataclass(frozen=True)
class Garbage:
    """What ``gc`` found and removed.

    Attributes:
        removed: paths below the store, of unfinished work, what was kept to save time, and empty versions; whole paths
            of what was kept for a machine in the user's cache.
        bytes: how much disk that was.
        broken: artifacts whose manifest cannot be read; reported, never removed unasked.
    """

    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    broken: list[str] = field(default_factory=list)


def remove(store: Store, *refs: str, force: bool = False) -> list[str]:
    """Remove what references name: all of it, or nothing when one of them cannot be removed.

    Args:
        store: where they lie.
        refs: with a variant, that artifact; with only a version, all its variants; with only a name, everything.
        force: remove even what an alias points at (the alias goes too).

    Returns:
        the full references that are gone.
    """
    layout = store.layout
    folders: dict[Path, str] = {}
    for ref in refs:
        wanted = Ref.parse(ref)
        name, version, variant = store.locate(wanted)
        whole = layout.root / name
        folders[layout.version(name, version) / variant if wanted.at or variant else whole] = name
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk_errors("removing", layout.root))
        for name in sorted(set(folders.values())):
            stack.enter_context(layout.name_lock(name))
        doomed = [full for full in store.refs() if not folders.keys().isdisjoint(_way_to(full, layout))]
        kept = {name: _aliases_without(name, doomed, store) for name in set(folders.values())}
        for name, aliases in kept.items():
            if not force and (lost := sorted(store.aliases(name).keys() - aliases.keys())):
                raise BadInput(
                    f"{name}@{lost[0]} points at what would be removed",
                    f"move the alias first (ml-opt alias), or add --force: ml-opt rm --force {' '.join(refs)}",
                )
        for name, aliases in kept.items():
            if aliases != store.aliases(name):
                write_json(layout.aliases(name), {"schema": 1, "aliases": aliases})
        for folder, name in folders.items():
            _to_trash(folder, layout)
            if folder == layout.root / name:  # the whole model: the next one of this name begins at 1 again
                layout.last_version(name).unlink(missing_ok=True)
    _empty_trash(layout)
    return doomed


def _way_to(full: str, layout: Layout) -> list[Path]:
    """The folders of a full reference: its variant's, its version's, its model's."""
    ref = Ref.parse(full)
    version = layout.version(ref.name, ref.at)
    return [version / ref.variant, version, version.parent]


def _aliases_without(name: str, doomed: Sequence[str], store: Store) -> dict[str, str]:
    """The aliases but those that point at something now, and would at nothing when these references are gone."""
    refs = store.refs()

    def pointed_at(target: str) -> set[str]:
        return {full for full in refs if full == f"{name}@{target}" or full.startswith(f"{name}@{target}:")}

    return {
        alias: target
        for alias, target in store.aliases(name).items()
        if not (found := pointed_at(target)) or not found <= set(doomed)
    }


def gc(store: Store) -> Garbage:
    """Remove unfinished work of dead processes, what was kept to save time, empty versions and unused locks; report
    broken artifacts. In the user's cache, what was kept for a machine and was not used for 30 days goes as well.
    """
    layout = store.layout
    removed: list[Path] = []
    kept: list[Path] = []
    broken: list[str] = []
    size = 0
    if layout.root.is_dir():
        with disk_errors("cleaning up", layout.root):
            size = _dead_scratch(layout, removed) + _empty_trash(layout, removed) + _strays(layout, removed)
            size += _calibrated(layout, removed) + _trainings(layout, removed)
            broken = [ref for model in layout.models() for ref in _tidy_model(model, layout, removed)]
            for file in layout.locks.glob("*"):
                lock = Lock(file)
                if lock.try_acquire():
                    lock.release(remove=True)
    size += _unused(kept)
    return Garbage([*(str(path.relative_to(layout.root)) for path in removed), *map(str, kept)], size, broken)


def clear_scratch(store: Store) -> None:
    """Remove the unfinished work of dead processes, and nothing else."""
    with disk_errors("cleaning up", store.root):
        _dead_scratch(store.layout, [])


def _dead_scratch(layout: Layout, removed: list[Path]) -> int:
    """Scratch folders whose owner is gone, and with it the lock; returns their bytes."""
    size = 0
    for home in layout.folders(layout.scratch):
        if not _older_than(home, _NEWBORN_S) and not (home / OWNER_LOCK).exists():
            continue
        lock = Lock(home / OWNER_LOCK)
        if lock.try_acquire():
            size += _tree_bytes(home)
            shutil.rmtree(home, ignore_errors=True)
            lock.release()
            removed.append(home)
    return size


def _strays(layout: Layout, removed: list[Path]) -> int:
    size = 0
    versions = [folder for model in layout.models() for folder in layout.versions(model.name)]
    for folder in [layout.private, layout.private / "versions", *layout.folders(layout.root), *versions]:
        for stray in (each for kind in ("json", "toml") for each in folder.glob(f".*.{kind}-*")):
            if _older_than(stray, _STRAY_S):
                size += stray.stat().st_size
                stray.unlink(missing_ok=True)
                removed.append(stray)
    return size


def _calibrated(layout: Layout, removed: list[Path]) -> int:
    """What calibrations came to, which costs only time to lose; returns its bytes."""
    if not layout.calibrated.is_dir():
        return 0
    size = _tree_bytes(layout.calibrated)
    shutil.rmtree(layout.calibrated, ignore_errors=True)
    removed.append(layout.calibrated)
    return size


def _trainings(layout: Layout, removed: list[Path]) -> int:
    """Checkpoints of trainings that nobody went on with for a week; returns their bytes.

    A running training writes one a minute.
    """
    size = 0
    for folder in layout.folders(layout.training):
        with contextlib.suppress(FileNotFoundError):  # a running training removes its older checkpoints
            if all(_older_than(each, _FORGOTTEN_S) for each in (folder, *folder.rglob("*"))):
                size += _tree_bytes(folder)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return size


def _unused(removed: list[Path]) -> int:
    """What was kept for a machine in the user's cache, and was not used for long; returns its bytes.

    It costs only time to lose: what may not be looked into or removed stays, without a word.
    """
    size = 0
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        folders = [machine for sort in Layout.folders(user_cache()) for machine in Layout.folders(sort)]
    for folder in folders:
        with contextlib.suppress(OSError):
            for path in _stale(folder):
                taken = _tree_bytes(path)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                size += taken
                removed.append(path)
    return size


def _stale(folder: Path) -> list[Path]:
    """What was not used for long of what was kept for one machine: some of it, or the whole folder."""
    entries = sorted(folder.iterdir())
    old = [path for path in entries if _older_than(path, _UNUSED_S)]
    if len(old) < len(entries):  # a lock is as old as its folder, and guards what is used
        return [path for path in old if path.suffix != ".lock"]
    return [folder] if _older_than(folder, _UNUSED_S) else old  # a folder that was just made is still empty


def _tidy_model(model: Path, layout: Layout, removed: list[Path]) -> list[str]:
    """Remove a model's empty versions; returns references whose manifest cannot be read."""
    broken = []
    with layout.name_lock(model.name):
        for version in layout.versions(model.name):
            # The store may be a folder with other things in it: only what is surely ours is removed.
            if not layout.version_file(model.name, version.name).is_file():
                continue
            for variant in layout.variants(version):
                try:
                    Artifact.open(variant)
                except MlOptError:
                    broken.append(f"{model.name}@{version.name}:{variant.name}")
            if len(list(version.iterdir())) == 1:
                shutil.rmtree(version)
                removed.append(version)
        if not any(model.iterdir()):
            model.rmdir()
    return broken


def check(store: Store, ref: str | None = None) -> dict[str, str]:
    """Read every file again and compare it with its manifest.

    Returns:
        full reference → what is wrong with it, or ``""`` when nothing is.
    """
    if ref is None:
        chosen = store.refs()
    else:
        name, version, variant = store.locate(Ref.parse(ref))
        every = [f"{name}@{version}:{v}" for v in store.variants(name, version)]
        chosen = [f"{name}@{version}:{variant}"] if variant else every
    wrong = {}
    for full in chosen:
        try:
            store.get(full).check()
            wrong[full] = ""
        except MlOptError as error:
            wrong[full] = error.message
    return wrong


def _to_trash(path: Path, layout: Layout) -> None:
    layout.trash.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another process removed it first
        os.rename(path, layout.trash / uuid.uuid4().hex)


def _empty_trash(layout: Layout, removed: list[Path] | None = None) -> int:
    size = 0
    for path in layout.folders(layout.trash):
        size += _tree_bytes(path)
        shutil.rmtree(path, ignore_errors=True)
        if removed is not None:
            removed.append(path)
    return size


def _older_than(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def _tree_bytes(root: Path) -> int:
    total = root.lstat().st_size if root.is_file() else 0
    for folder, _, files in os.walk(root):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total
