"""Making a candidate in a process of its own: ``python -m optimizer.search.build``.

A quantizer that crashes, hangs or eats all memory is then one candidate's reason and not the end of the search, and
what it held is given back. The process speaks the lines of :mod:`optimizer.benching.worker`, with one request:

    {"do": "build", "stage": "cast", "ref": "m@1:fp32", "options": {…}, "store": "models"}  → {"ok": true, "ref": "…"}
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from optimizer.artifact import Artifact
from optimizer.benching.process import WorkerProcess
from optimizer.benching.worker import die_with_parent
from optimizer.errors import MlOptError
from optimizer.pipeline import apply, find_source, stage_key
from optimizer.ref import Ref
from optimizer.search.candidates import StepOf
from optimizer.stage import get_stage
from optimizer.store import Store
from optimizer.types import JSON

__all__ = ["build", "main"]

_COMMAND = (sys.executable, "-m", "optimizer.search.build")


def build(
    artifact: Artifact, steps: tuple[StepOf, ...], store: Store, log: Path, threads: int, timeout: float
) -> Artifact:
    """Run stages one after another, each in a new process unless the store has its result.

    Args:
        artifact: where the chain begins.
        steps: the stages.
        store: where artifacts live.
        log: what the processes say goes here.
        threads: of their libraries.
        timeout: seconds for each.

    Raises:
        CandidateFailed: a stage failed, died or did not end in time.
        MlOptError: options that the stage does not take.
    """
    for step in steps:
        artifact = _cached(artifact, step, store) or _made(artifact, step, store, log, threads, timeout)
    return artifact


def _cached(artifact: Artifact, step: StepOf, store: Store) -> Artifact | None:
    stage = get_stage(step.stage)
    options = stage.options.from_mapping(step.options, step.stage)
    source = find_source(stage, artifact, options, store)
    ref = Ref.parse(artifact.ref)
    found = store.find_key(ref.name, int(ref.at), stage_key(stage, source, options, store))
    if found is not None:
        found.check(store.digests)
    return found


def _made(artifact: Artifact, step: StepOf, store: Store, log: Path, threads: int, timeout: float) -> Artifact:
    process = WorkerProcess(log, threads, _COMMAND)
    try:
        request: dict[str, JSON] = {
            "do": "build",
            "stage": step.stage,
            "ref": artifact.ref,
            "options": dict(step.options),
            "store": str(store.root),
        }
        return store.get(process.ask(request, timeout)["ref"])
    finally:
        process.kill()


def _answer(request: dict[str, Any]) -> dict[str, JSON]:
    try:
        stage = get_stage(request["stage"])
        options = stage.options.from_mapping(request["options"], stage.name)
        return {"ok": True, "ref": apply(stage, request["ref"], options, Store(request["store"])).artifact.ref}
    except MlOptError as error:
        return {"ok": False, "error": error.message, "hint": error.hint}
    except Exception as error:  # whatever a library raises is this candidate's row in the report
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "hint": ""}


def main() -> None:
    """Answer one request; anything a library prints goes to stderr."""
    die_with_parent()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        channel.write(json.dumps(_answer(json.loads(sys.stdin.readline()))) + "\n")


if __name__ == "__main__":
    main()
