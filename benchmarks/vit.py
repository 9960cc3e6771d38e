"""Train a small ViT on handwritten digits: the image model that verdicts and peers are measured on.

    python -m benchmarks.vit [FOLDER]

makes a Hugging Face model folder with its image processor (default: .cache/vit in the repository), and beside it
``test.npz`` and ``calib.npz``, rows of ``image`` and ``label`` as ``--eval`` and ``--calib`` take them. A folder that
was made by the same script from the same data is left as it is, so that everyone can call this first.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.trained import STAMP, folder_from, trained
from optimizer.digest import digest_file

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "benchmarks" / "data" / "mnist10k.npz"
DEFAULT = ROOT / ".cache" / "vit"

#: Raised when the recipe below changes: a folder of another version is trained anew.
VERSION = 1
SEED = 0
EPOCHS = 32
BATCH = 128
LEARNING_RATE = 2e-3
WARMUP = 0.1
#: Pixels by which a digit is shifted while training, at most, in both directions.
SHIFT = 2
TEST_ROWS = 2000
#: Rows of the training half that are handed out for calibration.
CALIB_ROWS = 256
#: 28 × 28 pixels in patches of 7 are 16 tokens, and one for the class.
SHAPE = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
PATCH = 7
#: Mean and deviation of all training pixels of MNIST, on a scale of 0 to 1.
MEAN, STD = 0.1307, 0.3081


def mnist_vit(folder: Path = DEFAULT, *, epochs: int = EPOCHS) -> Path:
    """The model's folder, trained into it unless it is there (under two minutes on two idle cores).

    Args:
        folder: where to; what a training that was cut short left there is replaced.
        epochs: times to see every training digit.

    Returns:
        the folder: config.json, model.safetensors, preprocessor_config.json, test.npz and calib.npz.
    """
    stamp = {"version": VERSION, "seed": SEED, "epochs": epochs, "data": digest_file(DATA)}
    return trained(folder, stamp, lambda out: _train(out, epochs))


def split() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """``(images, labels)`` to train on, and to test on: uint8 ``[rows, 28, 28]`` and uint8 ``[rows]``, shuffled."""
    import numpy as np

    with np.load(DATA) as stored:
        x, y = stored["x"], stored["y"]
    order = np.random.default_rng(SEED).permutation(len(x))
    test, train = order[:TEST_ROWS], order[TEST_ROWS:]
    return (x[train], y[train]), (x[test], y[test])


def _train(out: Path, epochs: int) -> dict[str, Any]:
    """AdamW with a linear warm-up and a cosine decay over shifted digits; saves model, processor and rows."""
    import numpy as np
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(SEED)
    names = {digit: str(digit) for digit in range(10)}
    config = ViTConfig(
        **SHAPE, image_size=28, patch_size=PATCH, num_channels=1, id2label=names,
        label2id={name: digit for digit, name in names.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    (images, labels), test = split()
    pixels = _normalized(torch.from_numpy(images))
    truths = torch.from_numpy(labels.astype(np.int64))
    steps = epochs * -(-len(pixels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP)
    random = torch.Generator().manual_seed(SEED)
    started = time.perf_counter()
    model.train()
    for _ in range(epochs):
        for places in torch.randperm(len(pixels), generator=random).split(BATCH):
            loss = model(_shifted(pixels[places], random), labels=truths[places]).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    model.save_pretrained(out)
    ViTImageProcessorPil(
        do_resize=True, size={"height": 28, "width": 28}, do_rescale=True, do_normalize=True, image_mean=[MEAN],
        image_std=[STD],
    ).save_pretrained(out)  # fmt: skip
    np.savez_compressed(out / "test.npz", image=test[0], label=test[1])
    np.savez_compressed(out / "calib.npz", image=images[:CALIB_ROWS], label=labels[:CALIB_ROWS])
    with torch.inference_mode():
        right = model(_normalized(torch.from_numpy(test[0]))).logits.argmax(1).numpy() == test[1]
    return {"seconds": round(seconds, 1), "train_rows": len(pixels), "accuracy": float(right.mean())}


def _normalized(images: Any) -> Any:
    """Bytes ``[rows, 28, 28]`` as the processor makes pixels of them: float32 ``[rows, 1, 28, 28]``."""
    return ((images.float() / 255 - MEAN) / STD)[:, None]


def _shifted(pixels: Any, random: Any) -> Any:
    """Every digit of a batch moved by a few pixels of its own, black where it came from."""
    import torch

    rows, _, height, width = pixels.shape
    black = -MEAN / STD
    wide = torch.nn.functional.pad(pixels[:, 0], (SHIFT,) * 4, value=black)
    down, right = (torch.randint(0, 2 * SHIFT + 1, (rows, 1), generator=random) for _ in range(2))
    lines = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    return wide[torch.arange(rows)[:, None, None], lines, columns][:, None]


if __name__ == "__main__":
    place = mnist_vit(folder_from(__doc__, DEFAULT))
    print(place, (place / STAMP).read_text())
