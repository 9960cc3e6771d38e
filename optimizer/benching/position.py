"""Where a measured call lies under the roofs of its machine (Williams, Waterman and Patterson, *Roofline*, 2009)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.benching.candidates import Entrant
from optimizer.benching.measure import Lane
from optimizer.benching.roofline import Key, Roofline
from optimizer.graph.cost import Cost, model_cost
from optimizer.runtime import Provider, is_openvino, openvino_here
from optimizer.types import JSON

__all__ = ["Counted", "Position", "count", "place"]


@dataclass(frozen=True)
class Position:
    """One candidate's call at one shape, under the roofs.

    Attributes:
        flops: operations of a call; one multiplication and one addition are two.
        arithmetic: the same by what they are computed in.
        bytes: that a call moves if every tensor is written once and read once; None for what has no graph of its own.
        least_bytes: that it has to move whatever is fused or cached: weights, inputs and answers.
        gflops: 10⁹ operations a second, in the median call.
        peak_gflops: what a GEMM gets here in the same arithmetic; of several, in the mix of the graph. None when a peak
            is not known.
        peak_share: ``gflops`` of ``peak_gflops``; above 1 the peak is doubtful.
        intensity: operations for a byte of ``least_bytes``.
        gb_per_s: what memory gives a call of so many bytes.
        bound: ``compute`` or ``memory``, the roof that is met first; empty when one of them is not known.
        roof_share: of the time that the call takes, what the roof that is met first would take at least.
        uncounted: nodes that are lacking: their ``node``, ``op`` and ``why``, and whether ``product`` operations are.
    """

    flops: int
    arithmetic: Mapping[str, int]
    bytes: int | None
    least_bytes: int | None
    gflops: float
    peak_gflops: float | None = None
    peak_share: float | None = None
    intensity: float | None = None
    gb_per_s: float | None = None
    bound: str = ""
    roof_share: float | None = None
    uncounted: tuple[Mapping[str, JSON], ...] = field(default=())

    @property
    def is_lower_bound(self) -> bool:
        """Whether operations are lacking in the count."""
        return any(each["product"] for each in self.uncounted)

    def to_json(self) -> dict[str, JSON]:
        return {
            **vars(self),
            "arithmetic": dict(self.arithmetic),
            "uncounted": [dict(each) for each in self.uncounted],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Position:
        return cls(**{**data, "uncounted": tuple(data["uncounted"])})


#: Whose peak stands for PyTorch's on a GPU.
_GPU = Provider("cuda")


@dataclass(frozen=True)
class Counted:
    """What a candidate's call costs at one shape, and what it is computed in.

    Attributes:
        cost: from its graph, or from that of the export for a model that is run by PyTorch.
        keys: by the arithmetic that the graph names: the provider and arithmetic whose peak is its roof.
        has_graph: whether the bytes of ``cost`` are its own.
        provider: whose memory is its roof.
    """

    cost: Cost
    keys: Mapping[str, Key]
    has_graph: bool
    provider: Provider


def count(entrant: Entrant, lane: Lane, feeds: Sequence[Path]) -> Counted | None:
    """Count a candidate's graph at the shapes of the inputs that it was timed with.

    Args:
        entrant: a candidate that could be opened.
        lane: its measurements.
        feeds: the ``.npz`` files of one timed call.

    Returns:
        None for what has no graph: a planted model, a folder that nothing was exported from.
    """
    candidate = entrant.candidate
    path, has_graph = candidate.path, True
    is_source = candidate.label.partition(":")[0] == "source"  # source:bf16, source:compiled
    if candidate.provider.name == "torch" and is_source and entrant.artifact is not None:
        path, has_graph = entrant.artifact.model_file, False
    if path.suffix != ".onnx":
        return None
    cost = model_cost(path, [_shapes(file) for file in feeds])
    facts = lane.opened["facts"]
    provider = Provider(candidate.provider.name, str(facts.get("precision", "")))
    keys = {arithmetic: _key(provider, arithmetic) for arithmetic in cost.arithmetic}
    if provider.name == "torch" and facts.get("device") == _GPU.name:
        keys, provider = dict.fromkeys(keys, (_GPU, provider.precision)), _GPU
    return Counted(cost, keys, has_graph, provider)


def _shapes(feeds: Path) -> dict[str, tuple[int, ...]]:
    import numpy as np

    with np.load(feeds, allow_pickle=False) as stored:
        return {name: stored[name].shape for name in stored.files}


def _key(provider: Provider, arithmetic: str) -> Key:
    """What a provider makes of the arithmetic that a graph names.

    OpenVINO computes floats in the precision that it was opened with, and PyTorch everything; ONNX Runtime's own
    kernels for processors have no other float than fp32, and put casts around the rest. PyTorch's peak is not measured
    through PyTorch: that of ONNX Runtime, or for other precisions than fp32 of the OpenVINO that works here, stands for
    it.
    """
    if provider.name == "torch":
        precision = provider.precision or "fp32"
        if precision == "fp32":
            return Provider("cpu"), precision
        return Provider(openvino_here() or "openvino", precision), precision
    if is_openvino(provider) and arithmetic != "int8":
        return provider, provider.precision
    if provider.name == "cpu" and arithmetic in ("fp16", "bf16"):
        return provider, "fp32"
    return provider, arithmetic


def place(counted: Counted, roofline: Roofline, median_ms: float) -> Position:
    """Compare a call's time with the least that the roofs allow.

    The least for computing is the sum over arithmetics of operations by peak, the least for moving is ``least_bytes``
    by bandwidth, and no call can take less than the larger of both.

    Args:
        counted: the call.
        roofline: the roofs, of the same run.
        median_ms: how long the call took.
    """
    cost = counted.cost
    seconds = median_ms / 1e3
    computing = _computing(counted, roofline)
    least = cost.least_bytes if counted.has_graph else None
    bandwidth = roofline.bandwidth(counted.provider, least) if least is not None else None
    moving = least / bandwidth / 1e9 if least and bandwidth else None
    bound, roof = "", None
    if computing is not None and moving is not None:
        bound, roof = max((("compute", computing), ("memory", moving)), key=lambda each: each[1])
    return Position(
        flops=cost.flops,
        arithmetic=_by_key(counted),
        bytes=cost.bytes if counted.has_graph else None,
        least_bytes=least,
        gflops=cost.flops / seconds / 1e9,
        peak_gflops=cost.flops / computing / 1e9 if computing else None,
        peak_share=computing / seconds if computing else None,
        intensity=cost.flops / least if least else None,
        gb_per_s=bandwidth,
        bound=bound,
        roof_share=roof / seconds if roof is not None else None,
        uncounted=tuple(each.to_json() for each in cost.uncounted),
    )


def _by_key(counted: Counted) -> dict[str, int]:
    """Operations by what they are really computed in."""
    found: dict[str, int] = {}
    for name, flops in counted.cost.arithmetic.items():
        computed_in = counted.keys[name][1]
        found[computed_in] = found.get(computed_in, 0) + flops
    return found


def _computing(counted: Counted, roofline: Roofline) -> float | None:
    """Seconds at the peaks; None when one of them is not known."""
    seconds = 0.0
    for name, flops in counted.cost.arithmetic.items():
        peak = roofline.peak(counted.keys[name])
        if peak is None:
            return None
        seconds += flops / peak / 1e9
    return seconds
