"""What calibrating came to, kept in the store's private folder for the next variant of the same model.

Variants of static int8 run the same rows through the same graph: those that leave nodes in float need the ranges of
the one that leaves none, and those that are smoothed need the same search for alpha. An answer is found by the sha256
of all that it depends on, and holds its own sha256, so that half a file is no answer. Losing any of it costs time and
nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.digest import digest_json
from optimizer.layout import Layout
from optimizer.quantizing.prepare import digest_proto
from optimizer.types import JSON

__all__ = ["Kept"]

#: Bytes of all answers together: those that were not asked for longest go first.
_MOST = 64 * 2**20
#: Bytes of one answer; a larger one would leave too little room for others.
_LARGEST = 16 * 2**20
_SUM = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Kept:
    """Answers about graphs on one set of rows.

    Attributes:
        folder: where they lie; None keeps nothing.
        about: what every answer depends on beside the graph.
    """

    folder: Path | None = None
    about: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def beside(cls, scratch: Path, about: Mapping[str, JSON]) -> Kept:
        """The answers of the store whose scratch folder a stage writes to; outside of a store nothing is kept."""
        layout = Layout.around(scratch)
        return cls(layout.calibrated if layout is not None else None, about)

    def recall(self, question: str, graph: Path, answer: Callable[[], bytes], **more: JSON) -> bytes:
        """The answer to a question, worked out where it is not known.

        Two processes that ask the same at once both work it out, and the second replaces the first one's by the same.

        Args:
            question: what is asked.
            graph: what :func:`optimizer.quantizing.prepare.save_proto` wrote; its content is what counts.
            answer: works it out.
            more: what else it depends on.
        """
        if self.folder is None:
            return answer()
        path = self.folder / digest_json({"question": question, "graph": digest_proto(graph), **self.about, **more})
        known = _read(path)
        if known is None:
            known = answer()
            _write(path, known)
        return known


def _read(path: Path) -> bytes | None:
    """What is kept in a file; None where there is none, or not all of it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a store may be one that is only read from
        os.utime(path)
    known = data[_SUM:]
    return known if hashlib.sha256(known).digest() == data[:_SUM] else None


def _write(path: Path, known: bytes) -> None:
    """Keep an answer, whole or not at all; a store that cannot be written to is left as it is."""
    if len(known) > _LARGEST:
        return
    temp = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(fd, "wb") as handle:
            handle.write(hashlib.sha256(known).digest() + known)
        os.replace(temp, path)
        _make_room(path.parent)
    except OSError:
        if temp is not None:
            with contextlib.suppress(OSError):
                os.unlink(temp)


def _make_room(folder: Path) -> None:
    """Remove what was not asked for longest, what a killed process left half-written included."""
    found = sorted(((each.stat(), each) for each in folder.iterdir()), key=lambda each: -each[0].st_mtime_ns)
    size = 0
    for stat, path in found:
        size += stat.st_size
        if size > _MOST:
            path.unlink(missing_ok=True)
