"""What GPTQ and AWQ are worth in 4 bits: the same kernels and sizes, rounded to the nearest level and by what is read.

    python -m benchmarks.gptq [--only encoders,decoder] [--algorithms awq,awq_last]

- encoders: MiniLM's vectors and the sentiment classifier's decisions on 600 sentences, learned from 128 others.
- decoder: a trained Llama (benchmarks/decoders.py) on modules that it never saw, learned from 128 pieces of those that
  it was trained on.

Each part replaces its own in benchmarks/results/gptq.json, and of the decoder each algorithm. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.decoders import decoder
from benchmarks.qat import answers_of, vectors_of
from benchmarks.sentiment import TEST, TRAIN, minilm_folder, read_rows, sentiment_classifier
from optimizer.benching.formats.markdown import md_table
from optimizer.environment import describe
from optimizer.files import write_report
from optimizer.store import Store

__all__ = ["to_markdown"]

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gptq.json"
LEARNED: Mapping[str, Any] = {"algorithm": "gptq", "calib": TRAIN}
#: Of ``quantize weights``.
BLOCKS: Mapping[str, Mapping[str, Any]] = {
    "blocks of 32": {},
    "around zero": {"symmetric": True},
    "blocks of 128": {"block_size": 128},
}
#: Of ``export-genai``: what is rounded to the nearest levels, the same after AWQ, and by GPTQ.
ALGORITHMS = tuple(f"{name}{kept}" for kept in ("", "_last", "_mixed") for name in ("k_quant", "awq", "gptq"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="encoders,decoder")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    asked = parser.parse_args()
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    known = {each["algorithm"]: each for each in document.get("decoder", ())}
    parts: dict[str, Callable[[Store], Any]] = {
        "encoders": _encoders,
        "decoder": lambda store: _decoder(store, asked.algorithms.split(","), known),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only.split(","):
            document[name] = parts[name](Store(Path(folder) / "models"))
            document["environment"] = describe()
            write_report(RESULT, document)
    print(to_markdown(document))


def _encoders(store: Store) -> list[dict[str, Any]]:
    import numpy as np

    labels = np.array([row["label"] for row in read_rows(TEST)])
    embedder = optimizer.export_onnx(str(minilm_folder()), name="minilm", store=store)
    classifier = optimizer.export_onnx(str(sentiment_classifier()), name="sentiment", store=store)

    def decided(result: Any) -> Any:
        rows, batches = answers_of(result, TEST)
        table = np.zeros((len(rows.rows), 2))
        for batch, outputs in batches:
            table[list(batch.rows)] = outputs["logits"]
        return table.argmax(1)

    meant, said = vectors_of(embedder), decided(classifier)
    found = []
    for blocks, options in BLOCKS.items():
        for learned in ({}, LEARNED):
            words = optimizer.quantize_weights(embedder.artifact.ref, store=store, **options, **learned)
            cosines = (vectors_of(words) * meant).sum(1)
            made = decided(optimizer.quantize_weights(classifier.artifact.ref, store=store, **options, **learned))
            found.append(
                {
                    "blocks": blocks,
                    "gptq": bool(learned),
                    "worst": float(cosines.min()),
                    "mean": float(cosines.mean()),
                    "accuracy": float((made == labels).mean()),
                    "agreement": float((made == said).mean()),
                    "noise": words.artifact.manifest.facts.get("gptq", {}).get("noise"),
                }
            )
    return found


def _decoder(store: Store, algorithms: Sequence[str], known: dict[str, Any]) -> list[dict[str, Any]]:
    folder = decoder("llama")
    exact = optimizer.export_genai(str(folder), name="llama", store=store).artifact.ref
    for algorithm in algorithms:
        learned = {} if algorithm.startswith("k_quant") else {"calib": folder / "train-sample.jsonl"}
        made = optimizer.export_genai(
            str(folder), name="llama", store=store, precision="int4", algorithm=algorithm, **learned
        ).artifact
        report = optimizer.verify(made.ref, against=exact, data=folder / "heldout.jsonl", samples=15, store=store)
        compared = report.compared
        known[algorithm] = {
            "algorithm": algorithm,
            "gptq": algorithm.startswith("gptq"),
            "ratio": compared.ratio.value,
            "kl": compared.kl,
            "top1": compared.top1,
            "noise": made.manifest.facts.get(algorithm.partition("_")[0], {}).get("noise"),
            "bytes": made.manifest.bytes,
        }
    return [known[each] for each in ALGORITHMS if each in known]


def to_markdown(document: Mapping[str, Any]) -> str:
    """Both tables, as docs/benchmarks.md has them."""
    parts = []
    if encoders := document.get("encoders"):
        head = ["4 bits", "MiniLM: worst cosine", "mean", "classifier: accuracy", "decides as in float"]
        rows = [
            [
                f"{each['blocks']}{', GPTQ' * each['gptq']}",
                *(f"{each[name]:.4f}" for name in ("worst", "mean")),
                *(f"{each[name]:.3f}" for name in ("accuracy", "agreement")),
            ]
            for each in encoders
        ]
        parts += [*md_table(head, rows), ""]
    if found := document.get("decoder"):
        head = ["Llama of 11 M, `--algorithm`", "perplexity rises by", "divergence, nats", "same token"]
        rows = [
            [f"`{each['algorithm']}`", f"{each['ratio'] - 1:.2%}", f"{each['kl']:.5f}", f"{each['top1']:.1%}"]
            for each in found
        ]
        parts += [*md_table(head, rows), ""]
    return "\n".join(["", *parts])


if __name__ == "__main__":
    main()
