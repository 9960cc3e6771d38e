"""Which nodes a quantizer is to take."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, UnknownName

if TYPE_CHECKING:
    import onnx

__all__ = ["WEIGHTS", "Choice", "choose_nodes", "graphs_of", "told_to_dynamic"]

#: Which inputs of a node are its weights. Operators that are not here have none, and quantizing them means their
#: activations.
WEIGHTS = {
    "MatMul": (1,),
    "Gemm": (1,),
    "Gather": (0,),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "LSTM": (1, 2),
    "Attention": (1,),
    "EmbedLayerNormalization": (2, 3),
}
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Choice:
    """The nodes of a graph, sorted out.

    Attributes:
        op_types: operator types that are quantized.
        excluded: names of nodes of those types that stay in float.
        chosen: names of nodes that are quantized.
        counts: how many those are, by operator type.
        inside: nodes with weights of their own in the branches of If and Loop, where a static quantizer never looks.
    """

    op_types: tuple[str, ...]
    excluded: tuple[str, ...]
    chosen: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    inside: int = 0

    @property
    def weighted(self) -> int:
        """How many of the chosen nodes have weights: what must show when the result is read back."""
        return sum(count for op, count in self.counts.items() if op in WEIGHTS)

    def without(self, nodes: Mapping[str, str]) -> Choice:
        """The same with some chosen nodes (name → operator type) left in float."""
        chosen = tuple(name for name in self.chosen if name not in nodes)
        counts = Counter(self.counts)
        counts.subtract(nodes[name] for name in self.chosen if name in nodes)
        return replace(self, excluded=(*self.excluded, *nodes), chosen=chosen, counts=dict(+counts))


def choose_nodes(
    model: onnx.ModelProto,
    op_types: Sequence[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    activation_products: bool = False,
    dynamic: bool = False,
) -> Choice:
    """Sort nodes into those to quantize and those to leave.

    A node with weights is taken when they are float initializers (a Gather of shapes, a Conv whose kernel is computed
    are not); a product of two activations (attention scores) only when asked for.

    Args:
        model: the prepared graph; nodes are given names of their own where they have none.
        op_types: operator types to quantize.
        include: patterns of node names (``*`` and ``?``); when given, only these are quantized.
        exclude: patterns of node names that stay in float.
        activation_products: also take products of two activations; a static quantizer can.
        dynamic: the rules of dynamic quantization: a product's weight must be its second input, and graphs inside of
            nodes are looked into.

    Raises:
        UnknownName: a pattern matches no node of those types.
        BadInput: nothing is left to quantize.
    """
    _name_nodes(model)
    constants = _float_constants(model.graph)
    names: list[str] = []
    skipped: list[str] = []
    types: dict[str, str] = {}
    inside = 0
    for graph in graphs_of(model.graph):
        for node in graph.node:
            if node.op_type not in op_types:
                continue
            takes = _takes(node, constants, activation_products, dynamic)
            if graph is not model.graph and not dynamic:
                inside += takes and node.op_type in WEIGHTS
                takes = False
            (names if takes else skipped).append(node.name)
            types[node.name] = node.op_type
    if not names:
        _nothing(op_types, skipped, inside)
    chosen = _matching(names, skipped, include, "--include") if include else set(names)
    chosen -= _matching([*names, *skipped], (), exclude, "--exclude") if exclude else set()
    if not chosen:
        raise BadInput("nothing is left to quantize", "loosen --include, --exclude or --op-types")
    left = tuple(name for name in [*names, *skipped] if name not in chosen)
    taken = tuple(name for name in names if name in chosen)
    return Choice(tuple(op_types), left, taken, dict(Counter(types[name] for name in taken)), inside)


def _nothing(op_types: Sequence[str], skipped: Sequence[str], inside: int) -> None:
    kinds = " or ".join(op_types)
    if inside:
        raise BadInput(
            f"every {kinds} of the model lies inside an If or a Loop, where activations cannot be calibrated",
            "quantize it with ranges found at run time: ml-opt quantize dynamic REF",
        )
    if skipped:
        raise BadInput(
            f"no {kinds} of the model can be quantized: the weight of {skipped[0]} is computed, or no float32",
            "`ml-opt show REF` lists its operators; choose among them with --op-types",
        )
    raise BadInput(
        f"the model has no {kinds} to quantize",
        "`ml-opt show REF` lists its operators; choose among them with --op-types",
    )


def _takes(node: onnx.NodeProto, constants: set[str], activation_products: bool, dynamic: bool) -> bool:
    weights = WEIGHTS.get(node.op_type)
    if weights is None:
        return True
    if node.op_type in _PRODUCTS and not dynamic:
        return activation_products or any(name in constants for name in node.input[:2])
    if (node.op_type == "Attention" and not _packs_plainly(node)) or (node.op_type == "Gemm" and not _is_linear(node)):
        return False
    return all(place < len(node.input) and node.input[place] in constants for place in weights)


def _is_linear(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product and a bias; the dynamic quantizer passes over one that scales or transposes more."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all((a.f if a.name in ("alpha", "beta") else a.i) == plain.get(a.name, a.i) for a in node.attribute)


def _packs_plainly(node: onnx.NodeProto) -> bool:
    """Whether QAttention can say what this Attention says: it has no place for a bias of the scores (input 5), and
    drops it in silence, nor for projections of unequal size.
    """
    biased = len(node.input) > 5 and bool(node.input[5])
    return not biased and all(attribute.name != "qkv_hidden_sizes" for attribute in node.attribute)


def told_to_dynamic(model: onnx.ModelProto, choice: Choice) -> tuple[list[str], list[str]]:
    """A choice in the words of ONNX Runtime's dynamic quantizer, which first renames each Gemm as a MatMul.

    Returns:
        operator types to quantize, and names of nodes to leave out.
    """
    types = sorted({"MatMul" if op == "Gemm" else op for op in choice.op_types})
    chosen = set(choice.chosen)
    left = [
        f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name
        for graph in graphs_of(model.graph)
        for node in graph.node
        if node.op_type in (*types, "Gemm") and node.name not in chosen
    ]
    return types, left


def _matching(names: Sequence[str], skipped: Sequence[str], patterns: Iterable[str], flag: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = set(fnmatch.filter(names, pattern))
        if not hits and fnmatch.filter(skipped, pattern):
            raise BadInput(
                f"{flag} {pattern} matches only nodes without a weight of their own",
                "products of two activations are quantized with --activation-products (quantize static)",
            )
        if not hits:
            raise UnknownName(f"node in {flag}", pattern, names)
        found |= hits
    return found


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name that no other has: quantizers leave nodes out by name."""
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for graph in graphs_of(model.graph):
        for node in graph.node:
            base = node.name or node.op_type
            while not node.name or node.name in seen:
                node.name = f"{base}_{numbers[base]}"
                numbers[base] += 1
            seen.add(node.name)


def _float_constants(graph: onnx.GraphProto) -> set[str]:
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    found = set()
    for inner in graphs_of(graph):
        found |= {tensor.name for tensor in inner.initializer if tensor.data_type in floats}
        for node in inner.node:
            if node.op_type == "Constant" and node.attribute[0].t.data_type in floats:
                found |= set(node.output)
    return found


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)
