"""How much memory of NVIDIA's GPUs a process holds, as the driver counts it (NVML)."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["vram_of"]


@functools.cache
def _devices() -> tuple[Any, ...]:
    """Every GPU that the driver shows; none without ``nvidia-ml-py``, a driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        return tuple(pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()


def vram_of(pid: int) -> int | None:
    """Bytes of GPU memory that a process holds now, over all GPUs, its context and its arena's reserve included.

    Runtimes keep what they once took from the device, so that after the last call this is the most that it ever held.

    Returns:
        None where there is no GPU, where the process uses none, and where the driver does not tell (in a container with
        process numbers of its own, on a partitioned GPU, on Windows).
    """
    held: list[int] = []
    for device in _devices():
        import pynvml

        try:
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        except pynvml.NVMLError:
            continue
        held += [each.usedGpuMemory for each in running if each.pid == pid and each.usedGpuMemory is not None]
    return sum(held) if held else None
