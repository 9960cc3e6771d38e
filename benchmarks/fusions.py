"""What leaving fusions out gives on a processor, and what putting biases into int8 products does.

    python -m benchmarks.fusions [--rounds 8] [--calls 100]

MiniLM in fp32, dynamic int8 and static int8 (SmoothQuant, calibrated on benchmarks/data), one thread. Sessions of the
same file with the options of ONNX Runtime and with ours, and of the static file before and after ``ort-optimize``, each
in a process of its own that every round opens anew, asked in turn. Also the four operators by themselves. Prints
medians of the rounds' ratios and writes benchmarks/results/fusions.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.serving.door import ROOT, STORE, minilm
from optimizer.environment import describe
from optimizer.files import write_report
from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "fusions.json"
SHAPES = ((1, 16), (4, 24), (8, 128))
#: Numbers in an operator's input: tokens of a batch of short texts by MiniLM's width.
ELEMENTS = (96, 384)

#: One session. A line asks for so many runs of a shape and is answered with the median, in seconds.
_ONE = """
import json, statistics, sys, time
import numpy as np, onnxruntime
path, how = sys.argv[1], sys.argv[2]
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads, settings.log_severity_level = 1, 4
if how == "ours":
    from optimizer.runtimes._ort_open import plain_options
    settings = plain_options(onnxruntime, "cpu", 1)
if how == "alone":
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
random = np.random.default_rng(0)
for line in sys.stdin:
    shape, calls = json.loads(line)
    feeds = {}
    for each in session.get_inputs():
        whole = each.type == "tensor(int64)"
        feeds[each.name] = np.ones(shape, np.int64) if whole else random.standard_normal(shape).astype(np.float32)
    if "input_ids" in feeds:
        feeds["input_ids"] = random.integers(1000, 20000, shape)
    times = []
    for _ in range(calls + 3):
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begin)
    print(statistics.median(times[3:]), flush=True)
