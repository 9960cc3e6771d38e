"""A graph that was exported with markers where training rounded, rewritten to the int8 form that runtimes take.

What is written is what ONNX Runtime's own quantizer writes after training (:mod:`optimizer.quantizing.calibrate`): a
QuantizeLinear and a DequantizeLinear before a product, its weight as int8 behind a DequantizeLinear, its answer in
float. So the same kernels run it, and the same rules hold for TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from optimizer.errors import GateFailed

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["ACTIVATION", "DOMAIN", "WEIGHT", "Levels", "Range", "write_quantized", "write_rounded", "write_tables"]

#: Of the markers, and their operators.
DOMAIN, ACTIVATION, WEIGHT = "ml_opt", "RoundActivation", "RoundWeight"
#: Operators whose int8 kernels want their bias in int32.
_WITH_BIAS = ("Conv", "Gemm")


@dataclass(frozen=True)
class Range:
    """How an activation is rounded.

    Attributes:
        scale: the step between two levels.
        zero_point: the level of zero.
        signed: levels are int8, otherwise uint8.
    """

    scale: float
    zero_point: int
    signed: bool

    def unsigned(self) -> Range:
        """The same numbers as levels of uint8: -128 to 127 become 0 to 255."""
        return Range(self.scale, self.zero_point + 128, False) if self.signed else self


@dataclass(frozen=True)
class Levels:
    """A weight in 8 bits.

    Attributes:
        levels: int8 (or uint8), of the weight's own shape.
        scale: float32 ``[n]`` along ``axis``, or ``[1]``.
        axis: of the output channels; None for one scale.
        zero_point: the level of zero.
    """

    levels: NDArray[Any]
    scale: NDArray[Any]
    axis: int | None
    zero_point: int = 0

    def unsigned(self) -> Levels:
        """The same numbers as levels of uint8."""
        import numpy as np

        return Levels((self.levels.astype(np.int16) + 128).astype(np.uint8), self.scale, self.axis, 128)


def write_quantized(
    model: onnx_ir.Model, ranges: Mapping[int, Range], weights: Mapping[str, Levels], *, round_bias: bool
) -> None:
    """Put Q/DQ in the place of markers.

    Args:
        model: the exported graph; changed in place.
        ranges: of each marked activation, by the number in its marker.
        weights: of each marked weight, by the name in its marker.
        round_bias: also write biases of convolutions and of Gemm as int32, as ONNX Runtime's int8 kernels want them
            (and TensorRT refuses).

    Raises:
        GateFailed: a marker stands where it cannot be rewritten.
    """
    for node in _markers(model, ACTIVATION):
        number = node.attributes["number"].as_int()
        pair = _pair(model, node.inputs[0], ranges[number], f"{node.inputs[0].name}_{number}", node)
        node.outputs[0].replace_all_uses_with(pair, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    for node in _markers(model, WEIGHT):
        weight = weights[node.attributes["name"].as_string()]
        for reader in _replace_weight(model, node, partial(_dequantized, model, weight, before=node)):
            if reader.op_type == "Gather":
                _round_rows(model, reader, weight)
            elif round_bias and reader.op_type in _WITH_BIAS:
                _round_bias(model, reader, weight)
    _tidy(model)


def write_rounded(model: onnx_ir.Model, weights: Mapping[str, NDArray[Any]]) -> list[str]:
    """Put rounded float weights in the place of markers.

    Args:
        model: the exported graph; changed in place.
        weights: of each marked weight its rounded form, by the name in its marker.

    Returns:
        names of the products that read one.

    Raises:
        GateFailed: a marker stands where it cannot be rewritten.
    """
    products: list[str] = []
    for node in _markers(model, WEIGHT):
        weight = weights[node.attributes["name"].as_string()]
        products += [str(each.name) for each in _replace_weight(model, node, partial(_in_float, model, weight))]
    _tidy(model)
    return products


def write_tables(model: onnx_ir.Model, tables: Mapping[str, Levels]) -> list[str]:
    """Put tables in 8 bits, with a scale for each row, in the place of their markers.

    The levels are looked up as those of a table with one scale of 1 are, which every runtime knows how to do without
    bringing back the whole; what was looked up is multiplied by the rows' own scales. (Behind one DequantizeLinear with
    a scale a row, ONNX Runtime would bring back the whole table in every run; a Cast of what was looked up is no place
    for int8 to TensorRT.)

    Args:
        model: the exported graph; changed in place. Other markers stay.
        tables: by the name in the marker, ``axis`` 0.

    Returns:
        names of the lookups.

    Raises:
        GateFailed: something other than a lookup reads a table.
    """
    import numpy as np

    lookups: list[str] = []
    for node in _markers(model, WEIGHT):
        name = node.attributes["name"].as_string()
        if name not in tables:
            continue
        table = tables[name]
        levels = Levels(table.levels, np.ones(1, np.float32), None, table.zero_point)
        readers = _replace_weight(model, node, partial(_dequantized, model, levels, before=node))
        scales = _initializer(model, f"{name}_row_scales", table.scale.reshape(-1, 1))
        for reader in readers:
            if reader.op_type != "Gather":
                raise GateFailed(f"{reader.name} ({reader.op_type}) reads the table {name}, and is no lookup")
            _round_rows(model, reader, levels)
            _scale_rows(model, reader, scales)
            lookups.append(str(reader.name))
    return lookups


def _scale_rows(model: onnx_ir.Model, gather: onnx_ir.Node, scales: Any) -> None:
    """Multiply what was looked up, and rounded behind that, by the scale of each row."""
    import onnx_ir

    down = next(use.node for use in gather.outputs[0].uses())
    up = next(use.node for use in down.outputs[0].uses())
    answer = up.outputs[0]
    readers = list(answer.uses())
    factors = onnx_ir.node("Gather", [scales, gather.inputs[1]], {"axis": 0}, name=f"{gather.name}_row_scales")
    made = onnx_ir.node("Mul", [answer, factors.outputs[0]], name=f"{gather.name}_rows")
    for each in (factors, made):
        each.outputs[0].name = each.name
        each.outputs[0].type = answer.type
    made.outputs[0].shape = answer.shape
    model.graph.insert_after(up, [factors, made])
    for use in readers:
        use.node.replace_input_with(use.idx, made.outputs[0])


def _in_float(model: onnx_ir.Model, weight: NDArray[Any], name: str, order: tuple[int, ...]) -> Any:
    import numpy as np

    turned = np.ascontiguousarray(weight.transpose(order)) if order else weight
    return _initializer(model, f"{name}_rounded", turned)


def _markers(model: onnx_ir.Model, operator: str) -> list[onnx_ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == operator]


def _replace_weight(
    model: onnx_ir.Model, marker: onnx_ir.Node, form: Callable[[str, tuple[int, ...]], Any]
) -> list[onnx_ir.Node]:
    """Let everything that reads a marked weight read another form of it: turned, where it was turned first.

    Args:
        model: holds the marker, which goes.
        marker: of the weight.
        form: ``form(name, order)`` → the value to read: a name of its own, and the order of the weight's axes; empty
            for the weight's own.

    Returns:
        the nodes that read it, turned or not.
    """
    name = marker.attributes["name"].as_string()
    forms: dict[tuple[int, ...], Any] = {}
    readers: list[onnx_ir.Node] = []
    for use in list(marker.outputs[0].uses()):
        turned = use.node.op_type == "Transpose"
        order = tuple(use.node.attributes["perm"].as_ints()) if turned else ()
        if order not in forms:
            forms[order] = form("_".join([name, *(["turned", *map(str, order)] if turned else [])]), order)
        if turned:
            readers += [each.node for each in use.node.outputs[0].uses()]
            use.node.outputs[0].replace_all_uses_with(forms[order])
            model.graph.remove(use.node, safe=True)
        else:
            readers.append(use.node)
            use.node.replace_input_with(use.idx, forms[order])
    model.graph.remove(marker, safe=True)
    return readers


def _tidy(model: onnx_ir.Model) -> None:
    """Remove what nothing reads any more, and see that no marker is left."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    left = [node.name for node in model.graph if node.domain == DOMAIN]
    if left:
        raise GateFailed(f"{len(left)} places that training rounded were not rewritten, the first is {left[0]}")


