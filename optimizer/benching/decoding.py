"""What one step of decoding has to read: the roof that memory puts over it.

A step computes one token of each text. Its products are of a matrix by as many vectors as there are texts, so that
every weight is read once and hardly computed with: bandwidth bounds it, as Pope et al. say (*Efficiently scaling
transformer inference*, MLSys 2023, §2). A step reads every weight but a table of embeddings, of which it takes one row
a text, unless that table is the last product's matrix too; and the keys and values of all tokens before, of each text.
What mixtures of experts leave out is not known here: their steps may read less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.benching.candidates import Entrant
from optimizer.benching.workload import Writing
from optimizer.errors import BadInput, MissingPiece
from optimizer.generator import computed_and_kept
from optimizer.graph.io import MODEL_NAME, load
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Traffic", "configuration", "context_of", "traffic_of"]

#: Operators that take rows of a table, and what is computed beside attention from tables of positions.
_ROWS_ONLY = ("Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding")
#: Bytes of a number, by safetensors' names, and by those of precisions.
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
_OF_PRECISION = {"": 4, "fp32": 4, "bf16": 2, "fp16": 2}
#: How tables of tokens, and of positions, are called in the families of transformers.
_TOKENS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_POSITIONS = ("wpe.weight", "embed_positions.weight")


@dataclass(frozen=True)
class Traffic:
    """Bytes that a step of decoding reads.

    Attributes:
        weights: once, whatever the number of texts.
        cache: of keys and values, for each token of each text.
    """

    weights: int
    cache: int

    def step(self, load: Writing) -> int:
        """Bytes of the step in the middle of these texts."""
        return self.weights + round(load.batch * (load.prompt + load.new / 2) * self.cache)

    def to_json(self) -> dict[str, JSON]:
        return dict(vars(self))


def traffic_of(entrant: Entrant) -> Traffic | None:
    """Of an artifact or a model folder; None where it cannot be told."""
    folder = entrant.candidate.path
    try:
        if (folder / "genai_config.json").is_file():
            computed, in_8_bits = computed_and_kept(entrant.candidate.provider.precision)
            return _of_graph(folder, computed in ("bf16", "fp16"), in_8_bits)
        if (folder / "config.json").is_file():
            return _of_folder(folder, _OF_PRECISION.get(entrant.candidate.provider.precision, 4))
    except (BadInput, MissingPiece, KeyError, TypeError, ValueError, OSError):
        return None
    return None


def configuration(folder: Path) -> dict[str, Any]:
    """What a folder says of its decoder, under transformers' names; empty where it says nothing."""
    if (folder / "genai_config.json").is_file():
        model = _read(folder / "genai_config.json").get("model") or {}
        decoder = model.get("decoder") or {}
        return {
            **decoder,
            "vocab_size": model.get("vocab_size"),
            "max_position_embeddings": model.get("context_length"),
        }
    if (folder / "config.json").is_file():
        raw = _read(folder / "config.json")
        return {**raw, **(raw.get("text_config") or {})}
    return {}


def context_of(folder: Path) -> int | None:
    """Most tokens of a prompt and its answer; None where the folder does not say."""
    found = configuration(folder)
    known = (found.get(name) for name in ("max_position_embeddings", "n_positions", "seq_length"))
    return next((int(each) for each in known if each), None)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _cached(said: Mapping[str, Any], size: int) -> int:
    """Bytes of a token's keys and values in all layers."""
    layers = said.get("num_hidden_layers") or said["n_layer"]
    heads = said.get("num_attention_heads") or said["n_head"]
    width = said.get("hidden_size") or said["n_embd"]
    head = said.get("head_dim") or said.get("head_size") or width // heads
    return int(2 * layers * (said.get("num_key_value_heads") or heads) * head * size)


def _of_graph(folder: Path, halved: bool, in_8_bits: bool) -> Traffic:
    """Of a generator's folder.

    Args:
        folder: of the graph.
        halved: it is computed in 16 bits: what is stored in 32, blocks' scales aside, was converted when it was opened.
        in_8_bits: keys and values are kept so; their scales, an eighth to a quarter more, are not counted.
    """
    model = load(folder / MODEL_NAME)
    weights = 0
    for value in model.graph.initializers.values():
        stored = value.const_value
        if stored is not None and _read_whole(value):
            scales = any(use.node.op_type == "MatMulNBits" for use in value.uses())
            weights += stored.nbytes // (2 if halved and stored.dtype.name == "FLOAT" and not scales else 1)
    pasts = [each for each in model.graph.inputs if (each.name or "").startswith("past_key") and each.dtype is not None]
    size = 1 if in_8_bits else 2 if halved else pasts[0].dtype.itemsize if pasts else 4
    return Traffic(weights, _cached(configuration(folder), size))


def _read_whole(value: onnx_ir.Value) -> bool:
    """Whether something reads more of it than rows."""
    return any(use.node.op_type not in _ROWS_ONLY for use in value.uses())


def _of_folder(folder: Path, size: int) -> Traffic:
    said = configuration(folder)
    shapes = {name: entry for path in folder.glob("*.safetensors") for name, entry in _header(path).items()}
    if not shapes:
        raise BadInput(f"{folder} has no safetensors")
    tied = bool(said.get("tie_word_embeddings", True)) or not any("lm_head" in name for name in shapes)
    weights = 0
    for name, (dtype, shape) in shapes.items():
        if name.endswith(_POSITIONS) or (name.endswith(_TOKENS) and not tied):
            continue
        if name.endswith("lm_head.weight") and tied and any(each.endswith(_TOKENS) for each in shapes):
            continue
        # What is stored in floating point is converted to what it runs in.
        weights += math.prod(shape) * (size if dtype.startswith(("F", "BF")) else _BYTES[dtype])
    return Traffic(weights, _cached(said, size))


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensors of a safetensors file: its first eight bytes are the length of the JSON behind them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = json.loads(file.read(length))
    return {name: (each["dtype"], each["shape"]) for name, each in found.items() if name != "__metadata__"}
