"""A plain Llama of transformers as llama.cpp wants it: a GGUF file, with llama.cpp's names and its order of heads.

Nothing of llama.cpp is needed to work out what is written; the package ``gguf`` writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["architecture", "end_tokens", "permuted", "renamed", "tensors", "written"]

#: Names of GGUF for those of transformers, outside of layers and in them.
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAME = re.compile(r"model\.layers\.(\d+)\.([\w.]+)")


def renamed(name: str) -> str:
    """GGUF's name of a weight; raises :class:`BadInput` for one that a plain Llama does not have."""
    stem = name.removesuffix(".weight")
    found = _NAME.fullmatch(stem)
    if name.endswith(".weight") and stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    if name.endswith(".weight") and found and found[2] in _LAYER:
        return f"blk.{found[1]}.{_LAYER[found[2]]}.weight"
    raise BadInput(f"{name} is no weight of a plain Llama", "only those are made into GGUF here")


def permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query's or key's weight, ``[heads · head, width]``, in llama.cpp's order.

    transformers turns the number i of a head together with the number i + head/2, llama.cpp for the architecture
    ``llama`` neighbours (2i and 2i + 1), as the first Llama did; ``permute`` of its convert_hf_to_gguf.py.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def architecture(folder: Path) -> dict[str, Any]:
    """config.json of a plain Llama; raises :class:`BadInput` for any other model."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    if config.get("model_type") != "llama":
        raise BadInput(f"{folder.name} is a {config.get('model_type')}", "only Llamas are made into GGUF here")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise BadInput(f"{folder.name} has scaled rotary positions ({rope})", "only plain ones are made into GGUF here")
    return config


def end_tokens(folder: Path) -> tuple[int, ...]:
    """Tokens that end a text, of generation_config.json where it says so."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
        if found is not None:
            return (found,) if isinstance(found, int) else tuple(found)
    return ()


def tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every weight of a model folder by its name in GGUF, in float32, queries and keys in llama.cpp's order.

    Raises:
        BadInput: it is no plain Llama.
    """
    from safetensors import safe_open

    config = architecture(folder)
    queries = int(config["num_attention_heads"])
    keys = int(config.get("num_key_value_heads") or queries)
    turned = {"attn_q": queries, "attn_k": keys}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as stored:
            for name in sorted(stored.keys()):
                to = renamed(name)
                if to == "output.weight" and config.get("tie_word_embeddings"):
                    continue  # llama.cpp takes the table of tokens where there is no other
                weight = stored.get_tensor(name).astype("float32")
                heads = turned.get(to.removesuffix(".weight").rpartition(".")[2])
                yield to, permuted(weight, heads) if heads else weight


def written(folder: Path, out: Path) -> Mapping[str, Any]:
    """Write a model folder as a GGUF file in float32, without a tokenizer: prompts are given as tokens.

    Args:
        folder: of transformers, with safetensors in float32 or float16.
        out: the file.

    Returns:
        its config.json.
    """
    import gguf

    config = architecture(folder)
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or width // heads)
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for name, weight in tensors(folder):
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config
