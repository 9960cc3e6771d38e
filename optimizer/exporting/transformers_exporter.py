"""The adapter around ``transformers.exporters``: experimental, so every use of it is in this file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.samples import Sample
from optimizer.hf import LoadedModel, quiet_libraries

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["export"]


def export(loaded: LoadedModel, sample: Sample, opset: int) -> onnx_ir.Model:
    """Trace a model into ONNX with the sample's dynamic dimensions, and clean it.

    Args:
        loaded: a model loaded with eager attention: its graph is the one that fusions match and quantizers take.
        sample: inputs to trace with.
        opset: ONNX opset.

    Raises:
        BadInput: the model cannot be traced; the exporter's reason is handed on.
        GateFailed: a dimension that should be dynamic came out fixed.
    """
    from torch.export import Dim
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    _plain_weights(loaded.module)
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in sample.axes.items()}
    config = OnnxConfig(opset_version=opset, dynamic_shapes=shapes)
    with quiet_libraries():
        try:
            model = OnnxExporter().export(loaded.module, sample.tensors, config=config).program
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = next((line for line in lines if "rror" in line), lines[0] if lines else type(error).__name__)
            raise BadInput(
                f"{loaded.class_name} could not be exported at opset {opset}: {reason[:300]}",
                "run it again with --verbose to see the exporter's own report",
            ) from error
    _name_dimensions(model, sample)
    _drop_outputs(model, lambda name: name in loaded.dropped)
    _clean(model)
    if model.opset_imports.get("") != opset:
        raise GateFailed(f"opset {opset} was asked for, and the exporter made {model.opset_imports.get('')}")
    return model


def _plain_weights(module: Any) -> None:
    """Fold parametrizations (the weight norm of Wav2Vec2's positional convolution) into plain weights.

    A computed weight is no initializer in the graph, and quantizers refuse it. The outputs stay the same.
    """
    from torch.nn.utils import parametrize

    for child in module.modules():
        if parametrize.is_parametrized(child):
            for name in list(child.parametrizations):
                parametrize.remove_parametrizations(child, name, leave_parametrized=True)


def _name_dimensions(model: onnx_ir.Model, sample: Sample) -> None:
    """Give the tracer's symbols (``s18``) the names of the sample's axes, everywhere in the graph."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in sample.axes.get(value.name or "", {}).items():
            dim = value.shape[axis] if value.shape is not None else None
            if not isinstance(dim, onnx_ir.SymbolicDim) or dim.value is None:
                raise GateFailed(f"dimension {axis} of input {value.name!r} was to be dynamic, and the export fixed it")
            names.setdefault(dim.value, name)

    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b") if names else None

    def renamed(dim: Any) -> Any:
        if symbol is None or not isinstance(dim, onnx_ir.SymbolicDim) or dim.value is None:
            return dim
        return symbol.sub(lambda found: names[found.group()], dim.value)

    for graph in model.graphs():
        values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])


def _drop_outputs(model: onnx_ir.Model, unwanted: Callable[[str], bool]) -> None:
    kept = [value for value in model.graph.outputs if not unwanted(value.name or "")]
    if len(kept) != len(model.graph.outputs):
        model.graph.outputs[:] = kept


def _clean(model: onnx_ir.Model) -> None:
    """Remove what the tracer left for its own debugging, and nodes that nothing needs."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
