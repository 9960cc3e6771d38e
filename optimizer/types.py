"""The few nouns that everything else is said in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["JSON", "Device", "Kind", "Precision", "TensorSpec", "dtype_name"]

#: A value that JSON can hold. (A recursive alias would say more, and make every use of it a cast.)
JSON = Any


class Kind(StrEnum):
    """What an artifact is, which decides the stages that take it and the runtimes that open it."""

    SOURCE = "source"  # what people bring: a model folder, a hub id, an .onnx file
    ONNX = "onnx"  # a folder with model.onnx (and model.onnx.data)
    GENERATOR = "generator"  # a folder with genai_config.json: a decoder with its cache of keys and values
    ENGINE = "engine"  # a folder with model.engine, for one sort of GPU
    CHECKPOINT = "checkpoint"  # a model folder that was trained here, with the ranges of its int8 graph
    CALIBRATION = "calibration-set"  # a folder with rows.jsonl or rows.npz (and the files that rows name)
    RANKING = "ranking"  # a folder with ranking.json

    @property
    def phrase(self) -> str:
        """What a sentence calls it."""
        return {
            Kind.SOURCE: "a source model",
            Kind.ONNX: "an ONNX model",
            Kind.GENERATOR: "a text generator",
            Kind.ENGINE: "a TensorRT engine",
            Kind.CHECKPOINT: "a trained model",
            Kind.CALIBRATION: "a calibration set",
            Kind.RANKING: "a ranking of nodes",
        }[self]


class Precision(StrEnum):
    """The number format that a graph's weights or computations are in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


class Device(StrEnum):
    """Where something runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@functools.lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Numpy's name of an element type, which numpy itself puts together anew each time that it is asked."""
    return dtype.name


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the tensor's name in the graph.
        dtype: numpy's name of the element type (``float32``, ``int64``, …), or ``bfloat16``.
        shape: one entry a dimension: an ``int`` when fixed, a name (``batch``, ``sequence``) when dynamic.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, JSON]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, JSON]) -> TensorSpec:
        return cls(data["name"], data["dtype"], tuple(data["shape"]))
