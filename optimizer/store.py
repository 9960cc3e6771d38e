"""The versioned model directory: ``<root>/<name>/<version>/<variant>/``.

A version is one source: the same weights again are the same version, changed weights the next number. A variant
is what was done to them. Everything that is not finished lives in ``<root>/.ml-opt/scratch`` and enters the store by
one rename, so that a reader never sees half an artifact and ``kill -9`` at any moment leaves a readable store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.digest import DigestCache
from optimizer.errors import BadInput, Damaged, MlOptError, UnknownName
from optimizer.files import Lock, disk_errors, fsync_folder, fsync_tree, write_json
from optimizer.layout import OWNER_LOCK, Layout
from optimizer.manifest import MANIFEST_NAME
from optimizer.ref import REPORTS, Ref, check_name
from optimizer.types import JSON, Kind

__all__ = ["DEFAULT_STORE", "Scratch", "Store", "file_entries", "spellings"]

DEFAULT_STORE = Path("models")


@dataclass
class Scratch:
    """An empty folder for a stage to write into; ``path`` becomes the artifact when it is committed."""

    path: Path
    _home: Path
    _lock: Lock

    def discard(self) -> None:
        """Remove what is left of it, even when Ctrl-C or SIGTERM comes in the middle of that."""
        try:
            shutil.rmtree(self._home, ignore_errors=True)
        finally:
            shutil.rmtree(self._home, ignore_errors=True)
            self._lock.release()


class Store:
    """A folder of versioned artifacts.

    Args:
        root: the folder; it is made by the first commit, and reading a store that is not there finds it empty.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root if root is not None else os.environ.get("ML_OPT_STORE") or DEFAULT_STORE
        self.root = Path(chosen)
        self.layout = Layout(self.root)
        self._digests: DigestCache | None = None

    # ---------------------------------------------------------------- reading

    @property
    def digests(self) -> DigestCache:
        """File digests remembered between runs."""
        if self._digests is None:
            self._digests = DigestCache(self.layout.private / "digests.json")
        return self._digests

    def names(self) -> list[str]:
        """Every model name, sorted."""
        return [p.name for p in self.layout.models() if self.versions(p.name)]

    def versions(self, name: str) -> list[int]:
        """Every version number of a name that holds at least one variant, ascending."""
        found = [int(p.name) for p in self.layout.versions(name) if self.layout.variants(p)]
        return sorted(found)

    def variants(self, name: str, version: int) -> list[str]:
        """Every variant of a version, sorted."""
        return [p.name for p in self.layout.variants(self.layout.version(name, version))]

    def aliases(self, name: str) -> dict[str, str]:
        """Alias → ``"<version>"`` or ``"<version>:<variant>"``."""
        path = self.layout.aliases(name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise Damaged(f"{path} cannot be read: {error}", "delete it and set the aliases again") from None
        if not isinstance(data, dict) or data.get("schema") != 1 or not isinstance(data.get("aliases"), dict):
            raise Damaged(f"{path} is not an alias file", "delete it and set the aliases again")
        return {str(k): str(v) for k, v in data["aliases"].items()}

    def refs(self) -> list[str]:
        """Every full reference, sorted by name, version and variant."""
        return [
            f"{name}@{version}:{variant}"
            for name in self.names()
            for version in self.versions(name)
            for variant in self.variants(name, version)
        ]

    def artifacts(self, name: str | None = None, version: int | None = None) -> Iterator[Artifact]:
        """Every artifact that can be read (those that cannot are for ``check`` and ``gc`` to report)."""
        for each in [name] if name else self.names():
            for number in [version] if version else self.versions(each):
                for variant in self.variants(each, number):
                    with contextlib.suppress(MlOptError):
                        yield self._open(each, number, variant)

    def get(self, ref: str | Ref) -> Artifact:
        """The artifact that a reference names.

        A missing version means the newest, a missing variant the only one, or else the only model among them.

        Raises:
            UnknownName: there is none (the nearest names are offered).
            BadInput: the reference is malformed, or names several variants.
            Damaged: its manifest cannot be read.
        """
        wanted = ref if isinstance(ref, Ref) else Ref.parse(ref)
        name, version, variant = self.locate(wanted)
        if not variant:
            variants = self.variants(name, version)
            if len(variants) > 1:
                variants = [v for v in variants if self._may_be_model(name, version, v)] or variants
            if len(variants) != 1:
                raise BadInput(
                    f"{wanted} is ambiguous: {name}@{version} has {len(variants)} variants",
                    "write one of: " + ", ".join(f"{wanted}:{v}" for v in variants),
                )
            variant = variants[0]
        return self._open(name, version, variant)

    def locate(self, ref: Ref) -> tuple[str, int, str]:
        """Name, version and variant of a reference; the variant stays empty when neither it nor its alias names one.

        Raises:
            UnknownName: no such name, version, alias or variant.
        """
        names = self.names()
        if ref.name not in names:
            raise UnknownName(
                "artifact" if names else f"artifact (the store {self.root} is empty)",
                ref.name,
                names,
                "`ml-opt ls` lists what there is; make one with: ml-opt export-onnx MODEL",
            )
        versions = self.versions(ref.name)
        variant = ref.variant
        if not ref.at:
            version = versions[-1]
        elif ref.version is not None:
            version = ref.version
            if version not in versions:
                raise UnknownName(f"version of {ref.name}", ref.at, [str(v) for v in versions])
        else:
            aliases = self.aliases(ref.name)
            if ref.at not in aliases:
                raise UnknownName(f"version or alias of {ref.name}", ref.at, [*aliases, *map(str, versions)])
            target, _, aliased = aliases[ref.at].partition(":")
            version = int(target)
            if version not in versions:
                raise UnknownName(
                    f"version of {ref.name}", target, [str(v) for v in versions], f"alias {ref.at} dangles"
                )
            variant = variant or aliased
        if variant and variant not in self.variants(ref.name, version):
            raise UnknownName(
                f"variant of {ref.name}@{version}", variant, self.variants(ref.name, version), f"`ml-opt ls {ref.name}`"
            )
        return ref.name, version, variant

    def version_of(self, name: str, source_digest: str) -> int | None:
        """The version that holds this source, if there is one."""
        for path in self.layout.versions(name):
            with contextlib.suppress(Damaged):
                if self.version_source(name, int(path.name)).get("digest") == source_digest:
                    return int(path.name)
        return None

    def find_key(self, name: str, version: int, key: str) -> Artifact | None:
        """The artifact of a version that has this key, if there is one."""
        for artifact in self.artifacts(name, version):
            if artifact.manifest.key == key:
                return artifact
        return None

    # ---------------------------------------------------------------- writing

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """An empty folder on the store's own disk, removed at the end unless it was committed."""
        home = self.layout.scratch / uuid.uuid4().hex
        scratch = Scratch(home / "artifact", home, Lock(home / OWNER_LOCK))
        try:
            with disk_errors("making a scratch folder", self.root):
                # The lock is taken before anything is in the folder, so that `gc` never finds work without an owner.
                home.mkdir(parents=True)
                scratch._lock.acquire()
                scratch.path.mkdir()
            yield scratch
        finally:
            scratch.discard()

    def key_lock(self, key: str) -> Lock:
        """The lock that makes two processes with the same work take turns."""
        return self.layout.key_lock(key)

    def commit(self, scratch: Scratch, name: str, source: dict[str, JSON], variant: str, key: str) -> Artifact:
        """Publish a finished scratch folder by one rename.

        Args:
            scratch: holds every file and the manifest.
            name: the model's name.
            source: the version's source; its ``digest`` decides the version number.
            variant: the name wanted; when another artifact has it, the key's first six digits are added.
            key: the artifact's key; when one with this key is there already, that one is returned.

        Returns:
            the artifact as it now is in the store.
        """
        check_name("model", name)
        check_name("variant", variant)
        with disk_errors("adding an artifact", self.root):
            fsync_tree(scratch.path)
            with self.layout.name_lock(name):
                version = self.version_of(name, str(source["digest"]))
                if version is None:
                    version = self._publish_version(scratch, name, source, variant)
                elif (found := self.find_key(name, version, key)) is not None:
                    return found
                else:
                    folder = self.layout.version(name, version)
                    variant = next(v for v in spellings(variant, key) if not (folder / v).exists())
                    os.rename(scratch.path, folder / variant)
                    fsync_folder(folder)
        return self._open(name, version, variant)

    def set_alias(self, alias: str, ref: str) -> str:
        """Point ``name@alias`` at a version or at one variant of it; returns what it pointed at before, or ``""``."""
        check_name("alias", alias)
        name, version, variant = self.locate(Ref.parse(ref))
        with disk_errors("setting an alias", self.root), self.layout.name_lock(name):
            aliases = self.aliases(name)
            before = aliases.get(alias, "")
            aliases[alias] = f"{version}:{variant}" if variant else str(version)
            write_json(self.layout.aliases(name), {"schema": 1, "aliases": aliases})
        return before

    def drop_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        if alias not in (aliases := self.aliases(name)):
            raise UnknownName(f"alias of {name}", alias, aliases)
        with disk_errors("removing an alias", self.root), self.layout.name_lock(name):
            aliases = self.aliases(name)
            aliases.pop(alias, None)
            write_json(self.layout.aliases(name), {"schema": 1, "aliases": aliases})

    def complete(self, prefix: str) -> list[str]:
        """References and aliases that begin with what was typed so far (for the shell's completion)."""
        every = [*self.refs()]
        for name in self.names():
            every += [f"{name}:{v}" for v in self.variants(name, self.versions(name)[-1])]
            every += [f"{name}@{alias}" for alias in self.aliases(name)]
        return [r for r in every if r.startswith(prefix)]

    # ---------------------------------------------------------------- inside

    def version_folder(self, name: str, version: int) -> Path:
        """Where the variants of a version lie, and its verdict."""
        return self.layout.version(name, version)

    def reports_folder(self, name: str, version: int) -> Path:
        """Where the reports about a version are kept."""
        return self.version_folder(name, version) / REPORTS

    def _may_be_model(self, name: str, version: int, variant: str) -> bool:
        """Whether a variant is a model, or cannot be read."""
        try:
            return self._open(name, version, variant).kind in (Kind.ONNX, Kind.ENGINE, Kind.GENERATOR)
        except MlOptError:
            return True

    def _open(self, name: str, version: int, variant: str) -> Artifact:
        return Artifact.open(self.layout.version(name, version) / variant, f"{name}@{version}:{variant}")

    def version_source(self, name: str, version: int) -> dict[str, JSON]:
        """The source that a version was made from; raises :class:`Damaged` when its record cannot be read."""
        path = self.layout.version_file(name, version)
        try:
            source = json.loads(path.read_text(encoding="utf-8"))["source"]
            return {**source, "digest": str(source["digest"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(
                f"{path} cannot be read: {error}", f"export the model again, then: ml-opt rm --yes {name}@{version}"
            ) from None

    def _last_version(self, name: str) -> int:
        """The highest number that a version of this name ever had: none means something else later."""
        try:
            return int(json.loads(self.layout.last_version(name).read_text(encoding="utf-8"))["last"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _publish_version(self, scratch: Scratch, name: str, source: dict[str, JSON], variant: str) -> int:
        """Publish a new version with its first variant, by one rename; the caller holds the name's lock."""
        number = max([self._last_version(name), *(int(p.name) for p in self.layout.versions(name))]) + 1
        last = self.layout.last_version(name)
        last.parent.mkdir(parents=True, exist_ok=True)
        write_json(last, {"schema": 1, "last": number})
        staged = scratch.path.parent / "version"
        staged.mkdir()
        os.rename(scratch.path, staged / variant)
        write_json(staged / self.layout.version_file(name, 0).name, {"schema": 1, "source": source})
        model = self.root / name
        model.mkdir(exist_ok=True)
        try:
            os.rename(staged, model / str(number))
        except OSError:
            with contextlib.suppress(OSError):
                model.rmdir()  # unless it holds something
            raise
        fsync_folder(model)
        fsync_folder(self.root)
        return number


def spellings(variant: str, key: str) -> Iterator[str]:
    """What an artifact of this key may be called: the variant, or it with more and more of the key behind."""
    yield variant
    for digits in range(6, len(key) + 1):
        yield f"{variant}-{key[:digits]}"


def file_entries(folder: Path, digest: Callable[[Path], str]) -> dict[str, dict[str, JSON]]:
    """What a manifest says of every file below ``folder`` but itself: name → ``{"sha256", "bytes"}``."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST_NAME)
    return {str(p.relative_to(folder)): {"sha256": digest(p), "bytes": p.stat().st_size} for p in found}
