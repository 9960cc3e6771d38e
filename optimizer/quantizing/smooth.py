"""SmoothQuant: channels that are far larger than the rest hand their size over to the weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022
(arXiv:2211.10438): ``X W = (X / s) (s W)`` for any positive ``s``, one number an input channel. With
``s_j = max|X_j|^α / max|W_j|^(1-α)`` (its equation 4) what is hard to quantize moves from the activations, which share
one scale, into the weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Part", "Site", "Way", "find_sites", "scales_of", "smooth"]

#: Normalizations whose answer is scaled by a weight, and where that weight and the bias lie among their inputs.
_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
#: [batch, steps, heads, size] ↔ [batch, heads, steps, size].
_SWAP_HEADS = [0, 2, 1, 3]


class Way(StrEnum):
    """How a division by ``s`` is brought into the graph."""

    NORM = "norm"  # into the weight and bias of the normalization before
    LINEAR = "linear"  # into the columns (and the bias) of the product before, or of the attention's values
    INSERT = "insert"  # no exact way: one Mul before the product


@dataclass(frozen=True)
class Part:
    """A part of a weight that a fold divides: entries along ``axis`` from ``start`` on, of an input of a node."""

    node: str
    place: int
    axis: int = 0
    start: int = 0


@dataclass(frozen=True)
class Site:
    """One activation and the products that read it: they share one scale.

    Attributes:
        value: the activation's name.
        nodes: names of the products (query, key and value are three of one site).
        channels: its last axis.
        way: how it will be divided.
        parts: for a fold, what is divided.
    """

    value: str
    nodes: tuple[str, ...]
    channels: int
    way: Way
    parts: tuple[Part, ...] = ()


def find_sites(model: onnx.ModelProto, chosen: Iterable[str]) -> tuple[Site, ...]:
    """Where a graph can be smoothed.

    A product counts when it is a MatMul, or a Gemm without transA, of an activation by a float32 matrix. A fold is
    exact only where nothing else reads the activation: behind the LayerNorm of a BERT lies the residual sum too, and
    GELU is not linear; there a Mul is inserted.

    Args:
        model: the prepared graph.
        chosen: names of the nodes that will be quantized.

    Raises:
        BadInput: none of them is such a product.
    """
    graph = _Graph(model)
    wanted = set(chosen)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if node.name in wanted and graph.is_product(node):
            readers[node.input[0]].append(node)
    sites = []
    for value, nodes in readers.items():
        channels = graph.rows_of(nodes[0])
        names = tuple(node.name for node in nodes)
        alone = graph.reads(value) == len(nodes)
        way, parts = graph.fold(value, channels) if alone else (Way.INSERT, ())
        sites.append(Site(value, names, channels, way, parts))
    if not sites:
        raise BadInput(
            "there is nothing to smooth: none of the chosen nodes multiplies an activation by a float32 matrix",
            "leave --smooth out",
        )
    return tuple(sites)


def scales_of(
    model: onnx.ModelProto, sites: Sequence[Site], peaks: Mapping[str, NDArray[Any]], alpha: float
) -> dict[str, NDArray[Any]]:
    """``s`` of every site by its value: equation 4 of the paper, over the rows of all its weights together.

    A channel that was never seen, or that no weight reads, keeps its size.
    """
    import numpy as np

    graph = _Graph(model)
    scales = {}
    for site in sites:
        rows = np.max([np.abs(graph.matrix(graph.by_name[name])).max(axis=1) for name in site.nodes], axis=0)
        seen = np.asarray(peaks[site.value], np.float64)
        known = (seen > 0) & (rows > 0)
        scale = np.ones(site.channels)
        scale[known] = seen[known] ** alpha / rows[known] ** (1 - alpha)
        scales[site.value] = scale
    return scales


def smooth(model: onnx.ModelProto, sites: Sequence[Site], scales: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Divide activations and multiply weights, in place; the graph answers as before.

    Returns:
        how many sites went each way.
    """
    graph = _Graph(model)
    for site in sites:
        scale = scales[site.value]
        for name in site.nodes:
            graph.multiply_rows(graph.by_name[name], scale)
        if site.way is Way.INSERT:
            graph.insert(site, 1 / scale)
        for part in site.parts:
            graph.divide(part, scale)
    graph.write()
    return dict(Counter(site.way.value for site in sites))


