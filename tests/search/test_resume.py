"""``kill -9`` at planted moments of ``optimize``, and the next run comes to the verdict of one that was left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toys as toybox
from onnx import TensorProto, helper, numpy_helper

from optimizer.store import Store
from optimizer.upkeep import check

#: Ends the process just before its n-th child is started, or before a file of that name gets there.
KILLED = """
import os, signal, sys
at, *words = sys.argv[1:]
children = 0

def hook(event, args):
    global children
    children += event == "subprocess.Popen"
    if (at == str(children) and event == "subprocess.Popen") or (event == "os.rename" and str(args[1]).endswith(at)):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
from optimizer.cli.main import run
sys.exit(run(words))
"""


def two_layers(folder: Path) -> None:
    """A network of two layers, ``net.onnx``, and rows for it: ``eval.npz`` and ``calib.npz``."""
    drawn = np.random.default_rng(0)
    weights = {
        "w1": drawn.standard_normal((16, 64)).astype(np.float32),
        "w2": drawn.standard_normal((64, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, folder / "net.onnx")
    for name, count in (("eval", 150), ("calib", 40)):
        np.savez(folder / f"{name}.npz", x=drawn.standard_normal((count, 16)).astype(np.float32))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What to ask of it."""
    two_layers(tmp_path)
    return [
        "optimize", "net.onnx", "--eval", "eval.npz", "--calib", "calib.npz", "--min-cosine", "0.9",
        # The smallest is the smallest every time; the fastest of these would be decided by chance.
        "--objective", "size", "--precision", "fp32,int8", "--duration", "0.05", "--rounds", "3", "--threads", "1",
        "--no-roofline", "--target", "ort",
    ]  # fmt: skip


def verdict_of(store: Path) -> dict[str, Any]:
    """What of a verdict does not depend on time."""
    found = json.loads((store / "net" / "1" / "verdict.json").read_text())
    kept = {name: found[name] for name in ("verdict", "best", "provider", "rivals", "rows_needed", "left_out")}
    kept["candidates"] = sorted(
        (c["name"], c["ref"], c["outcome"], c["seen"], str(c["gates"]), str(c["rows"])) for c in found["candidates"]
    )
    return kept


def test_kill_9_at_planted_moments(words: list[str], tmp_path: Path) -> None:
    left_alone = toybox.run(*words, "--store", "alone", cwd=tmp_path)
    assert left_alone.returncode == 0, left_alone.stderr
    expected = verdict_of(tmp_path / "alone")
    assert expected["verdict"] == "PASS"
    store = Store(tmp_path / "models")
    # The export, answers of the original, two candidates; then the verdict is written, and last the alias.
    for at in ("1", "2", "4", "6", "verdict.json", "aliases.json"):
        command = [sys.executable, "-c", KILLED, at, *words, "--store", "models"]
        killed = subprocess.run(command, cwd=tmp_path, env=toybox.environment(), capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, (at, killed.stderr)
        assert set(check(store).values()) <= {""}
        written = (tmp_path / "models" / "net" / "1" / "verdict.json").exists()
        assert written == (at == "aliases.json"), "no verdict before there is one"
        assert not store.names() or "best" not in store.aliases("net")
    done = toybox.run(*words, "--store", "models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert verdict_of(tmp_path / "models") == expected
    assert store.get("net@best").ref == expected["best"]
