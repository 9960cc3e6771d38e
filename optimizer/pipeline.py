"""Applying a stage: key → cached, or scratch → run → read back → record → move."""

from __future__ import annotations

import datetime
import fnmatch
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optimizer.artifact import ENGINE_NAME, PROBE_NAME, RANGES_NAME, Artifact, Source, SourceModel
from optimizer.digest import canonical_json, digest_json, digest_tree
from optimizer.environment import describe, gpu_facts, need_modules, version_of
from optimizer.errors import BadInput, MissingPiece
from optimizer.files import disk_errors
from optimizer.located import located
from optimizer.manifest import MANIFEST_NAME, Manifest
from optimizer.options import Options
from optimizer.ref import Ref, check_name, safe_name
from optimizer.source import resolve_source
from optimizer.stage import Content, Progress, Stage, get_stage, silent
from optimizer.store import Store, file_entries, spellings
from optimizer.types import JSON, Kind

__all__ = ["Result", "Start", "apply", "find_start", "stage_key"]

#: Files of an artifact that are the model itself; everything else is handed down to what is made from it.
_MODEL_FILES = (
    *("model.onnx", "model.onnx.data", ENGINE_NAME, MANIFEST_NAME),
    *("model*.safetensors", "model.safetensors.index.json", RANGES_NAME, PROBE_NAME),
)
#: Kinds of artifact that are a model: they need room for one, and are served with what lies beside their source.
_MODELS = (Kind.ONNX, Kind.ENGINE, Kind.CHECKPOINT, Kind.GENERATOR)


@dataclass(frozen=True)
class Result:
    """What applying a stage came to.

    Attributes:
        artifact: the artifact, in the store.
        cached: True when it was there already.
        seconds: how long this call took.
    """

    artifact: Artifact
    cached: bool
    seconds: float

    def to_json(self) -> dict[str, JSON]:
        """The object that ``--json`` prints."""
        manifest = self.artifact.manifest
        return {
            "ref": self.artifact.ref,
            "path": str(self.artifact.path),
            "cached": self.cached,
            "stage": manifest.stage["name"],
            "key": manifest.key,
            "bytes": manifest.bytes,
            "facts": manifest.facts,
            "warnings": manifest.warnings,
            "seconds": round(self.seconds, 3),
        }


def stage_key(stage: Stage, source: Source, options: Options, store: Store) -> str:
    """sha256 over everything that decides what a stage makes.

    That is: the stage and its version, the source's content (and, for an artifact, its own key: what its export knew
    about the model is handed down, and lies in no file), the options (data files by content), and the versions of the
    libraries it uses; for a device-bound stage the GPU and its driver too.
    """
    _, options = located(options, store)
    contents = {name for content in stage.contents for name in content.options}
    parts: dict[str, JSON] = {
        "stage": stage.name,
        "version": stage.version,
        "source": [source.digest, source.manifest.key] if isinstance(source, Artifact) else source.digest,
        "options": options.for_key(lambda path: _content(path, store), without=contents),
        "libraries": {name: version_of(name) for name in stage.needs},
    }
    if stage.contents:
        parts["contents"] = {
            each.options[0]: _digest(each, stage, parts, options, source, store) for each in stage.contents
        }
    if stage.device_bound is not None and stage.device_bound(options):
        parts["device"] = list(gpu_facts())
    return digest_json(parts)


def _content(path: Path, store: Store) -> str:
    """Digest of a data option: a file's, a folder's whole content, or what an artifact's manifest says of its files."""
    if path.is_file():
        return store.digests(path)
    if (artifact := Artifact.found_in(path)) is not None:
        artifact.check(store.digests)
        return artifact.digest
    if path.is_dir():
        return digest_tree(path, sorted(p for p in path.rglob("*") if p.is_file()), store.digests)
    raise BadInput(f"no such file: {path}")


def _digest(
    content: Content, stage: Stage, parts: Mapping[str, JSON], options: Options, source: Source, store: Store
) -> str | None:
    """What stands in the key for options that only say where something comes from; worked out once and remembered."""
    if getattr(options, content.options[0]) is None:
        return None
    others = {field.name for field in type(options).fields()} - set(content.options)
    asked = options.for_key(lambda path: _content(path, store), without=others)
    known = {name: parts[name] for name in ("version", "source", "libraries")}

    def answer() -> str:
        need_modules(stage.modules, stage.name)
        return content.digest(options, source)

    return store.digests.recall(f"content of {digest_json([stage.name, asked, known])}", answer)


