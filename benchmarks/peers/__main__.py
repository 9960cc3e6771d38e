"""ml-opt beside other toolchains, on the same inputs in the same rounds.

    make bench-peers
    python -m benchmarks.peers [--only minilm,vit] [--quick]

writes benchmarks/results/peers.json (with --quick into .cache, as those numbers mean nothing) and prints the tables.
"""

from __future__ import annotations

import argparse

from benchmarks.cases import CASES
from benchmarks.peers.arrange import PEERS, ROOT, need
from benchmarks.peers.side_by_side import losses, side_by_side, to_markdown, written
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
    found = []
    result = CACHE / "quick.json" if options.quick else RESULT
    result.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        found.append(side_by_side(name, CASES[name], peers, CACHE, options.threads, _say, quick=options.quick))
        written(found, result)
        print(to_markdown(found[-1]), flush=True)
    failed = [f"{each.model}: {row.label}: {row.error}" for each in found for row in each.bench.rows if row.error]
    if failed:
        print("\n".join(["Failed:", *failed]))
    lost = [line for each in found for line in losses(each)]
    print("Ahead or equal everywhere." if not lost else "\n".join(["Behind:", *lost]))
    print(result)
    raise SystemExit(1 if failed else 0)


_last = ""


def _say(text: str, done: int = 0, total: int = 0) -> None:
    """Each step once, on one line of its own."""
    global _last
    if text != _last:
        print(f"  {text}", flush=True)
        _last = text


if __name__ == "__main__":
    main()
