"""A decoder's graph as OpenVINO runs it: every attention reads and writes a cache in pages (PagedAttention).

The graph has one axis of tokens, whosever they are: tokens of several prompts, or the next token of each of several
texts, are rows of one product. Who owns them is said to attention alone, in the inputs that OpenVINO GenAI's pipelines
feed too (``past_lens``, ``subsequence_begins``, ``block_indices``, …). GroupQueryAttention of the ONNX file becomes
PagedAttention, its rotation becomes nodes that OpenVINO fuses again, and everything else stays as it was read.

``openvino.op._PagedAttentionExtension`` may not stay as it is: the extra ``openvino-native`` pins its version.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.config import DecoderConfig
from optimizer.graph.head import LOGITS_FROM
from optimizer.graph.io import EMBED_LIMIT, weight_bytes

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["PER_ROW", "Weights", "paged", "readable", "weights_of"]

_ATTENTION, _PRODUCT, _TABLE = "GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized"
#: Inputs of PagedAttention that say whose the tokens are, int32, in its order.
PER_ROW = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
#: What GroupQueryAttention may have of its own that PagedAttention is not told here, and the value that means nothing.
_UNTOLD = {"softcap": 0.0, "smooth_softmax": 0, "rotary_interleaved": 0, "k_quant_type": "NONE", "v_quant_type": "NONE"}
#: Its inputs behind the tables of its rotation: an attention's bias and sinks; the ninth has positions, which are fed.
_MORE_INPUTS = range(10, 16)
#: The accuracy level at which a product in blocks rounds what it multiplies to int8, in blocks as well.
_INT8_LEVEL = 4


@dataclass(frozen=True)
class Weights:
    """How the weights of a file's products are stored.

    Attributes:
        rounded: products in blocks of integers.
        rounds_activations: these may round what they multiply to int8 as well.
    """

    rounded: int
    rounds_activations: bool


def weights_of(model: onnx_ir.Model) -> Weights:
    """Read it from the file's products."""
    products = [node for node in model.graph if node.op_type == _PRODUCT]
    levels = {node.attributes.get_int("accuracy_level", 0) for node in products}
    return Weights(len(products), levels <= {_INT8_LEVEL})


def readable(model: onnx_ir.Model, path: Path) -> Path | bytes:
    """What OpenVINO reads of a file: the file itself, or one made of it, where it would refuse that.

    It looks tokens up in a table of 4 bits only where that is a constant, and builders hand it the head's through a
    Reshape.

    Raises:
        BadInput: an attention does what PagedAttention is not told here.
    """
    import onnx_ir

    changed = False
    for node in list(model.graph):
        if node.op_type == _ATTENTION:
            _check_attention(node, path)
        table = node.inputs[0] if node.op_type == _TABLE else None
        reshape = table.producer() if table is not None else None
        if reshape is None or reshape.op_type != "Reshape":
            continue
        weight, shape = reshape.inputs[0], reshape.inputs[1]
        if weight is None or shape is None or weight.const_value is None:
            continue
        sizes = _constant(shape)
        if sizes is None:
            continue
        made = weight.const_value.numpy().reshape(sizes).copy()  # a view would keep the file of weights open
        value = onnx_ir.Value(
            name=f"{weight.name}.table", const_value=onnx_ir.Tensor(made, name=f"{weight.name}.table")
        )
        value.shape, value.type = onnx_ir.Shape(made.shape), onnx_ir.TensorType(weight.const_value.dtype)
        model.graph.register_initializer(value)
        node.replace_input_with(0, value)
        changed = True
    if not changed:
        return path
    if weight_bytes(model) > EMBED_LIMIT:
        raise BadInput(
            f"{path} looks tokens up in the head's own blocks, which OpenVINO takes of small files alone",
            "export it with --no-share-embeddings, or use the provider cpu",
        )
    onnx_ir.external_data.load_to_model(model)
    whole: bytes = onnx_ir.to_proto(model).SerializeToString()
    return whole


def _constant(value: onnx_ir.Value) -> Any:
    """A value's numbers, of an initializer or a Constant node; None where they are computed."""
    producer = value.producer()
    if value.const_value is not None:
        return value.const_value.numpy().tolist()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return producer.attributes["value"].as_tensor().numpy().tolist()
    return None


def _check_attention(node: onnx_ir.Node, path: Path) -> None:
    for name, nothing in _UNTOLD.items():
        found = node.attributes[name].value if name in node.attributes else nothing
        if found != nothing:
            raise _refused(path, f"{name} {found}")
    if any(place < len(node.inputs) and node.inputs[place] is not None for place in _MORE_INPUTS):
        raise _refused(path, "a bias or sinks")


def _refused(path: Path, what: str) -> BadInput:
    return BadInput(f"{path} has attention with {what}, which OpenVINO is not given here", "use the provider cpu")