@dataclass(frozen=True)
class Start:
    """What a stage really starts from.

    Attributes:
        stage: the stage that was asked for, or the one that does it instead.
        source: a source model, or an artifact whose files are what its manifest says.
        options: of that stage.
        note: why something was exchanged, for the user; empty where nothing was.
    """

    stage: Stage
    source: Source
    options: Options
    note: str = ""


def find_start(stage: Stage, spec: str | Source, options: Options, store: Store) -> Start:
    """What a stage is to start from: a source model for stages that take one, an artifact of the store for others.

    Only the files of what it really starts from are compared with their manifest: an artifact that a stage exchanges
    for another (:attr:`Stage.redirect`) is known by its manifest alone.

    Raises:
        UnknownName: no such artifact.
        BadInput: the stage does not take this kind, or the lineage has nothing that it takes.
        Damaged: the artifact's files are not what its manifest says.
    """
    source, note = _found(stage, spec, options, store), ""
    if isinstance(source, Artifact):
        if stage.redirect is not None:
            redirected = stage.redirect(source, options, store)
            if redirected.stage:
                return find_start(get_stage(redirected.stage), redirected.source, redirected.options, store)
            source, options, note = redirected.source, redirected.options, redirected.note
        source.check(store.digests)
    return Start(stage, source, options, note)


def _found(stage: Stage, spec: str | Source, options: Options, store: Store) -> Source:
    """What was named, of a kind that the stage takes; its files are not looked into."""
    if isinstance(spec, str):
        if Kind.SOURCE in stage.accepts:
            extra = {f: getattr(options, f) for f in ("revision", "allow_pickle") if hasattr(options, f)}
            source: Source = resolve_source(spec, digest=store.digests, recall=store.digests.recall, **extra)
        else:
            source = store.get(spec)
    else:
        source = spec
    if source.kind not in stage.accepts:
        name = source.ref if isinstance(source, Artifact) else source.spec
        wanted = " or ".join(kind.phrase for kind in sorted(stage.accepts))
        raise BadInput(f"{stage.name} takes {wanted}, and {name} is {source.kind.phrase}", "`ml-opt ls` lists kinds")
    if isinstance(source, Artifact) and source.compiled and stage.produces is not Kind.CALIBRATION:
        raise BadInput(
            f"{stage.name} works on graphs, and {source.ref} holds a compiled one",
            f"start from what it was compiled of: {source.manifest.source.get('ref', 'its source')}",
        )
    return source


def apply(
    stage: Stage,
    spec: str | Source,
    options: Options,
    store: Store,
    *,
    name: str | None = None,
    variant: str | None = None,
    progress: Progress = silent,
) -> Result:
    """Make an artifact with a stage, or find it in the store.

    Args:
        stage: what to do.
        spec: what to start from: a reference, a model folder, hub id or ``.onnx`` file, or an opened source.
        options: the stage's own options.
        store: where artifacts live.
        name: the model's name in the store; only for stages that start from a source (default: the source's name).
        variant: the variant's name (default: what the stage calls it).
        progress: told what is being done.

    Returns:
        the artifact and whether it was there already.

    Raises:
        MlOptError: see the stage; the store is left as it was.
    """
    started = time.perf_counter()
    if not isinstance(options, stage.options):
        raise TypeError(f"{stage.name} takes {stage.options.__name__}, not {type(options).__name__}")
    start = find_start(stage, spec, options, store)
    stage, source, typed = start.stage, start.source, start.source
    if stage.first is not None and isinstance(source, SourceModel):
        before, theirs = stage.first(start.options)
        source = apply(get_stage(before), source, theirs, store, name=name, progress=progress).artifact
        name = None
    asked, options = located(start.options, store)
    if isinstance(source, SourceModel):
        name = check_name("model", name) if name is not None else _own_name(source)
        origin = source.to_json()
        version = store.version_of(name, source.digest)
    else:
        if name is not None:
            raise BadInput(f"{stage.name} starts from an artifact and keeps its name; --name is for exports")
        name, number, _ = store.locate(Ref.parse(source.ref))
        origin, version = store.version_source(name, number), number
    if variant is not None:
        check_name("variant", variant)
    key = stage_key(stage, source, options, store)

    def cached() -> Result | None:
        found = store.find_key(name, version, key) if version is not None else None
        if found is None:
            return None
        found.check(store.digests)
        store.digests.save()
        if variant is not None and found.variant not in spellings(variant, key):
            raise BadInput(
                f"this artifact is in the store already, as {found.ref}; it cannot be --variant {variant} too",
                f"give it a second name: ml-opt alias {found.ref} {variant}",
            )
        return Result(found, True, time.perf_counter() - started)

    if (done := cached()) is not None:
        return done
    need_modules(stage.modules, stage.name)
    with disk_errors(f"running {stage.name}", store.root):
        lock = store.key_lock(key)
        lock.acquire(lambda: progress("waiting for another ml-opt that is making the same artifact"))
    try:
        version = store.version_of(name, source.digest) if isinstance(source, SourceModel) else version
        if (done := cached()) is not None:
            return done
        artifact = _make(stage, source, asked, options, store, name, origin, variant, key, progress, start.note, typed)
    finally:
        lock.release(remove=True)
    store.digests.save()
    return Result(artifact, False, time.perf_counter() - started)


