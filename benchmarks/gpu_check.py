"""The whole chain on an NVIDIA GPU, and a report of what was true there.

    make gpu-check
    python -m benchmarks.gpu_check [--quick]

For the owner of a GPU: everything that docs/gpu.md lists as not checked, in one run. Every step is a command that
anybody types (or `pytest -m gpu`), in a process of its own; a step that fails is a line of the report and not its end.
MiniLM is exported, cast and quantized, built into engines by whichever of TensorRT and TensorRT-RTX is installed, held
to PyTorch's answers on every GPU provider that works, and timed beside PyTorch (eager, fp16, compiled) and ONNX
Runtime in the same rounds. Writes benchmarks/results/gpu-NAME.json and gpu-NAME.md; exit code 1 when a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optimizer.engines.flavors import FLAVORS
from optimizer.environment import describe, gpu_facts
from optimizer.errors import MissingPiece
from optimizer.files import write_report, write_text
from optimizer.ref import safe_name
from optimizer.runtime import works

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CALIB = ROOT / "benchmarks" / "data" / "sentiment-train.jsonl"
#: Providers of ONNX Runtime that compute on the GPU.
_ORT = ("cuda", "tensorrt", "rtx")
_PROFILE = "batch=1:8:32,sequence=1:128:512"
_LIMIT_S = 1800
_KEPT_LINES = 40


@dataclass(frozen=True)
class Step:
    """One command and what came of it.

    Attributes:
        name: what it checks.
        command: as it was typed.
        exit_code: its own; -1 when it did not end in time.
        seconds: how long it took.
        said: the end of what it printed.
        report: the JSON that it wrote, where it writes one.
    """

    name: str
    command: str
    exit_code: int
    seconds: float
    said: str
    report: Any = field(default=None)

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Chain:
    """Steps on one store, each noted as it ends."""

    def __init__(self, home: Path, quick: bool) -> None:
        self.store = home / "models"
        self.quick = quick
        self.steps: list[Step] = []

    def type(self, name: str, *words: str, store: bool = True) -> Step:
        """Run ``ml-opt``; its answer is kept as JSON."""
        line = ["ml-opt", *words, *(["--store", str(self.store)] if store else [])]
        return self.run(name, [sys.executable, "-m", "optimizer", *line[1:], "--json"], " ".join(line))

    def run(self, name: str, words: Sequence[str], shown: str) -> Step:
        """Run a command, and print a line about it."""
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_LIMIT_S, cwd=ROOT, env=environment, check=False
            )
            code, out, said = done.returncode, done.stdout, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            code, out, said = -1, "", f"did not end within {_LIMIT_S} s"
        seconds = time.perf_counter() - began
        tail = "\n".join(said.strip().splitlines()[-_KEPT_LINES:])
        step = Step(name, shown.replace(str(ROOT) + "/", ""), code, round(seconds, 2), tail, _json(out))
        self.steps.append(step)
        print(f"{'ok  ' if step.ok else 'FAIL'} {seconds:7.1f} s  {name}", flush=True)
        if not step.ok:
            print("\n".join(f"      {line}" for line in tail.splitlines()[-6:]), flush=True)
        return step


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def check(chain: Chain, model: Path) -> None:
    """The chain: environment, tests, artifacts, engines, answers, times."""
    chain.type("what this machine is", "doctor", store=False)
    chain.run("tests that need a GPU", [sys.executable, "-m", "pytest", "-q", "-m", "gpu"], "pytest -q -m gpu")
    chain.type("export", "export-onnx", str(model), "--name", "minilm")
    chain.type("fuse for CUDA", "ort-optimize", "minilm:fp32", "--target", "cuda")
    chain.type("cast to fp16", "cast", "minilm:fp32", "--to", "fp16")
    chain.type(
        "quantize to symmetric int8", "quantize", "static", "minilm:fp32", "--calib", str(CALIB), "--symmetric",
        "--variant", "int8",
    )  # fmt: skip
    engines = []
    for flavor in FLAVORS.values():
        if not flavor.installed:
            continue
        suffix = "trt" if flavor.name == "tensorrt" else flavor.name
        for ref, precision in (("fp32", "fp32"), ("fp32", "fp16"), ("fp32", "bf16"), ("int8", "int8")):
            made = chain.type(
                f"{flavor.title}: {precision} engine", "build-trt-engine", f"minilm:{ref}", "--flavor", flavor.name,
                "--precision", precision, "--profile", _PROFILE, *(["--no-tf32"] if precision == "fp32" else []),
            )  # fmt: skip
            if made.ok:
                engines.append(f"minilm:{precision}-{suffix}")
    for ref in engines:
        chain.type(f"{ref}: what it is made of", "inspect", ref)
        chain.type(f"{ref}: answers", "verify", ref)
    ours = [f"minilm:{variant}+{name}" for name in _ORT if works(name).ok for variant in ("fp32", "fp16")]
    for ref in ours:
        chain.type(f"{ref}: answers", "verify", ref)
    torch = ["source:cuda", "source:cuda-fp16", "source:cuda-compiled-fp16"]
    shapes = [word for shape in ("1x16", "1x128", "8x128", "32x128") for word in ("--shape", shape)]
    times = ["--duration", "1s"] if chain.quick else ["--duration", "3s", "--rounds", "12"]
    chain.type(
        "times, in the same rounds", "bench", *engines, *ours, *torch, "--against", "source:cuda", *shapes, *times
    )
    chain.type(
        "optimize on the GPU", "optimize", "minilm:fp32", "--device", "cuda", "--min-cosine", "0.999",
        "--eval", str(ROOT / "benchmarks" / "data" / "sentiment-test.jsonl"), "--calib", str(CALIB),
    )  # fmt: skip


def to_markdown(found: Mapping[str, Any]) -> str:
    """What held, what did not, and the table of times."""
    gpu = found["environment"]["gpus"][0]
    versions = ", ".join(f"{name} {version}" for name, version in found["environment"]["versions"].items())
    lines = [
        f"# {gpu['name']}, compute capability {gpu['compute_capability']}, driver {gpu['driver']}",
        "",
        f"{found['created']}; {versions}",
        "",
        "| step | outcome | seconds |",
        "| --- | --- | --- |",
    ]
    for step in found["steps"]:
        outcome = "ok" if step["exit_code"] == 0 else f"exit code {step['exit_code']}"
        lines.append(f"| {step['name']} | {outcome} | {step['seconds']:.1f} |")
    for step in found["steps"]:
        if step["exit_code"] != 0:
            lines += [
                "",
                f"**{step['name']}**: `{step['command']}`",
                "",
                "```",
                *step["said"].splitlines()[-12:],
                "```",
            ]
    return "\n".join([*lines, "", *_times(found["steps"])])


def _times(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The bench's own table, redrawn."""
    from optimizer.benching.formats.markdown import to_markdown as table
    from optimizer.benching.report import BenchReport

    documents = [step["report"] for step in steps if step["name"].startswith("times") and step["report"]]
    return [table(BenchReport.from_json(document)) for document in documents if document.get("report") == "bench"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter times, to see that all works")
    options = parser.parse_args()
    gpus = gpu_facts()
    if not gpus:
        error = MissingPiece("no NVIDIA GPU here: nvidia-smi finds none", "run it on a machine that has one")
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code)
    from benchmarks.sentiment import minilm_folder

    name = safe_name(re.sub(r"^nvidia\s+", "", str(gpus[0]["name"]).lower()).replace(" ", "-"))
    with tempfile.TemporaryDirectory(prefix="ml-opt-gpu-") as home:
        chain = Chain(Path(home), options.quick)
        check(chain, minilm_folder())
    found = {
        "report": "gpu-check",
        "schema": 1,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": describe(),
        "steps": [asdict(step) for step in chain.steps],
    }
    write_report(RESULTS / f"gpu-{name}.json", found)
    write_text(RESULTS / f"gpu-{name}.md", to_markdown(found) + "\n")
    failed = [step.name for step in chain.steps if not step.ok]
    print(f"{len(chain.steps) - len(failed)} of {len(chain.steps)} steps ok; benchmarks/results/gpu-{name}.md")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
