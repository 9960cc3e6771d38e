"""The whole chain on an NVIDIA GPU, and a report of what was true there.

    make gpu-check
    python -m benchmarks.gpu_check [--quick] [--only artifacts,times] [--store DIR]

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.decoders import place
from benchmarks.serving.throughput import with_root
from optimizer.engines.flavors import FLAVORS
from optimizer.environment import describe, gpu_facts
from optimizer.errors import MissingPiece
from optimizer.files import write_report, write_text
from optimizer.ref import safe_name
from optimizer.runtime import works

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CALIB = ROOT / "benchmarks" / "data" / "sentiment-train.jsonl"
TEST = ROOT / "benchmarks" / "data" / "sentiment-test.jsonl"
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
    """Steps on one store, which begin with one model; each is noted as it ends."""

    def __init__(self, store: Path, model: Path, quick: bool) -> None:
        self.store, self.model = store, model
        self.quick = quick
        self.steps: list[Step] = []
        self.engines: list[str] = []

    def type(self, name: str, *words: str, store: bool = True) -> Step:
        """Run ``ml-opt``; its answer is kept as JSON."""
        line = ["ml-opt", *words, *(["--store", str(self.store)] if store else [])]
        return self.run(name, [sys.executable, "-m", "optimizer", *line[1:], "--json"], " ".join(line))

    def run(self, name: str, words: Sequence[str], shown: str) -> Step:
        """Run a command, and print a line about it."""
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": with_root(os.environ), "COLUMNS": "160"}
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


def check(chain: Chain, only: Sequence[str] = ()) -> None:
    """The parts of the chain, in their order; the first makes what the others take."""
    chain.type("what this machine is", "doctor", store=False)
    for name, part in PARTS.items():
        if not only or name in only:
            part(chain)


def _tests(chain: Chain) -> None:
    chain.run("tests that need a GPU", [sys.executable, "-m", "pytest", "-q", "-m", "gpu"], "pytest -q -m gpu")


def _artifacts(chain: Chain) -> None:
    chain.type("export", "export-onnx", str(chain.model), "--name", "minilm")
    chain.type("fuse for CUDA", "ort-optimize", "minilm:fp32", "--target", "cuda")
    chain.type("cast to fp16", "cast", "minilm:fp32", "--to", "fp16")
    chain.type("cast what is fused to fp16", "cast", "minilm:fp32-ort-cuda", "--to", "fp16")
    chain.type(
        "quantize to symmetric int8", "quantize", "static", "minilm:fp32", "--calib", str(CALIB), "--symmetric",
        "--variant", "int8",
    )  # fmt: skip


def _engines(chain: Chain) -> None:
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
                engine = f"minilm:{precision}-{suffix}"
                chain.engines.append(engine)
                chain.type(f"{engine}: what it is made of", "inspect", engine)
                chain.type(f"{engine}: answers", "verify", engine)


def _answers(chain: Chain) -> None:
    for ref in _on_gpu():
        chain.type(f"{ref}: answers", "verify", ref)


def _times(chain: Chain) -> None:
    torch = ["source:cuda", "source:cuda-fp16", "source:cuda-compiled-fp16"]
    shapes = [word for shape in ("1x16", "8x128", "32x128") for word in ("--shape", shape)]
    times = ["--duration", "1s"] if chain.quick else ["--duration", "3s", "--rounds", "12"]
    chain.type(
        "times, in the same rounds", "bench", *chain.engines, *_on_gpu(), *torch, "--against", "source:cuda", *shapes,
        *times,
    )  # fmt: skip
    words = ["-m", "benchmarks.device_time", str(chain.store), *_on_gpu()]
    chain.run("the GPU's own time", [sys.executable, *words], f"python {' '.join(words)}")


def _on_gpu() -> list[str]:
    """What ONNX Runtime runs on the GPU."""
    variants = {"cuda": ("fp32", "fp16", "fp32-ort-cuda", "fp16-ort-cuda")}
    return [
        f"minilm:{variant}+{name}"
        for name in _ORT
        if works(name).ok
        for variant in variants.get(name, ("fp32", "fp16"))
    ]


def _search(chain: Chain) -> None:
    chain.type(
        "optimize on the GPU", "optimize", "minilm:fp32", "--device", "cuda", "--min-cosine", "0.999",
        "--eval", str(TEST), "--calib", str(CALIB),
    )  # fmt: skip


def _texts(chain: Chain) -> None:
    """A decoder of seconds, or one that has learned something; both are written by onnxruntime-genai."""
    size: Literal["tiny", "small"] = "tiny" if chain.quick else "small"
    decoder = place("llama", size)
    words = [sys.executable, "-c", f"from benchmarks.decoders import decoder; decoder('llama', size='{size}')"]
    if not chain.run("train a decoder", words, f"decoder('llama', size='{size}')").ok:
        return
    heldout = str(decoder / "heldout.jsonl")
    for precision in ("fp16", "bf16", "int4"):
        ref, name = f"decoder:{precision}-genai-cuda", f"decoder, {precision}"
        made = chain.type(
            f"{name}: export for CUDA", "export-genai", str(decoder), "--precision", precision, "--provider", "cuda",
            "--name", "decoder",
        )  # fmt: skip
        if made.ok:
            chain.type(f"{name}: writes", "generate", ref, "import os", "--max-tokens", "32", "--provider", "cuda")
            chain.type(f"{name}: answers", "verify", ref, "--provider", "cuda", "--data", heldout, "--max-drop", "5%")
    chain.type(
        "decoder: times", "bench", *(f"decoder:{each}-genai-cuda+cuda" for each in ("fp16", "int4")),
        "--prompt-lengths", "16,64", "--new-tokens", "32", "--batch", "1,8",
    )  # fmt: skip
    chain.type(
        "decoder: optimize on the GPU", "optimize", str(decoder), "--device", "cuda", "--eval", heldout,
        "--max-drop", "5%", "--name", "searched",
    )  # fmt: skip


def _training(chain: Chain) -> None:
    words = [sys.executable, "-m", "benchmarks.sentiment"]
    if chain.run("train a classifier", words, "python -m benchmarks.sentiment").ok:
        steps = ["--max-steps", "100"] if chain.quick else []
        chain.type(
            "train it for int8", "quantize", "qat", str(ROOT / ".cache" / "sentiment"), "--train", str(CALIB),
            "--eval", str(TEST), "--scheme", "w8a8-sym", "--name", "sentiment", *steps,
        )  # fmt: skip


def _serving(chain: Chain) -> None:
    words = ["-m", "benchmarks.serving.on_gpu", str(chain.store)]
    chain.run("serve on the GPU", [sys.executable, *words], f"python {' '.join(words)}")


PARTS: Mapping[str, Callable[[Chain], None]] = {
    "tests": _tests,
    "artifacts": _artifacts,
    "engines": _engines,
    "answers": _answers,
    "times": _times,
    "search": _search,
    "texts": _texts,
    "training": _training,
    "serving": _serving,
}


def added(before: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps of another run and of this one, which take the place of those of the same name."""
    names = {step["name"] for step in steps}
    return [step for step in before if step["name"] not in names] + list(steps)


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
    return "\n".join([*lines, "", *_table(found["steps"])])


