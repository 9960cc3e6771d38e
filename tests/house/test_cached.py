"""A cached step of a real chain imports nothing heavy and answers at once; killed, the chain leaves a whole store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys as toybox
from tiny import two_layers

from optimizer import upkeep
from optimizer.store import Store

from .test_imports import HEAVY, best

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights and a tokenizer, as a folder."""
    return two_layers(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="module")
def stocked(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A store with a real chain in it, and the command lines that made it."""
    import optimizer

    root = tmp_path_factory.mktemp("stocked") / "models"
    fp32 = optimizer.export_onnx(str(bert), name="tiny", store=root).artifact
    rows = root.parent / "rows.txt"
    rows.write_text("\n".join(f"good {letter} bad" for letter in "abcdefghijkl"))
    lines = [
        ["export-onnx", str(bert), "--name", "tiny"],
        ["quantize", "dynamic", "tiny:fp32"],
        ["export-onnx", str(fp32.model_file), "--name", "brought"],
        # Which rows these options choose is remembered: nothing is tokenized to know it again.
        ["quantize", "static", "tiny:fp32", "--calib", str(rows), "--samples", "8"],
        ["quantize", "static", "tiny:fp32", "--calib", "tiny:calib-8"],
    ]
    optimizer.calibration_set(fp32.ref, data=rows, samples=8, store=root)
    optimizer.quantize_static(fp32.ref, calib=rows, samples=8, store=root)
    optimizer.quantize_dynamic(fp32.ref, store=root)
    optimizer.export_onnx(str(fp32.model_file), name="brought", store=root)
    time.sleep(0.1)  # the digests of files that were just written are not trusted yet
    for words in lines:
        subprocess.run(
            [BIN / "ml-opt", *words, "--store", root], check=True, capture_output=True, env=toybox.environment()
        )
    return root, lines


@pytest.mark.parametrize("line", range(5), ids=["export", "quantize", "import", "static", "static-set"])
def test_a_cached_step(stocked: tuple[Path, list[list[str]]], line: int) -> None:
    root, lines = stocked
    words = [*lines[line], "--store", str(root), "--json"]
    code = (
        "import sys; from optimizer.cli.main import run; code = run(sys.argv[1:])\n"
        f"sys.stderr.write('@@' + ' '.join(sorted(set(sys.modules) & set({HEAVY!r})))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=toybox.environment()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cached"] is True
    assert done.stderr.partition("@@")[2] == ""
    taken = best([str(BIN / "ml-opt"), *words], 0.5)
    print(f"ml-opt {' '.join(words[:2])}, cached: {taken:.3f} s")
    assert taken < 0.5


CHAIN = """
import json, os, random, signal, sys, time
import torch, transformers, onnx, onnx_ir, onnxruntime, onnxscript
import transformers.exporters.exporter_onnx
from optimizer import upkeep
from optimizer.stages import export_onnx, quantize_dynamic
from optimizer.pipeline import apply
from optimizer.store import Store

source, root, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
random.seed(5)

def chain():
    one, two = export_onnx.STAGE, quantize_dynamic.STAGE
    fp32 = apply(one, source, one.options(), Store(root), name="tiny").artifact
    apply(two, fp32.ref, two.options(), Store(root))

took, killed = 4.0, 0
for turn in range(kills + 1):
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            chain()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    if turn < kills:
        time.sleep(took * (turn + random.random()) / kills)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed += code == -signal.SIGKILL
    store = Store(root)
    assert set(upkeep.check(store).values()) <= {""}, upkeep.check(store)
    if turn % 2:
        upkeep.gc(store)
print(json.dumps({"killed": killed, "last": code, "refs": store.refs()}))
"""


@pytest.mark.slow
def test_kill_9_over_a_real_chain(bert: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, str(bert), str(tmp_path / "models"), "6"],
        capture_output=True,
        text=True,
        env=toybox.environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["killed"] >= 3
    assert outcome["last"] == 0
    assert outcome["refs"] == ["tiny@1:fp32", "tiny@1:int8-dynamic"]
    store = Store(tmp_path / "models")
    upkeep.gc(store)
    assert list((store.root / ".ml-opt" / "scratch").iterdir()) == []
