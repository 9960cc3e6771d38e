"""What an engine costs that is built without a GPU: seconds, bytes, and what the fp16 cast before it loses.

    python -m benchmarks.engines [--rounds 5]

MiniLM by TensorRT-RTX. Every build is `ml-opt build-trt-engine` typed in a process of its own, on a store that has the
export and its quantized kin and no engine; the second call finds it there. Likeness is that of the graph that the
builder is given, on ONNX Runtime's CPU provider over 600 sentences. Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.sentiment import minilm_folder
from optimizer.environment import describe
from optimizer.files import write_report
from optimizer.store import Store

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "engines.json"
CALIB = ROOT / "benchmarks" / "data" / "sentiment-train.jsonl"
TEST = ROOT / "benchmarks" / "data" / "sentiment-test.jsonl"
PROFILE = "input_ids:1x8:8x64:32x128"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "models")
        optimizer.export_onnx(str(minilm_folder()), name="minilm", store=store)
        optimizer.quantize_static("minilm:fp32", calib=CALIB, symmetric=True, variant="int8", store=store)
        optimizer.cast("minilm:fp32", to="fp16", store=store)
        asked = {
            "fp32": ("minilm:fp32", "fp32"),
            "fp16": ("minilm:fp32", "fp16"),
            "bf16": ("minilm:fp32", "bf16"),
            "int8": ("minilm:int8", "int8"),
        }
        rows: dict[str, dict[str, Any]] = {name: {"build_s": [], "cached_s": []} for name in asked}
        for _ in range(rounds):
            for name, (ref, precision) in asked.items():
                words = ["build-trt-engine", ref, "--precision", precision, "--flavor", "rtx", "--profile", PROFILE]
                rows[name]["build_s"].append(_typed(words, store))
                rows[name]["cached_s"].append(_typed(words, store))
                engine = store.get(f"minilm:{name}-rtx")
                rows[name]["bytes"] = engine.runnable.stat().st_size
                rows[name]["layers"] = engine.manifest.facts["layers"]
                _typed(["rm", "--yes", engine.ref], store)
        report = optimizer.verify("minilm:fp16", data=TEST, samples=600, sweep=False, store=store)
        cosines = report.agreement("cosine")
        found = {
            "report": "engines",
            "schema": 1,
            "environment": describe(),
            "onnx_bytes": store.get("minilm:fp32").model_file.stat().st_size,
            "rounds": rounds,
            "rows": rows,
            "fp16_cosine": {"worst": min(cosines), "rows": len(cosines)},
        }
    write_report(RESULT, found)
    print(to_markdown(found))


def _typed(words: list[str], store: Store) -> float:
    """Seconds of a command, as somebody who types it waits for it."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "optimizer", *words, "--store", str(store.root)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return time.perf_counter() - began


def to_markdown(found: Mapping[str, Any]) -> str:
    """A table, and the sentence about likeness."""
    onnx, rows = found["onnx_bytes"], found["rows"]
    fp32 = rows["fp32"]["bytes"]
    lines = [
        f"{found['environment']['cpu']['model']}, {found['rounds']} rounds; the export takes {onnx / 1e6:.1f} MB.",
        "",
        "| engine | build, s | second call, s | MB | of the export | of the fp32 engine | layers | products |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        products = ", ".join(f"{count} {dtype}" for dtype, count in row["layers"]["products"].items())
        lines.append(
            f"| {name} | {statistics.median(row['build_s']):.2f} | {statistics.median(row['cached_s']):.2f} | "
            f"{row['bytes'] / 1e6:.1f} | {row['bytes'] / onnx:.0%} | {row['bytes'] / fp32:.0%} | "
            f"{row['layers']['layers']} | {products} |"
        )
    likeness = found["fp16_cosine"]
    lines += [
        "",
        f"The fp16 graph answers with a worst cosine of {likeness['worst']:.6f} over {likeness['rows']} rows.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
