"""Messages of gRPC into what the HTTP routes of the same meaning take, and their answers into messages.

A tensor stays the bytes that it is: raw contents are the binary tensor extension of HTTP, and typed contents become
them. What a request says beside its tensors goes through the same JSON, and is read and refused by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.serving.answers import parsed
from optimizer.serving.inference import HEADER_LENGTH
from optimizer.serving.problems import Problem
from optimizer.serving.rpc.messages import message
from optimizer.serving.tensors import DATATYPES
from optimizer.types import JSON

__all__ = ["Asked", "infer_asked", "infer_said", "parameters_of", "said"]

#: V2's datatype → the field of typed contents that holds its values.
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Asked:
    """What a route of HTTP is asked.

    Attributes:
        params: the parts in braces of its path.
        body: of the request.
        headers: that say how the body is to be read.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def infer_asked(request: Any) -> Asked:
    """A ``ModelInferRequest`` as the body that V2 has over HTTP: JSON, and the bytes of every input behind it.

    Raises:
        Problem: 400: contents that are not what their datatype says, raw and typed ones together.
    """
    import orjson

    raw = list(request.raw_input_contents)
    shared = {"shared_memory_region"}
    carried = [each for each in request.inputs if not shared & set(each.parameters)]
    if raw and len(raw) != len(carried):
        raise Problem(400, f"{len(carried)} inputs, and raw_input_contents has {len(raw)}", param="raw_input_contents")
    blobs: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for each in request.inputs:
        where = f"input {each.name[:100]!r}"
        tensor = {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        parameters = parameters_of(each.parameters)
        if not shared & set(parameters):
            if raw and each.HasField("contents") and each.contents.ListFields():
                raise Problem(400, f"{where} has contents beside raw_input_contents; send one of them", param=each.name)
            blob = raw[len(blobs)] if raw else _typed(each, where)
            parameters["binary_data_size"] = len(blob)
            blobs.append(blob)
        inputs.append({**tensor, "parameters": parameters})
    document: dict[str, Any] = {"inputs": inputs}
    if request.id:
        document["id"] = request.id
    document["parameters"] = {**parameters_of(request.parameters), "binary_data_output": True}
    if request.outputs:
        # Every answer is bytes here, whatever an output's own parameter says: a message has no other form.
        document["outputs"] = [
            {"name": each.name, "parameters": {**parameters_of(each.parameters), "binary_data": True}}
            for each in request.outputs
        ]
    try:
        head = orjson.dumps(document)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise Problem(400, f"the request cannot be read: {error}") from None
    params = {"name": request.model_name, "version": request.model_version}
    return Asked(params, b"".join((head, *blobs)), {HEADER_LENGTH: str(len(head))})


def infer_said(body: bytes, headers: Mapping[str, str]) -> Any:
    """V2's answer to an infer request, as a ``ModelInferResponse``."""
    length = int(headers.get(HEADER_LENGTH, len(body)))
    document = parsed(body[:length])
    made = message("ModelInferResponse")(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    place = length
    for tensor in document["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        made.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        made.raw_output_contents.append(body[place : place + size])
        place += size
    return made


def said(name: str, document: JSON) -> Any:
    """A JSON answer as a message of the same fields; those that the message has not are left out.

    Args:
        name: of the message.
        document: a JSON object.
    """
    from google.protobuf.json_format import ParseDict

    return ParseDict(document, message(name)(), ignore_unknown_fields=True)


def parameters_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name, as JSON has them."""
    made: dict[str, Any] = {}
    for name, value in found.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise Problem(400, f"parameter {name[:100]!r} has no value", param=name[:100])
        held = getattr(value, kind)
        made[name] = held.decode("utf-8", "replace") if isinstance(held, bytes) else held
    return made


def _typed(tensor: Any, where: str) -> bytes:
    """The bytes of an input whose values came in fields of their own."""
    import numpy as np

    name = tensor.datatype
    if name not in DATATYPES:
        raise Problem(400, f"{where}: datatype should be one of {', '.join(DATATYPES)}", param=tensor.name)
    if name not in _FIELDS:
        raise Problem(400, f"{where}: {name} has no typed contents; send raw_input_contents", param=tensor.name)
    for descriptor, _ in tensor.contents.ListFields():
        if descriptor.name != _FIELDS[name]:
            raise Problem(400, f"{where}: {name} comes in {_FIELDS[name]}, not {descriptor.name}", param=tensor.name)
    values = getattr(tensor.contents, _FIELDS[name])
    if name == "BYTES":
        return b"".join(len(each).to_bytes(4, "little") + each for each in values)
    dtype = np.dtype(DATATYPES[name]).newbyteorder("<")
    if dtype.itemsize < 4 and dtype.kind in "iu":  # small whole numbers come as larger ones
        wide = np.array(values, np.int64)
        limits = np.iinfo(dtype)
        if wide.size and not limits.min <= wide.min() <= wide.max() <= limits.max:
            raise Problem(400, f"{where}: contents hold numbers beyond {name}", param=tensor.name)
        return wide.astype(dtype).tobytes()
    return np.array(values, dtype).tobytes()
