"""Golden inputs: a few real inputs kept beside every model, with the answers PyTorch gave to them.

They let a server prove itself before it is ready, a check run where PyTorch is not installed, and a sweep of shapes
be made of real values instead of random ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import Damaged
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

__all__ = ["GOLDEN_NAME", "Golden", "counts_rows", "is_batch", "is_sequence", "unpadded"]

GOLDEN_NAME = "golden.npz"
_IN, _OUT = "input/", "output/"
#: Parts of a symbolic dimension's name that say it counts steps along a sequence.
_SEQUENCE_WORDS = ("seq", "len", "time", "frames", "tokens", "samples")


def is_batch(dim: int | str) -> bool:
    """Whether a dimension counts rows."""
    return isinstance(dim, str) and ("batch" in dim.lower() or dim in ("N", "n", "B", "b"))


def is_sequence(dim: int | str) -> bool:
    """Whether a dimension counts steps along a sequence (tokens, audio samples, frames)."""
    return isinstance(dim, str) and not is_batch(dim) and any(word in dim.lower() for word in _SEQUENCE_WORDS)


def counts_rows(dim: int | str, place: int) -> bool:
    """Whether a dimension counts rows by its name, or by its place: an unnamed first dimension does."""
    return is_batch(dim) or (place == 0 and isinstance(dim, str) and not is_sequence(dim))


@dataclass(frozen=True)
class Golden:
    """Inputs and the reference's answers to them."""

    inputs: Arrays
    outputs: Arrays

    @classmethod
    def load(cls, folder: Path) -> Golden | None:
        """Read ``golden.npz`` of an artifact; None when it has none. Raises :class:`Damaged` for an unreadable one."""
        import numpy as np

        path = folder / GOLDEN_NAME
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
        except Exception as error:  # numpy raises zipfile's, zlib's and its own errors for a bad file
            raise Damaged(f"{path} cannot be read: {error}") from error
        return cls(
            {name.removeprefix(_IN): a for name, a in arrays.items() if name.startswith(_IN)},
            {name.removeprefix(_OUT): a for name, a in arrays.items() if name.startswith(_OUT)},
        )

    def save(self, folder: Path) -> None:
        """Write ``golden.npz``."""
        import numpy as np

        named: dict[str, Any] = {_IN + name: a for name, a in self.inputs.items()}
        named |= {_OUT + name: a for name, a in self.outputs.items()}
        np.savez_compressed(folder / GOLDEN_NAME, **named)

    def feeds(self, specs: Sequence[TensorSpec], batch: int, sequence: int, *, padded: bool = False) -> Arrays:
        """The golden values cut and repeated to another shape.

        Args:
            specs: the model's inputs. Dimensions that count rows (see :func:`counts_rows`) get ``batch``, those that
                count steps ``sequence``; all others keep the golden values' own size.
            batch: rows.
            sequence: steps.
            padded: give the rows different lengths, from the longest down to half of it, masked by
                ``attention_mask`` (no effect on a model without one).

        Returns:
            one array an input, with the values of the golden rows in their order.
        """
        import numpy as np

        mask = self._mask()
        out: Arrays = {}
        for spec in specs:
            values = self.inputs[spec.name]
            steps = [axis for axis, dim in enumerate(spec.shape) if is_sequence(dim)]
            if spec.shape and counts_rows(spec.shape[0], 0):
                rows = [self._row(values, row % len(values), mask, steps, sequence) for row in range(batch)]
                out[spec.name] = np.stack(rows).astype(values.dtype)
                continue
            for axis, dim in enumerate(spec.shape):
                if axis in steps or counts_rows(dim, axis):
                    values = _resized(values, axis, sequence if axis in steps else batch)
            out[spec.name] = values
        if mask is not None and "attention_mask" in out:
            self._pad(out, mask, padded)
        return out

    def _mask(self) -> NDArray[Any] | None:
        """The golden ``attention_mask`` ``[batch, sequence]``; None without one of that form."""
        mask = self.inputs.get("attention_mask")
        return mask if mask is not None and mask.ndim == 2 else None

    def _pad(self, out: Arrays, mask: NDArray[Any], padded: bool) -> None:
        """Write the mask anew, and padding where it is 0."""
        import numpy as np

        batch, steps = out["attention_mask"].shape
        lengths = np.full(batch, steps)
        if padded:
            lengths = np.maximum(1, steps - np.arange(batch) * steps // (2 * max(batch - 1, 1)))
        keep = np.arange(steps)[None, :] < lengths[:, None]
        for name, array in out.items():
            if name == "attention_mask":
                out[name] = keep.astype(array.dtype)
            elif array.shape == keep.shape:
                out[name] = np.where(keep, array, self._pad_value(name, mask)).astype(array.dtype)

    def _row(
        self, values: NDArray[Any], row: int, mask: NDArray[Any] | None, axes: list[int], sequence: int
    ) -> NDArray[Any]:
        """One golden row with its padding cut off, repeated or cut to ``sequence`` along its sequence axes."""
        import numpy as np

        kept: NDArray[Any] = values[row]
        for axis in axes:
            steps = np.arange(kept.shape[axis - 1])
            if mask is not None and mask.shape[1] == len(steps) and row < len(mask):
                steps = steps[mask[row].astype(bool)]
            kept = np.take(kept, np.resize(steps, sequence), axis=axis - 1)
        return kept

    def _pad_value(self, name: str, mask: NDArray[Any]) -> Any:
        """What this input holds where the golden rows are padded; 0 when none of them is."""
        values = self.inputs[name]
        hidden = values[mask == 0] if values.shape == mask.shape else values[:0]
        return hidden.flat[0] if hidden.size else values.dtype.type(0)


def _resized(values: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    import numpy as np

    return np.asarray(np.take(values, np.resize(np.arange(values.shape[axis]), size), axis=axis))


def unpadded(array: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which entries of an output belong to real input, as a mask of the output's own shape.

    An output counts as padded where it has the mask's batch and sequence as its first two dimensions.
    """
    import numpy as np

    mask = feeds.get("attention_mask")
    if mask is None or mask.ndim != 2 or array.ndim < 2 or array.shape[:2] != mask.shape[:2]:
        return np.ones(array.shape, dtype=bool)
    shape = (*mask.shape, *([1] * (array.ndim - 2)))
    return np.broadcast_to(mask.astype(bool).reshape(shape), array.shape)
