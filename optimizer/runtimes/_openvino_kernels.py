"""What a model that OpenVINO compiled computes in, from the graph that it executes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from optimizer.runtimes._ort_kernels import PRODUCTS, counted, quantized_nodes, type_of
from optimizer.types import JSON

__all__ = ["kernels_of"]

#: Nodes that OpenVINO puts in place of one of the file go by its own name of the operator, and a number.
_OWN = re.compile(r"ScaledDotProductAttention_\d+")


def kernels_of(executed: Any, path: Path) -> dict[str, JSON]:
    """Products by what they are computed in.

    A kernel's name ends in its type (``brgemm_avx512_amx_I8``). Attention is one kernel of the type ``Subgraph``: it is
    a product when a product of the file is among the nodes that it was made from, or what OpenVINO made of an attention
    that is one node of the file.

    Args:
        executed: ``compiled_model.get_runtime_model()``.
        path: the file that it was compiled from.

    Returns:
        see :meth:`optimizer.runtime.Session.runs`.
    """
    quantized, products = quantized_nodes(path), _products(path)
    ran = {}
    for node in executed.get_ordered_ops():
        said = {name: value.value for name, value in dict(node.get_rt_info()).items()}
        origins = str(said.get("originalLayersNames", "")).split(",")
        kind = str(said["layerType"])
        attention = kind == "Subgraph" and any(each in products or _OWN.fullmatch(each) for each in origins)
        if PRODUCTS.search(kind) or attention:
            name = next((origin for origin in origins if origin in quantized), node.get_friendly_name())
            ran[name] = type_of(str(said["primitiveType"]).rpartition("_")[2])
    return counted(ran, quantized)


def _products(path: Path) -> set[str]:
    """Names that OpenVINO knows a file's products by: a node without a name goes by its output's."""
    from optimizer.graph.io import graphs, load

    nodes = (node for graph in graphs(load(path)) for node in graph if PRODUCTS.search(node.op_type))
    return {str(node.name or node.outputs[0].name) for node in nodes}