"""


class Asked:
    """A session in a process of its own."""

    def __init__(self, path: Path, how: str) -> None:
        command = [sys.executable, "-c", _ONE, str(path), how]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __call__(self, shape: Sequence[int], calls: int) -> float:
        """The median of so many runs, in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([shape, calls]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def files() -> dict[str, Path]:
    """MiniLM in its forms, by variant."""
    store = Store(STORE)
    fp32, _ = minilm()
    calib = str(ROOT / "benchmarks" / "data" / "sentiment-train.jsonl")
    dynamic = optimizer.quantize_dynamic(fp32.ref, store=store).artifact
    static = optimizer.quantize_static(fp32.ref, calib=calib, smooth=True, store=store).artifact
    fused = optimizer.ort_optimize(static.ref, store=store).artifact
    made = {"fp32": fp32, "int8-dynamic": dynamic, "int8-static-smooth": static, "int8-static-smooth-ort": fused}
    return {name: artifact.model_file for name, artifact in made.items()}


def operator(folder: Path, name: str) -> Path:
    """A graph of a fused operator, or of an Add and the operator behind it that it takes the place of."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    width = ELEMENTS[1]
    parts = {
        "SkipLayerNormalization": ("x y g b", "com.microsoft", {"epsilon": 1e-12}),
        "LayerNormalization": ("h g b", "", {"epsilon": 1e-12}),
        "BiasGelu": ("x b", "com.microsoft", {}),
        "Gelu": ("h", "", {}),
    }
    first = {"LayerNormalization": "x y", "Gelu": "x b"}
    inputs, domain, attributes = parts[name]
    nodes = [helper.make_node("Add", first[name].split(), ["h"])] if name in first else []
    nodes.append(helper.make_node(name, inputs.split(), ["o"], domain=domain, **attributes))
    used = {each for node in nodes for each in node.input}
    stored = [
        numpy_helper.from_array(array, each)
        for each, array in (("g", np.ones(width, np.float32)), ("b", np.zeros(width, np.float32)))
        if each in used
    ]
    fed = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", width]) for each in "xy" if each in used]
    answer = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", width])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", fed, [answer], stored), opset_imports=opsets, ir_version=10)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def in_turn(
    sides: Mapping[str, tuple[Path, str]], shapes: Mapping[str, tuple[Sequence[int], int]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by shape and side, round by round, in another order each time.

    Every round opens all anew: where memory happens to lie is a part of what is measured.

    Args:
        sides: name → file, and how it is opened.
        shapes: label → shape, and how many runs.
        rounds: of all.
    """
    found: dict[str, dict[str, list[float]]] = {label: {name: [] for name in sides} for label in shapes}
    for turn in range(rounds):
        opened = {name: Asked(*side) for name, side in sides.items()}
        try:
            for label, (shape, calls) in shapes.items():
                for name in list(sides) if turn % 2 else reversed(list(sides)):
                    found[label][name].append(opened[name](shape, calls))
        finally:
            for each in opened.values():
                each.close()
    return found


def models(rounds: int, calls: int) -> list[dict[str, Any]]:
    """Times as fast as with ONNX Runtime's options, or as before biases were taken in."""
    made = files()
    pairs = [(name, made[name], "theirs", made[name], "ours", "fusions left out") for name in list(made)[:3]]
    static = list(made)[2]
    pairs.append((static, made[static], "ours", made[f"{static}-ort"], "ours", "biases in products"))
    # Of long runs a few are enough.
    shapes = {f"{b}x{n}": ((b, n), max(5, calls * SHAPES[0][1] // (b * n))) for b, n in SHAPES}
    rows = []
    for name, before, how, after, then, what in pairs:
        for label, times in in_turn({"before": (before, how), "after": (after, then)}, shapes, rounds).items():
            ratios = [a / b for a, b in zip(times["before"], times["after"], strict=True)]
            rows.append({"model": name, "what": what, "shape": label, "ratios": ratios, "seconds": times})
            print(f"{name:20s} {what:20s} {label:6s} {statistics.median(ratios):.3f} times as fast", flush=True)
    return rows


def operators(folder: Path, rounds: int, calls: int) -> dict[str, list[float]]:
    """Nanoseconds a number of each operator, or of it and the addition before it."""
    names = ("SkipLayerNormalization", "LayerNormalization", "BiasGelu", "Gelu")
    sides = {name: (operator(folder, name), "alone") for name in names}
    times = in_turn(sides, {"": (ELEMENTS, calls)}, rounds)[""]
    count = ELEMENTS[0] * ELEMENTS[1]
    return {name: [seconds / count * 1e9 for seconds in found] for name, found in times.items()}


def to_markdown(document: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    cpu = document["environment"]["cpu"]
    lines = [f"{cpu['model']}, {cpu['cores']} cores ({', '.join(cpu['features'])}), one thread; medians.", ""]
    lines += ["| MiniLM | what | " + " | ".join(f"{b}x{n}" for b, n in SHAPES) + " |"]
    lines += ["|---|---|" + "---|" * len(SHAPES)]
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in document["models"]:
        grouped.setdefault((row["model"], row["what"]), []).append(f"{statistics.median(row['ratios']):.2f}")
    lines += [f"| `{model}` | {what} | {' | '.join(cells)} |" for (model, what), cells in grouped.items()]
    each = {name: statistics.median(found) for name, found in document["operators"].items()}
    lines += ["", f"| {ELEMENTS[0]} tokens of {ELEMENTS[1]} numbers, by themselves | ns a number |", "|---|---|"]
    added = {"LayerNormalization": "Add, LayerNormalization", "Gelu": "Add, Gelu"}
    lines += [f"| {added.get(name, name)} | {took:.2f} |" for name, took in each.items()]
    return "\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=100)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusions-") as folder:
        alone = operators(Path(folder), asked.rounds, 5 * asked.calls)
    for name, found in alone.items():
        print(f"{name:24s} {statistics.median(found):.2f} ns a number")
    rows = models(asked.rounds, asked.calls)
    document = {"models": rows, "operators": alone, "calls": asked.calls, "environment": describe()}
    write_report(RESULT, document)


if __name__ == "__main__":
    main()