def to_tables(found: Mapping[str, Any]) -> str:
    """Times of every candidate in the same rounds, and how much of a call the GPU itself takes."""
    reports = {step["name"]: step["report"] for step in found["steps"] if step["report"]}
    bench = reports["times, in the same rounds"]
    gpu = found["environment"]["gpus"][0]
    versions = found["environment"]["versions"]
    shapes = [cell["shape"] for cell in bench["rows"][0]["cells"]]
    titles = [f"{shape.replace('x', ' × ')}" for shape in shapes]
    lines = [
        f"{gpu['name']}, driver {gpu['driver']}, PyTorch {versions['torch']}, onnxruntime-gpu "
        f"{versions['onnxruntime-gpu']}; median milliseconds of a call, in brackets times faster than "
        f"`{bench['baseline']}`:",
        "",
        f"| candidate | GPU memory | {' | '.join(titles)} |",
        f"|---|---|{'---|' * len(titles)}",
    ]
    for row in bench["rows"]:
        cells = [f"{cell['p50_ms']:.3f}{_times_faster(cell)}" for cell in row["cells"]]
        lines.append(f"| `{row['label']}` | {row['peak_vram'] / 2**20:.0f} MiB | {' | '.join(cells)} |")
    calls = {(row["label"], cell["shape"]): cell["p50_ms"] for row in bench["rows"] for cell in row["cells"]}
    lines += [
        "",
        "The time in a bound call that the GPU has anything to do (CUPTI), and the call: as above, and in the process "
        "that was traced, which was pinned to no cores:",
        "",
        "| candidate | shape | the GPU | the call above | quotient | the call there | quotient | one CUDA graph |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in reports["the GPU's own time"]["rows"]:
        above = calls[row["ref"], row["shape"]]
        lines.append(
            f"| `{row['ref']}` | {row['shape'].replace('x', ' × ')} | {row['device_ms']:.3f} ms | {above:.3f} ms | "
            f"{above / row['device_ms']:.2f} | {row['call_ms']:.3f} ms | {row['quotient']:.2f} | "
            f"{'yes' if row['cuda_graph'] else 'no'} |"
        )
    return "\n".join([*lines, ""])


def _times_faster(cell: Mapping[str, Any]) -> str:
    found = cell["speedup"]
    return f" ({found['value']:.1f} ×, {found['low']:.1f} to {found['high']:.1f})" if found else ""


def _table(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """The bench's own table, redrawn."""
    from optimizer.benching.formats.markdown import to_markdown as table
    from optimizer.benching.report import BenchReport

    documents = [step["report"] for step in steps if step["name"].startswith("times") and step["report"]]
    return [table(BenchReport.from_json(document)) for document in documents if document.get("report") == "bench"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter times, to see that all works")
    parser.add_argument("--only", default="", help=f"of {', '.join(PARTS)}; engines are timed where they are built")
    parser.add_argument("--store", type=Path, help="keep what is made here [a folder that is removed]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="steps are added to a report that is there")
    options = parser.parse_args()
    gpus = gpu_facts()
    if not gpus:
        error = MissingPiece("no NVIDIA GPU here: nvidia-smi finds none", "run it on a machine that has one")
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code)
    from benchmarks.sentiment import minilm_folder

    name = safe_name(re.sub(r"^nvidia\s+", "", str(gpus[0]["name"]).lower()).replace(" ", "-"))
    file = options.out / f"gpu-{name}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["steps"] if options.only and file.is_file() else []
    with tempfile.TemporaryDirectory(prefix="ml-opt-gpu-") as home:
        chain = Chain(options.store or Path(home) / "models", minilm_folder(), options.quick)
        try:
            check(chain, [name for name in options.only.split(",") if name])
        finally:  # whoever stops it keeps what was found so far
            options.out.mkdir(parents=True, exist_ok=True)
            _write(file, before, chain.steps)
    failed = [step.name for step in chain.steps if not step.ok]
    print(f"{len(chain.steps) - len(failed)} of {len(chain.steps)} steps ok; {file.with_suffix('.md')}")
    raise SystemExit(1 if failed else 0)


def _write(file: Path, before: Sequence[Mapping[str, Any]], steps: Sequence[Step]) -> None:
    found = {
        "report": "gpu-check",
        "schema": 1,
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": describe(),
        "steps": added(before, [asdict(step) for step in steps]),
    }
    write_report(file, found)
    write_text(file.with_suffix(".md"), to_markdown(found) + "\n")


if __name__ == "__main__":
    main()
