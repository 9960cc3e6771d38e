"""Magika, a model that somebody else made: its ONNX file, and rows for it from files that every machine has.

    python benchmarks/file_types.py [FOLDER]

writes ``eval.npz`` and ``calib.npz`` (default: .cache/file-types in the repository): an array ``bytes`` int32
``[rows, 2048]``, named as the model's input. The files are those of this Python: its standard library and what is
installed into it; so rows differ between machines, and reports carry their sha256.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / ".cache" / "file-types"

EVAL_ROWS = 1200
CALIB_ROWS = 200
SEED = 0
#: So that rows are not all Python: files of one suffix, at most.
_OF_ONE_SUFFIX = 150
#: The layout is Magika's own (``beg_size``, ``end_size``, ``block_size`` and ``padding_token`` of its configuration).
_HALF, _BLOCK, _PADDING = 1024, 4096, 256
#: Magika itself asks the model about nothing smaller.
_SMALLEST = 8


def magika_file() -> Path:
    """The ONNX file of the package magika (`make install` brings it): int32 ``[rows, 2048]`` → 214 scores."""
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        raise SystemExit("the package magika is not installed; run: make install")
    return next((Path(spec.origin).parent / "models").glob("*/model.onnx"))


def file_rows(folder: Path = DEFAULT) -> tuple[Path, Path]:
    """The evaluation and the calibration rows, written unless they are there; no content is in both."""
    import numpy as np

    found = folder / "eval.npz", folder / "calib.npz"
    if all(path.is_file() for path in found):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(dict.fromkeys(features(_ends(path)) for path in _files()))
    random.Random(SEED).shuffle(rows)
    for path, part in zip(found, (rows[CALIB_ROWS:][:EVAL_ROWS], rows[:CALIB_ROWS]), strict=True):
        np.savez_compressed(path, bytes=np.array(part, np.int32))
    return found


def features(content: bytes) -> tuple[int, ...]:
    """The first and last 1,024 bytes of a file, as Magika takes them.

    Of the first 4,096 bytes the white space in front is dropped, of the last 4,096 that behind; what is then lacking
    is filled with 256, after the beginning and before the end.
    """
    first = content[:_BLOCK].lstrip()[:_HALF]
    last = content[-_BLOCK:].rstrip()[-_HALF:]
    pad = (_PADDING,)
    return (*first, *pad * (_HALF - len(first)), *pad * (_HALF - len(last)), *last)


def _ends(path: Path) -> bytes:
    """The blocks of a file that its features are made from; libraries are too large to be read whole."""
    with path.open("rb") as handle:
        size = path.stat().st_size
        if size <= 2 * _BLOCK:
            return handle.read()
        first = handle.read(_BLOCK)
        handle.seek(size - _BLOCK)
        return first + handle.read()


def _files() -> Iterator[Path]:
    """Files of this Python, in the order of their names, so many of each suffix."""
    of_suffix: dict[str, list[Path]] = {}
    for root in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platlib")):
        for path in sorted(Path(root).rglob("*")):
            if path.is_file() and path.stat().st_size >= _SMALLEST:
                of_suffix.setdefault(path.suffix.lower(), []).append(path)
    for suffix in sorted(of_suffix):
        # Spread over the names: neighbours are alike.
        paths = of_suffix[suffix]
        yield from paths[:: -(-len(paths) // _OF_ONE_SUFFIX)]


if __name__ == "__main__":
    for path in file_rows(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT):
        print(path)
