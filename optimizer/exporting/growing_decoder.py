"""Decoders whose attention is their own, traced by PyTorch with a cache that comes out longer than it went in.

Nothing of the model is exchanged: its masks and its positions are traced as transformers writes them, so that one graph
reads a prompt, goes on behind a cache, and writes token by token. A row may have fewer tokens than others, at the right
end; what is before them the mask leaves out.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import GateFailed
from optimizer.exporting.decoder_step import Shape, asked_of, export_step
from optimizer.exporting.exchange import cause
from optimizer.exporting.genai_decoder import (
    clean,
    name_dimensions,
    not_ours,
    plain_linears,
    refuse_changing_rotation,
)
from optimizer.exporting.genai_golden import Golden, difference
from optimizer.graph.decoder import read_genai_config
from optimizer.graph.io import MODEL_NAME
from optimizer.hf import LoadedModel, quiet_libraries
from optimizer.hf_errors import first_lines
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["growing_parity", "trace_growing"]

#: Operators whose two numbers may be computed in float32 and rounded.
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
#: Tokens that the second of two rows has less than the first, when a graph is held to PyTorch.
_FEWER = 3


def trace_growing(loaded: LoadedModel, shape: Shape) -> onnx_ir.Model:
    """Trace a decoder as it is, with its cache as inputs and outputs.

    Inputs are ``input_ids`` and, where the model is told of positions, ``position_ids`` ``[batch, sequence]``,
    ``attention_mask`` ``[batch, past + sequence]``, and ``past_key_values.N.key`` and ``.value`` ``[batch, kv_heads,
    past, head_size]``; outputs ``logits`` ``[batch, sequence, vocabulary]``, and ``present.N.key`` and
    ``present.N.value``, longer by what is new.

    Args:
        loaded: a causal decoder.
        shape: the sizes of its cache.

    Raises:
        BadInput: PyTorch cannot trace it, or its rotation changes with the length of the text.
    """
    import torch

    refuse_changing_rotation(loaded)
    asked = asked_of(shape, torch.float32, shape.layers)
    if "position_ids" not in inspect.signature(loaded.module.forward).parameters:
        del asked["position_ids"]
    plain_linears(loaded.module)
    with quiet_libraries(), torch.no_grad():
        try:
            program = export_step(_stepper(loaded.module), asked)
        except Exception as error:
            raise not_ours(loaded, cause(error)) from error
    model: onnx_ir.Model = program.model
    name_dimensions(model)
    clean(model)
    _arithmetic_in_float(model)
    return model


def _stepper(module: Any) -> Any:
    """The module that is traced: some tokens behind a cache, which goes in and comes out."""
    import torch
    from transformers.cache_utils import DynamicCache

    class Stepper(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any = None, past: Any = ()) -> Any:
            told = {} if position_ids is None else {"position_ids": position_ids}
            # Without the configuration, every layer keeps all that it has read, those with windows too.
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(past):
                cache.update(keys, values, layer)
            answer = self.model(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **told
            )
            return answer.logits, [(layer.keys, layer.values) for layer in cache.layers]

    return Stepper().eval()


def _arithmetic_in_float(model: onnx_ir.Model) -> None:
    """Compute in float32, and round to bf16, what a model computes in bf16 (Falcon's distances): the same numbers, as
    PyTorch does so too, and ONNX Runtime has no kernels of bf16 on a processor.
    """
    import onnx_ir

    half, single = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    for node in list(model.graph):
        (result,) = node.outputs if len(node.outputs) == 1 else (None,)
        if node.op_type not in _ARITHMETIC or result is None or result.dtype != half:
            continue
        for place, value in enumerate(node.inputs):
            wide = onnx_ir.node("Cast", [value], {"to": single.value})
            wide.outputs[0].type = onnx_ir.TensorType(single)
            model.graph.insert_before(node, wide)
            node.replace_input_with(place, wide.outputs[0])
        result.type = onnx_ir.TensorType(single)
        narrow = onnx_ir.node("Cast", [result], {"to": half.value})
        narrow.outputs[0].type = onnx_ir.TensorType(half)
        onnx_ir.convenience.replace_all_uses_with(result, narrow.outputs[0])
        narrow.replace_input_with(0, result)
        model.graph.insert_after(node, narrow)


def growing_parity(out: Path, golden: Golden) -> dict[str, JSON]:
    """Run the exported graph over the golden text as it will be run: twice, the second one some tokens shorter, read
    in two parts each, then token by token together, beside PyTorch's logits.

    Returns:
        see :func:`optimizer.exporting.genai_golden.difference`.

    Raises:
        GateFailed: ONNX Runtime does not run the graph.
    """
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    decoder = read_genai_config(out)["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    tokens = golden.tokens[0]
    fewer = min(_FEWER, tokens.size - 1)
    # A row's first tokens, then as many that both write.
    together = max(1, (tokens.size - fewer) // 2)
    sizes = (tokens.size - together, tokens.size - together - fewer)
    try:
        session = onnxruntime.InferenceSession(str(out / MODEL_NAME), settings, providers=["CPUExecutionProvider"])
        found, caches = [], []
        for size in sizes:
            cache, logits = [empty] * (2 * decoder["num_hidden_layers"]), []
            for part in np.array_split(tokens[:size], min(2, size)) if size else ():
                some, cache = _step(session, part[None], cache, [0])
                logits.append(some[0])
            found.append(logits)
            caches.append(cache)
        joined = [np.concatenate([first, _behind(second, fewer)]) for first, second in zip(*caches, strict=True)]
        for place in range(together):
            new = np.array([[tokens[size + place]] for size in sizes], np.int64)
            some, joined = _step(session, new, joined, [0, fewer])
            for row in range(2):
                found[row].append(some[row])
    except Exception as error:  # ONNX Runtime's errors have no common class of its own
        raise GateFailed(f"ONNX Runtime does not run what was exported: {first_lines(error)}") from error
    wanted = np.concatenate([golden.logits[0], golden.logits[0][: tokens.size - fewer]])
    return difference(wanted, np.concatenate([each for row in found for each in row]))


def _behind(cache: NDArray[np.float32], empty: int) -> NDArray[np.float32]:
    """A cache with so many tokens before its own that are none."""
    import numpy as np

    return np.pad(cache, ((0, 0), (0, 0), (empty, 0), (0, 0)))


def _step(
    session: Any, tokens: NDArray[np.int64], cache: list[NDArray[np.float32]], empty: list[int]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Logits ``[rows, tokens, vocabulary]``, and the cache with these tokens; ``empty`` places of each row are none."""
    import numpy as np

    before = cache[0].shape[2]
    places = np.arange(before + tokens.shape[1])[None] - np.array(empty)[:, None]
    feeds = {"input_ids": tokens, "attention_mask": (places >= 0).astype(np.int64), "position_ids": places[:, before:]}
    known = [each.name for each in session.get_inputs()]
    past = [name for name in known if name.startswith("past_key_values")]
    wanted = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    fed = {**{name: array for name, array in feeds.items() if name in known}, **dict(zip(past, cache, strict=True))}
    logits, *grown = session.run(wanted, fed)
    return logits, grown
