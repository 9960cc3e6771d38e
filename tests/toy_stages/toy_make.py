"""A stage that costs nothing: it starts from a source and writes bytes that its options decide."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import GateFailed
from optimizer.options import Options, opt
from optimizer.stage import Outcome, Progress, Stage
from optimizer.types import Kind, Precision

BLOCKS = 20


class ToyMake(Options):
    """One option of every type there is."""

    size: int = opt(2000, "Bytes of the model.", ge=0, le=10**9)
    seed: int = opt(0, "What the bytes are made of.")
    ratio: float = opt(0.5, "A number with a range.", ge=0.0, le=1.0)
    label: str | None = opt(None, "A word.")
    mode: str = opt("plain", "A choice.", choices=("plain", "fancy"))
    precision: Precision = opt(Precision.FP32, "An enumeration.")
    tags: tuple[str, ...] = opt((), "Words; repeatable.")
    sizes: tuple[int, ...] = opt((), "Numbers; repeatable.", ge=1)
    notes: Path | None = opt(None, "A file whose content counts.", data=True)
    fancy: bool = opt(False, "A switch.")
    safe: bool = opt(True, "A switch that is on.")
    pause: float = opt(0.0, "Seconds that writing takes.", ge=0.0, key=False)
    log: Path | None = opt(None, "Where every run adds a line.", key=False)
    trouble: str | None = opt(
        None, "What goes wrong.", choices=("enospc", "wrapped-enospc", "bug", "gate", "exit", "nan", "shout"), key=False
    )


def write_slowly(out: Path, size: int, seed: int, pause: float) -> None:
    """The model in blocks, so that a kill can hit between any two of them."""
    block = bytes((seed + i) % 251 for i in range(251))
    with open(out / "model.onnx", "wb") as handle:
        for _ in range(BLOCKS):
            handle.write((block * (size // BLOCKS // 251 + 1))[: size // BLOCKS])
            handle.flush()
            time.sleep(pause / BLOCKS)


def get_into(trouble: str | None) -> None:
    if trouble == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")
    if trouble == "wrapped-enospc":
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")
    if trouble == "bug":
        raise KeyError("planted")
    if trouble == "gate":
        raise GateFailed("asked for one thing, got another", "ask for something else")
    if trouble == "exit":
        raise SystemExit("the library gives up")
    if trouble == "shout":
        print("LEAK from print")
        os.write(1, b"LEAK from fd 1\n")
        os.write(2, b"LEAK from fd 2\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"LEAK from C")
        libc.fflush(None)


def _run(source: Any, out: Path, options: ToyMake, progress: Progress) -> Outcome:
    if options.log is not None:
        with open(options.log, "a") as handle:
            handle.write(f"make {os.getpid()}\n")
    progress("writing bytes", 0, 1)
    write_slowly(out, options.size, options.seed, options.pause)
    (out / "tokenizer").mkdir()
    (out / "tokenizer" / "manifest.json").write_text(f"seed {options.seed}\n")  # not the artifact's own
    get_into(options.trouble)
    facts: dict[str, Any] = {"seed": options.seed}
    if options.trouble == "nan":
        facts["loss"] = float("nan")
    return Outcome(facts, {"task": "toy", "label": options.label}, ["made of nothing"])


def _variant(options: ToyMake, source: Any) -> str:
    return options.precision.value


def _verify(options: ToyMake, facts: Mapping[str, Any], source: Any) -> None:
    if facts["seed"] == 666:
        raise GateFailed("seed 666 was asked for, and that cannot be")


STAGE = Stage(
    name="toy-make",
    help="Make a toy.",
    options=ToyMake,
    accepts=frozenset({Kind.SOURCE}),
    produces=Kind.ONNX,
    run=_run,
    variant=_variant,
    verify=_verify,
    version=1,
    command=("toy", "make"),
    aliases=("make",),
)
