"""Loading and saving ONNX files of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, missing_package

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["DATA_NAME", "MODEL_NAME", "external_files", "load", "save", "weight_bytes"]

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"

#: Weights beyond this go to ``model.onnx.data``. A protobuf message ends at 2 GiB; the rest is room for the graph
#: and for the copies that ONNX Runtime's tools make of a message.
EMBED_LIMIT = 1536 * 2**20


def load(path: Path) -> onnx_ir.Model:
    """Read an ONNX file; external weights stay on disk until they are looked at.

    Raises:
        BadInput: the file is not ONNX, is cut short, or names external data that is missing, cut short or outside
            its folder.
        MissingPiece: onnx_ir is not installed.
    """
    try:
        import onnx_ir
    except ImportError as error:
        raise missing_package(error.name or "onnx_ir", "reading ONNX files") from None
    try:
        model = onnx_ir.load(str(path))
    except FileNotFoundError:
        raise BadInput(f"no such file: {path}") from None
    except Exception as error:  # protobuf and onnx_ir raise many unrelated types for a bad file
        raise BadInput(f"{path} is not an ONNX model, or it is cut short: {_first_line(error)}") from error
    if len(model.graph) == 0 and not model.graph.outputs:
        raise BadInput(f"{path} is not an ONNX model: it has no nodes and no outputs")
    _check_external(model, path)
    return model


def _check_external(model: onnx_ir.Model, path: Path) -> None:
    import onnx_ir

    root = path.parent.resolve()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, onnx_ir.ExternalTensor):
                continue
            file = (path.parent / tensor.location).resolve()
            if not file.is_relative_to(root):
                raise BadInput(f"{path}: weights of {name!r} lie outside the model's folder ({tensor.location})")
            if not file.is_file():
                raise BadInput(f"{path}: the weights file {tensor.location} is missing (needed by {name!r})")
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            if file.stat().st_size < end:
                raise BadInput(f"{path}: the weights file {tensor.location} is cut short (needed by {name!r})")


def external_files(model: onnx_ir.Model) -> list[str]:
    """Names of the files that hold the model's external weights, relative to the model's folder."""
    import onnx_ir

    found = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                found.add(str(value.const_value.location))
    return sorted(found)


def weight_bytes(model: onnx_ir.Model) -> int:
    """Bytes of all initializers, subgraphs included."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def save(model: onnx_ir.Model, folder: Path) -> Path:
    """Write ``folder/model.onnx``, and ``model.onnx.data`` beside it when the weights do not fit into one message.

    Returns:
        the path of ``model.onnx``.
    """
    import onnx_ir

    path = folder / MODEL_NAME
    large = weight_bytes(model) > EMBED_LIMIT
    if not large:
        # Weights that lie in some other file would be saved as a link to it.
        model = onnx_ir.external_data.load_to_model(model)
    onnx_ir.save(model, str(path), external_data=DATA_NAME if large else None)
    return path


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
