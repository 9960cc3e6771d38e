"""Stages and a check that cost nothing, put in the place where real ones are found.

``python tests/toys.py WORDS…`` is ``ml-opt WORDS…`` with the toys among its commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


def install() -> None:
    """Let ``discover()`` find the toys, and read back what is no ONNX file."""
    sys.path[:0] = [p for p in [str(HERE)] if p not in sys.path]
    import optimizer.checks
    import optimizer.readback
    import optimizer.stages

    optimizer.stages.__path__.append(str(HERE / "toy_stages"))
    optimizer.checks.__path__.append(str(HERE / "toy_checks"))
    optimizer.readback.read_back = fake_facts


def forget() -> None:
    """Undo what was remembered about the commands, before and after the toys are there."""
    import optimizer
    import optimizer.api
    import optimizer.check
    import optimizer.stage
    from optimizer.cli.app import build_app

    for cached in (
        optimizer.stage.discover,
        optimizer.check.discover,
        optimizer.api.functions,
        build_app,
        optimizer._function_names,
    ):
        cached.cache_clear()


def fake_facts(kind: Any, folder: Path) -> dict[str, Any]:
    spec = {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    return {"opset": {"": 20}, "inputs": [spec], "outputs": [{**spec, "name": "y", "dtype": "float32"}]}


def make_source(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that looks like a model to everything that does not open it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def environment(**extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("ML_OPT_STORE", "ML_OPT_DEBUG")}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{HERE}"
    return {**env, "PYTHONIOENCODING": "utf-8", "COLUMNS": "120", **extra}


def start(*words: object, cwd: Path | None = None, **extra: str) -> subprocess.Popen[str]:
    """``ml-opt WORDS…`` with the toys, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "toys.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**extra),
    )


def run(*words: object, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    """Start it and wait for its end."""
    process = start(*words, cwd=cwd, **extra)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


if __name__ == "__main__":
    install()
    from optimizer.cli.main import main

    main()
