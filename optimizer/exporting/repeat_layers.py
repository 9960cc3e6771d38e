"""The graph of a decoder with all its layers, from the graph of one that has the first few.

PyTorch's exporter takes its time by the node, and most decoders are one layer many times over. What is repeated is the
graph as it was translated, before it is optimized: there nothing of one layer is merged with another's yet, and all
that an optimizer does is done to the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["repeat_layers"]

#: The caches among a graph's inputs and outputs: prefix, number of the layer, part.
_CACHE = re.compile(r"(past_key_values|present)\.(\d+)\.(key|value)")


def repeat_layers(
    model: onnx_ir.Model, path: str, kept: int, count: int, weights: Mapping[str, Any], scopes: str
) -> bool:
    """Add the layers that a graph lacks, each as the last one that it has, with weights and cache of its own.

    Args:
        model: of the first ``kept`` layers; its inputs and outputs are named as :func:`genai_decoder.trace` says.
        path: what names of layers' weights begin with: ``model.transformer.h`` of ``model.transformer.h.2.ln_1.bias``.
        kept: how many layers it has: 3 or more.
        count: how many it shall have.
        weights: name → tensor, of all layers.
        scopes: under which name a node's metadata says which module it comes from.

    Returns:
        whether that was done. The graph is as it was where its last two layers are not the same, node by node, or
        something lies between layers.
    """
    parts = _parts(model, path, kept, scopes)
    if parts is None:
        return False
    last = kept - 1
    places = {id(value): (k, n) for k, node in enumerate(parts[last]) for n, value in enumerate(node.outputs)}
    if not _same(parts, path) or not _outputs_match(model, parts, places, last):
        return False
    made = parts[last]
    inside = {id(node) for part in parts for node in part}
    later = [(value, use) for node in made for value in node.outputs for use in value.uses()]
    later = [(value, use) for value, use in later if id(use.node) not in inside]
    for number in range(kept, count):
        nodes = _copy(model, parts, made, path, last, number, weights, scopes)
        model.graph.insert_after(made[-1], nodes)
        made = nodes
    for value, use in later:  # what comes after the layers reads the last of them
        k, n = places[id(value)]
        use.node.replace_input_with(use.idx, made[k].outputs[n])
    return True


def _parts(model: onnx_ir.Model, path: str, kept: int, scopes: str) -> list[list[onnx_ir.Node]] | None:
    """The nodes of each layer, which lie one after another; None where they do not."""
    within = re.compile(rf"'{re.escape(path)}\.(\d+)['.]")
    order: list[int | None] = []
    parts: list[list[onnx_ir.Node]] = [[] for _ in range(kept)]
    for node in model.graph:
        found = within.search(node.metadata_props.get(scopes, ""))
        number = int(found[1]) if found else None
        if number is not None:
            parts[number].append(node)
        if not order or order[-1] != number:
            order.append(number)
    runs = order[1 if order[:1] == [None] else 0 : -1 if order[-1:] == [None] else None]
    return parts if runs == list(range(kept)) else None


def _same(parts: Sequence[Sequence[onnx_ir.Node]], path: str) -> bool:
    """Whether the last layer's nodes are those of the layer before it, on results, weights and caches of its own."""
    number = len(parts) - 1
    before, here = parts[-2:]
    if len(before) != len(here):
        return False
    own = [{id(v): (k, n) for k, node in enumerate(part) for n, v in enumerate(node.outputs)} for part in parts[-3:]]
    for first, second in zip(before, here, strict=True):
        if _head(first) != _head(second):
            return False
        for one, other in zip(first.inputs, second.inputs, strict=True):
            if one is None or other is None:
                if one is not other:
                    return False
            elif id(one) in own[1] or id(other) in own[2]:  # results of their own
                if own[1].get(id(one)) != own[2].get(id(other)):
                    return False
            elif id(other) in own[1]:  # of the layer before
                if id(one) not in own[0]:
                    return False
            elif one is not other and not _counterparts(one, other, path, number):
                return False
    return True


def _head(node: onnx_ir.Node) -> Any:
    """What a node does, to be compared."""
    counts = len(node.inputs), len(node.outputs)
    attributes = list(map(_told, node.attributes.values()))
    return node.domain, node.op_type, node.overload, node.version, counts, attributes


def _told(attribute: onnx_ir.Attr) -> Any:
    """A node's attribute, to be compared."""
    import onnx_ir

    value = attribute.value
    if isinstance(value, onnx_ir.TensorProtocol):
        value = (value.dtype, tuple(value.shape), value.tobytes())
    return attribute.name, attribute.type, value