class _Graph:
    """A graph's nodes by what they make and read, and its weights as arrays."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.by_name = {node.name: node for node in model.graph.node}
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._reads = Counter(name for node in model.graph.node for name in node.input)
        self._reads.update(output.name for output in model.graph.output)
        self._reads.update(self._inner_reads())
        self._arrays: dict[str, Any] = {}

    def _inner_reads(self) -> Iterable[str]:
        """What graphs inside of nodes read from outside."""
        from optimizer.quantizing.choose import graphs_of

        for graph in list(graphs_of(self.model.graph))[1:]:
            for node in graph.node:
                yield from node.input
            yield from (output.name for output in graph.output)

    def reads(self, name: str) -> int:
        return self._reads[name]

    def array(self, name: str) -> Any:
        """A weight as float32, kept and changed in memory until :meth:`write`."""
        import numpy as np
        from onnx import numpy_helper

        if name not in self._arrays:
            self._arrays[name] = np.array(numpy_helper.to_array(self._weights[name]))
        return self._arrays[name]

    def is_weight(self, name: str, size: int | None = None) -> bool:
        """Whether a name is a float32 weight, with that many entries along its last axis."""
        tensor = self._weights.get(name)
        return tensor is not None and tensor.data_type == 1 and (size is None or tensor.dims[-1:] == [size])

    def is_product(self, node: onnx.NodeProto) -> bool:
        return (
            node.op_type in ("MatMul", "Gemm")
            and self.is_weight(node.input[1])
            and len(self._weights[node.input[1]].dims) == 2
            and node.input[0] not in self._weights
            and not _attribute(node, "transA")
        )

    def rows_of(self, node: onnx.NodeProto) -> int:
        """How many channels a product reads."""
        return int(self._weights[node.input[1]].dims[_attribute(node, "transB", 0)])

    def matrix(self, node: onnx.NodeProto) -> Any:
        """The weight of a product, a row an input channel."""
        array = self.array(node.input[1])
        return array.T if _attribute(node, "transB", 0) else array

    def multiply_rows(self, node: onnx.NodeProto, scale: NDArray[Any]) -> None:
        self._own(node, 1)
        matrix = self.matrix(node)
        matrix *= scale[:, None]

    def divide(self, part: Part, scale: NDArray[Any]) -> None:
        node = self.by_name[part.node]
        self._own(node, part.place)
        array = self.array(node.input[part.place])
        along = array.swapaxes(0, part.axis)[part.start : part.start + len(scale)]
        along /= scale.reshape(-1, *[1] * (array.ndim - 1))

    def insert(self, site: Site, factor: NDArray[Any]) -> None:
        """``value * (1/s)`` in front of the products of a site."""
        import numpy as np
        import onnx

        name = f"{site.value}_smooth"
        self._arrays[f"{name}_factor"] = factor.astype(np.float32)
        tensor = self.model.graph.initializer.add(name=f"{name}_factor")
        self._weights[tensor.name] = tensor
        node = onnx.helper.make_node("Mul", [site.value, tensor.name], [name], name=name)
        places = {reader.name: place for place, reader in enumerate(self.model.graph.node)}
        self.model.graph.node.insert(min(places[reader] for reader in site.nodes), node)
        for reader in self.model.graph.node:
            if reader.name in site.nodes:
                reader.input[0] = name

    def write(self) -> None:
        """Bring the changed weights back into the message."""
        from onnx import numpy_helper

        for name, array in self._arrays.items():
            self._weights[name].CopyFrom(numpy_helper.from_array(array, name))

    def _own(self, node: onnx.NodeProto, place: int) -> None:
        """Give a node its own copy of a weight that others read too (tied, or made one as they were equal)."""
        name = node.input[place]
        if self._reads[name] == 1:
            return
        copy = f"{name}_{node.name}"
        self._arrays[copy] = self.array(name).copy()
        self._weights[copy] = self.model.graph.initializer.add(name=copy)
        self._reads[name] -= 1
        self._reads[copy] = 1
        node.input[place] = copy

    # Where a division can be folded to, walking against the flow.

    def fold(self, value: str, channels: int) -> tuple[Way, tuple[Part, ...]]:
        maker = self._makers.get(value)
        if maker is None:
            return Way.INSERT, ()
        if maker.op_type in _NORMS and maker.output[0] == value:
            found = self._norm(maker, channels)
            return (Way.NORM, found) if found else (Way.INSERT, ())
        found = self._linear(value, channels) or self._attention(maker, channels)
        return (Way.LINEAR, found) if found else (Way.INSERT, ())

    def _norm(self, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
        places = [place for place in _NORMS[node.op_type] if place < len(node.input) and node.input[place]]
        if not all(self.is_weight(node.input[place], channels) for place in places):
            return ()
        return tuple(Part(node.name, place) for place in places)

    def _linear(self, value: str, channels: int) -> tuple[Part, ...]:
        """The columns (and bias) of the product that makes a value which nothing else reads."""
        node = self._lone(value)
        if node is None:
            return ()
        if node.op_type == "Add":
            for place in (0, 1):
                if self._is_bias(node.input[place], channels):
                    inner = self._linear(node.input[1 - place], channels)
                    return (*inner, Part(node.name, place)) if inner else ()
            return ()
        if not self.is_product(node):
            return ()
        axis = 0 if _attribute(node, "transB", 0) else 1
        if self._weights[node.input[1]].dims[axis] != channels:
            return ()
        parts = (Part(node.name, 1, axis),)
        if len(node.input) > 2 and node.input[2]:
            return (*parts, Part(node.name, 2)) if self._is_bias(node.input[2], channels) else ()
        return parts

    def _is_bias(self, name: str, channels: int) -> bool:
        return self.is_weight(name, channels) and len(self._weights[name].dims) == 1

    def _attention(self, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
        """The projection of an attention's values: attention mixes steps, and never channels."""
        if node.op_type == "MultiHeadAttention":
            return self._fused_attention(node, channels)
        mixed = self._behind(self._behind(node, "Reshape"), "Transpose", _SWAP_HEADS)
        if mixed is None or mixed.op_type != "MatMul":
            return ()
        split = self._behind(self._lone(mixed.input[1]), "Transpose", _SWAP_HEADS)
        if split is None or split.op_type != "Reshape":
            return ()
        return self._linear(split.input[0], channels)

    def _fused_attention(self, node: onnx.NodeProto, channels: int) -> tuple[Part, ...]:
        if len(node.input) < 3 or not node.input[2] or any(node.input[6:]):
            return ()
        parts = self._linear(node.input[2], channels)
        if parts and len(node.input) > 3 and node.input[3]:
            # The biases of query, key and value in one.
            if not self._is_bias(node.input[3], 3 * channels):
                return ()
            parts += (Part(node.name, 3, start=2 * channels),)
        return parts

    def _lone(self, value: str) -> onnx.NodeProto | None:
        return self._makers.get(value) if self._reads[value] == 1 else None

    def _behind(
        self, node: onnx.NodeProto | None, op_type: str, perm: list[int] | None = None
    ) -> onnx.NodeProto | None:
        """The node behind one of that type, when nothing else reads what it hands over."""
        if node is None or node.op_type != op_type or (perm and _attribute(node, "perm") != perm):
            return None
        return self._lone(node.input[0])


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    from onnx.helper import get_attribute_value

    found = next((a for a in node.attribute if a.name == name), None)
    if found is None:
        return default
    value = get_attribute_value(found)
    return list(value) if found.ints else value
