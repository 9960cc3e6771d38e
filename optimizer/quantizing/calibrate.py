"""Ranges of activations from real data, and the Q/DQ graph made of them; both by ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.graph.io import EMBED_LIMIT
from optimizer.quantizing.choose import Choice
from optimizer.stage import Progress

if TYPE_CHECKING:
    import onnx

    from optimizer.data.preprocess import Batch

__all__ = ["calibrate", "quantize"]


def calibrate(
    model: onnx.ModelProto,
    work: Path,
    batches: Iterable[Batch],
    rows: int,
    choice: Choice,
    method: str,
    *,
    symmetric: bool,
    progress: Progress,
) -> Path:
    """Run the data through the graph and write down the range of every activation that will be quantized.

    Batches are collected one at a time: ONNX Runtime's histogram calibrators keep every activation of everything they
    are handed at once, and fail on batches of different lengths.

    Args:
        model: the prepared graph.
        work: a scratch folder.
        batches: calibration data.
        rows: how many rows they hold together, for the progress.
        choice: what will be quantized.
        method: ``minmax``, ``entropy`` or ``percentile`` (99.999 %).
        symmetric: make ranges symmetric around zero.
        progress: told how many rows are done.

    Returns:
        a file of ranges for :func:`quantize`.

    Raises:
        BadInput: an activation came out as NaN or infinity.
    """
    import onnx
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    path = work / "calibrated.onnx"
    large = model.ByteSize() > EMBED_LIMIT
    onnx.save_model(model, str(path), save_as_external_data=large)
    calibrator = create_calibrator(
        path,
        list(choice.op_types),
        augmented_model_path=str(work / "augmented.onnx"),
        calibrate_method=_method(method, CalibrationMethod),
        use_external_data_format=large,
        providers=["CPUExecutionProvider"],
        extra_options={"symmetric": symmetric},
    )
    done = 0
    for batch in batches:
        calibrator.collect_data(_Once(batch.feeds))
        done += len(batch.rows)
        progress("calibrating", done, rows)
    ranges = calibrator.compute_data()
    _check_finite(ranges)
    saved = work / "ranges.json"
    save_tensors_data(ranges, saved)
    return saved


class _Once:
    """A data reader of one batch, in the shape that ONNX Runtime's calibrators ask for."""

    def __init__(self, feeds: dict[str, Any]) -> None:
        self._feeds: dict[str, Any] | None = feeds

    def get_next(self) -> dict[str, Any] | None:
        feeds, self._feeds = self._feeds, None
        return feeds

    def __len__(self) -> int:
        return 1

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the reader's interface; one batch has no parts."""


def _check_finite(ranges: Any) -> None:
    import numpy as np

    for name, data in ranges.items():
        if not np.isfinite(np.asarray(data.range_value, dtype=np.float64)).all():
            raise BadInput(
                f"the activation {name!r} is not finite on the calibration data",
                "verify the float artifact on the same data first: ml-opt verify REF --data FILE",
            )


def _method(name: str, methods: Any) -> Any:
    return {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[name]


def quantize(
    model: onnx.ModelProto,
    work: Path,
    ranges: Path,
    choice: Choice,
    method: str,
    *,
    symmetric: bool,
    per_channel: bool,
    reduce_range: bool,
) -> Path:
    """Insert Q/DQ pairs with the calibrated ranges.

    Unsigned activations and signed symmetric weights are what VNNI and AMX multiply; TensorRT takes signed symmetric
    activations only, and no quantized bias.

    Returns:
        the quantized file, in ``work``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    source, target = work / "to_quantize.onnx", work / "quantized.onnx"
    onnx.save_model(model, str(source), save_as_external_data=model.ByteSize() > EMBED_LIMIT)
    quantize_static(
        str(source),
        str(target),
        calibration_data_reader=None,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(choice.op_types),
        nodes_to_exclude=list(choice.excluded),
        per_channel=per_channel,
        reduce_range=reduce_range,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=_method(method, CalibrationMethod),
        use_external_data_format=True,
        calibration_cache_path=str(ranges),
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not symmetric,
            "DedicatedQDQPair": False,
        },
    )
    return target
