"""Making things in a process of their own: ``python -m optimizer.search.build``.

A quantizer that crashes, hangs or eats all memory is then one candidate's reason and not the end of the search, and
what it held is given back; an export that does is the end of it, with a clear reason. The process speaks the lines of
:mod:`optimizer.benching.worker`, with one request out of two:

    {"do": "build", "stage": "cast", "ref": "m@1:fp32", "options": {…}, "store": "models"}  → {"ok": true, "ref": "…"}
    {"do": "export", "stage": "export-onnx", "options": {}, "model": "path", "name": null, "offline": null,
     "store": "models"}                                                                     → {"ok": true, "ref": "…"}

Lines before the answer say how far it is: {"progress": ["training", 3, 90]}.

An error comes back as {"ok": false, "error": "…", "hint": "…"}; of an export as {"ok": true, "failed": {…}}, which
keeps its exit code.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from optimizer.artifact import Artifact, SourceModel
from optimizer.benching.process import CandidateFailed, WorkerProcess
from optimizer.benching.worker import die_with_parent
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, MlOptError
from optimizer.memory import reuse_freed
from optimizer.options import Options
from optimizer.pipeline import apply, find_start, stage_key
from optimizer.quantizing.sensitivity import NodeNoise, read_ranking
from optimizer.ref import Ref
from optimizer.search.candidates import StepOf
from optimizer.source import resolve_source
from optimizer.stage import Progress, get_stage, silent
from optimizer.store import Store
from optimizer.types import JSON, Kind
from optimizer.upkeep import clear_scratch

__all__ = ["build", "export", "main", "ranked"]

_COMMAND = (sys.executable, "-m", "optimizer.search.build")
#: Set by the harness for workers, as what is measured must not reach the network; an export may.
_OFFLINE = "HF_HUB_OFFLINE"
_CLASSES = {each.exit_code: each for each in (GateFailed, BadInput, MissingPiece, Damaged)}


def build(
    artifact: Artifact,
    steps: tuple[StepOf, ...],
    store: Store,
    log: Path,
    threads: int,
    timeout: float,
    progress: Progress = silent,
) -> Artifact:
    """Run stages one after another, each in a new process unless the store has its result.

    Args:
        artifact: where the chain begins; a stage that takes a source model starts from the one this was made from.
        steps: the stages.
        store: where artifacts live.
        log: what the processes say goes here.
        threads: of their libraries.
        timeout: seconds of silence after which one counts as hung.
        progress: told what a stage does; whatever it raises ends that.

    Raises:
        CandidateFailed: a stage failed, died or hung.
        MlOptError: options that the stage does not take, or data that cannot be read.
    """
    for step in steps:
        artifact = _cached(artifact, step, store) or _made(artifact, step, store, log, threads, timeout, progress)
    return artifact


def export(
    model: str,
    name: str | None,
    store: Store,
    threads: int,
    timeout: float,
    progress: Progress = silent,
    *,
    stage: str = "export-onnx",
    asked: Mapping[str, JSON] | None = None,
) -> Artifact:
    """Export a model, in a new process unless the store has it.

    Args:
        model: a folder, an ``.onnx`` file or a hub id.
        name: the model's name in the store; None for the source's own.
        store: left as it is when there is no export.
        threads: of the exporter's libraries.
        timeout: seconds of silence after which it counts as hung.
        progress: told what it does.
        stage: that exports it.
        asked: its options, those that are not the default.

    Raises:
        MlOptError: the export's own error.
        BadInput: it died or hung.
    """
    exporter = get_stage(stage)
    options = exporter.options.from_mapping(asked or {}, stage)
    try:
        return apply(replace(exporter, run=_not_here), model, options, store, name=name).artifact
    except _NotCached:
        pass
    request: dict[str, JSON] = {
        "do": "export",
        "stage": stage,
        "options": dict(asked or {}),
        "model": model,
        "name": name,
        "offline": os.environ.get(_OFFLINE),
    }
    with tempfile.TemporaryDirectory(prefix="ml-opt-export-") as folder:
        try:
            reply = _asked(request, store, Path(folder) / "export.log", threads, timeout, progress)
        except CandidateFailed as failed:
            raise BadInput(f"{model} cannot be exported: {failed.message}", failed.hint) from None
    if failure := reply.get("failed"):
        raise _CLASSES.get(failure["exit_code"], BadInput)(failure["error"], failure["hint"])
    return store.get(reply["ref"])


class _NotCached(Exception):
    """The store does not have what was looked for."""


def _not_here(source: object, out: Path, options: Options, progress: object) -> NoReturn:
    """In the place of a stage's ``run``: whatever the store lacks is made elsewhere."""
    raise _NotCached


