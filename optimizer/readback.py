"""What an artifact's files say: asked and got are compared on this, never on what a library printed."""

from __future__ import annotations

from pathlib import Path

from optimizer.graph.facts import model_facts
from optimizer.graph.io import MODEL_NAME
from optimizer.types import JSON, Kind

__all__ = ["read_back"]


def read_back(kind: Kind, folder: Path) -> dict[str, JSON]:
    """Facts of the files in a folder, by kind.

    Args:
        kind: what the folder holds.
        folder: an artifact's folder, or the scratch folder that is to become one.
    """
    match kind:
        case Kind.ONNX:
            return model_facts(folder / MODEL_NAME)
        case Kind.SOURCE:
            return {}
