"""The shape of every tensor of a graph, once the shapes of its inputs are known.

Node by node, with ONNX's own shape inference for operators of the standard and :mod:`optimizer.graph.contrib` for ONNX
Runtime's. What computes shapes inside a graph (Shape, Gather, Concat, Range, …) is run with ONNX's reference
implementation, so that a Reshape behind it has a shape too. The whole-model inference of ``onnx`` stops at what it does
not know (every contrib operator, and the mask's arithmetic of a plain BERT); that of ONNX Runtime's tools answers
nothing at all when it does not know one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.graph.contrib import contrib_shapes

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["Known", "infer_shapes"]

#: Tensors of at most so many elements are computed and not only measured: shapes, axes, ranges, no weights.
_SMALL = 4096
#: Their outcome is not the same twice, or not what ONNX Runtime would draw.
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")

#: ONNX Runtime's operators that answer what a standard one answers.
_STANDARD = {"FusedConv": "Conv"}


@dataclass(frozen=True)
class Known:
    """What is known of a tensor.

    Attributes:
        shape: one size a dimension.
        dtype: ONNX's number of the element type.
        value: its elements, where it is small and does not depend on what a model is fed.
    """

    shape: tuple[int, ...]
    dtype: int
    value: NDArray[np.generic] | None = None

    @property
    def size(self) -> int:
        """How many elements it has."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count


def infer_shapes(model: onnx_ir.Model, fed: Mapping[str, Sequence[int]]) -> dict[str, Known]:
    """Find the shapes of all tensors of a model's main graph.

    Args:
        model: the graph; its functions must have been inlined.
        fed: the shape of every input that is fed, by name.

    Returns:
        what is known, by the tensor's name. A tensor whose shape depends on values that are fed (NonZero, a Loop), or
        that an unknown operator makes, is left out, and so is what can only be known from it.
    """
    known: dict[str, Known] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            known[name] = _stored(value.const_value)
    for value in model.graph.inputs:
        if value.name in fed and value.dtype is not None:
            known[str(value.name)] = Known(tuple(fed[str(value.name)]), int(value.dtype))
    for node in model.graph:
        for name, found in _outputs(node, model, known):
            known.setdefault(name, found)
    return known


def _stored(tensor: onnx_ir.TensorProtocol) -> Known:
    value = tensor.numpy() if tensor.size <= _SMALL else None
    if (
        value is not None and value.dtype.kind not in "biuf"
    ):  # text, and types that numpy lacks: no shape is made of them
        value = None
    return Known(tuple(int(dim) for dim in tensor.shape), int(tensor.dtype), value)


def _outputs(node: onnx_ir.Node, model: onnx_ir.Model, known: Mapping[str, Known]) -> Iterator[tuple[str, Known]]:
    """What a node makes, as far as it is known."""
    ins = [known.get(value.name or "") if value is not None else None for value in node.inputs]
    lacking = any(value is not None and found is None for value, found in zip(node.inputs, ins, strict=True))
    if node.domain in ("", "ai.onnx") and node.op_type in ("Shape", "Size") and not lacking:
        found = _measured(node, ins[0])
        yield str(node.outputs[0].name), found
        return
    shapes = ({} if lacking else _inferred(node, model, ins)) or contrib_shapes(node, ins)
    if len(shapes) < len(node.outputs) or lacking:
        shapes = {**_declared(node), **shapes}
    values = {} if lacking else _computed(node, model, ins, shapes)
    for value in node.outputs:
        name = value.name or ""
        if name in shapes:
            shape, dtype = shapes[name]
            yield name, Known(shape, dtype, values.get(name))


def _measured(node: onnx_ir.Node, of: Known | None) -> Known:
    """The answer of Shape or Size."""
    import numpy as np
    import onnx

    assert of is not None
    if node.op_type == "Size":
        value = np.array(of.size, np.int64)
    else:
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(of.shape))
        value = np.array(of.shape[start:end], np.int64)
    return Known(value.shape, int(onnx.TensorProto.INT64), value)


