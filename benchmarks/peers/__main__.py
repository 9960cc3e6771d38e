"""ml-opt beside other toolchains, on the same inputs in the same rounds.

    make bench-peers
    python -m benchmarks.peers [--only minilm,vit] [--quick]

writes benchmarks/results/peers.json (with --quick into .cache, as those numbers mean nothing) and prints the tables;
models that are not run again stay there as they were. `python -m benchmarks.render` puts them into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.cases import CASES
from benchmarks.peers.arrange import PEERS, ROOT, need
from benchmarks.peers.side_by_side import SideBySide, losses, read, side_by_side, to_markdown, written
from optimizer.environment import cpu_threads

RESULT = ROOT / "benchmarks" / "results" / "peers.json"
CACHE = ROOT / ".cache" / "peers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="models, with commas between them")
    parser.add_argument("--peers", default=",".join(PEERS), help="toolchains beside PyTorch")
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--quick", action="store_true", help="few rows and short times, to see that all works")
    options = parser.parse_args()
    peers = [PEERS[name] for name in options.peers.split(",") if name]
    need(peers)
    result = CACHE / "quick.json" if options.quick else RESULT
    result.parent.mkdir(parents=True, exist_ok=True)
    found = [] if options.quick else read(result)
    for name in options.only.split(","):
        measured = side_by_side(name, CASES[name], peers, CACHE, options.threads, _say, quick=options.quick)
        found = _with(found, measured)
        written(found, result)
        print(to_markdown(measured), flush=True)
    failed = [f"{each.model}: {row.label}: {row.error}" for each in found for row in each.bench.rows if row.error]
    if failed:
        print("\n".join(["Failed:", *failed]))
    lost = [line for each in found for line in losses(each)]
    print("Ahead or equal everywhere." if not lost else "\n".join(["Behind:", *lost]))
    print(result)
    raise SystemExit(1 if failed else 0)


def _with(known: Sequence[SideBySide], measured: SideBySide) -> list[SideBySide]:
    """All models in the order of the cases, the one just measured in the place of what was known of it."""
    every = {each.model: each for each in (*known, measured)}
    return [every[name] for name in CASES if name in every]


_last = ""


def _say(text: str, done: int = 0, total: int = 0) -> None:
    """Each step once, on one line of its own."""
    global _last
    if text != _last:
        print(f"  {text}", flush=True)
        _last = text


if __name__ == "__main__":
    main()
