"""Every architecture through the whole chain, and docs/models.md from what came out.

    python -m benchmarks.models_table [--only bert,vit] [--tasks feature-extraction]

Export → verify against PyTorch → ort-optimize → verify → int8 → verify. Raw rows are kept in
``benchmarks/results/models.json``; rows of a run with ``--only`` replace their own and leave the others.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import optimizer
from benchmarks.architectures import ARCHITECTURES, save
from optimizer.errors import GateFailed, MlOptError
from optimizer.pipeline import Result
from optimizer.store import Store

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "models.json"
PAGE = ROOT / "docs" / "models.md"
#: Their arithmetic is in convolutions: dynamic int8 leaves those alone (ConvInteger is slower than float).
CONVOLUTIONAL = ("resnet", "convnext", "mobilenet-v2")
CALIBRATION_ROWS = 32


def run_row(name: str, task: str, folder: Path) -> dict[str, Any]:
    """One architecture and task through the chain; what failed stands in the row in words."""
    row: dict[str, Any] = {"architecture": name, "task": task, "notes": []}
    started = time.perf_counter()
    try:
        _chain(row, save(name, task, folder / "model"), Store(folder / "store"))
    except MlOptError as error:
        row["notes"].append(f"**fails**: {error.message}")
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def _chain(row: dict[str, Any], model: Path, store: Store) -> None:
    exported = optimizer.export_onnx(str(model), name="m", store=store)
    row["class"] = exported.artifact.model_info["class"]
    row["parity"] = _parity(exported, store, row)
    fused = _optimized(exported, store, row)
    facts = fused.artifact.manifest.facts
    row["attention"] = [facts["attention"], facts["attention_found"]]
    row["optimized_parity"] = _parity(fused, store, row)
    if row["architecture"] in CONVOLUTIONAL:
        row["int8"] = "static"
        quantized = optimizer.quantize_static(exported.artifact.ref, calib=_calibration(exported), store=store)
    else:
        row["int8"] = "dynamic"
        quantized = optimizer.quantize_dynamic(exported.artifact.ref, store=store)
    row["size"] = quantized.artifact.model_file.stat().st_size / exported.artifact.model_file.stat().st_size
    report = optimizer.verify(quantized.artifact.ref, store=store)
    worst = report.worst()
    row["cosine"] = worst["cosine"]["worst"]
    row["top1"] = worst.get("top1", {}).get("share")
    if report.failures:
        row["notes"].append(f"int8 misses the tolerance: {report.failures[0]}")


def _optimized(exported: Result, store: Store, row: dict[str, Any]) -> Result:
    try:
        return optimizer.ort_optimize(exported.artifact.ref, store=store)
    except GateFailed:
        row["notes"].append("no attention fusion matches: `--allow-unfused`")
        return optimizer.ort_optimize(exported.artifact.ref, store=store, allow_unfused=True)


def _parity(made: Result, store: Store, row: dict[str, Any]) -> float:
    """Largest absolute difference to PyTorch over the sweep; beyond the tolerance it is a note as well."""
    report = optimizer.verify(made.artifact.ref, store=store)
    if report.failures:
        row["notes"].append(f"**{made.artifact.variant} misses the tolerance**: {report.failures[0]}")
    return max(output["max_abs"] for output in report.worst()["outputs"].values())


def _calibration(exported: Result) -> Path:
    """Pictures like the golden ones: shifted, mirrored and with noise, from a fixed seed."""
    import numpy as np

    from optimizer.data.golden import Golden

    golden = Golden.load(exported.artifact.path)
    assert golden is not None
    random = np.random.default_rng(0)
    rows = []
    for place in range(CALIBRATION_ROWS):
        picture = golden.inputs["pixel_values"][place % 2]
        picture = np.roll(picture, random.integers(0, picture.shape[-1], 2), axis=(1, 2))[
            :, :, :: 1 - 2 * (place % 4 // 2)
        ]
        rows.append(picture + random.normal(0, 0.1, picture.shape))
    path = exported.artifact.path.parent.parent.parent.parent / "calibration.npz"
    np.savez(path, pixel_values=np.stack(rows).astype(np.float32))
    return path


HEAD = """# Models

Small models with random weights of every architecture below, through the whole chain on one processor. `parity` is the
largest absolute difference to PyTorch over a sweep of shapes (batch 1, 2, 8; shortest, odd and longest sequences; padded
and not), as exported and after `ort-optimize`. `attention` is how many attentions became one operator, of those that the
graph spells out. `size` is the int8 file's share of the fp32 file's bytes, and `cosine` the worst of all its rows against
PyTorch.

Weights are random and layers few: the columns show that a graph is right and how much of it is quantized. What int8 does to
a *trained* model's accuracy has to be measured on that model (`ml-opt verify REF --data FILE`).

| architecture | task | parity | optimized | attention | int8 | size | cosine | notes |
|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501

TAIL = """
Written by `python -m benchmarks.models_table`; raw rows in `benchmarks/results/models.json`. Static int8 is calibrated on
32 pictures made from the golden ones. The models come from `benchmarks/architectures.py`.

## What is refused, and what to do

| model | why | instead |
|---|---|---|
| `…ForCausalLM`, `…LMHeadModel`, `…ForConditionalGeneration` | they generate text | `--task feature-extraction` exports the encoder, or the hidden states |
| `CLIPModel` | a text and an image half in one | save each half (`CLIPTextModel`, `CLIPVisionModel`) |
| a task whose head has no weights in the folder | its answers would be random | the task it was trained for |
| weights as Python pickles | they can run code when loaded | `save_pretrained`, or `--allow-pickle` |
| code of its own (`auto_map`) | it would run here | read it, then `--trust-remote-code` |
| an `.onnx` file with sequences, maps, optionals or strings at its edge | runtimes here are fed arrays of numbers | cut the graph (`onnx.utils.extract_model`) |
"""  # noqa: E501


def page(rows: list[dict[str, Any]]) -> str:
    """docs/models.md."""
    lines = []
    for row in rows:
        cells = [row["architecture"], row["task"]]
        cells += [f"{row[key]:.0e}" if key in row else "–" for key in ("parity", "optimized_parity")]
        found = row.get("attention", [0, 0])
        cells.append(f"{found[0]} of {found[1]}" if any(found) else "none")
        cells.append(row.get("int8", "–"))
        cells.append(f"{row['size']:.0%}" if "size" in row else "–")
        cells.append(f"{row['cosine']:.4f}" if "cosine" in row else "–")
        cells.append("; ".join(row["notes"]).replace("|", "/"))
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n" + TAIL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ARCHITECTURES), help="architectures, with commas between")
    parser.add_argument("--tasks", default="", help="tasks, with commas between [all]")
    arguments = parser.parse_args()
    known = {(r["architecture"], r["task"]): r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in arguments.only.split(","):
        for task in ARCHITECTURES[name].tasks:
            if arguments.tasks and task not in arguments.tasks.split(","):
                continue
            with tempfile.TemporaryDirectory() as folder:
                known[name, task] = row = run_row(name, task, Path(folder))
            print(f"{name:16} {task:22} {row['seconds']:6.1f} s  {'; '.join(row['notes'])}", flush=True)
    order = [(name, task) for name, entry in ARCHITECTURES.items() for task in entry.tasks]
    rows = [known[key] for key in order if key in known]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
