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
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.quantizing.folds import Way, fold
from optimizer.quantizing.weighted import Part, WeightedGraph

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

__all__ = ["Site", "find_sites", "scales_of", "smooth"]


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
    graph = WeightedGraph(model)
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
        way, parts = fold(graph, value, channels) if alone else (Way.INSERT, ())
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

    graph = WeightedGraph(model)
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
    graph = WeightedGraph(model)
    for site in sites:
        scale = scales[site.value]
        for name in site.nodes:
            graph.multiply_rows(graph.by_name[name], scale)
        if site.way is Way.INSERT:
            graph.insert(site.value, site.nodes, 1 / scale)
        for part in site.parts:
            graph.divide(part, scale)
    graph.write()
    return dict(Counter(site.way.value for site in sites))
