"""Weights in blocks as MatMulNBits stores them: levels, and of each block a scale and perhaps a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.quantizing.weights import PRODUCT

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["BITS", "Blocks", "may_change", "products_of", "read_blocks", "write_levels"]

#: What can be read and written here: two levels in a byte, the first in its low half.
BITS = 4
_TOP = 2**BITS - 1
#: The level of zero where a product has no zero points (com.microsoft.MatMulNBits).
_MIDDLE = 2.0 ** (BITS - 1)
#: Places of MatMulNBits' inputs: levels, scales, zero points, and the order of its rows.
_LEVELS, _SCALES, _ZEROS, _ORDER = 1, 2, 3, 4


@dataclass(frozen=True)
class Blocks:
    """A weight of ``N`` outputs and ``K`` inputs, rounded: ``(levels - zeros) * scales``.

    Attributes:
        levels: 0 to 15, ``[N, K]``.
        scales: float32, ``[N, K]``: that of its block for every weight.
        zeros: float32, ``[N, K]``: the level that stands for zero.
    """

    levels: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any]

    def rounded(self, weight: NDArray[Any], place: Any = slice(None)) -> NDArray[Any]:
        """The levels nearest to weights ``[N]`` or ``[N, K]`` at a place (of ``K``), whatever the block's own are."""
        import numpy as np

        scales = self.scales[:, place]
        steps = np.divide(weight, scales, out=np.zeros_like(weight), where=scales != 0)
        made: NDArray[Any] = np.clip(np.rint(steps + self.zeros[:, place]), 0, _TOP)
        return made

    def weight(self, levels: NDArray[Any] | None = None, place: Any = slice(None)) -> NDArray[Any]:
        """What levels ``[N]`` or ``[N, K]`` at a place (of ``K``) stand for; the block's own unless others are said."""
        chosen = self.levels[:, place] if levels is None else levels
        made: NDArray[Any] = (chosen - self.zeros[:, place]) * self.scales[:, place]
        return made


def products_of(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    """Every product whose weights have 4 bits."""
    from optimizer.graph.io import graphs

    nodes = [node for graph in graphs(model) for node in graph if node.op_type == PRODUCT]
    return [node for node in nodes if node.attributes.get_int("bits", BITS) == BITS]


def may_change(node: onnx_ir.Node) -> bool:
    """Whether the levels of one of :func:`products_of` can be chosen anew: stored, in order, read by nobody else.

    Where head and table of tokens are one matrix, the table reads the head's levels: what is good for the product
    would move the vectors that are looked up.
    """
    levels = node.inputs[_LEVELS]
    ordered = len(node.inputs) > _ORDER and node.inputs[_ORDER] is not None
    return not ordered and levels is not None and levels.const_value is not None and len(levels.uses()) == 1


def read_blocks(node: onnx_ir.Node) -> Blocks:
    """The weight of a product that :func:`may_change`."""
    import numpy as np

    inputs, outputs = node.attributes["K"].as_int(), node.attributes["N"].as_int()
    size = node.attributes["block_size"].as_int()
    count = -(-inputs // size)

    def of_block(array: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(array.reshape(outputs, -1)[:, :count].astype(np.float32), size, axis=1)[:, :inputs]

    levels, scales = (_array(node, place) for place in (_LEVELS, _SCALES))
    zeros = np.full((outputs, count), _MIDDLE, np.float32)
    if len(node.inputs) > _ZEROS and node.inputs[_ZEROS] is not None:
        zeros = _array(node, _ZEROS)
        zeros = _halves(zeros.reshape(outputs, -1)) if zeros.dtype == np.uint8 else zeros
    return Blocks(_halves(levels.reshape(outputs, -1))[:, :inputs], of_block(scales), of_block(zeros))


def write_levels(node: onnx_ir.Node, levels: NDArray[Any]) -> None:
    """Give a product other levels, ``[N, K]``; what lies in a block behind ``K`` stays as it is."""
    import numpy as np
    import onnx_ir

    value = node.inputs[_LEVELS]
    assert value is not None
    before = _array(node, _LEVELS)
    halves = _halves(before.reshape(len(levels), -1)).copy()
    halves[:, : levels.shape[1]] = levels
    packed = (halves[:, ::2] | halves[:, 1::2] << BITS).reshape(before.shape).astype(np.uint8)
    value.const_value = onnx_ir.Tensor(packed, name=value.name)


def _array(node: onnx_ir.Node, place: int) -> NDArray[Any]:
    value = node.inputs[place]
    assert value is not None
    assert value.const_value is not None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def _halves(packed: NDArray[Any]) -> NDArray[Any]:
    """Two levels of each byte, ``[N, bytes]`` → ``[N, 2 * bytes]``."""
    import numpy as np

    return np.stack([packed & _TOP, packed >> BITS], axis=-1).reshape(len(packed), -1)