def _pair(
    model: onnx_ir.Model, value: Any, found: Range, name: str, place: onnx_ir.Node, *, behind: bool = False
) -> Any:
    """The value through 8 bits and back, by nodes in front of another, or behind it."""
    import numpy as np
    import onnx_ir

    zero = np.array(found.zero_point, np.int8 if found.signed else np.uint8)
    step = _initializer(model, f"{name}_scale", np.array(found.scale, np.float32))
    level = _initializer(model, f"{name}_zero_point", zero)
    down = onnx_ir.node("QuantizeLinear", [value, step, level], name=f"{name}_QuantizeLinear")
    up = onnx_ir.node("DequantizeLinear", [down.outputs[0], step, level], name=f"{name}_DequantizeLinear")
    for made in (down, up):
        made.outputs[0].name = made.name
        made.outputs[0].shape = value.shape
    down.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.INT8 if found.signed else onnx_ir.DataType.UINT8)
    up.outputs[0].type = value.type
    (model.graph.insert_after if behind else model.graph.insert_before)(place, [down, up])
    return up.outputs[0]


def _dequantized(model: onnx_ir.Model, weight: Levels, name: str, order: tuple[int, ...], before: onnx_ir.Node) -> Any:
    import numpy as np
    import onnx_ir

    levels, axis = weight.levels, weight.axis
    if order:
        levels = np.ascontiguousarray(levels.transpose(order))
        axis = order.index(axis) if axis is not None else None
    scale = weight.scale if axis is not None else weight.scale.reshape(())
    parts = [
        _initializer(model, f"{name}_quantized", levels),
        _initializer(model, f"{name}_scale", scale),
        _initializer(model, f"{name}_zero_point", np.full(scale.shape, weight.zero_point, levels.dtype)),
    ]
    return _brought_back(model, parts, axis, name, onnx_ir.Shape(levels.shape), before)


