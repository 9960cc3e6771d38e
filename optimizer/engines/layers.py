"""The layers of a network and of an engine: names, sorts, number formats, and what was fused into what.

The engine's own layers are read from the builder's log, which lists them in the inspector's words when profiling is
verbose. That needs no GPU; the inspector does, as it wants the engine deserialized.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.types import JSON

__all__ = ["Layer", "attentions", "parse_layers", "products", "stored", "summary"]

#: Headings of the listing that follow the layers.
_ENDS = ("I/O Tensors:", "Bindings:", "Engine Metadata:")
_PARTS = ("LayerType", "Inputs", "Constants", "Outputs", "TacticName", "StreamId", "Metadata")
_DATATYPE = re.compile(r"Datatype: ([A-Za-z0-9]+)")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_NAMES = {
    "float": "float32",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "fp8": "float8e4m3fn",
    "fp4": "float4e2m1",
}
#: Sorts of layers that hold matrix products and convolutions, and what the builder calls kernels that it made of
#: several: its own names begin with ``_``, those of a graph may hold any word.
_PRODUCT_TYPE = re.compile(r"gemm|conv(?!ert)|correlation|matrix_multiply|matmul|einsum|attention|cask", re.IGNORECASE)
_PRODUCT_NAME = re.compile(r"_\w*(?:gemm|mha|Gemm|Conv|Fc[A-Z_])")
#: What a kernel of a whole attention is called; names of a graph's own nodes often hold the word as well.
_ATTENTION_NAME, _ATTENTION_TYPE = re.compile(r"(?:^|_)f?mha(?:_|$)"), re.compile(r"attention", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name: the vendor's.
        type: the vendor's sort of it (``gemm``, ``kgen``, ``matrix_multiply``).
        inputs: number formats of its inputs.
        outputs: of its outputs.
        nodes: ONNX nodes that it does the work of; empty where nobody says.
        weights: number formats of constants that it holds.
    """

    name: str
    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "type": self.type,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "nodes": list(self.nodes),
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, data: dict[str, JSON]) -> Layer:
        return cls(data["name"], data["type"], *(tuple(data[k]) for k in ("inputs", "outputs", "nodes", "weights")))


def parse_layers(log: Sequence[str]) -> tuple[Layer, ...]:
    """The engine's layers out of a builder's log; empty when they are not listed."""
    for message in log:
        _, sign, listing = message.partition("Layers:\nName: ")
        if not sign:
            continue
        found = []
        for line in ("Name: " + listing).splitlines():
            if line.strip() in _ENDS:
                break
            if line.startswith("Name: "):
                found.append(_layer(line.removeprefix("Name: ")))
        return tuple(found)
    return ()


def _layer(line: str) -> Layer:
    parts: dict[str, str] = {}
    rest = line
    for name in reversed(_PARTS):
        head, sign, tail = rest.rpartition(f", {name}: ")
        if sign:
            parts[name], rest = tail, head
    return Layer(
        rest,
        parts.get("LayerType", ""),
        _formats(parts.get("Inputs", "")),
        _formats(parts.get("Outputs", "")),
        tuple(dict.fromkeys(_ONNX.findall(parts.get("Metadata", "")))),
        _formats(parts.get("Constants", "")),
    )


def _formats(text: str) -> tuple[str, ...]:
    return tuple(_NAMES.get(word.lower(), word.lower()) for word in _DATATYPE.findall(text))


def products(layers: Sequence[Layer]) -> dict[str, int]:
    """Layers with matrix products or convolutions, by the number format of the activations that go into them."""
    found: Counter[str] = Counter()
    for layer in layers:
        if _PRODUCT_TYPE.search(layer.type) or _PRODUCT_NAME.match(layer.name):
            floating = [each for each in layer.inputs if each not in ("int64", "int32", "bool")]
            if floating:
                found[floating[0]] += 1
    return dict(found.most_common())


def stored(layers: Sequence[Layer]) -> dict[str, int]:
    """Layers that hold constants, by the number format of the first."""
    return dict(Counter(layer.weights[0] for layer in layers if layer.weights).most_common())


def attentions(layers: Sequence[Layer]) -> int:
    """Layers that are a whole attention in one kernel."""
    return sum(bool(_ATTENTION_NAME.search(layer.name) or _ATTENTION_TYPE.search(layer.type)) for layer in layers)


def summary(layers: Sequence[Layer]) -> dict[str, JSON]:
    """Numbers of layers, by sort, and what products are computed in."""
    return {
        "layers": len(layers),
        "types": dict(Counter(layer.type for layer in layers).most_common()),
        "products": products(layers),
        "weights": stored(layers),
        "attention": attentions(layers),
        "fused": sum(len(layer.nodes) > 1 for layer in layers),
    }
