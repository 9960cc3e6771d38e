"""A stage that starts from an artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toy_stages.toy_make import write_slowly

from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import Kind


class ToyDerive(Options):
    """Options of toy-derive."""

    seed: int = opt(1, "What the bytes are made of.")
    size: int = opt(1000, "Bytes of the model.", ge=0)
    calib: Path | None = opt(None, "Data whose content counts.", data=True)
    pause: float = opt(0.0, "Seconds that writing takes.", ge=0.0, key=False)
    log: Path | None = opt(None, "Where every run adds a line.", key=False)


def _run(source: Any, out: Path, options: ToyDerive, progress: Progress) -> Outcome:
    if options.log is not None:
        with open(options.log, "a") as handle:
            handle.write(f"derive {os.getpid()}\n")
    write_slowly(out, options.size, options.seed, options.pause)
    return Outcome({"seed": options.seed})


def _variant(options: ToyDerive, source: Any) -> str:
    return "int8"


def _verify(options: ToyDerive, facts: Mapping[str, Any], source: Any) -> None:
    pass


STAGE = Stage(
    name="toy-derive",
    help="Make another toy of a toy.",
    options=ToyDerive,
    accepts=frozenset({Kind.ONNX}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
)