def _counterparts(one: onnx_ir.Value, other: onnx_ir.Value, path: str, number: int) -> bool:
    """Whether the second is to this layer what the first is to the one before: the same weight, or cache."""
    names = [one.name or "", other.name or ""]
    if one.dtype != other.dtype or str(one.type) != str(other.type):
        return False
    if one.is_initializer() and other.is_initializer():
        heads = [f"{path}.{number - 1}.", f"{path}.{number}."]
        alike = names[0].removeprefix(heads[0]) == names[1].removeprefix(heads[1])
        return alike and names[1].startswith(heads[1]) and one.shape == other.shape
    found = [_CACHE.fullmatch(name) for name in names]
    if found[0] is None or found[1] is None or not (one.is_graph_input() and other.is_graph_input()):
        return False
    return int(found[0][2]) == number - 1 and int(found[1][2]) == number and found[0][3] == found[1][3]


def _outputs_match(
    model: onnx_ir.Model, parts: Sequence[Sequence[onnx_ir.Node]], places: Mapping[int, tuple[int, int]], last: int
) -> bool:
    """Whether a graph answers of its last layer that layer's cache alone, made where the layer before makes its own."""
    found = {value.name or "": value for value in model.graph.outputs}
    for value in model.graph.outputs:
        match = _CACHE.fullmatch(value.name or "")
        if id(value) in places and (match is None or int(match[2]) != last):
            return False
        if match is None or int(match[2]) != last:
            continue
        before = found.get(f"present.{last - 1}.{match[3]}")
        if before is None or id(value) not in places:
            return False
        k, n = places[id(value)]
        if parts[last - 1][k].outputs[n] is not before:
            return False
    return True


def _copy(
    model: onnx_ir.Model,
    parts: Sequence[Sequence[onnx_ir.Node]],
    before: Sequence[onnx_ir.Node],
    path: str,
    last: int,
    number: int,
    weights: Mapping[str, Any],
    scopes: str,
) -> list[onnx_ir.Node]:
    """The nodes of one more layer, after those of the layer before it; its caches are added to the graph."""
    import onnx_ir

    read = {  # what the last traced layer reads of the layer before it → what this one reads of that
        id(value): later
        for traced, copied in zip(parts[last - 1], before, strict=True)
        for value, later in zip(traced.outputs, copied.outputs, strict=True)
    }
    nodes: list[onnx_ir.Node] = []
    for node in parts[last]:
        inputs = [
            None if each is None else _input(model, each, read, path, last, number, weights) for each in node.inputs
        ]
        outputs = [
            onnx_ir.Value(
                name=_named(each.name, number), shape=each.shape and each.shape.copy(), type=deepcopy(each.type)
            )
            for each in node.outputs
        ]
        read |= {id(each): copied for each, copied in zip(node.outputs, outputs, strict=True)}
        said = node.metadata_props.get(scopes, "")
        scope = re.sub(rf"'{re.escape(path)}\.{last}(?=['.])", f"'{path}.{number}", said)
        nodes.append(
            onnx_ir.Node(
                node.domain, node.op_type, inputs, list(node.attributes.values()), overload=node.overload,
                outputs=outputs, version=node.version, name=_named(node.name, number),
                metadata_props={scopes: scope},
            )
        )  # fmt: skip
    for value in list(model.graph.outputs):
        match = _CACHE.fullmatch(value.name or "")
        if match and int(match[2]) == last:
            model.graph.outputs.append(read[id(value)])
    return nodes


def _named(name: str | None, number: int) -> str | None:
    """A name of the last traced layer, as another layer has it; what has none gets none."""
    match = _CACHE.fullmatch(name or "")
    return f"{match[1]}.{number}.{match[3]}" if match else name and f"layer.{number}.{name}"


def _input(
    model: onnx_ir.Model,
    value: onnx_ir.Value,
    read: Mapping[int, onnx_ir.Value],
    path: str,
    last: int,
    number: int,
    weights: Mapping[str, Any],
) -> onnx_ir.Value:
    """What another layer reads where the last traced one reads this."""
    import onnx_ir

    name = value.name or ""
    if id(value) in read:
        return read[id(value)]
    if value.is_graph_input() and _CACHE.fullmatch(name):
        name = _named(name, number) or ""
        known = {each.name: each for each in model.graph.inputs}
        if name not in known:
            known[name] = onnx_ir.Value(name=name, shape=value.shape and value.shape.copy(), type=deepcopy(value.type))
            model.graph.inputs.append(known[name])
        return known[name]
    if value.is_initializer() and name.startswith(f"{path}.{last}."):
        name = f"{path}.{number}.{name.removeprefix(f'{path}.{last}.')}"
        found: onnx_ir.Value | None = model.graph.initializers.get(name)
        if found is None:
            tensor = onnx_ir.tensor_adapters.TorchTensor(weights[name].detach(), name=name)
            found = onnx_ir.Value(
                name=name, shape=onnx_ir.Shape(tensor.shape), type=deepcopy(value.type), const_value=tensor
            )
            model.graph.initializers[name] = found
        return found
    return value
