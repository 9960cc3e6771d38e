"""``genai_config.json``: what a generator's folder says of its graph, read without the library that defined it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput
from optimizer.generator import room
from optimizer.graph.decoder import cache_grows

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
        encoder: the graph that reads the prompt; None where the decoder does.
        answers: with an encoder, most tokens of an answer; ``context`` is then about the prompt alone.
        start: with an encoder, the tokens that every answer begins with, which are not said.
        never: tokens that are never chosen.
        grows: whether keys and values come out longer than they went in, of all rows at one end; else the graph writes
            them in place.
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
    encoder: Path | None = None
    answers: int = 0
    start: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    grows: bool = False

    def room(self, prompt: int) -> int:
        """Most tokens of an answer to a prompt of so many."""
        return room(prompt, self.context, self.answers)

    def need_decoder(self, runtime: str) -> None:
        """Refuse, for a runtime that runs decoders with fused attention alone; raises :class:`BadInput`."""
        if self.encoder is not None:
            raise BadInput(
                f"{self.folder} reads with an encoder, and {runtime} writes with decoders alone",
                "use the provider cpu, with ONNX Runtime",
            )
        if self.grows:
            raise BadInput(
                f"{self.folder} has attention of its own, with a cache that grows, and {runtime} writes with "
                "GroupQueryAttention alone",
                "use the provider cpu, with ONNX Runtime",
            )


def read_config(folder: Path) -> DecoderConfig:
    """Read the configuration of a generator's folder.

    Raises:
        BadInput: there is none, or it lacks what a decoder needs.
    """
    path = folder / CONFIG_NAME
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(
            f"{folder} is no text generator: it has no {CONFIG_NAME}", "make one with `ml-opt export-genai`"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    try:
        search, model = said.get("search", {}), said["model"]
        decoder, ends = model["decoder"], model.get("eos_token_id")
        context = int(model["context_length"])
        most = int(search.get("max_length") or context)
        encoder = model.get("encoder")
        return DecoderConfig(
            folder,
            folder / decoder["filename"],
            str(model["type"]),
            min(context, most) if encoder is None else context,
            int(model["vocab_size"]),
            tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
            int(decoder["num_hidden_layers"]),
            int(decoder["num_key_value_heads"]),
            int(decoder["head_size"]),
            decoder["inputs"],
            decoder["outputs"],
            None if encoder is None else folder / encoder["filename"],
            0 if encoder is None else most,
            tuple(int(each) for each in decoder.get("start_tokens", ())),
            tuple(int(each) for each in decoder.get("suppressed_tokens", ())),
            cache_grows(said),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} describes no decoder: {error!r} is missing or of another sort") from error
