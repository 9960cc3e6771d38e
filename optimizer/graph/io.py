"""Loading and saving ONNX files of any size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import BadInput, missing_package
from optimizer.graph.embed import save_embedded

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["DATA_NAME", "MODEL_NAME", "external_files", "graphs", "load", "save", "tensors", "weight_bytes"]

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
    except PermissionError:
        raise BadInput(f"{path} cannot be read: no permission") from None
    except Exception as error:  # protobuf and onnx_ir raise many unrelated types for a bad file
        cause: BaseException = error
        while cause.__cause__ is not None:  # onnx_ir wraps the reason once for every level of the file
            cause = cause.__cause__
        if isinstance(cause, NotImplementedError):
            raise BadInput(f"{path} has a type of value that is not known here: {_first_line(cause)}") from error
        raise BadInput(f"{path} is not an ONNX model, or it is cut short: {_first_line(cause)}") from error
    if len(model.graph) == 0 and not model.graph.outputs:
        raise BadInput(f"{path} is not an ONNX model: it has no nodes and no outputs")
    _check_external(model, path)
    return model


def graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    """Every graph of a model: its own, those of its functions, and all that are nested in them."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def tensors(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.TensorProtocol]]:
    """Every stored tensor with the name it goes by: initializers, and constants that lie in a node's attributes."""
    import onnx_ir

    for graph in graphs(model):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == onnx_ir.AttributeType.TENSOR:
                    yield node.outputs[0].name or node.name or node.op_type, attribute.as_tensor()
                elif attribute.type == onnx_ir.AttributeType.TENSORS:
                    for tensor in attribute.as_tensors():
                        yield node.name or node.op_type, tensor


def _external(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.ExternalTensor]]:
    import onnx_ir

    for name, tensor in tensors(model):
        if isinstance(tensor, onnx_ir.ExternalTensor):
            yield name, tensor


def _check_external(model: onnx_ir.Model, path: Path) -> None:
    """Refuse weights files that are not there, not whole, or not the model's own.

    A location is written by whoever made the file: it could name any file of this machine, and a link beside the model
    could point to one.
    """
    folder = Path(os.path.normpath(path.parent.absolute()))
    copy = "copy the model's own files, not links to them, into one folder"
    for name, tensor in _external(model):
        location = str(tensor.location)
        file = Path(os.path.normpath(folder / location))
        if not file.is_relative_to(folder):
            raise BadInput(f"{path}: weights of {name!r} lie outside the model's folder ({location})")
        if not file.is_file():
            raise BadInput(f"{path}: the weights file {location} is missing (needed by {name!r})")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{path}: the weights file {location} is a link to {file.resolve()}", copy)
        stat = file.stat()
        if stat.st_nlink > 1:
            raise BadInput(f"{path}: the weights file {location} has other names elsewhere (a hard link)", copy)
        if tensor.length is not None and tensor.length < tensor.nbytes:
            raise BadInput(f"{path}: {name!r} takes {tensor.nbytes} bytes, and its entry names {tensor.length}")
        if (tensor.offset or 0) < 0 or stat.st_size < (tensor.offset or 0) + tensor.nbytes:
            raise BadInput(f"{path}: the weights file {location} is cut short (needed by {name!r})")


def external_files(model: onnx_ir.Model) -> list[str]:
    """Names of the files that hold the model's external weights, relative to the model's folder."""
    return sorted({os.path.normpath(str(tensor.location)) for _, tensor in _external(model)})


def weight_bytes(model: onnx_ir.Model) -> int:
    """Bytes of all stored tensors, those of subgraphs and functions included."""
    return sum(tensor.nbytes for _, tensor in tensors(model))


def save(model: onnx_ir.Model, folder: Path, name: str = MODEL_NAME) -> Path:
    """Write ``folder/model.onnx``, and ``model.onnx.data`` beside it when the weights do not fit into one message.

    Args:
        model: the graph.
        folder: where it goes.
        name: of the file, where it is not the folder's only graph.

    Returns:
        the path of the file.
    """
    import onnx_ir

    path = folder / name
    _bring_in(model)
    if weight_bytes(model) > EMBED_LIMIT:
        onnx_ir.save(model, str(path), external_data=f"{name}.data")
    else:
        save_embedded(model, path)
    return path


def _bring_in(model: onnx_ir.Model) -> None:
    """Read what lies in some other file and would be saved as a link to it: all but the main graph's initializers."""
    import onnx_ir

    def memory(tensor: onnx_ir.TensorProtocol) -> onnx_ir.Tensor:
        return onnx_ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)

    for graph in graphs(model):
        for value in () if graph is model.graph else graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                value.const_value = memory(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if isinstance(attribute.value, onnx_ir.ExternalTensor):
                    node.attributes[name] = onnx_ir.AttrTensor(name, memory(attribute.value))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
