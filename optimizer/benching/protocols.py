"""What is sent to a server, and how its answer is read: the Open Inference Protocol (v2) and OpenAI's.

v2 is KServe's REST protocol (Triton, TorchServe, OpenVINO Model Server, MLServer and others speak it):
https://github.com/kserve/open-inference-protocol. OpenAI's is that of its API reference, as vLLM and TEI speak it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Query", "Refused", "chat", "embeddings", "infer", "specs_of"]

#: The protocol's names of element types; bf16 has no form in JSON.
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip


class Refused(Exception):
    """The server answered, and it was no answer."""


@dataclass(frozen=True)
class Query:
    """One request, made beforehand.

    Attributes:
        path: below the server's address.
        body: JSON.
        streamed: the answer is a stream of events.
        hint: what to do when the server takes none of these.
        headers: of the request.
    """

    path: str
    body: bytes
    streamed: bool = False
    hint: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    async def read(self, answer: Any, piece: Callable[[], None]) -> None:
        """Read an answer to its end, telling of each piece of text that comes by itself.

        Raises:
            Refused: it is no JSON, it carries an error, or a stream ended before its last event.
        """
        if not self.streamed:
            try:
                found = json.loads(await answer.read())
            except ValueError:
                raise Refused("an answer that is no JSON") from None
            if not isinstance(found, dict) or "error" in found:
                raise Refused("an error in the answer")
            return
        async for line in answer.content:
            data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return
            if data and _has_text(data):
                piece()
        raise Refused("a stream without its end")


def _has_text(data: bytes) -> bool:
    """Whether an event carries text; the first one often names the role alone."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise Refused("an error in the stream")
        return any(choice.get("delta", {}).get("content") for choice in event.get("choices", ()))
    except (ValueError, AttributeError, TypeError):
        raise Refused("an event that is not OpenAI's") from None


def specs_of(metadata: Any) -> tuple[TensorSpec, ...]:
    """The inputs that ``GET /v2/models/M`` names; -1 is a free dimension, the first rows and the second steps.

    Raises:
        BadInput: it is no description of a model, or has an input that JSON cannot carry.
    """
    try:
        inputs = [(str(each["name"]), str(each["datatype"]), list(each["shape"])) for each in metadata["inputs"]]
    except (KeyError, TypeError):
        raise BadInput(
            "the server's description of the model names no inputs", "is it --protocol v2 that it speaks?"
        ) from None
    specs = []
    for name, datatype, shape in inputs:
        if datatype not in _DTYPES:
            raise BadInput(f"input {name} takes {datatype}, which cannot be made up", f"known: {', '.join(_DTYPES)}")
        free = ("batch", "sequence")
        dims = tuple(
            (free[place] if place < 2 else f"dim_{place}") if size < 0 else size for place, size in enumerate(shape)
        )
        specs.append(TensorSpec(name, _DTYPES[datatype], dims))
    return tuple(specs)


def infer(model: str, feeds: Mapping[str, NDArray[np.generic]]) -> Query:
    """v2: ``POST /v2/models/M/infer`` with tensors as JSON."""
    names = {ours: theirs for theirs, ours in _DTYPES.items()}
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": names[str(array.dtype)],
            "data": array.reshape(-1).tolist(),
        }
        for name, array in feeds.items()
    ]
    hint = "rows of --data through the tokenizer of --ref, or another --shape, may fit the model better"
    return Query(f"/v2/models/{model}/infer", json.dumps({"inputs": inputs}).encode(), hint=hint)


def embeddings(model: str, texts: Sequence[str]) -> Query:
    """OpenAI: ``POST /v1/embeddings``."""
    body = json.dumps({"model": model, "input": list(texts)}).encode()
    return Query("/v1/embeddings", body, hint="for a chat model: --endpoint chat")


def chat(model: str, text: str, tokens: int) -> Query:
    """OpenAI: ``POST /v1/chat/completions``, streamed."""
    asked = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": tokens}
    hint = "for an embedding model: --endpoint embeddings"
    return Query("/v1/chat/completions", json.dumps(asked).encode(), True, hint)
