"""Which nodes a quantizer is to take."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, UnknownName

if TYPE_CHECKING:
    import onnx

__all__ = ["Choice", "choose_nodes"]


@dataclass(frozen=True)
class Choice:
    """The nodes of a graph, sorted out.

    Attributes:
        op_types: operator types that are quantized.
        excluded: names of nodes of those types that stay in float.
        chosen: names of nodes that are quantized.
    """

    op_types: tuple[str, ...]
    excluded: tuple[str, ...]
    chosen: tuple[str, ...]


def choose_nodes(
    model: onnx.ModelProto,
    op_types: Sequence[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    constant_only: bool = True,
) -> Choice:
    """Sort nodes into those to quantize and those to leave.

    Args:
        model: the prepared graph; unnamed nodes are given names.
        op_types: operator types to quantize.
        include: patterns of node names (``*`` and ``?``); when given, only these are quantized.
        exclude: patterns of node names that stay in float.
        constant_only: leave products of two activations (attention scores) in float.

    Raises:
        UnknownName: a pattern matches no node of those types.
        BadInput: nothing is left to quantize.
    """
    constants = _constants(model.graph)
    names: list[str] = []
    skipped: list[str] = []
    for graph in _graphs(model.graph):
        for place, node in enumerate(graph.node):
            if node.op_type not in op_types:
                continue
            node.name = node.name or f"{node.op_type}_{place}"
            if node.op_type == "Gather":
                # A Gather of anything but a table (of a shape, say) has no weight to quantize.
                takes = node.input[0] in constants
            else:
                product = node.op_type in ("MatMul", "Gemm") and not any(i in constants for i in node.input[:2])
                takes = not (constant_only and product)
            (names if takes else skipped).append(node.name)
    if not names and not skipped:
        raise BadInput(
            f"the model has no {' or '.join(op_types)} to quantize",
            "`ml-opt show REF` lists its operators; choose among them with --op-types",
        )
    chosen = _matching(names, include, "--include") if include else set(names)
    chosen -= _matching(names, exclude, "--exclude") if exclude else set()
    if not chosen:
        raise BadInput("nothing is left to quantize", "loosen --include, --exclude or --op-types")
    left = [name for name in [*names, *skipped] if name not in chosen]
    return Choice(tuple(op_types), tuple(left), tuple(n for n in names if n in chosen))


def _matching(names: Sequence[str], patterns: Iterable[str], flag: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            raise UnknownName(f"node in {flag}", pattern, names)
        found |= hits
    return found


def _constants(graph: onnx.GraphProto) -> set[str]:
    found = {tensor.name for inner in _graphs(graph) for tensor in inner.initializer}
    for inner in _graphs(graph):
        found |= {name for node in inner.node if node.op_type == "Constant" for name in node.output}
    return found


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and every graph inside its nodes (If, Loop, Scan)."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _graphs(attribute.g)
            for inner in attribute.graphs:
                found += _graphs(inner)
    return found
