"""Which types an operator takes, and the types of a graph's values, both read from the operators' own schemas."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, missing_package

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["Signature", "infer_types", "signature_of"]

#: The domain of ONNX Runtime's own operators, whose schemas only its library holds.
_ORT_DOMAIN = "com.microsoft"

_SEQUENCES = re.compile("Sequence|^Optional")


@dataclass(frozen=True)
class Signature:
    """The typed half of an operator's schema.

    Attributes:
        inputs: the type of each formal input: a type variable (``T``) or a type (``tensor(float)``).
        outputs: the same of each formal output.
        allowed: for each type variable, the types it may stand for.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: dict[str, frozenset[str]]

    def input(self, place: int) -> str:
        """The type of an actual input; those beyond the last formal one belong to it, which is variadic."""
        return self.inputs[min(place, len(self.inputs) - 1)]

    def output(self, place: int) -> str:
        """The type of an actual output."""
        return self.outputs[min(place, len(self.outputs) - 1)]

    def types_that_take(self, tensor_type: str) -> frozenset[str]:
        """The type variables and types that a tensor of this type (``tensor(float16)``) may be given to."""
        return frozenset(
            name for name in (*self.inputs, *self.outputs) if tensor_type in self.allowed.get(name, frozenset({name}))
        )


def signature_of(node: onnx_ir.Node, opsets: dict[str, int]) -> Signature | None:
    """The signature of a node's operator at the opset that the model imports; None for an unknown operator.

    Raises:
        MissingPiece: the node is one of ONNX Runtime's own, and ONNX Runtime is not installed.
    """
    return _signature(node.domain, node.op_type, opsets.get(node.domain, 1))


@functools.cache
def _signature(domain: str, op_type: str, opset: int) -> Signature | None:
    if domain == _ORT_DOMAIN:
        return _ort_signatures().get(op_type)
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return Signature(
        tuple(formal.type_str for formal in schema.inputs),
        tuple(formal.type_str for formal in schema.outputs),
        _allowed(schema),
    )


@functools.cache
def _ort_signatures() -> dict[str, Signature]:
    """ONNX Runtime's own operators; its Python package has no public door to their schemas."""
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
    except ImportError as error:
        raise missing_package(error.name or "onnxruntime", "casting ONNX Runtime's own operators") from None
    return {
        schema.name: Signature(
            tuple(formal.typeStr for formal in schema.inputs),
            tuple(formal.typeStr for formal in schema.outputs),
            _allowed(schema),
        )
        for schema in get_all_operator_schema()
        if schema.domain == _ORT_DOMAIN
    }


def _allowed(schema: Any) -> dict[str, frozenset[str]]:
    return {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}


def infer_types(model: onnx_ir.Model) -> None:
    """Give every value that is used its type, in place.

    ONNX's own inference stops at the operators that it does not know; there an output gets the type of the input
    that shares its type variable, and inference goes on behind it.

    Raises:
        BadInput: the type of a value cannot be found out.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    if (left := _untyped(model)) and any(_SEQUENCES.search(node.op_type) for graph in model.graphs() for node in graph):
        raise _untold(left[0])  # onnx_ir reads an inferred sequence of tensors back as a tensor
    while _untyped(model):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
        left = _untyped(model)
        if left and not sum(_bind_outputs(node, model.opset_imports) for node in left):
            raise _untold(left[0])


def _untold(node: onnx_ir.Node) -> BadInput:
    return BadInput(
        f"the file does not say what type {node.op_type} {node.name!r} returns, and nothing else does",
        "save the model with its value_info (onnx.shape_inference.infer_shapes), or without that operator",
    )


def _untyped(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for graph in model.graphs() for node in graph if any(map(_lacks_type, node.outputs))]


def _lacks_type(value: onnx_ir.Value) -> bool:
    return value.type is None and (bool(value.uses()) or value.is_graph_output())


def _bind_outputs(node: onnx_ir.Node, opsets: dict[str, int]) -> bool:
    """Type a node's outputs by the type variables that its inputs bind; returns whether that typed one."""
    import onnx_ir

    signature = signature_of(node, opsets)
    if signature is None:
        return False
    bound = {signature.input(place): v.type for place, v in enumerate(node.inputs) if v is not None}
    typed = False
    for place, value in enumerate(node.outputs):
        name = signature.output(place)
        only = signature.allowed.get(name, {name})
        found = bound.get(name)
        if found is None and len(only) == 1:  # "tensor(int64)"
            found = onnx_ir.TensorType(onnx_ir.DataType[next(iter(only))[len("tensor(") : -1].upper()])
        if found is not None and _lacks_type(value):
            value.type = found
            typed = True
    return typed
