"""What a generator's folder says of itself: its cache, its attention, and how its weights are stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import Damaged
from optimizer.graph.facts import WEIGHTED_OPS, graph_facts
from optimizer.graph.head import chooses_rows
from optimizer.graph.io import MODEL_NAME, graphs, load
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["GENAI_CONFIG_NAME", "cache_grows", "decoder_facts", "read_genai_config", "whole_text"]

GENAI_CONFIG_NAME = "genai_config.json"
_PRODUCT, _TABLE = "MatMulNBits", "GatherBlockQuantized"
#: What MatMulNBits and GatherBlockQuantized have where their attribute is left out.
_BITS = 4


def read_genai_config(folder: Path) -> dict[str, Any]:
    """``genai_config.json`` of a folder.

    Raises:
        Damaged: it is missing, or is no such file.
    """
    path = folder / GENAI_CONFIG_NAME
    try:
        config = json.loads(path.read_bytes())
        config["model"]["decoder"]["num_hidden_layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read: {error!r}") from error
    return dict(config)


def cache_grows(said: Mapping[str, Any]) -> bool:
    """Whether a decoder's keys and values come out longer than they went in, as attention has it that is not fused with
    its cache, by its ``genai_config.json``. Those of pairs with an encoder always do, and are run in another way.
    """
    return said["model"].get("encoder") is None and said.get("search", {}).get("past_present_share_buffer") is False


def whole_text(tokens: NDArray[np.int64], decoder: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What a decoder on a processor is fed for texts that it reads from their beginning, without padding.

    Args:
        tokens: ``[rows, tokens]``.
        decoder: ``model.decoder`` of ``genai_config.json``.

    Returns:
        its inputs by name, an empty cache among them; a graph may lack ``position_ids``.
    """
    import numpy as np

    rows, steps = tokens.shape
    empty = np.zeros((rows, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    found: dict[str, NDArray[Any]] = {
        decoder["inputs"][key] % layer: empty
        for layer in range(decoder["num_hidden_layers"])
        for key in ("past_key_names", "past_value_names")
    }
    places = np.broadcast_to(np.arange(steps, dtype=np.int64), (rows, steps))
    return {**found, "input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": places}


def decoder_facts(folder: Path) -> dict[str, JSON]:
    """Facts of a generator: those of its graph (:func:`optimizer.graph.facts.graph_facts`), and beside them

    - ``blocks``: weights in blocks: ``bits`` and ``block_size`` found, ascending; how many ``products`` and
      ``tables``; products ``by_bits``;
    - ``float_products``: names of products whose weights stayed in float;
    - ``encoder``, where the prompt is read by a graph of its own (whose products are counted in ``blocks`` and
      ``float_products`` too): its number of ``nodes``, ``context`` (most tokens that it reads) and ``answers`` (most
      tokens of an answer);
    - ``decoder``: ``layers``, ``heads``, ``kv_heads``, ``head_size``, ``context``, ``vocabulary``, ``type`` (as
      ``genai_config.json`` has them), ``cache_bytes_per_token`` (keys and values of one token in all layers),
      ``last_logits`` (whether logits of the last token alone may be asked for), ``grows``
      (:func:`cache_grows`).
    """
    model = load(folder / MODEL_NAME)
    facts = graph_facts(model)
    nodes = [node for graph in graphs(model) for node in graph]
    said = read_genai_config(folder)
    config = said["model"]
    decoder = config["decoder"]
    if "encoder" in config:
        reading = [node for graph in graphs(load(folder / config["encoder"]["filename"])) for node in graph]
        answers = said["search"]["max_length"]
        facts["encoder"] = {"nodes": len(reading), "context": config["context_length"], "answers": answers}
        nodes += reading
    facts["blocks"] = _blocks(nodes)
    facts["float_products"] = [node.name or node.outputs[0].name or node.op_type for node in nodes if _in_float(node)]
    facts["decoder"] = {
        "type": config["type"],
        "layers": decoder["num_hidden_layers"],
        "heads": decoder["num_attention_heads"],
        "kv_heads": decoder["num_key_value_heads"],
        "head_size": decoder["head_size"],
        "context": config["context_length"],
        "vocabulary": config["vocab_size"],
        "cache_bytes_per_token": _cache_bytes(model, decoder),
        "last_logits": chooses_rows(model),
        "grows": cache_grows(said),
    }
    return facts


def _blocks(nodes: list[onnx_ir.Node]) -> dict[str, JSON]:
    products = [node for node in nodes if node.op_type == _PRODUCT]
    by_bits = Counter(node.attributes.get_int("bits", _BITS) for node in products)
    return {
        "bits": sorted(by_bits),
        "block_size": sorted({node.attributes["block_size"].as_int() for node in products}),
        "products": len(products),
        "tables": sum(node.op_type == _TABLE for node in nodes),
        "by_bits": {str(bits): count for bits, count in sorted(by_bits.items())},
    }


def _in_float(node: onnx_ir.Node) -> bool:
    """Whether a node is a product with a stored weight, be it read through a Transpose."""
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    weight = node.inputs[1]
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        weight = producer.inputs[0]
    return weight.const_value is not None


def _cache_bytes(model: onnx_ir.Model, decoder: dict[str, Any]) -> int:
    """Bytes that one more token takes in the cache: keys and values of every layer, in the type of the graph."""
    pattern = decoder["inputs"].get("past_key_names", "")
    past = [value for value in model.graph.inputs if pattern and value.name == pattern % 0]
    width = past[0].dtype.itemsize if past and past[0].dtype is not None else 4
    heads, layers = decoder["num_key_value_heads"], decoder["num_hidden_layers"]
    return int(2 * layers * heads * decoder["head_size"] * width)
