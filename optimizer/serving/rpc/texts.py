"""Texts on a stream of gRPC: a request with the tensor ``text_input``, answers with the tensor ``text_output``."""

from __future__ import annotations

from typing import Any

from optimizer.serving.problems import Problem
from optimizer.serving.rpc.messages import message
from optimizer.serving.rpc.translation import Asked, parameters_of
from optimizer.types import JSON

__all__ = ["text_asked", "text_said"]

_INPUT, _OUTPUT = "text_input", "text_output"
#: Bytes of the length that stands before a string among raw contents.
_LENGTH = 4


def text_asked(request: Any) -> Asked:
    """A ``ModelInferRequest`` as the body of V2's ``generate_stream``: one text, and parameters as they are there.

    Raises:
        Problem: 400: something else than one string of UTF-8 was sent, or another output asked for.
    """
    import orjson

    if [each.name for each in request.inputs] != [_INPUT]:
        raise Problem(400, f"a model that writes text takes one input, {_INPUT}; parameters say the rest", param=_INPUT)
    for wanted in request.outputs:
        if wanted.name != _OUTPUT:
            raise Problem(400, f"unknown output {wanted.name[:100]!r}; there is {_OUTPUT}", param="outputs")
    document: dict[str, JSON] = {_INPUT: _text(request)}
    if request.id:
        document["id"] = request.id
    if parameters := parameters_of(request.parameters):
        document["parameters"] = parameters
    return Asked({"name": request.model_name, "version": request.model_version}, orjson.dumps(document))


def _text(request: Any) -> str:
    (tensor,) = request.inputs
    if tensor.datatype != "BYTES" or list(tensor.shape) not in ([1], [1, 1]):
        raise Problem(400, f"{_INPUT} should be BYTES of the shape [1]", param=_INPUT)
    typed, raw = list(tensor.contents.bytes_contents), list(request.raw_input_contents)
    if raw and typed:
        raise Problem(400, f"{_INPUT} has contents beside raw_input_contents; send one of them", param=_INPUT)
    if len(raw) == 1 and int.from_bytes(raw[0][:_LENGTH], "little") == len(raw[0]) - _LENGTH:
        typed = [raw[0][_LENGTH:]]
    if len(typed) != 1:
        raise Problem(400, f"{_INPUT} should hold one string", param=_INPUT)
    try:
        return str(typed[0], "utf-8")
    except UnicodeDecodeError:
        raise Problem(400, f"{_INPUT} is no UTF-8", param=_INPUT) from None


def text_said(document: dict[str, Any]) -> Any:
    """A part of V2's ``generate_stream`` as a ``ModelInferResponse``; its details are parameters."""
    made = message("ModelInferResponse")(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    text = document[_OUTPUT].encode()
    made.outputs.add(name=_OUTPUT, datatype="BYTES", shape=[1])
    made.raw_output_contents.append(len(text).to_bytes(_LENGTH, "little") + text)
    if details := document.get("details"):
        made.parameters["finish_reason"].string_param = details["finish_reason"]
        made.parameters["generated_tokens"].int64_param = details["generated_tokens"]
    return made