def paged(model: Any, config: DecoderConfig) -> Any:
    """Make a graph that OpenVINO has read (``openvino.Model``) one with a paged cache.

    Inputs of what is returned: ``input_ids`` and ``position_ids`` int64 ``[tokens, 1]``; those of :data:`PER_ROW`;
    ``max_context_len`` int32 ``[]``; ``rows`` int32 ``[n]``, tokens whose logits are wanted, where the file's head can
    be asked for some alone; ``key_cache.N`` and ``value_cache.N``, whose shape and type the compiled model says. Its
    output is ``[n, 1, vocabulary]``, or ``[tokens, 1, vocabulary]``.

    Raises:
        BadInput: it is no decoder whose every layer is one GroupQueryAttention.
    """
    import numpy as np
    import openvino
    import openvino.opset15 as ops

    inputs = {name: port.get_node() for port in model.inputs for name in port.get_names()}
    ids, positions = (inputs.get(config.inputs.get(name, name)) for name in ("input_ids", "position_ids"))
    logits = next((port for port in model.outputs if config.outputs.get("logits", "logits") in port.get_names()), None)
    if ids is None or logits is None:
        raise BadInput(f"{config.file} has not the inputs and outputs that its genai_config.json names")
    positions = positions or _parameter("position_ids", [-1, -1], np.int64)
    per_row = [_parameter(name, [-1]) for name in PER_ROW]
    longest = _parameter("max_context_len", [])
    parameters, caches = [ids, positions, *per_row, longest], []
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == _ATTENTION]
    if len(nodes) != config.layers:
        raise BadInput(
            f"{config.file} has {len(nodes)} nodes {_ATTENTION}, and {config.layers} layers",
            "export it again with `ml-opt export-genai`",
        )
    for layer, node in enumerate(nodes):
        pages = [_parameter(f"{side}_cache.{layer}", [-1] * 4, np.float32) for side in ("key", "value")]
        for page in pages:
            page.set_element_type(openvino.Type.dynamic)  # the plugin chooses
        caches += pages
        node.output(0).replace(_attention(node, positions, pages, per_row, longest, config).output(0))
    head = next((node for node in model.get_ordered_ops() if _is_chooser(node)), None)
    if head is not None:
        rows = _parameter("rows", [-1])
        parameters.append(rows)
        head.output(0).replace(ops.gather(head.input_value(0), rows, np.int64(0)).output(0))
    try:
        return openvino.Model([logits.get_node()], [*parameters, *caches], "decoder")
    except RuntimeError as error:
        raise BadInput(
            f"{config.file} uses its mask or its cache beside its attention, which OpenVINO is not given here",
            "use the provider cpu",
        ) from error


def _is_chooser(node: Any) -> bool:
    """Whether it is the Slice that leaves rows of the head out (:mod:`optimizer.graph.head`)."""
    sources = [node.input_value(place).get_node() for place in range(node.get_input_size())]
    return node.get_type_name() == "Slice" and any(each.get_friendly_name() == LOGITS_FROM for each in sources)


def _parameter(name: str, shape: list[int], dtype: Any = None) -> Any:
    import numpy as np
    import openvino.opset15 as ops

    made = ops.parameter(shape, np.int32 if dtype is None else dtype, name=name)
    made.output(0).set_names({name})
    return made


def _attention(
    node: Any, positions: Any, pages: list[Any], per_row: list[Any], longest: Any, config: DecoderConfig
) -> Any:
    """What stands in place of one GroupQueryAttention: ``[tokens, 1, heads * size]``."""
    import numpy as np
    import openvino.opset15 as ops
    from openvino.op import _PagedAttentionExtension

    said, size = node.get_attributes(), config.head_size
    heads, kv_heads, window = int(said["num_heads"]), int(said["kv_num_heads"]), int(said["local_window_size"])
    if 0 < window < config.context:
        raise _refused(config.file, f"a window of {window} tokens")
    flat = []
    for place, count in enumerate((heads, kv_heads, kv_heads)):
        each = node.input_value(place)
        if said["do_rotary"] and place < 2:
            each = _rotated(each, node, positions, count, size)
        flat.append(ops.reshape(each, np.array([-1, count * size]), False))
    ints, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
    scale = np.float32(said["scale"] or size**-0.5)
    number = np.int32(0)
    # Behind the scale: sliding window, slopes of ALiBi; then what evicts, rotates or scores pages, and what skips
    # blocks of long prompts (XAttention), sinks, images, trees of guesses. Empty or 0, nothing of it is done.
    rest: list[Any] = [number, floats, longest, ints, ints, np.zeros((0, 0), np.int32), floats, floats, number, number]
    rest += [np.zeros((0, 0, 0, 0), np.float32), number, ints, ints, ints, ints, np.zeros(0, np.uint8), ints]
    made = [each if hasattr(each, "output") else ops.constant(each) for each in (*pages, *per_row, scale, *rest)]
    attention = _PagedAttentionExtension([each.output(0) for each in (*flat, *made)])
    told = attention.get_rt_info()
    for side in ("k", "v"):
        told[f"num_{side}_heads"], told[f"{side}_head_size"] = kv_heads, size
    return ops.reshape(attention.output(0), np.array([-1, 1, heads * size]), False)


def _rotated(value: Any, node: Any, positions: Any, heads: int, size: int) -> Any:
    """Rotary embedding in halves, in the form that OpenVINO fuses: ``[tokens, heads, 1, size]``.

    x₁ cos - x₂ sin and x₂ cos + x₁ sin, x₁ and x₂ the halves of what is rotated (Su et al.,
    https://arxiv.org/abs/2104.09864, in GPT-NeoX's order); numbers behind these stay.
    """
    import numpy as np
    import openvino.opset15 as ops

    if value.get_partial_shape().rank.get_length() != 4:
        value = ops.reshape(value, np.array([-1, heads, 1, size]), False)
    tables = [node.input_value(place) for place in (7, 8)]
    half = tables[0].get_partial_shape()[1].get_length()
    cos, sin = (ops.unsqueeze(ops.gather(each, positions, np.int64(0)), np.int64(1)) for each in tables)
    widths = [half, half] + ([size - 2 * half] if size > 2 * half else [])
    parts = ops.variadic_split(value, np.int64(3), np.array(widths))
    one, two = parts.output(0), parts.output(1)
    turned = [
        ops.subtract(ops.multiply(one, cos), ops.multiply(two, sin)),
        ops.add(ops.multiply(two, cos), ops.multiply(one, sin)),
    ]
    return ops.concat(turned + ([parts.output(2)] if len(widths) > 2 else []), -1)
