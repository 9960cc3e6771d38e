"""Writing a model with its weights inside, one tensor at a time.

protobuf's own way holds the weights three times over: in the tensors, in the message, and in its bytes. A message is a
row of fields, though, each a tag, a length and its content (https://protobuf.dev/programming-guides/encoding), and
repeated fields may stand anywhere in it. So the graph is written without its large initializers, and they behind it,
straight from where they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["save_embedded"]

#: Field numbers of ``onnx.proto``.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
#: Tensors below this stay in the message: there are many, and they weigh nothing.
_SMALL = 4096


def save_embedded(model: onnx_ir.Model, path: Path) -> None:
    """Write a model as one file that holds its weights.

    Args:
        model: weights, its own and those of functions and subgraphs, must be below 2 GiB in all.
        path: the file.
    """
    import onnx
    import onnx_ir

    initializers = model.graph.initializers
    large = {name: value for name, value in initializers.items() if _is_large(value)}
    try:
        for name in large:
            initializers.pop(name)
        message = onnx_ir.to_proto(model)
    finally:
        for value in large.values():
            initializers.add(value)
    graph = message.graph.SerializeToString()
    message.ClearField("graph")

    tensors = []
    for name, value in large.items():
        assert value.const_value is not None
        head = onnx.TensorProto(
            name=name, data_type=value.const_value.dtype.value, dims=value.const_value.shape.numpy()
        )
        raw = _tag(_TENSOR_RAW_DATA) + _varint(value.const_value.nbytes)
        body = head.SerializeToString() + raw
        size = len(body) + value.const_value.nbytes
        tensors.append((_tag(_GRAPH_INITIALIZER) + _varint(size) + body, value.const_value))
    total = len(graph) + sum(len(head) + tensor.nbytes for head, tensor in tensors)
    with open(path, "wb") as file:
        file.write(message.SerializeToString() + _tag(_MODEL_GRAPH) + _varint(total) + graph)
        for head, tensor in tensors:
            file.write(head)
            file.write(tensor.tobytes())


def _is_large(value: onnx_ir.Value) -> bool:
    import onnx_ir

    tensor = value.const_value
    if tensor is None or tensor.dtype == onnx_ir.DataType.STRING:
        return False
    return tensor.nbytes >= _SMALL or isinstance(tensor, onnx_ir.ExternalTensor)


def _tag(field: int) -> bytes:
    """A field of bytes (wire type 2)."""
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first; the eighth says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
