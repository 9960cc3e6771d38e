"""What this machine is: versions, processor, memory, GPUs. Imports nothing heavy and never fails."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import missing_package
from optimizer.types import JSON

__all__ = [
    "cpu_facts",
    "cpu_threads",
    "describe",
    "gpu_facts",
    "has_bf16",
    "has_module",
    "has_vnni",
    "last_cache_bytes",
    "memory_bytes",
    "need_modules",
    "version_of",
    "versions",
]

#: Processor features that decide which int8 and bf16 kernels run at full speed (names as in /proc/cpuinfo).
_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)

#: Distributions whose versions a record of an experiment must hold.
_DISTRIBUTIONS = (
    "ml-opt",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-openvino",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino",
    "numpy",
    "tokenizers",
    "optimum",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)


@functools.cache
def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(distributions: tuple[str, ...] = _DISTRIBUTIONS) -> dict[str, str]:
    """Installed versions by distribution; those that are not installed are left out."""
    return {d: v for d in distributions if (v := version_of(d)) is not None}


def has_module(name: str) -> bool:
    """Whether a top-level module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def need_modules(modules: tuple[str, ...], wanted_for: str) -> None:
    """Raise :class:`MissingPiece`, with the line that installs it, for the first module that could not be imported."""
    for module in modules:
        if not has_module(module):
            raise missing_package(module, wanted_for)


def cpu_threads() -> int:
    """Physical cores that this process may run on: the right number of intra-op threads.

    Hyper-threads share the units that matrix products are made on, so siblings are counted once
    (``/sys/devices/system/cpu/cpu*/topology``).
    """
    allowed = _allowed_cpus()
    cores = set()
    for cpu in allowed:
        base = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(((base / "physical_package_id").read_text().strip(), (base / "core_id").read_text().strip()))
        except OSError:
            return _quota(len(allowed))
    return _quota(len(cores))


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(cores: int) -> int:
    """No more threads than the container's CPU quota (cgroup v2 ``cpu.max``)."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            cores = min(cores, max(1, round(int(limit) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container says so."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            total = min(total, int(limit))
    except (OSError, ValueError):
        pass
    return total


def last_cache_bytes() -> int:
    """Size of the first processor's last-level cache, as Linux tells it; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes)


def has_vnni(features: Iterable[str]) -> bool:
    """Whether a processor adds products of int8 in 32 bits, fast; others of x86 add pairs of them in 16."""
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(features)


def has_bf16(features: Iterable[str]) -> bool:
    """Whether a processor multiplies bf16."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(features)


@functools.cache
def cpu_facts() -> dict[str, JSON]:
    """Model, vendor (``GenuineIntel``, ``AuthenticAMD``), cores and the features that decide which kernels are fast."""
    model, vendor, flags, mhz = platform.processor() or platform.machine(), "", set[str](), None
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "vendor_id":
                vendor = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = set(value.split())
            elif name.strip() == "cpu MHz":
                mhz = float(value)
    except (OSError, ValueError):
        pass
    governor = None
    with contextlib.suppress(OSError):
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    return {
        "model": model,
        "vendor": vendor,
        "machine": platform.machine(),
        "cores": cpu_threads(),
        "logical": len(_allowed_cpus()),
        "features": [f for f in _FEATURES if f in flags],
        "mhz": mhz,
        "governor": governor,
    }


@functools.cache
def gpu_facts() -> tuple[dict[str, JSON], ...]:
    """NVIDIA GPUs as ``nvidia-smi`` tells them: name, driver, memory in MiB, compute capability. Empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    fields = "name,driver_version,memory.total,compute_cap"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    gpus = []
    for line in done.stdout.strip().splitlines():
        parts = [part.strip() for part in line.rsplit(",", 3)]
        if len(parts) != 4:  # "No devices were found"
            continue
        name, driver, memory, capability = parts
        gpus.append({"name": name, "driver": driver, "memory_mib": memory, "compute_capability": capability})
    return tuple(gpus)


def describe() -> dict[str, JSON]:
    """The environment as a manifest or a report records it."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_facts(),
        "memory_bytes": memory_bytes(),
        "gpus": list(gpu_facts()),
        "versions": versions(),
    }
