"""Every search that the project's claims about ``ml-opt optimize`` stand on, one after another.

    python -m benchmarks.verdicts [--only minilm] [--quick]

Each is the command itself, in a process of its own. Writes benchmarks/results/verdicts.json, a summary, and prints it
as a table; the whole verdicts, with every sample, lie in .cache/verdicts. With --quick everything goes there, as those
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, head
from benchmarks.sentiment import TEST

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "verdicts.json"
CACHE = ROOT / ".cache" / "verdicts"

_QUICK_ROWS = 128
_QUICK = ("--duration", "0.05", "--rounds", "3")
#: What the summary keeps of a verdict; the rest is in the file that it names.
_KEPT = (
    "verdict", "best", "provider", "speedup", "accuracy", "agreement", "cosine", "objective", "shape", "budgets",
    "seconds", "winner_s", "rivals", "rows_needed", "notes", "command",
)  # fmt: skip


@dataclass(frozen=True)
class Search:
    """One command.

    Attributes:
        case: whose model, rows and budget.
        shape: of the timed call; empty for that of the data.
        budget: in the place of the case's own.
        flags: more of the command line.
        label: what those flags are called.
    """

    case: str
    shape: str = ""
    budget: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.case, self.label, self.shape)))

    def words(self, rows: Path, calib: Path) -> list[str]:
        """The arguments of ``ml-opt optimize``."""
        case = CASES[self.case]
        words = [str(case.model()), "--name", self.case, "--eval", str(rows), "--calib", str(calib)]
        for key, value in (self.budget or case.budget).items():
            words += [f"--{key.replace('_', '-')}", str(value)]
        return [*words, *(("--shape", self.shape) if self.shape else ()), *self.flags]


_INT8: dict[str, Any] = {"flags": ("--precision", "int8"), "label": "int8"}
#: All rows with their own lengths, in the batches that suit each candidate.
_LENGTHS: dict[str, Any] = {"flags": ("--objective", "throughput", "--shapes-from", str(TEST)), "label": "lengths"}
SEARCHES: tuple[Search, ...] = (
    *(Search(case, shape) for case in ("sentiment", "minilm") for shape in CASES[case].shapes),
    *(Search("sentiment", shape, **_INT8) for shape in CASES["sentiment"].shapes),
    *(Search("minilm", shape, {"min_cosine": 0.98}, **_INT8) for shape in CASES["minilm"].shapes),
    *(Search(case, **_LENGTHS) for case in ("sentiment", "minilm")),
    *(Search(case, shape) for case in ("vit", "magika") for shape in CASES[case].shapes),
)


def run(search: Search, *, quick: bool = False) -> dict[str, Any]:
    """One search, and what the summary keeps of it."""
    folder = CACHE / ("quick" if quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    rows, calib = CASES[search.case].rows()
    if quick:
        rows = head(rows, _QUICK_ROWS, folder)
    report = folder / f"{search.name}.json"
    report.unlink(missing_ok=True)
    words = [sys.executable, "-m", "optimizer", "optimize", *search.words(rows, calib)]
    words += ["--store", str(CACHE / "store"), "--report", str(report), *(_QUICK if quick else ())]
    started = time.monotonic()
    with open(report.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    row: dict[str, Any] = {
        "search": search.name,
        "exit_code": process.returncode,
        "wall_s": round(time.monotonic() - started, 1),
        # Of the largest process below it: they run one at a time, but for those that wait for their turn.
        "peak_rss": usage.ru_maxrss * 1024,
        "report": str(report.relative_to(ROOT)),
    }
    if not report.is_file():
        return {**row, "verdict": "none: see the log beside the report"}
    found = json.loads(report.read_text(encoding="utf-8"))
    row |= {key: found.get(key) for key in _KEPT}
    row["candidates"] = list(_candidates(found))
    row["environment"] = found["environment"]
    return row


def _candidates(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every candidate without its rows."""
    for candidate in report["candidates"]:
        yield {
            key: candidate.get(key)
            for key in (
                "name",
                "ref",
                "provider",
                "precision",
                "outcome",
                "reason",
                "speed",
                "accuracy",
                "cosine",
                "seen",
            )
        }


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a search."""
    lines = [
        "| search | verdict | best | × PyTorch eager fp32 | accuracy | cosine worst / mean | minutes | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Mapping[str, Any]) -> str:
    where = (row.get("best"), row.get("provider"))
    best = next((c["name"] for c in row.get("candidates", ()) if (c["ref"], c["provider"]) == where), "")
    speed, accuracy, cosine = row.get("speedup"), row.get("accuracy"), row.get("cosine")
    cells = [
        row["search"],
        f"{row['verdict']} ({row['exit_code']})",
        best,
        f"{speed['value']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "",
        f"{accuracy['value']:.2%}" if accuracy else "",
        f"{cosine['worst']:.5f} / {cosine['mean']:.5f}" if cosine else "",
        f"{row['wall_s'] / 60:.1f}",
        f"{row['peak_rss'] / 1e6:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="searches whose name has one of these in it, with commas")
    parser.add_argument("--quick", action="store_true", help="few rows and short times, to see that all works")
    options = parser.parse_args()
    wanted = [s for s in SEARCHES if any(word in s.name for word in options.only.split(","))]
    result = CACHE / "quick.json" if options.quick else RESULT
    # Searches that are not run again stay as they were found before.
    known = json.loads(result.read_text(encoding="utf-8"))["searches"] if result.is_file() else []
    rows = {row["search"]: row for row in known}
    for search in wanted:
        print(f"{search.name} …", flush=True)
        rows[search.name] = run(search, quick=options.quick)
        print(_line(rows[search.name]), flush=True)
        document = {"report": "verdicts", "schema": 1, "searches": list(rows.values())}
        # Paths begin at the checkout, wherever that lies.
        result.write_text(json.dumps(document, indent=1).replace(f"{ROOT}/", "") + "\n", encoding="utf-8")
    print(to_markdown(list(rows.values())))
    print(result)


if __name__ == "__main__":
    main()
