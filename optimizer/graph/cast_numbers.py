"""What becomes of a tensor's numbers in 16 bits: looked at first, converted when the file is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.types import Precision

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["LowFormat", "Numbers"]

#: Numbers looked at at once: a tensor that is mapped from disk is never held whole.
_CHUNK = 1 << 20

#: No weight is this large: such a number means "minus infinity, but finite" (``torch.finfo(float32).min``).
_MASK_FILL = 1e30

#: Older models fill with -1e9 or -1e8; that is told from a weight by standing alone.
_LONE_MASK_FILL = -1e7


@dataclass(frozen=True)
class Numbers:
    """How a tensor's numbers fare in 16 bits.

    Attributes:
        size: how many there are.
        mask_fills: finite stand-ins for infinity; they get a large finite number of the new format.
        out_of_range: other finite numbers that would become infinite.
        subnormal: those that keep fewer digits because they are tiny.
        zeroed: those that would become zero.
    """

    size: int
    mask_fills: int
    out_of_range: int
    subnormal: int
    zeroed: int

    @property
    def fits(self) -> bool:
        """Whether the tensor may be cast: nothing turns infinite, and it is not an epsilon that would be zero."""
        return not self.out_of_range and not (self.size and self.zeroed == self.size)


class LowFormat:
    """A 16-bit float format: fp16 (5 bits of exponent, largest 65,504) or bf16 (8 bits, the range of fp32)."""

    def __init__(self, to: Precision) -> None:
        import ml_dtypes
        import numpy as np
        import onnx_ir

        dtypes = {
            Precision.FP16: (onnx_ir.DataType.FLOAT16, np.float16),
            Precision.BF16: (onnx_ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        }
        self.precision = to
        self.dtype, self._numpy = dtypes[to]
        info: Any = ml_dtypes.finfo(self._numpy)  # type: ignore[no-untyped-call]
        self.largest = float(info.max)
        self._smallest_normal = float(info.smallest_normal)

    @property
    def tensor_type(self) -> str:
        """How operator schemas spell a tensor of it."""
        return f"tensor({self.dtype.name.lower()})"

    def look(self, tensor: onnx_ir.TensorProtocol) -> Numbers:
        """Count what would happen to a float32 tensor's numbers."""
        import numpy as np

        size = fills = out = tiny = zeroed = 0
        for numbers, low in self._chunks(tensor):
            magnitude = np.abs(numbers)
            fill = self._is_fill(numbers, low, tensor.size)
            size += numbers.size
            fills += int(fill.sum())
            out += int((np.isinf(low) & np.isfinite(numbers) & ~fill).sum())
            tiny += int(((low != 0) & (magnitude < self._smallest_normal)).sum())
            zeroed += int(((low == 0) & (magnitude > 0)).sum())
        return Numbers(size, fills, out, tiny, zeroed)

    def lower(self, tensor: onnx_ir.TensorProtocol, fill: float) -> onnx_ir.LazyTensor:
        """The tensor in this format, converted each time it is asked for and kept by nobody.

        Args:
            tensor: float32.
            fill: magnitude that mask fills get.
        """
        import numpy as np
        import onnx_ir

        def convert() -> onnx_ir.Tensor:
            result = np.empty(tensor.size, self._numpy)
            done = 0
            for numbers, low in self._chunks(tensor):
                filled = np.where(self._is_fill(numbers, low, tensor.size), np.copysign(fill, numbers), numbers)
                result[done : done + numbers.size] = filled.astype(self._numpy)
                done += numbers.size
            return onnx_ir.Tensor(result.reshape(tensor.shape.numpy()), name=tensor.name)

        return onnx_ir.LazyTensor(convert, dtype=self.dtype, shape=tensor.shape, name=tensor.name)

    def _chunks(self, tensor: onnx_ir.TensorProtocol) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Pieces of a tensor, and the same pieces after a round trip through this format, both float32."""
        import numpy as np

        flat = tensor.numpy().reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            numbers = flat[start : start + _CHUNK]
            with np.errstate(over="ignore", under="ignore"):
                yield numbers, numbers.astype(self._numpy).astype(np.float32)

    def _is_fill(self, numbers: NDArray[Any], low: NDArray[Any], size: int) -> NDArray[Any]:
        import numpy as np

        huge = np.abs(numbers) > _MASK_FILL
        if size == 1:
            huge |= numbers < _LONE_MASK_FILL
        return np.asarray(huge & np.isfinite(numbers) & np.isinf(low))