def _brought_back(
    model: onnx_ir.Model, parts: list[Any], axis: int | None, name: str, shape: Any, before: onnx_ir.Node
) -> Any:
    """Levels with their scale (and zero point) in float32, by a node in front of another."""
    import onnx_ir

    attributes = {"axis": axis} if axis is not None else {}
    back = onnx_ir.node("DequantizeLinear", parts, attributes, name=f"{name}_DequantizeLinear")
    back.outputs[0].name = back.name
    back.outputs[0].shape = shape
    back.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    model.graph.insert_before(before, back)
    return back.outputs[0]


def _round_rows(model: onnx_ir.Model, gather: onnx_ir.Node, weight: Levels) -> None:
    """What is looked up in int8 is brought back after the lookup: of a large table, only the rows that were asked for.

    A Q/DQ pair with the table's own scale changes no number, and lets runtimes move the table's DequantizeLinear
    behind the Gather.
    """
    answer = gather.outputs[0]
    readers = list(answer.uses())
    found = Range(float(weight.scale.reshape(-1)[0]), weight.zero_point, weight.levels.dtype.kind == "i")
    pair = _pair(model, answer, found, str(answer.name), gather, behind=True)
    for use in readers:
        use.node.replace_input_with(use.idx, pair)


def _round_bias(model: onnx_ir.Model, node: onnx_ir.Node, weight: Levels) -> None:
    """A bias in whole steps of its product: the scale of the input times that of the weight."""
    import numpy as np

    bias = node.inputs[2] if len(node.inputs) > 2 else None
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if bias is None or bias.const_value is None or source is None or source.op_type != "DequantizeLinear":
        return
    step = float(source.inputs[1].const_value.numpy())
    scale = (step * weight.scale.astype(np.float64)).astype(np.float32)
    numbers = np.round(bias.const_value.numpy().astype(np.float64) / scale)
    if np.abs(numbers).max() > np.iinfo(np.int32).max:
        return  # the bias of a channel whose weights are next to nothing: it stays in float
    levels = numbers.astype(np.int32)
    whole = scale if weight.axis is not None else scale.reshape(())
    parts = [
        _initializer(model, f"{node.name}_bias_quantized", levels),
        _initializer(model, f"{node.name}_bias_scale", whole),
    ]
    axis = 0 if weight.axis is not None else None
    node.replace_input_with(2, _brought_back(model, parts, axis, f"{node.name}_bias", bias.shape, node))


def _initializer(model: onnx_ir.Model, name: str, array: NDArray[Any]) -> Any:
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    model.graph.register_initializer(value)
    return value
