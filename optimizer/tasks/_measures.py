"""How two answers to the same inputs are compared, one number a row.

Three rules hold everywhere:

- Padding never counts: where an output has the sequence axis of ``attention_mask``, only positions with mask 1 are
  compared.
- What is not finite is never dropped. Infinities at the same place and of the same sign are equal (models write
  ``-inf`` for "impossible"); a row with any other NaN or infinity, on either side, has the cosine :data:`NOT_FINITE`,
  the worst there is, and a NaN agrees on no decision.
- A zero vector has no direction: its cosine is 1 to another zero vector and 0 to anything else.

The KL divergence (Kullback and Leibler, *Ann. Math. Stat.* 22, 1951, 79-86) is that of the candidate's shares of
classes from the original's: it sees what cosine and top-1 miss, how sure an answer is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, GateFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Arrays = Mapping[str, Array]

__all__ = [
    "FARTHEST",
    "NOT_FINITE",
    "agreement",
    "cosine",
    "cosines",
    "divergence",
    "divergences",
    "highest",
    "lowest",
    "pair",
    "pick",
    "real_rows",
    "top1",
]

#: Cosine of a row that holds a NaN, or an infinity that the other side has not: opposite, so that every gate sees it.
NOT_FINITE = -1.0

#: The largest KL divergence there is, in nats: a class that is certain here has there the smallest share that a double
#: can hold. Rows with a NaN, or an infinity that the other side has not, get it too.
FARTHEST = 745.0

_MASK = "attention_mask"


def pick(outputs: Arrays, names: Sequence[str], task: str) -> str:
    """The first of ``names`` that a model answers with; raises :class:`BadInput` when there is none."""
    for name in names:
        if name in outputs:
            return name
    found = ", ".join(outputs) or "nothing"
    raise BadInput(
        f"a model for {task} should answer with {' or '.join(names)}, and this one answers with {found}",
        "export it with another --task, or with --task generic",
    )


def pair(reference: Arrays, candidate: Arrays, name: str) -> tuple[Array, Array]:
    """One output of both sides; raises :class:`GateFailed` when it is missing from one or differs in shape."""
    if name not in candidate:
        raise GateFailed(f"the candidate has no output {name}; it has {', '.join(candidate) or 'none'}")
    a, b = reference[name], candidate[name]
    if a.shape != b.shape:
        raise GateFailed(f"output {name} is {list(b.shape)} in the candidate and {list(a.shape)} in the reference")
    return a, b


def real_rows(output: Array, feeds: Arrays) -> Iterator[Array]:
    """Each row of an output without its padding.

    An output ``[rows, sequence, …]`` as long as the mask loses the positions where the mask is 0. One that is shorter
    comes from a model that shortens its input (a stack of convolutions over sound): it keeps the same share of frames,
    counted down, at least one. Any other output has no padding.
    """
    import numpy as np

    mask = feeds.get(_MASK)
    if mask is None or mask.ndim != 2 or output.ndim < 2 or len(mask) != len(output):
        yield from output
        return
    have, width = output.shape[1], mask.shape[1]
    if have == width:
        if mask.all():
            yield from output
            return
        for row, keep in zip(output, mask.astype(bool), strict=True):
            yield row[keep]
    elif output.ndim >= 3 and "input_values" in feeds and have < width:
        for row, keep in zip(output, mask.astype(bool), strict=True):
            yield row[: max(1, have * int(np.count_nonzero(keep)) // width)]
    else:
        yield from output


def cosine(a: Array, b: Array) -> float:
    """Cosine of two arrays of one shape, flattened, in double precision.

    A single number has a sign and no direction, so that a regression would always score 1: numbers ``x`` and ``y`` are
    compared as the vectors ``(x, 1)`` and ``(y, 1)``.
    """
    import numpy as np

    x, y = _doubles(a), _doubles(b)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.all():
        if not ((x == y) | finite).all():
            return NOT_FINITE
        x, y = x[finite], y[finite]
    elif x.size == 1:
        x, y = np.append(x, 1.0), np.append(y, 1.0)
    # Scaled to a largest entry of 1, so that no square overflows or vanishes.
    high = float(np.max(np.abs(x), initial=0.0)), float(np.max(np.abs(y), initial=0.0))
    if 0.0 in high:
        return 1.0 if high == (0.0, 0.0) else 0.0
    x, y = x / high[0], y / high[1]
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _doubles(a: Array) -> NDArray[np.float64]:
    import numpy as np

    flat: NDArray[np.float64] = np.ravel(a).astype(np.float64)
    return flat


def cosines(a: Array, b: Array, feeds: Arrays) -> NDArray[np.float64]:
    """Cosine of each row of two outputs, padding left out."""
    import numpy as np

    return np.array([cosine(x, y) for x, y in zip(real_rows(a, feeds), real_rows(b, feeds), strict=True)])


def _nan(a: Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = a != a
    return found


def agreement(a: Array, b: Array) -> float:
    """Share of positions ``[…, classes]`` whose largest class is the same; a position with a NaN disagrees.

    Where there is no position, nothing disagrees: 1.
    """
    import numpy as np

    if not a.size:
        return 1.0
    same = np.argmax(a, axis=-1) == np.argmax(b, axis=-1)
    sound = ~(_nan(a) | _nan(b)).any(axis=-1)
    return float(np.mean(same & sound))


def top1(a: Array, b: Array, feeds: Arrays) -> NDArray[np.float64]:
    """:func:`agreement` of each row, padding left out."""
    import numpy as np

    return np.array([agreement(x, y) for x, y in zip(real_rows(a, feeds), real_rows(b, feeds), strict=True)])


def divergence(a: Array, b: Array) -> float:
    """KL divergence of ``b`` from ``a`` in nats: logits ``[…, classes]``, shares by softmax, mean over positions.

    Classes that ``a`` calls impossible (``-inf``) count nothing. Where there is no position, nothing differs: 0.
    """
    import numpy as np

    if not a.size:
        return 0.0
    x, y = (np.asarray(side, np.float64) for side in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    if not ((x == y) | finite).all():
        return FARTHEST
    # A position where every class is impossible has no shares, on either side.
    with np.errstate(invalid="ignore"):
        p, q = (_log_shares(side) for side in (x, y))
        share = np.exp(p)
        parts = np.where(share > 0, share * (p - np.maximum(q, -FARTHEST)), 0.0)
    return float(np.clip(parts.sum(axis=-1), 0.0, FARTHEST).mean())


def _log_shares(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of softmax over the last axis."""
    import numpy as np

    moved = logits - logits.max(axis=-1, keepdims=True)
    shares: NDArray[np.float64] = moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True))
    return shares


def divergences(a: Array, b: Array, feeds: Arrays) -> NDArray[np.float64]:
    """:func:`divergence` of each row, padding left out."""
    import numpy as np

    return np.array([divergence(x, y) for x, y in zip(real_rows(a, feeds), real_rows(b, feeds), strict=True)])


def highest(measures: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Row by row, the largest of several measures."""
    import numpy as np

    most: NDArray[np.float64] = np.max(np.stack(measures), axis=0)
    return most


def lowest(measures: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Row by row, the worst of several measures."""
    import numpy as np

    worst: NDArray[np.float64] = np.min(np.stack(measures), axis=0)
    return worst
