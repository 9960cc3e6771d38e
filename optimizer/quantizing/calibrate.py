"""Ranges of activations from real data, and the Q/DQ graph made of them; both by ONNX Runtime's quantizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.quantizing.choose import Choice
from optimizer.quantizing.prepare import not_finite
from optimizer.stage import Progress

if TYPE_CHECKING:
    from optimizer.data.preprocess import Batch

__all__ = ["calibrate", "quantize"]

#: Products whose int8 kernels can hand on a float.
_SUMMED_IN_FULL = ("MatMul", "Gemm")


def calibrate(
    path: Path,
    work: Path,
    batches: Iterable[Batch],
    rows: int,
    op_types: Sequence[str],
    method: str,
    *,
    symmetric: bool,
    large: bool,
    progress: Progress,
) -> Path:
    """Run the data through the graph and write down the range of every activation of some operators.

    Batches are collected one at a time: ONNX Runtime's histogram calibrators keep every activation of everything they
    are handed at once, and fail on batches of different lengths.

    Args:
        path: the prepared graph.
        work: a scratch folder.
        batches: calibration data.
        rows: how many rows they hold together, for the progress.
        op_types: types of the operators.
        method: ``minmax``, ``entropy`` or ``percentile`` (99.999 %).
        symmetric: make ranges symmetric around zero.
        large: whether the graph's weights lie in a file beside it.
        progress: told how many rows are done.

    Returns:
        a file of ranges for :func:`quantize`.

    Raises:
        BadInput: an activation or an answer came out as NaN or infinity.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    calibrator = create_calibrator(
        path,
        list(op_types),
        augmented_model_path=str(work / "augmented.onnx"),
        calibrate_method=_method(method, CalibrationMethod),
        use_external_data_format=large,
        providers=["CPUExecutionProvider"],
        extra_options={"symmetric": symmetric},
    )
    unranged = calibrator.model_original_outputs - set(getattr(calibrator, "tensors_to_calibrate", ()))
    calibrator.infer_session = _Finite(calibrator.infer_session, unranged)
    done = 0
    for batch in batches:
        calibrator.collect_data(_Once(batch.feeds))
        done += len(batch.rows)
        progress("calibrating", done, rows)
    saved = work / "ranges.json"
    save_tensors_data(calibrator.compute_data(), saved)
    return saved


class _Finite:
    """The calibrator's session, refusing what is not finite.

    The calibrators look for the smallest and largest number and pass over NaN, so that a model which answers nonsense
    would be quantized without a word. Answers that get no range may hold infinities, and no NaN.
    """

    def __init__(self, session: Any, unranged: set[str]) -> None:
        self._session = session
        self._unranged = unranged

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
        import numpy as np

        arrays: list[Any] = self._session.run(names, feeds)
        for output, array in zip(self._session.get_outputs(), arrays, strict=True):
            if array.dtype.kind != "f":
                continue
            bad = np.isnan(array) if output.name in self._unranged else ~np.isfinite(array)
            if bad.any():
                name = output.name.removesuffix("_ReduceMin").removesuffix("_ReduceMax")
                raise not_finite(name)
        return arrays


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


def _method(name: str, methods: Any) -> Any:
    return {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}[name]


def quantize(
    path: Path,
    work: Path,
    ranges: Path,
    choice: Choice,
    method: str,
    *,
    symmetric: bool,
    per_channel: bool,
    reduce_range: bool,
    round_answers: bool,
) -> Path:
    """Insert Q/DQ pairs with the calibrated ranges.

    The answer of a product is summed in 32 bits and handed on in float: rounding it to 8 gains nothing where what
    comes next (a bias, a residual sum, GELU) is float anyway, and costs most of what static quantization loses on
    transformers (MiniLM: worst cosine .73 with it, .95 without). ``round_answers`` rounds it nevertheless, for graphs
    in which every operator is int8. Convolutions always do: their int8 kernel takes and gives 8 bits.

    Unsigned activations and signed symmetric weights are what VNNI and AMX multiply; TensorRT takes signed symmetric
    activations only, and no quantized bias.

    Returns:
        the quantized file, in ``work``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from optimizer.quantizing.softmax import exact_softmax

    target = work / "quantized.onnx"
    quantize_static(
        str(path),
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
            "OpTypesToExcludeOutputQuantization": [] if round_answers else list(_SUMMED_IN_FULL),
        },
    )
    if not round_answers:
        _give_back_exact(target, set(choice.chosen))
    if "Softmax" in choice.op_types:
        model = onnx.load(str(target), load_external_data=False)
        if exact_softmax(model):
            onnx.save_model(model, str(target))
    return target


def _give_back_exact(path: Path, chosen: set[str]) -> None:
    """Let only products read rounded activations.

    ONNX Runtime's quantizer hands the rounded activation to everything that reads it, and so rounds the residual sums
    of a transformer and the inputs of nodes that were left out. What a convolution makes or reads stays as it is: its
    int8 kernel, with what follows it, wants 8 bits on both sides.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    for node in model.graph.node:
        rounding = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounding is None or rounding.op_type != "QuantizeLinear":
            continue
        exact, rounded = rounding.input[0], node.output[0]
        if exact in makers and makers[exact].name in chosen:
            continue
        if any(each.name in chosen and each.op_type not in _SUMMED_IN_FULL for each in readers[rounded]):
            continue
        for reader in readers[rounded]:
            if reader.name not in chosen:
                reader.input[:] = [exact if name == rounded else name for name in reader.input]
    onnx.save_model(model, str(path))