def _inferred(
    node: onnx_ir.Node, model: onnx_ir.Model, ins: Sequence[Known | None]
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shapes and types of a standard operator's outputs, by ONNX; empty when it does not know them."""
    import onnx
    import onnx_ir

    domain = "" if node.domain == "ai.onnx" or node.op_type in _STANDARD else node.domain
    op_type = _STANDARD.get(node.op_type, node.op_type)
    try:
        schema = onnx.defs.get_schema(op_type, model.opset_imports.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return {}
    types, data = {}, {}
    for value, found in zip(node.inputs, ins, strict=True):
        if value is None or found is None:
            continue
        types[str(value.name)] = onnx.helper.make_tensor_type_proto(found.dtype, found.shape)
        if found.value is not None:
            data[str(value.name)] = _proto(found)
    try:
        answer = onnx.shape_inference.infer_node_outputs(
            schema, onnx_ir.to_proto(node), types, data, opset_imports=_imports(model), ir_version=model.ir_version
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return {}  # the node contradicts its inputs: the shape stays unknown, and is reported
    return dict(_concrete(answer))


def _concrete(answer: Mapping[str, Any]) -> Iterator[tuple[str, tuple[tuple[int, ...], int]]]:
    """Those of ONNX's types that are tensors whose every dimension is a number."""
    for name, type_ in answer.items():
        if not type_.HasField("tensor_type") or not type_.tensor_type.HasField("shape"):
            continue
        dims = type_.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            yield name, (tuple(dim.dim_value for dim in dims), type_.tensor_type.elem_type)


def _declared(node: onnx_ir.Node) -> dict[str, tuple[tuple[int, ...], int]]:
    """What the file itself says of a node's outputs, where it says numbers."""
    found = {}
    for value in node.outputs:
        if value.shape is not None and value.dtype is not None and all(isinstance(dim, int) for dim in value.shape):
            found[str(value.name)] = (tuple(int(str(dim)) for dim in value.shape), int(value.dtype))
    return found


def _computed(
    node: onnx_ir.Node,
    model: onnx_ir.Model,
    ins: Sequence[Known | None],
    shapes: Mapping[str, tuple[tuple[int, ...], int]],
) -> dict[str, NDArray[np.generic]]:
    """A node's answers, where all that it takes is known and small; empty otherwise."""
    import numpy as np
    import onnx
    import onnx_ir
    from onnx.reference import ReferenceEvaluator

    if (
        node.domain not in ("", "ai.onnx")
        or node.op_type in _RANDOM
        or any(a.is_ref() for a in node.attributes.values())
    ):
        return {}
    given = {str(v.name): k for v, k in zip(node.inputs, ins, strict=True) if v is not None and k is not None}
    if any(each.value is None for each in given.values()):
        return {}
    names = [str(value.name) for value in node.outputs if value.name]
    if any(name not in shapes or int(np.prod(shapes[name][0])) > _SMALL for name in names):
        return {}
    graph = onnx.helper.make_graph(
        [onnx_ir.to_proto(node)],
        "one",
        [onnx.helper.make_tensor_value_info(name, each.dtype, each.shape) for name, each in given.items()],
        [onnx.helper.make_tensor_value_info(name, shapes[name][1], shapes[name][0]) for name in names],
    )
    proto = onnx.helper.make_model(graph, opset_imports=_imports(model), ir_version=model.ir_version)
    try:
        answers = ReferenceEvaluator(proto).run(None, {name: each.value for name, each in given.items()})
    except Exception:  # the reference implementation lacks operators and types, and says so in a dozen ways
        return {}  # its shape is known all the same; only what is made from its value is not
    return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}


def _proto(found: Known) -> Any:
    import onnx

    assert found.value is not None
    return onnx.helper.make_tensor("", found.dtype, found.shape, found.value.tobytes(), raw=True)


def _imports(model: onnx_ir.Model) -> list[Any]:
    import onnx

    return [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
