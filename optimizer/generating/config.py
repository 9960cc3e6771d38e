"""``genai_config.json``: what a generator's folder says of its graph, read without the library that defined it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput

__all__ = ["CONFIG_NAME", "DecoderConfig", "read_config"]

CONFIG_NAME = "genai_config.json"


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder's graph and limits.

    Attributes:
        folder: where it lies.
        file: the graph.
        type: the sort of model, in the words of onnxruntime-genai (``llama``).
        context: most tokens of a prompt and its answer together.
        vocabulary: how many tokens the logits have.
        end_tokens: those that end a text.
        layers: how many have a cache.
        kv_heads: heads of keys and values.
        head_size: numbers of one head.
        inputs: names of the graph's inputs, by genai's name; those of the cache have ``%d`` for the layer.
        outputs: the same of its outputs.
    """

    folder: Path
    file: Path
    type: str
    context: int
    vocabulary: int
    end_tokens: tuple[int, ...]
    layers: int
    kv_heads: int
    head_size: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def read_config(folder: Path) -> DecoderConfig:
    """Read the configuration of a generator's folder.

    Raises:
        BadInput: there is none, or it lacks what a decoder needs.
    """
    path = folder / CONFIG_NAME
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{folder} is no text generator: it has no {CONFIG_NAME}", "make one with `ml-opt export-genai`"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    try:
        search, model = model.get("search", {}), model["model"]
        decoder, ends = model["decoder"], model.get("eos_token_id")
        context = int(model["context_length"])
        return DecoderConfig(
            folder,
            folder / decoder["filename"],
            str(model["type"]),
            min(context, int(search.get("max_length") or context)),
            int(model["vocab_size"]),
            tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
            int(decoder["num_hidden_layers"]),
            int(decoder["num_key_value_heads"]),
            int(decoder["head_size"]),
            decoder["inputs"],
            decoder["outputs"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} describes no decoder: {error!r} is missing or of another sort") from error
