"""From a decoder's logits to numbers of tokens: what each was predicted by, its likelihood, how far two are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optimizer.data.documents import Document, Window
from optimizer.errors import GateFailed
from optimizer.generator import Generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["divergence", "log_softmax", "logits_of", "parts_of", "taken", "targets_of"]

#: Rows of logits that are made into probabilities at once: 128 of a vocabulary of 128 thousand are 128 MiB.
_AT_ONCE = 128


def logits_of(generator: Generator, document: Document, window: Window) -> NDArray[np.float32]:
    """What the scored tokens of a window were predicted by, ``[scored, vocabulary]``.

    Raises:
        GateFailed: logits are not finite.
    """
    import numpy as np

    tokens = np.array([document.tokens[window.begin : window.end]], np.int64)
    before = window.first - 1 - window.begin
    if document.read:  # an answer may take all places that there are, and its last token needs none
        logits = generator.score(tokens[:, :-1], np.array([document.read], np.int64))[0, before:]
    else:
        logits = generator.score(tokens)[0, before:-1]
    if not np.isfinite(logits.max(-1)).all():
        raise GateFailed(f"{document.name}: the logits of {generator.facts.get('runtime', 'a decoder')} are not finite")
    return logits


def targets_of(document: Document, window: Window) -> NDArray[np.int64]:
    """The tokens of a window that are scored."""
    import numpy as np

    return np.array(document.tokens[window.first : window.end], np.int64)


def parts_of(count: int) -> Iterator[slice]:
    """So many rows in parts that memory has room for."""
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, count))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, the logarithms of the probabilities, nats."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, Σ p ln(p / q); a token that cannot come adds nothing. Rounding may take a sum of 0 below it."""
    import numpy as np

    apart = np.subtract(p, q, out=np.zeros_like(p), where=np.isfinite(p))
    found: NDArray[np.float64] = np.maximum((np.exp(p) * apart).sum(-1), 0.0)
    return found


def taken(logs: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each row the one number that its target has."""
    import numpy as np

    return np.take_along_axis(logs, targets[:, None], axis=-1)[:, 0]
