"""Bound calls of the CUDA provider as CUDA graphs: one launch in the place of a hundred.

A small model's kernels are over sooner than the processor launches the next one. ONNX Runtime records the launches of
a run whose provider was opened with ``enable_cuda_graph``, and replays them in every later run of the same
``gpu_graph_id``, for inputs and outputs that stay where they were; runs of the id -1 are as without graphs
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview). It refuses
graphs with control flow, and those of which some arithmetic lies on the processor and is copied to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NONE", "OPTIONS", "run_options", "same"]

#: What a provider is opened with whose runs can be recorded.
OPTIONS = {"enable_cuda_graph": "1"}
#: The recording of a run that is none.
NONE = -1
#: How far a replay may be from the run that it repeats, as a share of the largest number: other kernels may be chosen
#: while a graph is recorded, and they sum in another order, in 16 bits as well.
_AS_GOOD = 1e-2


def run_options(onnxruntime: Any, recording: int) -> Any:
    """Options of a run that is recorded the first time, and replayed from then on.

    Args:
        onnxruntime: the module.
        recording: its number, from 1; :data:`NONE` for a run that is neither recorded nor replayed.
    """
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(recording))
    return options


def same(wanted: Sequence[NDArray[np.generic]], got: Sequence[NDArray[np.generic]]) -> bool:
    """Whether a replay answered as the run that it repeats."""
    import numpy as np

    for right, found in zip(wanted, got, strict=True):
        if right.dtype.kind != "f":
            if not np.array_equal(right, found):
                return False
            continue
        exact, near = right.astype(np.float64), found.astype(np.float64)
        most = _AS_GOOD * np.abs(exact[np.isfinite(exact)]).max(initial=0.0)
        if not np.allclose(near, exact, rtol=0.0, atol=most, equal_nan=True):
            return False
    return True
