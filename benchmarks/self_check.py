"""Does the gate cry wolf, and does it see a wolf: the same comparison again and again, where the answer is known.

    python -m benchmarks.self_check [--runs 40] [--only same,planted] [--fresh]

Every run is the command that a CI job types, `ml-opt bench A --against B --fail-if-slower 5% --self-check`, in a
process of its own and alone on the machine:

    same       MiniLM against a copy of itself: what is said to be slower is a false alarm
    planted    two planted models, one of which takes a tenth longer
    real       MiniLM against MiniLM with four of its products computed twice, which takes about a tenth longer

Writes benchmarks/results/self_check.json after each run, and goes on from there when it is started again; --fresh
begins anew. Prints the table that `python -m benchmarks.render` puts into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.sentiment import minilm_folder
from optimizer.environment import describe
from optimizer.files import write_report

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "self_check.json"
CACHE = ROOT / ".cache" / "self_check"

TOLERANCE = "5%"
#: Half the usual time a shape and no roofline, so that 120 runs fit into half an hour.
SETTINGS = ("--duration", "1", "--no-roofline")
#: Seconds that a run may take: the promise that is checked here.
LIMIT_S = 60.0
_SHAPE = ("--shape", "1x128")
_VERDICTS = ("REGRESSION", "INCONCLUSIVE", "PASS")


@dataclass(frozen=True)
class Case:
    """One comparison whose answer is known.

    Attributes:
        says: what is compared, for the table.
        words: makes what is compared and answers the arguments of `ml-opt bench`, given the number of the run.
        slower: whether what is judged really is slower.
        wrong: of 40 runs, how many may be wrong: a REGRESSION where nothing is slower, none where something is.
    """

    says: str
    words: Callable[[int], list[str]]
    slower: bool
    wrong: int

    def mistakes(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """How many of these runs are wrong."""
        return sum((row["verdict"] == "REGRESSION") is not self.slower for row in rows)


def _store() -> tuple[str, Path]:
    """A store with MiniLM in it: its reference's options, and its file."""
    import optimizer
    from optimizer.store import Store

    store = Store(CACHE / "store")
    if not any(store.root.glob("models/minilm/*")):
        optimizer.export_onnx(str(minilm_folder()), name="minilm", store=store.root)
    return str(store.root), store.get("minilm:fp32").model_file


def _same(number: int) -> list[str]:
    del number
    store, model = _store()
    copy = CACHE / "copy.onnx"
    if not copy.is_file():
        copy.write_bytes(model.read_bytes())
    return [str(copy), "--against", "minilm:fp32", "--store", store, *_SHAPE]


def _planted(number: int) -> list[str]:
    for place, (name, seconds) in enumerate((("usual", 0.005), ("slow", 0.0055))):
        planted = {"latency_s": seconds, "noise": 0.03, "seed": 2 * number + place}
        (CACHE / f"{name}.json").write_text(json.dumps(planted), encoding="utf-8")
    return [f"fake:{CACHE / 'slow.json'}", "--against", f"fake:{CACHE / 'usual.json'}", "--shape", "1"]


def _real(number: int) -> list[str]:
    del number
    store, model = _store()
    slow = CACHE / "twice.onnx"
    if not slow.is_file():
        twice(model, slow, large=2, small=2)
    return [str(slow), "--against", "minilm:fp32", "--store", store, *_SHAPE]


