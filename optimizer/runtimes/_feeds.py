"""What every runtime checks before it hands arrays to a library, so that the error names the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, UnknownName
from optimizer.types import TensorSpec, dtype_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Limits", "check_feeds"]

#: The manifest's ``limits``: input name → smallest and largest allowed value, both included.
Limits = Mapping[str, Sequence[float]]
_UNSIGNED = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[np.generic]], limits: Limits) -> None:
    """Refuse feeds that do not answer the inputs.

    Beside names, element types, ranks and fixed dimensions, dimensions of the same name must be equal and whole
    numbers must be within the model's limits: OpenVINO takes a short attention mask or a token id beyond the
    vocabulary without a word, and answers nonsense.

    Args:
        specs: the model's inputs.
        feeds: arrays by input name.
        limits: of whole-number inputs; those of other inputs say what is sensible, not what is possible.

    Raises:
        BadInput: an input is missing, has the wrong element type, or a shape that cannot be.
        UnknownName: an array is given for an input that the model does not have.
    """
    names = [spec.name for spec in specs]
    for name in feeds:
        if name not in names:
            raise UnknownName("input", name, names)
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        array = feeds.get(spec.name)
        if array is None:
            raise BadInput(f"input {spec.name!r} is missing", f"this model takes: {', '.join(names)}")
        if (given := dtype_name(array.dtype)) != spec.dtype:
            raise BadInput(f"input {spec.name!r} takes {spec.dtype}, not {given}")
        if spec.name in limits and array.dtype.kind in "iu" and array.size:
            low, high = limits[spec.name]
            if not _within(array, low, high):
                least, most = array.min(), array.max()
                wrong = least if least < low else most
                raise BadInput(f"input {spec.name!r} holds {wrong}; the model takes {low:g} to {high:g}")
        if array.ndim != len(spec.shape):
            wanted = " × ".join(map(str, spec.shape)) or "a scalar"
            raise BadInput(f"input {spec.name!r} takes {len(spec.shape)} dimensions ({wanted}), not {array.ndim}")
        for axis, (want, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
            if isinstance(want, int):
                if want != got:
                    raise BadInput(f"input {spec.name!r} has {got} in dimension {axis}; the model takes only {want}")
                continue
            size, owner = sizes.setdefault(want, (got, spec.name))
            if size != got:
                raise BadInput(
                    f"input {spec.name!r} has {got} in dimension {axis} ({want}), but {owner!r} has {size} there"
                )


def _within(array: NDArray[np.generic], low: float, high: float) -> bool:
    """Whether no whole number of a filled array is outside; one look at each number where the least one is 0.

    What is negative is huge to whoever reads its bits without a sign.
    """
    if low == 0 and array.dtype.kind == "i":
        array = array.view(_UNSIGNED[array.dtype.itemsize])
    elif array.min() < low:
        return False
    return bool(array.max() <= high)
