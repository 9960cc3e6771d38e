"""Inputs made of nothing but a model's signature: for files that came without examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optimizer.data.golden import is_batch, is_sequence
from optimizer.errors import BadInput
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["symbol_sizes", "synthetic_feeds"]

#: Whole numbers stay below this where nothing else is known: any embedding table has two rows.
_SAFE_HIGH = 1


def symbol_sizes(specs: Sequence[TensorSpec], batch: int, sequence: int) -> dict[str, int]:
    """A size for every named dimension of some inputs.

    A name that says so is the batch or the sequence. Names that say nothing (``s18``, ``dim_0``) are taken by their
    place: first is the batch, second the sequence, and any other is 1.

    Args:
        specs: the inputs.
        batch: rows.
        sequence: tokens, samples or frames.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        for place, dim in enumerate(spec.shape):
            if not isinstance(dim, str) or dim in sizes:
                continue
            if is_batch(dim) or (place == 0 and not is_sequence(dim)):
                sizes[dim] = batch
            elif is_sequence(dim) or (place == 1 and len(spec.shape) == 2):
                sizes[dim] = sequence
            else:
                sizes[dim] = 1
    return sizes


def synthetic_feeds(
    specs: Sequence[TensorSpec],
    batch: int,
    sequence: int,
    seed: int,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Seeded values in a range that is safe for each input.

    Masks are ones, type ids zeros and position ids 0, 1, 2, …; other whole numbers are uniform within their limits
    (0 to 1 without any), and floating-point numbers uniform within theirs (standard normal without any).

    Args:
        specs: the inputs; see :func:`symbol_sizes` for how their named dimensions are filled.
        batch: rows.
        sequence: tokens, samples or frames.
        seed: the same seed gives the same arrays; an input's values do not depend on the other inputs.
        limits: input name → smallest and largest value, both included.

    Raises:
        BadInput: an input is text, or has a type that numbers cannot be made for.
    """
    import numpy as np

    sizes = symbol_sizes(specs, batch, sequence)
    feeds: dict[str, NDArray[np.generic]] = {}
    for spec in specs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        own_seed = [seed, *spec.name.encode()]
        feeds[spec.name] = _values(spec, shape, np.random.default_rng(own_seed), (limits or {}).get(spec.name))
    return feeds


def _values(
    spec: TensorSpec, shape: tuple[int, ...], random: np.random.Generator, limit: tuple[float, float] | None
) -> NDArray[np.generic]:
    import numpy as np

    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise BadInput(f"no values can be made up for input {spec.name!r} of type {spec.dtype}") from None
    name = spec.name.lower()
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if "type_id" in name or "segment" in name:
            return np.zeros(shape, dtype)
        if "position" in name:
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(dtype)
        low, high = limit or (0, _SAFE_HIGH)
        return random.integers(math.ceil(low), math.floor(high), shape, endpoint=True).astype(dtype)
    if dtype.kind == "f":
        if limit is not None:
            return random.uniform(limit[0], limit[1], shape).astype(dtype)
        return random.standard_normal(shape).astype(dtype)
    raise BadInput(f"no values can be made up for input {spec.name!r} of type {spec.dtype}")
