"""Rows from the formats that have no lines: npz, parquet, saved datasets and folders of images.

Each reader yields ``(number, values)`` for :func:`optimizer.data.readers.read_rows`.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, missing_package

__all__ = ["IMAGE_SUFFIXES", "dataset", "images", "npz", "parquet"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_Found = Iterator[tuple[int, Mapping[str, Any]]]


def npz(path: Path) -> _Found:
    np = _numpy(path)
    try:
        # Never unpickle: an .npz of objects could run anything.
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(
            f"{path} is no archive of plain arrays: {error}", "write it with numpy.savez(name=array)"
        ) from None
    if any(array.ndim == 0 for array in arrays.values()):
        single = next(name for name, array in arrays.items() if array.ndim == 0)
        raise BadInput(f"{path}: {single!r} is a single number; the first axis of every array counts the rows")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BadInput(
            f"{path}: arrays differ in their number of rows: " + ", ".join(f"{k} {v}" for k, v in lengths.items()),
            "the first axis of every array counts the rows",
        )
    for index in range(next(iter(lengths.values()), 0)):
        yield index + 1, {name: array[index] for name, array in arrays.items()}


def _numpy(path: Path) -> Any:
    try:
        import numpy
    except ImportError:
        raise missing_package("numpy", f"reading {path.name}") from None
    return numpy


def _arrow(path: Path, batches: Callable[[Any], Iterable[Any]]) -> _Found:
    """Rows of Arrow record batches, whatever they come from; the library's errors become ours."""
    try:
        import pyarrow
    except ImportError:
        raise missing_package("pyarrow", f"reading {path.name}") from None
    number = 0
    try:
        for batch in batches(pyarrow):
            for values in batch.to_pylist():
                number += 1
                yield number, values
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def parquet(path: Path) -> _Found:
    def batches(_: Any) -> Iterable[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024)

    return _arrow(path, batches)


def dataset(path: Path) -> _Found:
    """A dataset saved with ``save_to_disk``: Arrow streams, and ``state.json`` that lists them."""
    splits_file = path / "dataset_dict.json"
    try:
        if splits_file.is_file():
            splits = json.loads(splits_file.read_text(encoding="utf-8"))["splits"]
            raise BadInput(f"{path} holds several splits: {', '.join(splits)}", f"give one of them: {path / splits[0]}")
        files = [
            path / str(entry["filename"]) for entry in json.loads((path / "state.json").read_bytes())["_data_files"]
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"{path} is no saved dataset: {error!r} in its state") from None
    for file in files:
        if not file.is_file():
            raise BadInput(f"{path} is not whole: {file.name} is missing")

    def batches(pyarrow: Any) -> Iterable[Any]:
        for file in files:
            with pyarrow.OSFile(str(file), "rb") as handle, pyarrow.ipc.open_stream(handle) as stream:
                yield from stream

    return _arrow(path, batches)


def images(path: Path) -> _Found:
    """Images in the order of their names; the first sub-folder on the way to one is its label."""
    found = sorted(
        str(file.relative_to(path))
        for folder, _, names in os.walk(path)
        for name in names
        if (file := Path(folder) / name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )
    if not found:
        raise BadInput(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}) and is no saved dataset")
    for number, name in enumerate(found, 1):
        parts = Path(name).parts
        yield number, {"image": name, **({"label": parts[0]} if len(parts) > 1 else {})}