def twice(model: Path, out: Path, *, large: int, small: int) -> None:
    """Write a graph that answers the same to the last bit, and computes some of its products twice.

    Each is computed from two copies of its weights, so that no common subexpression is seen, and the mean is taken:
    so many of the largest products, and so many of the smallest. MiniLM's are 72 parts together (d² multiplications a
    token), of which a large one is 4 and a small one 1: two more of each are 14 % more of them.
    """
    import onnx
    from onnx import helper

    graph = (loaded := onnx.load(model)).graph
    weights = {each.name: each for each in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    products.sort(key=lambda node: -math.prod(weights[node.input[1]].dims))
    half = helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
    graph.initializer.append(half)
    for node in (*products[:large], *products[len(products) - small :]):
        again = onnx.TensorProto()
        again.CopyFrom(weights[node.input[1]])
        again.name += "_again"
        graph.initializer.append(again)
        answer, parts = node.output[0], [f"{node.output[0]}_{part}" for part in ("once", "again", "sum")]
        node.output[0] = parts[0]
        place = list(graph.node).index(node) + 1
        for more in (
            helper.make_node("Mul", [parts[2], "half"], [answer], f"{node.name}_mean"),
            helper.make_node("Add", parts[:2], [parts[2]], f"{node.name}_sum"),
            helper.make_node("MatMul", [node.input[0], again.name], [parts[1]], f"{node.name}_again"),
        ):
            graph.node.insert(place, more)
    onnx.save(loaded, out)


CASES: Mapping[str, Case] = {
    "same": Case("MiniLM against itself", _same, slower=False, wrong=1),
    "planted": Case("planted: a tenth slower", _planted, slower=True, wrong=2),
    "real": Case("MiniLM with four products twice", _real, slower=True, wrong=2),
}


def run(case: Case, number: int) -> dict[str, Any]:
    """One run, and what is kept of its report.

    Raises:
        SystemExit: the command could not compare at all.
    """
    words = [sys.executable, "-m", "optimizer", "bench", *case.words(number)]
    words += ["--fail-if-slower", TOLERANCE, "--self-check", "--seed", str(number), *SETTINGS, "--json"]
    started = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode not in (0, 1, 3) or not done.stdout.strip():
        raise SystemExit(f"{' '.join(words)}\nended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    (gate,) = (gate for gate in report["gates"] if gate["name"] == "slower")
    (floor,) = report["floors"]
    return {
        "number": number,
        "exit_code": done.returncode,
        "verdict": report["verdict"],
        "slower": {key: gate[key] for key in ("value", "low", "high", "says")},
        "floor": floor["share"],
        "cautions": sorted({caution["doubt"] for caution in report["cautions"]}),
        "seconds": round(seconds, 1),
    }


def to_markdown(document: Mapping[str, Any]) -> str:
    """One line a case."""
    environment = document["environment"]
    lines = [
        f"{environment['cpu']['model']}, {environment['cpu']['cores']} cores; tolerance {document['tolerance']}, "
        f"`{' '.join(document['settings'])}`; {document['finished'][:10]}.",
        "",
        "| compared | runs | REGRESSION | INCONCLUSIVE | PASS | promised of 40 | seen slower: median (least to most) |"
        " noise floor: median (worst) | seconds: median (longest) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(CASES[name], rows) for name, rows in document["runs"].items() if rows]
    return "\n".join(lines) + "\n"


def _line(case: Case, rows: Sequence[Mapping[str, Any]]) -> str:
    slower, floors, seconds = ([*map(pick, rows)] for pick in (_slower, lambda r: r["floor"], lambda r: r["seconds"]))
    cells = [
        case.says,
        len(rows),
        *(sum(row["verdict"] == verdict for row in rows) for verdict in _VERDICTS),
        f"REGRESSION at least {40 - case.wrong} times" if case.slower else f"REGRESSION at most {case.wrong} time",
        f"{statistics.median(slower):+.1%} ({min(slower):+.1%} to {max(slower):+.1%})",
        f"{statistics.median(floors):.1%} ({max(floors):.1%})",
        f"{statistics.median(seconds):.0f} ({max(seconds):.0f})",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _slower(row: Mapping[str, Any]) -> float:
    return float(row["slower"]["value"])


def broken(document: Mapping[str, Any]) -> list[str]:
    """What was promised and does not hold."""
    found = []
    for name, rows in document["runs"].items():
        case = CASES[name]
        if (wrong := case.mistakes(rows)) > case.wrong:
            found.append(f"{case.says}: {wrong} of {len(rows)} runs are wrong, where {case.wrong} may be")
        found += [
            f"{case.says}: run {row['number']} took {row['seconds']} s" for row in rows if row["seconds"] > LIMIT_S
        ]
    return found


def _known(fresh: bool) -> dict[str, Any]:
    """The runs of before, when they were made in the same way on the same machine; none of them otherwise."""
    made = {"tolerance": TOLERANCE, "settings": list(SETTINGS), "environment": describe()}
    if RESULT.is_file() and not fresh:
        known: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
        asked = {**made, "environment": made["environment"]["cpu"]["model"]}
        if asked == {**{key: known[key] for key in made}, "environment": known["environment"]["cpu"]["model"]}:
            return known
        raise SystemExit(f"{RESULT} was measured with other settings or on another machine; add --fresh to begin anew")
    return {"report": "self_check", "schema": 1, **made, "runs": {name: [] for name in CASES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="of each case")
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas between them")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    document = _known(options.fresh)
    # All cases in turn, so that a noisy quarter of an hour falls on each.
    for number in range(options.runs):
        for name in options.only.split(","):
            if number < len(rows := document["runs"][name]):
                continue
            rows.append(run(CASES[name], number))
            document["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            write_report(RESULT, document)
            print(
                f"{name} {number + 1}/{options.runs}: {rows[-1]['verdict']}, {rows[-1]['slower']['says']}", flush=True
            )
    print(to_markdown(document))
    if wrong := broken(document):
        raise SystemExit("\n".join(["Not as promised:", *wrong]))


if __name__ == "__main__":
    main()
