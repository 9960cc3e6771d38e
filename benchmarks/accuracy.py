"""Does quantization keep the answers? The sentiment classifier's accuracy in every variant, on 600 held-out sentences.

    python benchmarks/accuracy.py [--store DIR]

writes benchmarks/results/accuracy.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.sentiment import ROOT, TEST, TRAIN, sentiment_classifier

if TYPE_CHECKING:
    from optimizer.artifact import Artifact
    from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "accuracy.json"
#: Dynamic quantization takes the range of a whole batch: alone, a sentence's answer depends on nothing but itself.
BATCH = 1

#: Row of the table → the stage that makes it and its options. Ranges are calibrated on the training sentences.
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fp32, fused", "ort_optimize", {}),
    ("int8 dynamic", "quantize_dynamic", {}),
    ("int8 static", "quantize_static", {"calib": TRAIN}),
    ("int8 static, symmetric", "quantize_static", {"calib": TRAIN, "symmetric": True}),
    ("int8 static, percentile", "quantize_static", {"calib": TRAIN, "method": "percentile"}),
    ("int8 static, entropy", "quantize_static", {"calib": TRAIN, "method": "entropy"}),
    (
        "int8 static, all operators, per tensor",
        "quantize_static",
        {"calib": TRAIN, "op_types": ("all",), "per_channel": False},
    ),
)


def decisions(artifact: Artifact, data: Path, *, provider: str = "cpu", threads: int = 0) -> tuple[Any, list[int]]:
    """Logits ``[rows, classes]`` of an artifact, and the labels, in the order of the file.

    Args:
        artifact: a classifier of the store.
        data: rows of ``text`` and ``label`` (an index).
        provider: what runs it.
        threads: 0 for one a core.
    """
    import numpy as np

    from optimizer.data.columns import label_of
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_rows
    from optimizer.runtime import Candidate, Provider

    rows = read_rows(data)
    model = artifact.model_info
    preprocessor = Preprocessor.open(artifact.path, model)
    session = Candidate(artifact.ref, artifact.model_file, Provider.parse(provider), model=model).open(threads)
    try:
        answers = [session.run(batch.feeds)["logits"] for batch in preprocessor.batches(rows, BATCH)]
    finally:
        session.close()
    return np.concatenate(answers), [int(label_of(row)) for row in rows]


def accuracy(artifact: Artifact, data: Path, *, provider: str = "cpu", threads: int = 0) -> float:
    """Share of rows whose largest logit is their label; see :func:`decisions`."""
    logits, labels = decisions(artifact, data, provider=provider, threads=threads)
    return float((logits.argmax(1) == labels).mean())


def measure(store: Store, source: Path, data: Path = TEST) -> list[dict[str, Any]]:
    """Every variant's accuracy and how often it agrees with fp32, beside its size."""
    import optimizer

    exported = optimizer.export_onnx(str(source), name="sentiment", store=store).artifact
    reference, labels = decisions(exported, data)
    made = [("fp32", exported)]
    for name, stage, options in VARIANTS:
        made.append((name, getattr(optimizer, stage)(exported.ref, store=store, **options).artifact))
    full = model_bytes(exported.manifest.files)
    rows = []
    for name, artifact in made:
        logits, _ = decisions(artifact, data)
        right, before = logits.argmax(1) == labels, reference.argmax(1) == labels
        size = model_bytes(artifact.manifest.files)
        rows.append(
            {
                "variant": name,
                "ref": artifact.ref,
                "key": artifact.manifest.key,
                "accuracy": float(right.mean()),
                "agreement": float((logits.argmax(1) == reference.argmax(1)).mean()),
                "lost": int((before & ~right).sum()),
                "won": int((right & ~before).sum()),
                "p_value": mcnemar(int((before & ~right).sum()), int((right & ~before).sum())),
                "bytes": size,
                "share_of_fp32": size / full,
                "rows": len(labels),
            }
        )
    return rows


def model_bytes(files: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes of the graph and its weights, by a manifest's files."""
    return sum(entry["bytes"] for name, entry in files.items() if name.startswith("model.onnx"))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact McNemar test: how likely a split at least as uneven is when both are equally good."""
    changed, fewer = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(changed, k) for k in range(fewer + 1)) / 2**changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / ".cache" / "accuracy", help="where artifacts are kept")
    store_path = parser.parse_args().store
    from optimizer.environment import describe
    from optimizer.store import Store

    rows = measure(Store(store_path), sentiment_classifier())
    RESULT.write_text(
        json.dumps({"report": "accuracy", "data": TEST.name, "rows": rows, "environment": describe()}, indent=1)
    )
    print(f"{'variant':<40} {'accuracy':>9} {'agrees':>8} {'lost/won':>9} {'p':>6} {'size':>8} {'of fp32':>8}")
    for row in rows:
        print(
            f"{row['variant']:<40} {row['accuracy']:>9.2%} {row['agreement']:>8.2%} {row['lost']:>5}/{row['won']:<3} "
            f"{row['p_value']:>6.2f} {row['bytes'] / 2**20:>5.1f} MB {row['share_of_fp32']:>8.1%}"
        )
    print(RESULT.relative_to(ROOT))


if __name__ == "__main__":
    main()
