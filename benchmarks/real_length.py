"""Text to vectors at the lengths that text really has, tokenization included: PyTorch as people run it, and ours.

    python -m benchmarks.real_length [REF[+PROVIDER] …] [--batching tokens:1024] [--store models] [--rounds 8]

600 sentences become 600 pooled vectors. PyTorch is transformers in eager fp32, in padded batches of 32 in the order of
the data, and in batches of 32 sorted by length. Each way is a process of its own, stopped while the others run, and
takes a turn in every round; medians over rounds, ratios with the interval of `ml-opt bench`. References default to what
`ml-opt optimize --objective throughput` left as `minilm@best`, in the batches that its verdict names. Writes
benchmarks/results/real_length.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = HERE / "data" / "sentiment-test.jsonl"
_PYTORCH = ("order:32", "sorted:32")


def _pytorch(folder: str, batching: str, texts: list[str]) -> Callable[[], Any]:
    """The shortest program that people write, with the mean pooling of sentence-transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    order = list(range(len(texts)))
    if batching.startswith("sorted"):
        # By characters, as sentence-transformers sorts: tokens are not known yet.
        order.sort(key=lambda place: -len(texts[place]))

    def call() -> Any:
        vectors = [None] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                places = order[start : start + 32]
                batch = tokenizer([texts[p] for p in places], padding=True, truncation=True, return_tensors="pt")
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                pooled = (states * mask).sum(1) / mask.sum(1)
                for place, vector in zip(places, pooled.numpy(), strict=True):
                    vectors[place] = vector
        return vectors

    return call


def _ours(ref: str, store: str, batching: str, threads: int) -> Callable[[], Any]:
    """The artifact's own tokenizer and session, token-budget batches, mean pooling in numpy."""
    import numpy as np

    from optimizer.benching.candidates import parse
    from optimizer.data.batching import Batching
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_rows
    from optimizer.store import Store

    entrant = parse(ref, Store(store))
    session = entrant.candidate.open(threads)
    assert entrant.artifact is not None
    model = {**entrant.candidate.model, "inputs": [spec.to_json() for spec in session.inputs]}
    preprocessor = Preprocessor.open(entrant.artifact.path, model)
    rows, rule = read_rows(DATA), Batching.parse(batching)

    def call() -> Any:
        vectors: list[Any] = [None] * len(rows)
        lengths = preprocessor.lengths(rows)
        assert lengths is not None
        for places in rule.groups(lengths):
            feeds = preprocessor.feeds([rows[place] for place in places])
            states = session.run(feeds)["last_hidden_state"]
            mask = feeds["attention_mask"][:, :, None].astype(np.float32)
            pooled = (states * mask).sum(1) / mask.sum(1)
            for place, vector in zip(places, pooled, strict=True):
                vectors[place] = vector
        return vectors

    return call


def _child() -> None:
    """Speaks the lines of a benchmark's worker: ``open``, ``time``, ``answer``."""
    import numpy as np

    from optimizer.benching.worker import die_with_parent

    die_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    call: Callable[[], Any] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {"ok": True}
        if request["do"] == "open":
            texts = [json.loads(row)["text"] for row in DATA.read_text(encoding="utf-8").splitlines()]
            if request["ref"]:
                call = _ours(request["ref"], request["store"], request["batching"], request["threads"])
            else:
                call = _pytorch(request["folder"], request["batching"], texts)
            call()
        assert call is not None
        if request["do"] == "time":
            started = time.perf_counter_ns()
            call()
            reply["ns"] = [time.perf_counter_ns() - started]
        elif request["do"] == "answer":
            np.save(request["out"], np.stack(call()))
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


def main() -> None:
    import numpy as np

    from optimizer.benching.measure import orders
    from optimizer.benching.process import WorkerProcess
    from optimizer.benching.stats import speedup, summarize
    from optimizer.environment import cpu_threads, describe
    from optimizer.search.keep import VERDICT_NAME
    from optimizer.store import Store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("refs", nargs="*")
    parser.add_argument("--batching", default=None)
    parser.add_argument("--store", default="models")
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    store, threads = Store(given.store), cpu_threads()
    refs, batching = given.refs, given.batching
    if not refs:
        best = store.get("minilm@best")
        verdict = json.loads((best.path.parent / VERDICT_NAME).read_text(encoding="utf-8"))
        winner = next(c for c in verdict["candidates"] if c["ref"] == verdict["best"])
        refs = [f"{verdict['best']}+{verdict['provider']}"]
        batching = batching or winner["speed"]["batching"] or None
    folder = store.get(refs[0].partition("+")[0]).model_info["source"]["path"]
    lanes = [(f"PyTorch {way}", {"ref": "", "folder": folder, "batching": way}) for way in _PYTORCH]
    way = batching or "tokens:2048"
    lanes += [(f"{ref} {way}", {"ref": ref, "store": given.store, "batching": way}) for ref in refs]
    times: dict[str, list[list[int]]] = {name: [] for name, _ in lanes}
    answers = {}
    with tempfile.TemporaryDirectory() as scratch:
        command = (sys.executable, "-m", "benchmarks.real_length", "--child")
        processes = [WorkerProcess(Path(scratch) / f"{n}.log", threads, command) for n in range(len(lanes))]
        try:
            for process, (name, request) in zip(processes, lanes, strict=True):
                with process.turn():
                    process.ask({"do": "open", "threads": threads, **request}, 600)
                    out = Path(scratch) / f"{len(answers)}.npy"
                    process.ask({"do": "answer", "out": str(out)}, 600)
                answers[name] = np.load(out)
            for order in orders(len(lanes), given.rounds, 0):
                for place in order:
                    with processes[place].turn():
                        times[lanes[place][0]].append(processes[place].ask({"do": "time"}, 600)["ns"])
        finally:
            for process in processes:
                process.kill()
    first = answers[lanes[0][0]]
    report: dict[str, Any] = {"environment": describe(), "threads": threads, "rows": len(first), "ways": []}
    for name, _ in lanes:
        vectors = answers[name]
        cosine = (vectors * first).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(first, axis=1)
        ratios = {base: vars(speedup(times[f"PyTorch {base}"], times[name])) for base in _PYTORCH}
        rate = len(first) / summarize(times[name]).p50_ms * 1e3
        report["ways"].append(
            {
                "name": name,
                "rows_per_s": rate,
                "cosine_worst": float(cosine.min()),
                "against": ratios,
                "ns": times[name],
            }
        )
        said = ", ".join(f"{r['value']:.2f} x {base} ({r['low']:.2f} to {r['high']:.2f})" for base, r in ratios.items())
        print(f"{name:50s} {rate:7.0f} rows/s  worst cosine {cosine.min():.5f}  {said}")
    (HERE / "results" / "real_length.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _child() if sys.argv[1:2] == ["--child"] else main()
