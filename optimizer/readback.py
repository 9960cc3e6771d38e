"""What an artifact's files say: asked and got are compared on this, never on what a library printed."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from optimizer.artifact import ENGINE_NAME, RANGES_NAME, RANKING_NAME
from optimizer.data.readers import read_kept
from optimizer.errors import Damaged
from optimizer.graph.decoder import decoder_facts
from optimizer.graph.facts import model_facts
from optimizer.graph.io import MODEL_NAME
from optimizer.types import JSON, Kind

__all__ = ["read_back"]

#: safetensors' names of formats → numpy's, and bytes of a number.
_FORMATS = {
    **{"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)},
    **{"I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1)},
    "BOOL": ("bool", 1),
}
#: What an engine file begins with: ``ftrt`` of TensorRT, ``vtrt`` of TensorRT-RTX.
_MAGIC = {b"ftrt": "tensorrt", b"vtrt": "rtx"}


def read_back(kind: Kind, folder: Path) -> dict[str, JSON]:
    """Facts of the files in a folder, by kind.

    Args:
        kind: what the folder holds.
        folder: an artifact's folder, or the scratch folder that is to become one.
    """
    match kind:
        case Kind.ONNX:
            return model_facts(folder / MODEL_NAME)
        case Kind.GENERATOR:
            return decoder_facts(folder)
        case Kind.ENGINE:
            return _engine_facts(folder / ENGINE_NAME)
        case Kind.CALIBRATION:
            rows = read_kept(folder)
            return {"rows": len(rows), "columns": sorted({name for row in rows for name in row.values})}
        case Kind.RANKING:
            return {"ranking": json.loads((folder / RANKING_NAME).read_bytes())["nodes"]}
        case Kind.CHECKPOINT:
            return _checkpoint_facts(folder)
        case Kind.SOURCE:
            return {}


def _checkpoint_facts(folder: Path) -> dict[str, JSON]:
    """Bytes of a trained model's weights by their format, and how many of its activations have a range."""
    from safetensors import safe_open

    weights: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                part = file.get_slice(name)
                sort, size = _FORMATS[part.get_dtype()]
                weights[sort] += math.prod(part.get_shape()) * size
    ranges = json.loads((folder / RANGES_NAME).read_bytes())
    return {"weights": dict(weights), "ranges": len(ranges["activations"])}


def _engine_facts(path: Path) -> dict[str, JSON]:
    """Size and maker of an engine file; more is told by whoever built it, as only its own library can open it."""
    with path.open("rb") as file:
        head = file.read(4)
    if head not in _MAGIC:
        raise Damaged(f"{path.name} is no TensorRT engine: it begins with {head!r}")
    return {"plan": {"bytes": path.stat().st_size, "written_by": _MAGIC[head]}}
