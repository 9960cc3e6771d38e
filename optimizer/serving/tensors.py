"""Tensors of the Open Inference Protocol V2, in JSON and as raw bytes, into numpy's and back."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.serving.problems import Problem
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

__all__ = ["DATATYPES", "datatype", "from_bytes", "from_json", "shape_of", "to_bytes", "to_json"]

#: V2's name of an element type → ours (numpy's, and ``object`` for strings).
DATATYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "object",
}
_NAMES = {ours: name for name, ours in DATATYPES.items()}
#: What numpy makes of the numbers in a JSON array → the element types that may be sent so.
_KINDS = {"b": "b", "i": "iuf", "u": "iuf", "f": "f"}
_MOST_DIMENSIONS = 32


def datatype(dtype: str) -> str:
    """V2's name of one of our element types."""
    return _NAMES[dtype]


def shape_of(value: JSON, where: str) -> tuple[int, ...]:
    """A shape as a request has it: whole numbers that are not negative.

    Raises:
        Problem: 400.
    """
    if not isinstance(value, list) or not all(type(dim) is int and dim >= 0 for dim in value):
        raise Problem(400, f"{where}: shape should be a list of whole numbers that are not negative", param=where)
    if len(value) > _MOST_DIMENSIONS:
        raise Problem(400, f"{where}: shape has {len(value)} dimensions; at most {_MOST_DIMENSIONS} are taken")
    return tuple(value)


def from_json(data: JSON, name: str, shape: tuple[int, ...], where: str) -> Array:
    """The array that a request's ``data`` holds, flat or nested, in row-major order.

    Args:
        data: numbers, booleans or strings in lists.
        name: V2's name of the element type.
        shape: of the array.
        where: what an error calls it.

    Raises:
        Problem: 400: other values than the type has, another number of them than the shape says, ragged lists.
    """
    import numpy as np

    if not isinstance(data, list):
        raise Problem(400, f"{where}: data should be a list", param=where)
    if name == "BYTES":
        return _strings(_flat(data), shape, where)
    if name == "BF16":
        raise Problem(400, f"{where}: BF16 has no form in JSON; send it as binary data", param=where)
    dtype = np.dtype(DATATYPES[name])
    try:
        found = np.asarray(data)
        if dtype.kind in "iu" and found.dtype.kind in "fO" and all(type(each) is int for each in _flat(data)):
            found = np.asarray(data, dtype)  # numpy takes a list with numbers beyond int64 for floats
    except ValueError:
        raise Problem(400, f"{where}: data is no array: its lists differ in length", param=where) from None
    except OverflowError:
        raise Problem(400, f"{where}: data holds numbers beyond {name}", param=where) from None
    if found.size and dtype.kind not in _KINDS.get(found.dtype.kind, ""):
        raise Problem(400, f"{where}: data holds what {name} cannot hold", param=where)
    _need_size(found.size, shape, where)
    if found.ndim > 1 and found.shape != shape:
        raise Problem(400, f"{where}: data is nested as {list(found.shape)}, and shape says {list(shape)}", param=where)
    if found.size and dtype.kind in "iu" and found.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise Problem(400, f"{where}: data holds numbers beyond {name}", param=where)
    with np.errstate(over="ignore"):
        cast = found.astype(dtype, copy=False).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        raise Problem(400, f"{where}: data holds numbers beyond {name}", param=where)
    return cast


def from_bytes(blob: memoryview, name: str, shape: tuple[int, ...], where: str) -> Array:
    """The array that lies in a request's bytes: a view on them, but for strings and bfloat16.

    Raises:
        Problem: 400: another number of bytes than the shape says, or strings that are none.
    """
    import numpy as np

    if name == "BYTES":
        return _strings(_elements(blob, where), shape, where)
    dtype = _little_endian(name)
    expected = math.prod(shape) * dtype.itemsize
    if len(blob) != expected:
        raise Problem(400, f"{where}: {list(shape)} of {name} are {expected} bytes, not {len(blob)}", param=where)
    found = np.frombuffer(blob, dtype).reshape(shape)
    if name == "BF16":  # the upper half of a float32
        return (found.astype(np.uint32) << 16).view(np.float32)
    if name == "BOOL" and found.size and blob.tobytes().strip(b"\0\1"):
        raise Problem(400, f"{where}: a BOOL is one byte, 0 or 1", param=where)
    return found if found.flags.aligned else found.copy()


@functools.cache
def _little_endian(name: str) -> np.dtype[np.generic]:
    """Numpy's type of what lies in a request's bytes."""
    import numpy as np

    return np.dtype("uint16" if name == "BF16" else DATATYPES[name]).newbyteorder("<")


def to_json(array: Array) -> JSON:
    """What stands in a response's ``data``: the values in row-major order, flat."""
    import numpy as np

    if array.dtype == object:
        return [_text(each) for each in array.ravel()]
    if array.dtype == np.float16:
        array = array.astype(np.float32)  # orjson knows no halves
    return np.ascontiguousarray(array).reshape(-1)


def to_bytes(array: Array) -> bytes:
    """The raw bytes of a response's tensor, little-endian; strings with their length in four bytes before each."""
    if array.dtype == object:
        parts = (each if isinstance(each, bytes) else str(each).encode() for each in array.ravel())
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _need_size(size: int, shape: tuple[int, ...], where: str) -> None:
    if size != math.prod(shape):
        wanted = math.prod(shape)
        raise Problem(400, f"{where}: data has {size} values, and shape {list(shape)} says {wanted}", param=where)


def _flat(data: list[Any]) -> list[Any]:
    """Every value of nested lists, in order."""
    found: list[Any] = []
    stack = [iter(data)]
    while stack:
        for each in stack[-1]:
            if isinstance(each, list):
                stack.append(iter(each))
                break
            found.append(each)
        else:
            stack.pop()
    return found


def _elements(blob: memoryview, where: str) -> list[bytes]:
    found, place = [], 0
    while place < len(blob):
        size = int.from_bytes(blob[place : place + 4], "little")
        end = place + 4 + size
        if place + 4 > len(blob) or end > len(blob):
            raise Problem(400, f"{where}: a string ends behind the end of the data", param=where)
        found.append(bytes(blob[place + 4 : end]))
        place = end
    return found


def _strings(values: list[Any], shape: tuple[int, ...], where: str) -> Array:
    import numpy as np

    _need_size(len(values), shape, where)
    found = np.empty(len(values), object)
    for place, value in enumerate(values):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raise Problem(400, f"{where}: string {place} is not UTF-8", param=where) from None
        if not isinstance(value, str):
            raise Problem(400, f"{where}: a value of BYTES should be a string", param=where)
        found[place] = value
    return found.reshape(shape)
