"""Decoders that onnxruntime-genai's builder does not know, traced by PyTorch into graphs that its runtime runs.

Every layer hands its queries, keys and values to one GroupQueryAttention node, which holds the cache and the causal
mask; that is done through the attention that ``transformers`` lets one register, so it needs no word about any one
architecture. Rotations and positions stay as the model has them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.exporting.decoder_step import Shape, asked_of, export_step
from optimizer.exporting.exchange import attention_exchanged, cause
from optimizer.exporting.repeat_layers import repeat_layers
from optimizer.exporting.same_layers import KEPT, all_alike, shortened, stack_of
from optimizer.graph.decoder import GENAI_CONFIG_NAME
from optimizer.hf import LoadedModel, quiet_libraries
from optimizer.hf_errors import first_lines
from optimizer.types import JSON

if TYPE_CHECKING:
    import onnx_ir

__all__ = [
    "clean",
    "name_dimensions",
    "not_ours",
    "plain_linears",
    "refuse_changing_rotation",
    "shape_of",
    "trace",
    "write_genai_config",
]

#: Where the tracer keeps the modules that a node came from, outermost first, as Python writes a list of strings.
_SCOPES, _SCOPE = "pkg.torch.onnx.name_scopes", re.compile(r"'([^']*)'")
#: The name that the attention is registered by.
_NAME = "ml_opt_cached"
#: Sorts of rotation, in the words of transformers, whose angles depend on the length of the text.
_CHANGING = ("dynamic", "longrope")
#: genai's type of a decoder that it knows nothing special about.
_TYPE = "decoder"


def shape_of(loaded: LoadedModel) -> Shape:
    """The sizes of a model's cache, from a cache that it filled itself: configurations have many words for them.

    Raises:
        BadInput: the model keeps something else than keys and values of one size (Mamba's states).
    """
    import torch

    try:
        config = loaded.config.get_text_config(decoder=True)
        with torch.inference_mode(), quiet_libraries():
            answer = loaded.module(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True)
        keys = {tuple(layer.keys.shape) for layer in answer.past_key_values.layers}
        values = {tuple(layer.values.shape) for layer in answer.past_key_values.layers}
        if len(keys) != 1 or keys != values:
            raise ValueError(f"its layers keep {sorted(keys | values)}")
        ((_, kv_heads, _, size),) = keys
        layers, vocabulary = len(answer.past_key_values.layers), int(answer.logits.shape[-1])
        return Shape(layers, int(config.num_attention_heads), kv_heads, size, int(config.hidden_size), vocabulary)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise not_ours(loaded, f"it has no cache of keys and values ({first_lines(error)})") from error


def trace(loaded: LoadedModel) -> onnx_ir.Model:
    """Trace a decoder with its cache as inputs and outputs.

    Inputs are ``input_ids`` and ``position_ids`` ``[batch, sequence]``, ``attention_mask`` ``[batch, total]``, and
    ``past_key_values.N.key`` and ``.value`` ``[batch, kv_heads, past, head_size]``; outputs ``logits``
    ``[batch, sequence, vocabulary]`` and ``present.N.key``, ``present.N.value``. The number type is the model's own.

    Args:
        loaded: a causal decoder; its attention is exchanged while it is traced.

    Raises:
        BadInput: its attention cannot be exchanged, or does what GroupQueryAttention cannot.
    """
    import torch

    shape = shape_of(loaded)
    refuse_changing_rotation(loaded)
    plain_linears(loaded.module)
    refused = functools.partial(not_ours, loaded)
    asked = functools.partial(asked_of, shape, next(loaded.module.parameters()).dtype)
    step = functools.partial(_stepper, loaded.module)
    with attention_exchanged(loaded, _NAME, _attention, refused), quiet_libraries(), torch.no_grad():
        try:
            model = _trace_few(loaded.module, shape, step, asked)
            if model is None:
                model = export_step(step(shape.layers), asked(shape.layers)).model
        except Exception as error:
            raise refused(cause(error)) from error
    found = sum(node.op_type == "GroupQueryAttention" for node in model.graph)
    if found != shape.layers:
        raise not_ours(loaded, f"{found} of its {shape.layers} layers use the attention of transformers")
    name_dimensions(model)
    clean(model)
    return model


def _trace_few(
    module: Any, shape: Shape, step: Callable[[int], Any], asked: Callable[[int], dict[str, Any]]
) -> onnx_ir.Model | None:
    """The same graph from a trace of a few layers, which is several times as fast; None where layers differ."""
    stack = stack_of(module, shape.layers)
    if stack is None or not all_alike(stack, module, step, asked):
        return None
    weights = {
        f"model.{name}": each
        for found in (module.named_buffers(remove_duplicate=False), module.named_parameters(remove_duplicate=False))
        for name, each in found
    }
    with shortened(stack):
        program = export_step(step(KEPT), asked(KEPT), optimize=False)
    if not repeat_layers(program.model, f"model.{stack.path}", KEPT, shape.layers, weights, _SCOPES):
        return None
    program.optimize()
    model: onnx_ir.Model = program.model
    return model


def not_ours(loaded: LoadedModel, why: str) -> BadInput:
    """The error of a decoder that cannot be exported, from the reason."""
    return BadInput(
        f"{loaded.class_name} cannot be exported with its cache: {why}",
        "export it with a tool that knows the architecture; "
        "ml-opt export-onnx --task feature-extraction exports its hidden states",
    )


def refuse_changing_rotation(loaded: LoadedModel) -> None:
    """Refuse rotations that depend on how long the text is: a trace would keep those of the text it was made with."""
    text = loaded.config.get_text_config(decoder=True)
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    sort = str(found.get("rope_type", found.get("type", ""))) if isinstance(found, dict) else ""
    if sort in _CHANGING:
        raise not_ours(loaded, f"its rotation ({sort}) changes with the length of the text")


def plain_linears(module: Any) -> None:
    """Exchange GPT-2's Conv1D for Linear: the same numbers, and a product that quantizers take."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                inner, outer = child.weight.shape
                linear = torch.nn.Linear(inner, outer, dtype=child.weight.dtype)
                linear.weight = torch.nn.Parameter(child.weight.detach().T, requires_grad=False)
                linear.bias = child.bias
                setattr(parent, name, linear)


def _stepper(module: Any, layers: int) -> Any:
    """The module that is traced: one step of a decoder, its cache going in and coming out."""
    import torch

    class Stepper(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> Any:
            step = _Step(past, attention_mask)
            _running.append(step)
            try:
                answer = self.model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=_passing_cache(step),
                    use_cache=True,
                )
            finally:
                _running.pop()
            return answer.logits, [step.present.get(layer, past[layer]) for layer in range(layers)]

    return Stepper().eval()


class _Step:
    """What the attention of every layer reads, and the caches that it leaves."""

    def __init__(self, past: Any, mask: Any) -> None:
        import torch

        self.past = past
        self.total = mask.shape[1]
        # GroupQueryAttention wants the place of each row's last token, and the longest row's number of tokens.
        self.last = (mask.sum(1) - 1).to(torch.int32)
        self.longest = torch.scalar_tensor(mask.shape[1], dtype=torch.int32)
        self.present: dict[int, tuple[Any, Any]] = {}


#: The step that is being traced.
_running: list[_Step] = []


def _passing_cache(step: _Step) -> Any:
    """A cache that hands new keys and values on as they are: the node of the attention joins them to the old ones."""
    from transformers.cache_utils import Cache

    class Passing(Cache):  # type: ignore[misc]  # transformers has no types here
        def __init__(self) -> None:
            self.layers: list[Any] = []

        def update(self, keys: Any, values: Any, *place: Any, **more: Any) -> tuple[Any, Any]:
            return keys, values

        def get_seq_length(self, *place: Any, **more: Any) -> int:
            return 0

        def get_mask_sizes(self, *place: Any, **more: Any) -> tuple[Any, int]:
            return step.total, 0

    return Passing()


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **asked: Any) -> tuple[Any, None]:
    """One GroupQueryAttention node (com.microsoft): ``[batch, heads, sequence, size]`` → ``[batch, sequence, …]``."""
    import torch

    step = _running[-1]
    odd = [name for name in ("s_aux", "position_bias", "head_mask") if asked.get(name) is not None]
    if mask is not None or odd or value.shape[-1] != query.shape[-1] or asked.get("is_causal") is False:
        raise NotImplementedError(f"its attention is of a sort of its own ({', '.join(odd) or 'mask or sizes'})")
    rows, heads, new, size = query.shape
    scaling = asked.get("scaling")
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": key.shape[1],
        "scale": float(scaling if scaling is not None else size**-0.5),
    }
    if asked.get("sliding_window"):
        attributes["local_window_size"] = int(asked["sliding_window"])
    if asked.get("softcap"):
        attributes["softcap"] = float(asked["softcap"])
    flat = [each.transpose(1, 2).reshape(rows, new, -1) for each in (query, key, value)]
    old = step.past[module.layer_idx]
    grown = (old[0].shape[0], key.shape[1], step.total, size)
    answer, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (*flat, *old, step.last, step.longest),
        attributes,
        dtypes=(query.dtype,) * 3,
        shapes=((rows, new, heads * size), grown, grown),
        version=1,
    )
    step.present[module.layer_idx] = (keys, values)
    return answer.reshape(rows, new, heads, size), None


