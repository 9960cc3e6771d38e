"""What flows into chosen nodes: ranges, channels and a sample of rows, recorded from real data in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.quantizing.prepare import not_finite, quiet_options
from optimizer.stage import Progress

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from optimizer.data.preprocess import Batch

__all__ = ["Recorded", "constants_of", "fed_by", "record", "watched"]

#: Bytes of activations that are held at once: of one run, and of the samples that are kept.
_AT_ONCE = 512 * 2**20
#: Rows (tokens, pixels' images, indices) that are kept of an activation.
_KEPT = 512


@dataclass(frozen=True)
class Recorded:
    """One activation over all rows of the data.

    Attributes:
        low: smallest number seen.
        high: largest number seen.
        peaks: largest magnitude of each channel (the last axis); empty where rows are not vectors.
        sample: rows spread over all batches: ``[rows, channels]`` of vectors, else slices of the first axis.
    """

    low: float
    high: float
    peaks: NDArray[np.floating[Any]]
    sample: NDArray[Any]


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Weights of the graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def fed_by(node: onnx.NodeProto) -> int:
    """The place of the activation among a weighted node's inputs: the indices of a Gather are its second."""
    return 1 if node.op_type == "Gather" else 0


def record(
    path: Path,
    values: Mapping[str, int],
    batches: Iterable[Batch],
    rows: int,
    progress: Progress,
) -> dict[str, Recorded]:
    """Run the data through the graph once and keep what flows through some of its values.

    Memory stays bounded: a batch is run in as many parts as its activations need, and of each activation a sample of
    rows is kept, spread evenly over the batches.

    Args:
        path: the graph, in a scratch folder, its weights embedded or beside it.
        values: names of activations, and how many channels each has (1 where rows are not vectors).
        batches: the data.
        rows: how many rows they hold together.
        progress: told how many rows are done.

    Raises:
        BadInput: an activation came out as NaN or infinity, or there was no data.
    """
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(watched(path, values)), _unoptimized(), providers=["CPUExecutionProvider"]
    )
    keep = max(16, min(_KEPT, _AT_ONCE // (4 * max(1, sum(values.values())))))
    low = dict.fromkeys(values, np.inf)
    high = dict.fromkeys(values, -np.inf)
    peaks: dict[str, Any] = {}
    kept: dict[str, list[Any]] = {name: [] for name in values}
    done = 0
    for batch in batches:
        share = max(1, -(-keep * len(batch.rows) // max(1, rows)))
        for names in _parts(values, max(array.size for array in batch.feeds.values())):
            made = [name for name in names if name not in batch.feeds]
            arrays = dict(zip(made, session.run(made, batch.feeds), strict=True)) if made else {}
            for name in names:
                array = batch.feeds[name] if name in batch.feeds else arrays[name]
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise not_finite(name)
                vectors = values[name] > 1 and array.shape[-1] == values[name]
                flat = array.reshape(-1, array.shape[-1]) if vectors else array
                if not array.size:
                    continue
                low[name] = min(low[name], float(array.min()))
                high[name] = max(high[name], float(array.max()))
                seen = np.abs(flat).max(axis=0) if vectors else np.empty(0)
                peaks[name] = np.maximum(peaks[name], seen) if name in peaks else seen
                # Evenly spaced places: neighbours in a text are alike.
                places = np.linspace(0, len(flat) - 1, min(share, len(flat))).astype(int)
                kept[name].append(flat[places].copy())
        done += len(batch.rows)
        progress("recording activations", done, rows)
    if not done or not all(kept.values()):
        raise BadInput("there is no data to record activations on")
    return {name: Recorded(low[name], high[name], peaks[name], _joined(kept[name])) for name in values}


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Samples of all batches as one array; where their shapes differ (other lengths), those like the first."""
    import numpy as np

    return np.concatenate([part for part in parts if part.shape[1:] == parts[0].shape[1:]])


def _parts(values: Mapping[str, int], leading: int) -> Iterator[list[str]]:
    """Names in groups whose activations fit into memory together; an input has no fewer elements than an activation has
    rows.
    """
    group: list[str] = []
    size = 0
    for name, channels in values.items():
        need = 4 * leading * channels
        if group and size + need > _AT_ONCE:
            yield group
            group, size = [], 0
        group.append(name)
        size += need
    if group:
        yield group


def watched(path: Path, values: Iterable[str], *, alone: bool = False) -> Path:
    """A copy of the graph, beside it, that also answers with those values; external weights stay where they are.

    Args:
        path: of the graph, in a scratch folder.
        values: their names.
        alone: answer with nothing else, so that what comes after them is not computed.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    there = {value.name for value in (*model.graph.output, *model.graph.input)}
    if alone:
        del model.graph.output[:]
        there = set()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in there)
    copy = path.with_name("watched.onnx")
    onnx.save_model(model, str(copy))
    return copy


def _unoptimized() -> Any:
    """The graph as it is: an optimizer would have to keep every watched value apart anyway."""
    import onnxruntime

    options = quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