def _make(
    stage: Stage,
    source: Source,
    asked: Options,
    options: Options,
    store: Store,
    name: str,
    origin: dict[str, JSON],
    variant: str | None,
    key: str,
    progress: Progress,
    note: str,
    typed: Source,
) -> Artifact:
    from optimizer.readback import read_back

    began = time.perf_counter()
    with store.scratch() as scratch, disk_errors(f"running {stage.name}", store.root):
        if stage.produces in _MODELS:
            _need_room(source, scratch.path)
        outcome = stage.run(source, scratch.path, options, progress)
        if isinstance(source, Artifact) and stage.produces in _MODELS:
            _hand_down(source.path, scratch.path)
        progress("reading the result back")
        facts = {**read_back(stage.produces, scratch.path), **outcome.facts}
        stage.verify(options, facts, source)
        canonical_json(facts)  # a NaN among the facts is a bug of the stage: find it here, not in a reader
        seconds = round(time.perf_counter() - began, 3)
        wanted = variant or stage.variant(options, source)
        Manifest(
            kind=stage.produces,
            key=key,
            stage={"name": stage.name, "version": stage.version},
            source=_lineage(source),
            model=outcome.model or (source.manifest.model if isinstance(source, Artifact) else {}),
            options=asked.to_json(),
            facts=facts,
            files=file_entries(scratch.path, store.digests),
            environment=describe(),
            command=_command(stage, typed, asked, name, variant),
            seconds=seconds,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            warnings=[*filter(None, [note]), *outcome.warnings],
        ).write(scratch.path)
        artifact = store.commit(scratch, name, origin, wanted, key)
    if outcome.stored is not None:
        outcome.stored()
    return artifact


def _lineage(source: Source) -> dict[str, JSON]:
    if isinstance(source, SourceModel):
        return source.to_json()
    return {"type": "artifact", "ref": source.ref, "key": source.manifest.key, "digest": source.digest}


def _command(stage: Stage, source: Source, options: Options, name: str, variant: str | None) -> str:
    """The line that makes the artifact again, as a shell reads it."""
    spec = source.spec if isinstance(source, SourceModel) else source.ref
    words = ["ml-opt", *stage.words, spec, *options.to_flags()]
    if isinstance(source, SourceModel):
        words += ["--name", name]
    if variant:
        words += ["--variant", variant]
    return shlex.join(words)


def _hand_down(parent: Path, folder: Path) -> None:
    """Copy what serving needs (tokenizer, labels, golden answers) from the parent, unless the stage wrote its own."""
    for path in sorted(p for p in parent.rglob("*") if p.is_file()):
        relative = path.relative_to(parent)
        if any(fnmatch.fnmatchcase(str(relative), own) for own in _MODEL_FILES) or (folder / relative).exists():
            continue
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / relative)


def _own_name(source: SourceModel) -> str:
    """What a model is called when nobody names it: ``.`` and ``..`` are called what their folder is called."""
    return safe_name(source.spec if Path(source.spec).name.strip(".") else str(source.path))


def _need_room(source: Source, folder: Path) -> None:
    """Fail before the work, not after it, when the disk cannot hold even a copy of the source."""
    if isinstance(source, Artifact):
        need = source.manifest.bytes
    else:
        folder_of_source = source.path if source.path.is_dir() else source.path.parent
        need = sum((folder_of_source / f).stat().st_size for f in source.files)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise MissingPiece(
            f"no room on the disk of {folder.parents[3]}: {free / 2**20:.0f} MiB free, and the model alone takes "
            f"{need / 2**20:.0f} MiB",
            "free some space (`ml-opt gc` clears leftovers) or choose another --store",
        )
