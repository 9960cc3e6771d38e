"""Put measured tables into docs/benchmarks.md, so that no number there is copied by hand.

    python -m benchmarks.render [--check]

What stands between ``<!-- measured: NAME -->`` and ``<!-- end: NAME -->`` is made from benchmarks/results/NAME.json.
With --check nothing is written, and the exit code is 1 when the page is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import (
    conformance,
    engines,
    export_time,
    fusions,
    generation_table,
    gptq,
    gpu_check,
    harness_overhead,
    pronunciation,
    self_check,
)
from benchmarks.peers import side_by_side
from benchmarks.serving import tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
_SECTION = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def _peers(document: Mapping[str, Any]) -> str:
    return "\n".join(side_by_side.to_markdown(side_by_side.SideBySide.from_json(each)) for each in document["models"])


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "peers": _peers,
    "self_check": self_check.to_markdown,
    "conformance": conformance.to_markdown,
    "harness_overhead": harness_overhead.to_markdown,
    "engines": engines.to_markdown,
    "generation": generation_table.to_markdown,
    "gptq": gptq.to_markdown,
    "pronunciation": pronunciation.to_markdown,
    "export_time": export_time.to_markdown,
    "throughput": tables.throughput,
    "overload": tables.overload,
    "endings": tables.endings,
    "streams": tables.streams,
    "door": tables.door,
    "huge_pages": tables.huge_pages,
    "fusions": fusions.to_markdown,
    "gpu-h100-80gb-hbm3": gpu_check.to_tables,
}
#: Where a benchmark lies in a package of its own.
_PACKAGES = dict.fromkeys(("throughput", "overload", "endings", "streams", "door"), "serving.")


def rendered(page: str, results: Path = RESULTS) -> str:
    """The page with every marked section made anew; one that was never measured says how it is."""

    def section(found: re.Match[str]) -> str:
        opened, name, closed = found.groups()
        path = results / f"{name}.json"
        if not path.is_file():
            return f"{opened}\nNot measured yet: `python -m benchmarks.{_PACKAGES.get(name, '')}{name}`.\n\n{closed}"
        return f"{opened}\n{SECTIONS[name](json.loads(path.read_text(encoding='utf-8')))}\n{closed}"

    return _SECTION.sub(section, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the page is out of date")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = rendered(page)
    if options.check and made != page:
        raise SystemExit(f"{PAGE} is not what benchmarks/results says; run: python -m benchmarks.render")
    if not options.check:
        PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
