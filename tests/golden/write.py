"""Write the golden files of every report format anew, from the reports beside this file: look at the difference."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent


def wanted() -> dict[Path, str]:
    """Every golden file that a format writes, with its content; the JSON is what they are made from."""
    from optimizer.benching.report import BenchReport
    from optimizer.benching.writing import formats

    report = BenchReport.read(HERE / "bench-3.json")
    made = [form for form in formats().values() if form.name != ".json"]
    return {HERE / f"bench-3{form.name}": form.bench(report) for form in made}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    for path, text in wanted().items():
        path.write_text(text, encoding="utf-8")