def ranked(
    artifact: Artifact, data: Mapping[str, JSON], store: Store, log: Path, threads: int, timeout: float
) -> tuple[str, Sequence[NodeNoise]]:
    """The ranking of an artifact's nodes by what int8 costs them, and its reference; made once for the same data.

    Args:
        artifact: whose nodes they are.
        data: the options of ``sensitivity`` that say on what: ``calib``, and ``column`` where columns have other names.
        store: where the ranking is kept.
        log: see :func:`build`.
        threads: see :func:`build`.
        timeout: see :func:`build`.

    Raises:
        CandidateFailed: it cannot be made.
        MlOptError: see :func:`build`.
    """
    ranking = build(artifact, (StepOf("sensitivity", data),), store, log, threads, timeout)
    return ranking.ref, read_ranking(ranking.path)


def _asked(
    request: dict[str, JSON], store: Store, log: Path, threads: int, timeout: float, progress: Progress
) -> dict[str, Any]:
    """The answer of a process that is started for one request; whatever it leaves unfinished is cleared away."""
    # What may come from a hub has to import its client without what keeps workers off the network.
    model = request.get("model")
    at_home = model is None or (Path(model).exists() and not model.endswith(".onnx"))
    torch = at_home and "torch" in get_stage(request["stage"]).needs
    process = WorkerProcess(log, threads, _COMMAND, torch=torch)
    try:
        return process.ask({**request, "store": str(store.root)}, timeout, progress)
    finally:
        process.kill()
        clear_scratch(store)


def _cached(artifact: Artifact, step: StepOf, store: Store) -> Artifact | None:
    stage = get_stage(step.stage)
    options = stage.options.from_mapping(step.options, step.stage)
    if Kind.SOURCE in stage.accepts:
        return None  # the process finds it: to know its key may take what another stage makes first
    start = find_start(stage, artifact, options, store)
    ref = Ref.parse(artifact.ref)
    found = store.find_key(ref.name, int(ref.at), stage_key(start.stage, start.source, start.options, store))
    if found is not None:
        found.check(store.digests)
    return found


def _made(
    artifact: Artifact, step: StepOf, store: Store, log: Path, threads: int, timeout: float, progress: Progress
) -> Artifact:
    request: dict[str, JSON] = {
        "do": "build",
        "stage": step.stage,
        "ref": artifact.ref,
        "options": dict(step.options),
    }
    return store.get(_asked(request, store, log, threads, timeout, progress)["ref"])


def _answer(request: dict[str, Any], progress: Progress) -> dict[str, JSON]:
    try:
        return {"ok": True, **_DOES[request["do"]](request, Store(request["store"]), progress)}
    except MlOptError as error:
        failure: dict[str, JSON] = {"error": error.message, "hint": error.hint}
        if request["do"] == "export":
            return {"ok": True, "failed": {**failure, "exit_code": error.exit_code}}
        return {"ok": False, **failure}
    except Exception as error:  # whatever a library raises is this candidate's row in the report
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "hint": ""}


def _build(request: dict[str, Any], store: Store, progress: Progress) -> dict[str, JSON]:
    stage = get_stage(request["stage"])
    options = stage.options.from_mapping(request["options"], stage.name)
    artifact = store.get(request["ref"])
    if Kind.SOURCE not in stage.accepts:
        return {"ref": apply(stage, artifact, options, store, progress=progress).artifact.ref}
    name, source = Ref.parse(artifact.ref).name, _original(artifact, options, store)
    return {"ref": apply(stage, source, options, store, name=name, progress=progress).artifact.ref}


def _original(artifact: Artifact, options: Options, store: Store) -> SourceModel:
    """The model that an artifact was made from.

    Raises:
        BadInput: it is not there any more, or something else is.
    """
    known = artifact.model_info["source"]
    opened = {name: getattr(options, name) for name in ("revision", "allow_pickle") if hasattr(options, name)}
    spec = str(known["spec"] if known["type"] == "hub" else known["path"])
    source = resolve_source(spec, digest=store.digests, recall=store.digests.recall, **opened)
    if source.digest != known["digest"]:
        raise BadInput(f"{spec} is not the model any more that {artifact.ref} was made from", "export it again")
    return source


def _export(request: dict[str, Any], store: Store, progress: Progress) -> dict[str, JSON]:
    os.environ.pop(_OFFLINE, None)
    if request["offline"] is not None:
        os.environ[_OFFLINE] = request["offline"]
    stage = get_stage(request["stage"])
    options = stage.options.from_mapping(request["options"], stage.name)
    made = apply(stage, request["model"], options, store, name=request["name"], progress=progress)
    return {"ref": made.artifact.ref}


_DOES = {"build": _build, "export": _export}


def main() -> None:
    """Answer one request; anything a library prints goes to stderr."""
    die_with_parent()
    reuse_freed()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def say(message: dict[str, JSON]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        def progress(doing: str, done: float | None = None, total: float | None = None) -> None:
            say({"progress": [doing, done, total]})

        say(_answer(json.loads(sys.stdin.readline()), progress))


if __name__ == "__main__":
    main()
