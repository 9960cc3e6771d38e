"""Where everything of a store lies on disk, and how its folders are told from what else is in there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.files import Lock
from optimizer.ref import REPORTS, is_name, safe_name
from optimizer.types import JSON

__all__ = ["OWNER_LOCK", "Layout", "is_version", "machine_cache", "used", "user_cache"]

#: The lock inside a scratch folder, which dies with the process that owns it.
OWNER_LOCK = "owner.lock"


@dataclass(frozen=True)
class Layout:
    """The folders of a store.

    Attributes:
        root: holds one folder a model, and ``.ml-opt`` for what is not finished.
    """

    root: Path

    @property
    def private(self) -> Path:
        return self.root / ".ml-opt"

    @property
    def scratch(self) -> Path:
        return self.private / "scratch"

    @property
    def trash(self) -> Path:
        return self.private / "trash"

    @property
    def locks(self) -> Path:
        return self.private / "locks"

    @property
    def calibrated(self) -> Path:
        """What calibrating came to, for other variants of the same model."""
        return self.private / "calibrated"

    @property
    def training(self) -> Path:
        """What interrupted trainings go on from, a folder each."""
        return self.private / "training"

    @classmethod
    def around(cls, scratch: Path) -> Layout | None:
        """The store whose scratch folder holds a path; None where none does."""
        layouts = (cls(folder) for folder in scratch.parents)
        return next((layout for layout in layouts if layout.scratch in scratch.parents), None)

    def name_lock(self, name: str) -> Lock:
        """Held by whoever changes what a model's folder holds."""
        return Lock(self.locks / f"name-{name}")

    def key_lock(self, key: str) -> Lock:
        """Held by whoever makes the artifact of a key."""
        return Lock(self.locks / f"key-{key[:32]}")

    def last_version(self, name: str) -> Path:
        """The file with the highest version number that a model ever had."""
        return self.private / "versions" / f"{name}.json"

    def version(self, name: str, version: int | str) -> Path:
        return self.root / name / str(version)

    def version_file(self, name: str, version: int | str) -> Path:
        """The record of the source that a version was made from."""
        return self.version(name, version) / "version.json"

    def aliases(self, name: str) -> Path:
        return self.root / name / "aliases.json"

    @staticmethod
    def folders(path: Path) -> list[Path]:
        """Folders inside, sorted, but hidden ones; none when it is not there."""
        try:
            entries = list(path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(p for p in entries if not p.name.startswith(".") and p.is_dir())

    def models(self) -> list[Path]:
        return [p for p in self.folders(self.root) if is_name(p.name)]

    def versions(self, name: str) -> list[Path]:
        """Folders of a model's versions, empty ones too."""
        return [p for p in self.folders(self.root / name) if is_version(p.name)]

    def variants(self, version: Path) -> list[Path]:
        """Folders of a version's variants."""
        return [p for p in self.folders(version) if p.name != REPORTS and is_name(p.name)]


def is_version(name: str) -> bool:
    """Whether a folder's name is a version number, spelled the one way that numbers are."""
    return name.isascii() and name.isdigit() and name[0] != "0"


def user_cache() -> Path:
    """Where a user keeps what belongs to no store; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ml-opt"


def machine_cache(sort: str, versions: Sequence[str], gpu: Mapping[str, JSON] | None) -> Path:
    """A folder in the user's cache for what belongs to some versions, a GPU and its driver; it need not be there.

    Args:
        sort: of what is kept.
        versions: of the libraries; with others of them, or another GPU or driver, another folder is taken.
        gpu: ``compute_capability``, ``driver`` and ``name``; None where there is none.
    """
    capability, driver, name = (gpu[each] if gpu else "none" for each in ("compute_capability", "driver", "name"))
    machine = (*versions, f"sm{capability}", driver, name)
    return user_cache() / sort / safe_name("-".join(map(str, machine)))


def used(kept: Path) -> None:
    """Say that something in a folder of :func:`machine_cache` is used now; ``gc`` clears what was not for long."""
    with contextlib.suppress(OSError):  # a folder that is only read from serves as well
        os.utime(kept)
