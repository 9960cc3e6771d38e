"""Names made of content: sha256 of a file, a folder and a mapping, and the one canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from optimizer.types import JSON

__all__ = ["DigestCache", "canonical_json", "digest_file", "digest_json", "digest_tree"]


def canonical_json(value: JSON) -> str:
    """The one spelling of a JSON value: keys sorted, no spaces, UTF-8 kept, NaN refused (RFC 8785 in spirit).

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: JSON) -> str:
    """sha256 (64 hex digits) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes, read in blocks so that a file larger than memory is no problem."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_tree(root: Path, files: Iterable[Path], of: Callable[[Path], str] = digest_file) -> str:
    """sha256 of a set of files under ``root``: of their relative names and contents, whatever their order."""
    return digest_json({str(f.relative_to(root)): of(f) for f in files})


#: Two writes within one tick of the kernel's clock leave the same ctime (a tick is at most 10 ms).
_TICK_NS = 50_000_000


class DigestCache:
    """File digests remembered by (device, inode, size, mtime, ctime), so that a cached step need not read gigabytes.

    The key holds ctime, which a program cannot set back, so that an edited file with a restored mtime is read
    again; it holds no path, so that a folder renamed into the store keeps its digests. ``ml-opt check`` never asks
    this cache. Losing the cache file costs time and nothing else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self._dirty = False
        if path is not None:
            try:
                loaded = json.loads(path.read_text())
                self._known = {str(k): str(v) for k, v in loaded.items()} if isinstance(loaded, Mapping) else {}
            except (OSError, ValueError):
                self._known = {}

    def __call__(self, path: Path) -> str:
        """sha256 of the file, from the cache when nothing about it has changed."""
        stat = os.stat(path)
        name = _identity(stat)
        found = self._known.get(name)
        if found is None:
            read_at = time.time_ns()
            found = digest_file(path)
            # A file that changed while it was read, or so lately that the next change would leave the same times,
            # must be read again next time.
            settled = _identity(os.stat(path)) == name and read_at - stat.st_ctime_ns > _TICK_NS
            if settled:
                self._remember(name, found)
        return found

    def recall(self, question: str, answer: Callable[[], str]) -> str:
        """The answer to a question about content alone, worked out once.

        Args:
            question: must hold the digest of everything that the answer depends on.
            answer: called when the question is new.
        """
        found = self._known.get(question)
        if found is None:
            found = answer()
            self._remember(question, found)
        return found

    def _remember(self, name: str, value: str) -> None:
        self._known[name] = value
        self._dirty = True

    def save(self) -> None:
        """Write what was learnt, whole or not at all; a store that cannot be written to is left as it is."""
        if self._path is None or not self._dirty:
            return
        keep = dict(list(self._known.items())[-4096:])
        temp = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd, temp = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
            with os.fdopen(fd, "w") as handle:
                json.dump(keep, handle)
            os.replace(temp, self._path)
        except OSError:
            if temp is not None:
                Path(temp).unlink(missing_ok=True)
            return
        self._dirty = False


def _identity(stat: os.stat_result) -> str:
    return f"{stat.st_dev}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
