"""Rows from files: jsonl, json, csv, txt, parquet, npz, a folder of images, a saved Hugging Face dataset, a
calibration set.

Every reader answers with the same :class:`Row`, which knows where it stood, so that whoever finds fault with a row
later can still name it. A file with a bad row is refused as a whole: leaving rows out quietly would change what a
calibration or a measurement says.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.artifact import ROWS_NAMES, Artifact
from optimizer.data import binary
from optimizer.errors import BadInput
from optimizer.types import Kind

__all__ = ["FORMATS", "Row", "format_of", "kept_set", "read_kept", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        source: the file, or the folder, that it came from.
        number: its place there: the line in jsonl, csv (its header is line 1) and txt files; else counted from 1.
        values: column → value.
        by_role: columns are called what they are to the model (``text``, ``label``, an input's name), as those of a
            calibration set are: no other names have to be looked for.
    """

    source: Path
    number: int
    values: Mapping[str, Any]
    by_role: bool = False

    @property
    def base(self) -> Path:
        """The folder that relative paths in this row start from."""
        return self.source if self.source.is_dir() else self.source.parent

    def __str__(self) -> str:
        return f"{self.source}, row {self.number}"


class _BadRow(ValueError):
    """Why one row cannot be read."""


def read_rows(path: Path, *, limit: int | None = None) -> list[Row]:
    """Read the rows of a data file or folder.

    Args:
        path: the file; its suffix says the format (see :data:`FORMATS`). A folder is a saved Hugging Face dataset
            when it holds ``state.json``, a calibration set when it holds a manifest and rows, else a folder of images
            whose sub-folders are the labels.
        limit: stop after that many rows.

    Raises:
        BadInput: no such file, an unknown format, no rows, or rows that cannot be read (the first one is named).
        Damaged: a calibration set is not what its manifest says.
        MissingPiece: the format needs a package that is not installed.
    """
    if (kept := kept_set(path)) is not None:
        kept.check()
    return _rows(path, format_of(path), limit)


def read_kept(folder: Path) -> list[Row]:
    """The rows of a calibration set; one that has no manifest yet can be read too."""
    return _rows(folder, _KEPT_FORMAT)


def kept_set(path: Path) -> Artifact | None:
    """The calibration set in a folder; None where there is something else, or nothing.

    Raises:
        BadInput: the folder is an artifact of another kind, which holds no rows.
        Damaged: there are rows beside a manifest that cannot be read.
    """
    found = Artifact.found_in(path)
    if found is not None:
        found.expect(Kind.CALIBRATION)
    return found


def _rows(path: Path, name: str, limit: int | None = None) -> list[Row]:
    rows: list[Row] = []
    bad: list[tuple[Row, str]] = []
    by_role = name == _KEPT_FORMAT
    try:
        for number, values in _READERS[name](path):
            if limit is not None and len(rows) >= limit:
                break
            if isinstance(values, _BadRow):
                bad.append((Row(path, number, {}), str(values)))
            else:
                rows.append(Row(path, number, values, by_role))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    _refuse_bad(bad, len(rows) + len(bad))
    if not rows:
        raise BadInput(f"{path} has no rows")
    return rows


def _refuse_bad(bad: list[tuple[Row, str]], total: int) -> None:
    """Raise :class:`BadInput` naming the first bad row, why it is bad, and how many are; do nothing when none is.

    Args:
        bad: rows with what is wrong with each.
        total: how many rows were looked at.
    """
    if bad:
        row, reason = bad[0]
        more = f"; {len(bad)} of {total} rows are bad" if len(bad) > 1 else ""
        raise BadInput(f"{row}: {reason}{more}", "mend the file, or take those rows out of it")


def format_of(path: Path) -> str:
    """The name of a file's or folder's format, one of :data:`FORMATS`; raises :class:`BadInput` when it has none."""
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return "dataset"
        return _KEPT_FORMAT if kept_set(path) is not None else "images"
    if not path.exists():
        raise BadInput(f"no such file: {path}")
    suffix = path.suffix.lower().removeprefix(".")
    files = [name for name in _READERS if name not in _FOLDERS]
    if suffix not in files:
        raise BadInput(
            f"{path} is of no format that can be read: its name ends in {path.suffix or 'nothing'}",
            f"give a .{', .'.join(files)} file, a folder of images, or a dataset saved with save_to_disk",
        )
    return suffix


_Found = Iterator[tuple[int, Mapping[str, Any] | _BadRow]]


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BadRow(f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; a byte order mark is taken off the first."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if text:
                yield number, text


def _by_line(path: Path, parse: Callable[[str], dict[str, Any]]) -> _Found:
    for number, line in _lines(path):
        try:
            yield number, parse(_decoded(line))
        except _BadRow as reason:
            yield number, reason


def _json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadRow(f'a row is an object such as {{"text": …}}, and this is a {type(value).__name__}')
    return value


def _json_line(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise _BadRow(f"not JSON ({where})") from None
    return _json_object(value)


def _jsonl(path: Path) -> _Found:
    return _by_line(path, _json_line)


def _txt(path: Path) -> _Found:
    return _by_line(path, lambda text: {"text": text})


def _json(path: Path) -> _Found:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(data, list):
        raise BadInput(f"{path} should hold a list of objects, not a {type(data).__name__}")
    for number, value in enumerate(data, 1):
        try:
            yield number, _json_object(value)
        except _BadRow as reason:
            yield number, reason


def _csv(path: Path) -> _Found:
    # Surrogates carry bytes that are not UTF-8 through the parser, so that the row they are in can be named.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                with _long_fields():
                    fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, _BadRow(f"not CSV ({error})")
                continue
            if not fields:
                continue
            if header is None:
                header = _header(path, fields)
            elif len(fields) != len(header):
                yield number, _BadRow(f"{len(fields)} fields where the header has {len(header)}")
            elif any("\udc80" <= letter <= "\udcff" for field in fields for letter in field):
                yield number, _BadRow("not UTF-8")
            else:
                yield number, dict(zip(header, fields, strict=True))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be longer than the parser's 128 KiB: documents are. The limit is the process's, so put it back."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(path: Path, fields: list[str]) -> list[str]:
    if len(set(fields)) != len(fields):
        twice = next(name for name in fields if fields.count(name) > 1)
        raise BadInput(f"{path}: two columns are called {twice!r}")
    return fields


def _kept(path: Path) -> _Found:
    plain, arrays = (path / name for name in ROWS_NAMES)
    return _jsonl(plain) if plain.is_file() else binary.npz(arrays)


#: What a manifest calls the format of a calibration set.
_KEPT_FORMAT = "calibration-set"
_READERS: dict[str, Callable[[Path], _Found]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "txt": _txt,
    "parquet": binary.parquet,
    "npz": binary.npz,
    "images": binary.images,
    "dataset": binary.dataset,
    _KEPT_FORMAT: _kept,
}
_FOLDERS = ("images", "dataset", _KEPT_FORMAT)

#: Every format by the name that a manifest records.
FORMATS = tuple(_READERS)
