"""The smallest graphs that show what a provider can do at best: one matrix product, and one copy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ARITHMETICS", "copy_graph", "gemm_feeds", "gemm_graph"]

#: What a product can be measured in.
ARITHMETICS = ("fp32", "fp16", "bf16", "int8")

_OPSET, _IR = 20, 10


def gemm_graph(arithmetic: str, width: int, path: Path) -> None:
    """Write ``[rows, width]`` times a stored matrix of ``width × width``; the input is called like the arithmetic.

    The matrix is stored, as a model's weights are, so that a session may lay it out anew before the first call. In int8
    the graph is that of a quantized model: unsigned activations and signed weights behind DequantizeLinear, which a
    session turns into its own integer product. bfloat16, which numpy lacks, is cast to behind a float32 input.

    Args:
        arithmetic: one of :data:`ARITHMETICS`.
        width: of the matrix.
        path: the file to write.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((width, width), np.float32) / np.sqrt(width)
    if arithmetic == "int8":
        scale = np.full(width, np.abs(weight).max() / 127, np.float32)
        stored = [
            numpy_helper.from_array(np.round(weight / scale).astype(np.int8), "w"),
            numpy_helper.from_array(scale, "w_scale"),
            numpy_helper.from_array(np.zeros(width, np.int8), "w_zero"),
            numpy_helper.from_array(np.array(0.03, np.float32), "x_scale"),
            numpy_helper.from_array(np.array(128, np.uint8), "x_zero"),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["int8", "x_scale", "x_zero"], ["x_float"]),
            helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=1),
            helper.make_node("MatMul", ["x_float", "w_float"], ["y"]),
        ]
        edges = TensorProto.UINT8, TensorProto.FLOAT
    elif arithmetic == "bf16":
        stored = [helper.make_tensor("w", TensorProto.BFLOAT16, weight.shape, weight.ravel())]
        nodes = [
            helper.make_node("Cast", ["bf16"], ["x_cast"], to=TensorProto.BFLOAT16),
            helper.make_node("MatMul", ["x_cast", "w"], ["y_cast"]),
            helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT),
        ]
        edges = TensorProto.FLOAT, TensorProto.FLOAT
    else:
        stored = [numpy_helper.from_array(weight.astype(np.float16 if arithmetic == "fp16" else np.float32), "w")]
        nodes = [helper.make_node("MatMul", [arithmetic, "w"], ["y"])]
        edges = (TensorProto.FLOAT16,) * 2 if arithmetic == "fp16" else (TensorProto.FLOAT,) * 2
    onnx.save(_model(nodes, arithmetic, edges, ["rows", width], stored), str(path))


def copy_graph(columns: int, path: Path) -> None:
    """Write ``y = -copy`` of ``copy [rows, columns]``, float32: every number read once and written once."""
    import onnx
    from onnx import TensorProto, helper

    edges = TensorProto.FLOAT, TensorProto.FLOAT
    nodes = [helper.make_node("Neg", ["copy"], ["y"])]
    onnx.save(_model(nodes, "copy", edges, ["rows", columns], []), str(path))


def gemm_feeds(arithmetics: Iterable[str], rows: int, width: int) -> dict[str, NDArray[np.generic]]:
    """What the :func:`gemm_graph` of each arithmetic is fed, by its name: numbers of an activation's usual spread."""
    import numpy as np

    x = np.random.default_rng(1).standard_normal((rows, width), np.float32)
    made: dict[str, NDArray[np.generic]] = {}
    for arithmetic in arithmetics:
        if arithmetic == "int8":
            made[arithmetic] = np.clip(np.round(x / 0.03) + 128, 0, 255).astype(np.uint8)
        else:
            made[arithmetic] = x.astype(np.float16) if arithmetic == "fp16" else x
    return made


def _model(nodes: list[Any], fed: str, edges: tuple[int, int], shape: list[Any], stored: list[Any]) -> Any:
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info(fed, edges[0], shape)],
        [helper.make_tensor_value_info("y", edges[1], shape)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
