"""What a peer is asked to make, and what it says it has made. Imported in every peer's environment: nothing heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Job", "Made", "calibration", "prepare"]


@dataclass(frozen=True)
class Job:
    """One model to be made ready.

    Attributes:
        source: the Hugging Face folder; empty for a model that is an ONNX file to begin with.
        task: as ``transformers`` names pipelines.
        onnx: ml-opt's own fp32 export, or the file that was brought.
        calib: ``.npz`` files of inputs by name, one row each, without padding.
        out: the folder to write into.
    """

    source: str
    task: str
    onnx: str
    calib: tuple[str, ...]
    out: str


@dataclass(frozen=True)
class Made:
    """One model that a peer made.

    Attributes:
        name: what it is called in the table, without the peer's own name.
        path: its file.
        precision: what the worker is told to compute in, where it has a choice.
    """

    name: str
    path: str
    precision: str = ""


def calibration(job: Job) -> Iterator[dict[str, Any]]:
    """The calibration rows, arrays by input name, each ``[1, …]``."""
    import numpy as np

    for path in job.calib:
        with np.load(path) as stored:
            yield {name: stored[name] for name in stored.files}


def prepare(makers: Mapping[str, Callable[[Job, Path], Made | None]]) -> None:
    """The peer's side of ``prepare JOB.json``: run its makers, and write what came of it to ``made.json``.

    Args:
        makers: by name; each gets the job and an empty folder, and answers None where its tool has nothing for this
            model. One that fails says why in ``made.json``, and the others go on.
    """
    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    job = Job(**{**asked, "calib": tuple(asked["calib"])})
    made: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for number, (name, make) in enumerate(makers.items()):
        folder = Path(job.out) / str(number)
        folder.mkdir(parents=True)
        try:
            done = make(job, folder)
        except Exception as error:  # whatever a peer's library raises is that row of the table
            failed[name] = _why(error)
            print(f"{name}: {failed[name]}", file=sys.stderr)
            continue
        if done is not None:
            made.append(asdict(done))
    (Path(job.out) / "made.json").write_text(json.dumps({"made": made, "failed": failed}, indent=1), encoding="utf-8")


def _why(error: Exception) -> str:
    """One line: the error, and the one behind it, which is often the one that says something."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{said} ({_why(error.__cause__)})" if isinstance(error.__cause__, Exception) else said