def name_dimensions(model: onnx_ir.Model) -> None:
    """Give the tracer's symbols the names that the builder's graphs have."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        name = value.name or ""
        if value.shape is None:
            continue
        names: dict[int, str] = {0: "batch_size", 1: "sequence_length"}
        if name == "attention_mask":
            names[1] = "total_sequence_length"
        elif name.startswith(("past", "present")):
            names = {0: "batch_size", 2: f"{'past' if name.startswith('past') else 'total'}_sequence_length"}
        dims = [names.get(place, dim) for place, dim in enumerate(value.shape)]
        value.shape = onnx_ir.Shape(dims)


def clean(model: onnx_ir.Model) -> None:
    """Name products after the module whose weight they read, and remove what only the tracer wants."""
    import onnx_ir.passes.common as passes

    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            scopes = [
                each for each in _SCOPE.findall(node.metadata_props.get(_SCOPES, "")) if each.startswith("model.")
            ]
            if scopes:
                node.name = "/" + scopes[-1].removeprefix("model.").replace(".", "/") + f"/{node.op_type}"
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.NameFixPass()(model)


def write_genai_config(
    out: Path, shape: Shape, special: dict[str, JSON], context: int, provider: str, inputs: Collection[str], grows: bool
) -> None:
    """Write ``genai_config.json`` for a traced decoder, in the form of onnxruntime-genai 0.18.

    Args:
        out: the folder of ``model.onnx``.
        shape: the sizes of its cache.
        special: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
        context: most tokens of a prompt and its answer together.
        provider: ``cpu`` or ``cuda``.
        inputs: names of the graph's inputs; a model that is not told of positions has no ``position_ids``.
        grows: whether its cache comes out longer than it went in; else it is written in place.
    """
    decoder = {
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": [] if provider == "cpu" else [{provider: {}}],
        },
        "filename": "model.onnx",
        "head_size": shape.head_size,
        "hidden_size": shape.hidden,
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    config = {
        "model": {
            **special,
            "type": _TYPE,
            "context_length": context,
            "vocab_size": shape.vocabulary,
            "decoder": decoder,
        },
        "search": {"max_length": context, "do_sample": False, "past_present_share_buffer": not grows},
    }
    (out / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
