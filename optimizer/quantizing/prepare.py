"""A graph made ready for a quantizer: every weight an initializer, every shape inferred."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.digest import digest_tree
from optimizer.errors import BadInput, GateFailed
from optimizer.graph import io

if TYPE_CHECKING:
    import onnx
    import onnx_ir

__all__ = [
    "check_opens",
    "digest_proto",
    "load_proto",
    "load_result",
    "not_finite",
    "prepare",
    "quiet_options",
    "save_proto",
]

#: Pad_Fusion is known wrong before MaxPool: it folds padding with zeros into a pool that must not see them.
#: MatMulAddFusion would give products new names, and people choose nodes by the names that `ml-opt show` prints.
_DISABLED = ["Pad_Fusion", "MatMulAddFusion"]


def not_finite(name: str) -> BadInput:
    """What to say of a value that came out as NaN or infinity on somebody's data."""
    return BadInput(
        f"{name!r} is not finite on the calibration data",
        "compare the float artifact with its source on the same data: ml-opt verify REF --data FILE",
    )


def quiet_options() -> Any:
    """Session options that print nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def prepare(path: Path, workdir: Path) -> Path:
    """Fold constants and infer shapes with ONNX Runtime's own basic optimizations.

    A weight behind Identity, Transpose or If is no initializer, and a quantizer passes over it in silence; after this
    it is one. Basic optimizations keep to standard operators.

    Args:
        path: the graph.
        workdir: a scratch folder that the caller removes.

    Returns:
        the prepared file, in ``workdir``.

    Raises:
        BadInput: ONNX Runtime cannot load the graph.
    """
    import onnxruntime

    prepared = workdir / "prepared.onnx"
    options = quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(prepared)
    if io.weight_bytes(io.load(path)) > io.EMBED_LIMIT:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "prepared.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED
        )
    except Exception as error:  # onnxruntime raises one unrelated type for each status code
        raise BadInput(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from error
    return prepared


def load_proto(path: Path) -> onnx.ModelProto:
    """The graph as a message, without the inferred shapes that contradict what a quantizer will write.

    ``value_info`` of initializers goes, as quantization changes their type, and stale entries make shape inference
    fail.
    """
    import onnx

    model = onnx.load(str(path))
    initializers = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in initializers]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def save_proto(model: onnx.ModelProto, path: Path) -> bool:
    """Write a message, with its weights in a file beside it when they do not fit into one.

    Returns:
        whether they did not. The message's own weights are then links into that file.
    """
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > io.EMBED_LIMIT
    onnx.save_model(model, str(path), save_as_external_data=large, location=f"{path.stem}.data")
    return large


def digest_proto(path: Path) -> str:
    """sha256 of what :func:`save_proto` wrote, the weights beside it included."""
    return digest_tree(path.parent, [each for each in (path, path.with_suffix(".data")) if each.exists()])


def load_result(path: Path) -> onnx_ir.Model:
    """What a quantizer wrote, without the operator sets that ONNX Runtime lists and nothing uses."""
    from onnx_ir.passes.common import RemoveUnusedOpsetsPass

    model = io.load(path)
    RemoveUnusedOpsetsPass()(model)
    return model


def check_opens(path: Path, *, exact: bool = False) -> Any:
    """Open a result once: a file that ONNX Runtime refuses is no result.

    Args:
        path: the file.
        exact: leave Q/DQ as they are written, so that products are those of floats on int8's levels: what integer
            kernels answer where their sums do not saturate (``session.disable_quant_qdq`` of
            onnxruntime_session_options_config_keys.h).

    Returns:
        the session, on its CPU provider.

    Raises:
        GateFailed: it cannot be opened; ONNX Runtime's reason is handed on.
    """
    import onnxruntime

    options = quiet_options()
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GateFailed(
            f"the quantized graph does not run on ONNX Runtime: {str(error).splitlines()[0]}",
            "leave the node it names in float: --exclude NODE",
        ) from error
