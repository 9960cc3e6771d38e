"""Small models of every task that is trained for int8, with data to train on and to judge by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny import phrases, tiny_bert, two_layers, write

LABELS = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
TAGS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "label2id": {"O": 0, "B-X": 1, "I-X": 2}}


def texts(path: Path, count: int, seed: int, label: Callable[[list[str]], Any] | None = None) -> Path:
    rows = [
        {"tokens": words, "tags": label(words)} if label is tagged
        else {"text": " ".join(words), **({"label": label(words)} if label else {})}
        for words in phrases(count, seed)
    ]  # fmt: skip
    return write(path, rows)


def classed(words: list[str]) -> str:
    return list(LABELS["label2id"])[sum(map(len, words)) % 3]


def tagged(words: list[str]) -> list[str]:
    return ["B-X" if word[0] in "aeiou" else "O" for word in words]


def images(path: Path, count: int, seed: int) -> Path:
    drawn = np.random.default_rng(seed)
    label = np.arange(count) % 3
    shades = (drawn.integers(0, 80, (count, 16, 16)) + 80 * label[:, None, None]).astype(np.uint8)
    np.savez(path, image=shades, label=label)
    return path


def small_vision(folder: Path, name: str) -> Path:
    import torch
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config: Any
    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
            patch_size=4, num_channels=1, initializer_range=0.2, **LABELS,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS
        )
        model = transformers.ResNetForImageClassification(config)
        for each in model.modules():
            if isinstance(each, torch.nn.BatchNorm2d):  # as training leaves them: none of them changes nothing
                each.running_mean.normal_(0, 0.2)
                each.running_var.uniform_(0.5, 2)
                torch.nn.init.normal_(each.bias, 0, 0.2)
    model.save_pretrained(folder)
    ViTImageProcessorPil(
        do_resize=True, size={"height": 16, "width": 16}, do_rescale=True, do_normalize=True, image_mean=[0.5],
        image_std=[0.5],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def case(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A model, and data to train on and to judge by."""
    if name in ("vit", "resnet"):
        source = small_vision(folder / name, name)
        return source, images(folder / "train.npz", 48, 1), images(folder / "eval.npz", 30, 2)
    label = {"classifier": classed, "tagger": tagged}.get(name)
    train, judged = (texts(folder / f"{n}.jsonl", c, s, label) for n, c, s in (("train", 48, 1), ("eval", 40, 2)))
    if name == "embedder":
        return two_layers(folder / name), train, judged
    head = {"classifier": "BertForSequenceClassification", "tagger": "BertForTokenClassification"}[name]
    return tiny_bert(folder / name, head, **(LABELS if name == "classifier" else TAGS)), train, judged


def with_an_outlier(source: Path) -> Path:
    """One channel behind a model's first normalization becomes far larger than the others, as in models that were
    trained on much.
    """
    from safetensors.torch import load_file, save_file

    weights = load_file(source / "model.safetensors")
    (name,) = (each for each in weights if each.endswith("embeddings.LayerNorm.weight"))
    weights[name][3] = 60.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return source


QUICK = {"epochs": 2, "batch": 8, "lr": 1e-4}
