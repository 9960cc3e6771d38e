"""What an original said of held-out text, kept in files: it is asked once, however many candidates are held beside it.

Of every document its likelihoods and its likeliest tokens are kept, and the logarithms of all probabilities where there
is room for them: by those the divergence is known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.data.documents import Document
from optimizer.evaluate.generation import Score, Sliding
from optimizer.evaluate.logits import divergence, log_softmax, logits_of, parts_of, taken, targets_of
from optimizer.generator import Generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["bytes_of", "remember", "score_beside"]

#: ``each(first, last, log-probabilities, targets)`` of tokens that are scored, counted from the first of them.
_Each = Callable[[int, int, "NDArray[np.float64]", "NDArray[np.int64]"], None]


def bytes_of(document: Document, vocabulary: int) -> int:
    """What the logarithms of all probabilities of a document take, in float32."""
    return 4 * vocabulary * document.scored


def remember(generator: Generator, document: Document, sliding: Sliding, folder: Path, whole: bool) -> Score:
    """Score a document by the original, and keep what candidates are held against.

    Args:
        generator: the original.
        document: what it is asked.
        sliding: the windows.
        folder: made here; candidates read it by :func:`score_beside`.
        whole: keep all probabilities too (:func:`bytes_of`).

    Raises:
        GateFailed: logits are not finite.
    """
    import numpy as np

    folder.mkdir()
    count = document.scored
    likeliest = np.zeros(count, np.int64)
    logs = None
    if whole:
        logs = np.lib.format.open_memmap(
            folder / "logs.npy", mode="w+", dtype=np.float32, shape=(count, generator.vocabulary)
        )
    nll = 0.0

    def each(first: int, last: int, p: NDArray[np.float64], targets: NDArray[np.int64]) -> None:
        nonlocal nll
        nll -= float(taken(p, targets).sum())
        likeliest[first:last] = p.argmax(-1)
        if logs is not None:
            logs[first:last] = p

    _walk(generator, document, sliding, each)
    if logs is not None:
        logs.flush()
    np.save(folder / "likeliest.npy", likeliest)
    return Score(document.name, count, nll, nll, 0.0, count)


def score_beside(generator: Generator, document: Document, sliding: Sliding, folder: Path, nll: float) -> Score:
    """Score a document by a candidate, beside what the original said of it.

    Args:
        generator: the candidate.
        document: the same as :func:`remember` was given.
        sliding: the same windows.
        folder: what :func:`remember` wrote.
        nll: the original's, of :func:`remember`.

    Returns:
        the score; its divergence is NaN where not all probabilities were kept.

    Raises:
        GateFailed: logits are not finite.
    """
    import numpy as np

    likeliest = np.load(folder / "likeliest.npy")
    kept = folder / "logs.npy"
    logs = np.load(kept, mmap_mode="r") if kept.is_file() else None
    other, kl, same = 0.0, 0.0 if logs is not None else float("nan"), 0

    def each(first: int, last: int, q: NDArray[np.float64], targets: NDArray[np.int64]) -> None:
        nonlocal other, kl, same
        other -= float(taken(q, targets).sum())
        same += int((q.argmax(-1) == likeliest[first:last]).sum())
        if logs is not None:
            kl += float(divergence(logs[first:last].astype(np.float64), q).sum())

    _walk(generator, document, sliding, each)
    return Score(document.name, document.scored, nll, other, kl, same)


def _walk(generator: Generator, document: Document, sliding: Sliding, each: _Each) -> None:
    """Every scored token of a document once, some of them at a time."""
    done = 0
    for window in document.windows(sliding.window, sliding.stride):
        logits, targets = logits_of(generator, document, window), targets_of(document, window)
        for part in parts_of(len(targets)):
            each(done + part.start, done + part.stop, log_softmax(logits[part]), targets[part])
        done += len(targets)
