"""Models that benchmarks train for themselves: each once, and anew when what it is made from has changed."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimizer.files import Lock

__all__ = ["STAMP", "folder_from", "schedule", "trained"]

#: Beside the model: what it was made from, and how the training went.
STAMP = "made.json"


def folder_from(help: str | None, default: Path) -> Path:
    """The folder that a script was given as its only argument, or its usual one."""
    parser = argparse.ArgumentParser(description=help, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"[default: {default.name} in .cache]")
    folder: Path = parser.parse_args().folder
    return folder


def trained(folder: Path, made_from: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder of a model, trained into it unless it is there.

    Args:
        folder: where to; what a training that was cut short left there is replaced.
        made_from: version of the recipe, settings and digests of the data; another training is another of these.
        train: trains into an empty folder, and says how that went.

    Returns:
        the folder: what ``train`` left in it, and ``made.json``.
    """
    # Two processes that want the same model train it once.
    with Lock(folder.with_name(f"{folder.name}.lock")):
        stamp = folder / STAMP
        if stamp.is_file() and json.loads(stamp.read_text())["of"] == made_from:
            return folder
        scratch = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        report = train(scratch)
        (scratch / STAMP).write_text(json.dumps({"of": made_from, **report}, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        return folder


def schedule(optimizer: Any, steps: int, warm: int, floor: float) -> Any:
    """The learning rate rises linearly for ``warm`` steps, and falls by half a cosine to a share of its peak."""
    import torch

    def share(step: int) -> float:
        done = max(0.0, (step - warm) / (steps - warm))
        return min((step + 1) / warm, floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
