"""V2's infer: a body into arrays, arrays into a body. Views on the body where there are bytes, no copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.runtimes._feeds import check_feeds
from optimizer.serving.answers import parsed
from optimizer.serving.problems import Problem
from optimizer.serving.tensors import DATATYPES, datatype, from_bytes, from_json, shape_of, to_bytes, to_json
from optimizer.types import JSON, TensorSpec, dtype_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

__all__ = ["HEADER_LENGTH", "Asked", "decoded", "encoded", "parse", "parse_raw", "written"]

#: The header that says how many bytes of a body are JSON.
HEADER_LENGTH = "inference-header-content-length"
#: Parameters that ask for what is not here; to pass over them would be to answer another question.
_REFUSED = {
    "shared_memory_region": "shared memory",
    "sequence_id": "sequences",
    "sequence_start": "sequences",
    "sequence_end": "sequences",
    "classification": "the classification extension; /v1/classify names classes",
}


@dataclass(frozen=True)
class Asked:
    """A request, read.

    Attributes:
        feeds: arrays by input name; they fit the model.
        outputs: name of each wanted output → whether it is wanted as bytes, in order.
        id: the client's own; empty for none.
        timeout: seconds that the client gives it; None for as long as is usual.
    """

    feeds: dict[str, Array]
    outputs: dict[str, bool]
    id: str = ""
    timeout: float | None = None
    parameters: Mapping[str, JSON] = field(default_factory=dict)


def parse(
    body: bytes, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    limits: Mapping[str, Sequence[float]],
) -> Asked:  # fmt: skip
    """Read an infer request.

    Args:
        body: JSON, and behind it the bytes of its binary tensors.
        header_length: of the JSON, as the client's header has it; None where all of the body is JSON.
        inputs: of the model.
        outputs: of the model.
        limits: of the model's whole-number inputs: smallest and largest value.

    Raises:
        Problem: 400, naming the field.
    """
    view = memoryview(body)
    length = _header_length(header_length, len(view))
    document = parsed(view[:length])
    blobs = view[length:]
    parameters = _parameters(document, "the request")
    known = {spec.name: spec for spec in inputs}
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise Problem(400, "inputs should be a list of tensors", param="inputs")
    feeds: dict[str, Array] = {}
    for place, each in enumerate(given):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise Problem(400, f"inputs[{place}] should be an object with a name", param="inputs")
        name = each["name"]
        spec = known.get(name)
        if spec is None:
            raise Problem(400, f"unknown input {name[:100]!r}; the model takes {', '.join(known)}", param="inputs")
        if name in feeds:
            raise Problem(400, f"input {name!r} is given twice", param="inputs")
        feeds[name], blobs = _tensor(each, spec, blobs)
    if len(blobs):
        raise Problem(400, f"{len(blobs)} bytes stand behind the last tensor")
    _check(inputs, feeds, limits)
    return Asked(feeds, _outputs(document, parameters, outputs), _id(document), _timeout(parameters), parameters)


def parse_raw(
    body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: Mapping[str, Sequence[float]]
) -> Asked:
    """Read a request that is nothing but the bytes of the model's one input (header length 0).

    The batch is one row, and at most one other dimension is found from the number of bytes.

    Raises:
        Problem: 400: the model has several inputs, strings, or more than one dimension that nothing says.
    """
    import numpy as np

    if len(inputs) != 1:
        raise Problem(400, f"raw data is for models with one input; this one has {len(inputs)}")
    spec = inputs[0]
    name = datatype(spec.dtype)
    if name == "BYTES":
        # The body is the one string itself; only in tensors of several does its length stand before each.
        blob = len(body).to_bytes(4, "little") + bytes(body)
        tensor = from_bytes(memoryview(blob), name, (1,) * len(spec.shape), spec.name)
    else:
        shape = list(spec.shape)
        if shape and isinstance(shape[0], str):
            shape[0] = 1
        free = [place for place, dim in enumerate(shape) if isinstance(dim, str)]
        if len(free) > 1:
            raise Problem(400, f"{spec.name}: raw data does not say the {len(free)} dimensions that are not fixed")
        item = np.dtype(spec.dtype).itemsize * math.prod(dim for dim in shape if isinstance(dim, int))
        for place in free:
            shape[place] = len(body) // item if item else 0
        tensor = from_bytes(memoryview(body), name, tuple(int(dim) for dim in shape), spec.name)
    feeds = {spec.name: tensor}
    _check(inputs, feeds, limits)
    return Asked(feeds, {output.name: True for output in outputs})


def encoded(asked: Asked, answers: Mapping[str, Array], model: str, version: str) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    import orjson

    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in asked.outputs.items():
        array = answers[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype(dtype_name(array.dtype)), "shape": array.shape}
        if binary:
            blob = to_bytes(array)
            blobs.append(blob)
            tensor["parameters"] = {"binary_data_size": len(blob)}
        else:
            tensor["data"] = to_json(array)
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if asked.id:
        document["id"] = asked.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join((head, *blobs)), headers


def written(feeds: Mapping[str, Array]) -> tuple[bytes, str]:
    """The body that a client sends for these arrays, all of them and the answers as bytes, and its header length."""
    import orjson

    blobs = {name: to_bytes(array) for name, array in feeds.items()}
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": datatype(dtype_name(array.dtype)),
            "parameters": {"binary_data_size": len(blobs[name])},
        }
        for name, array in feeds.items()
    ]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return b"".join((head, *blobs.values())), str(len(head))


def decoded(body: bytes, headers: Mapping[str, str]) -> dict[str, Array]:
    """What a client reads out of the answer to :func:`written`."""
    length = int(headers[HEADER_LENGTH])
    blobs = memoryview(body)[length:]
    found: dict[str, Array] = {}
    for tensor in parsed(body[:length])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        found[tensor["name"]] = from_bytes(blobs[:size], tensor["datatype"], tuple(tensor["shape"]), tensor["name"])
        blobs = blobs[size:]
    return found


def _header_length(said: str | None, size: int) -> int:
    if said is None:
        return size
    if not said.isascii() or not said.isdigit() or int(said) > size:
        raise Problem(400, f"Inference-Header-Content-Length {said[:20]!r} is no length within the body")
    return int(said)


def _parameters(holder: Mapping[str, Any], where: str) -> Mapping[str, JSON]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Problem(400, f"{where}: parameters should be an object")
    for name in found:
        if name in _REFUSED and found[name]:
            raise Problem(400, f"{where}: this server has no {_REFUSED[name]} ({name})", param=name)
    return found


def _tensor(each: Mapping[str, Any], spec: TensorSpec, blobs: memoryview) -> tuple[Array, memoryview]:
    """One input, and the bytes that are left for those behind it."""
    where = f"input {spec.name!r}"
    name = each.get("datatype")
    if not isinstance(name, str) or name not in DATATYPES:
        raise Problem(400, f"{where}: datatype should be one of {', '.join(DATATYPES)}", param=spec.name)
    if DATATYPES[name] != spec.dtype:
        raise Problem(400, f"{where} takes {datatype(spec.dtype)}, not {name}", param=spec.name)
    shape = shape_of(each.get("shape"), where)
    size = _parameters(each, where).get("binary_data_size")
    if size is None:
        return from_json(each.get("data"), name, shape, where), blobs
    if type(size) is not int or not 0 <= size <= len(blobs):
        raise Problem(400, f"{where}: binary_data_size {str(size)[:20]} is not within the body", param=spec.name)
    if "data" in each:
        raise Problem(400, f"{where} has data and binary_data_size; give one of them", param=spec.name)
    return from_bytes(blobs[:size], name, shape, where), blobs[size:]


def _check(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array], limits: Mapping[str, Sequence[float]]) -> None:
    try:
        check_feeds(inputs, feeds, limits)
    except BadInput as error:
        raise Problem(400, error.message, param="inputs") from None
    if empty := [name for name, array in feeds.items() if not array.size]:
        raise Problem(400, f"input {empty[0]!r} is empty", param="inputs")


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, JSON], outputs: Sequence[TensorSpec]
) -> dict[str, bool]:
    usual = bool(parameters.get("binary_data_output", False))
    wanted = document.get("outputs")
    known = [spec.name for spec in outputs]
    if wanted is None or wanted == []:
        return dict.fromkeys(known, usual)
    if not isinstance(wanted, list):
        raise Problem(400, "outputs should be a list", param="outputs")
    found: dict[str, bool] = {}
    for place, each in enumerate(wanted):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise Problem(400, f"outputs[{place}] should be an object with a name", param="outputs")
        name = each["name"]
        if name not in known:
            raise Problem(400, f"unknown output {name[:100]!r}; the model has {', '.join(known)}", param="outputs")
        if name in found:
            raise Problem(400, f"output {name!r} is asked for twice", param="outputs")
        found[name] = bool(_parameters(each, f"output {name!r}").get("binary_data", usual))
    return found


def _id(document: Mapping[str, Any]) -> str:
    found = document.get("id", "")
    if not isinstance(found, str):
        raise Problem(400, "id should be a string", param="id")
    return found


def _timeout(parameters: Mapping[str, JSON]) -> float | None:
    """Triton's ``timeout``: microseconds; 0 for none."""
    found = parameters.get("timeout")
    if found is None or found == 0:
        return None
    if type(found) is not int or found < 0:
        raise Problem(400, "timeout should be a whole number of microseconds", param="timeout")
    return found / 1e6
