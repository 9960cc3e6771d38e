"""This machine's own roofs: how fast it multiplies matrices in each arithmetic, and how fast it moves memory.

Measured as candidates are: by the same worker, in processes of their own, with the same threads, warmed up, in
interleaved rounds, and in the same run, since a peak of another day (another clock, other neighbours) says nothing of
this one. docs/benchmarks.md says what follows from them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.benching.gemm import copy_graph, gemm_feeds, gemm_graph
from optimizer.benching.inputs import save
from optimizer.benching.measure import Feeds, Lane, Plan, measure
from optimizer.benching.shape import Shape
from optimizer.engines.profiles import Profile, Range
from optimizer.environment import last_cache_bytes, memory_bytes
from optimizer.runtime import Candidate, Provider
from optimizer.stage import Progress
from optimizer.types import JSON, TensorSpec

__all__ = [
    "Bandwidth",
    "Key",
    "Peak",
    "Roofline",
    "Run",
    "measure_bandwidths",
    "measure_roofline",
    "on_gpu",
    "roofline_s",
]

#: A provider and the arithmetic that it is to multiply in.
Key = tuple[Provider, str]

_COPIER = (sys.executable, "-m", "optimizer.benching.copying")
_ON_GPU = ("cuda", "tensorrt", "rtx")
#: Rows of the products that are tried, and the width of the stored matrix: the best of them is the peak.
_GEMMS = {False: ((256, 1024, 2048), 1024), True: ((1024, 4096, 8192), 4096)}
#: Working sets of the copies in MiB; one far beyond the last-level cache is added.
_SETS = (2, 16, 64)
#: The same on a GPU, whose caches hold 6 to 60 MiB.
_GPU_SETS = (8, 512)
#: Numbers in a row of the copy on a GPU: such a row and its copy are 1 MiB.
_COLUMNS = 2**17
_ROUNDS = 3
_SECONDS = 0.3
_WARM_S = 0.5
#: Seconds that a process takes to start and to open one product.
_OPEN_S = 1.0


@dataclass(frozen=True)
class Run:
    """One size of a product or of a copy.

    Attributes:
        size: rows of the product, or MiB of the working set.
        work: operations of a product, or bytes that a copy reads and writes.
        rounds_ns: every sample, nanoseconds, one list a round.
    """

    size: int
    work: int
    rounds_ns: list[list[int]]

    @property
    def rate(self) -> float:
        """Work a nanosecond in the median sample: GFLOP/s, or GB/s."""
        every = sorted(ns for each in self.rounds_ns for ns in each)
        return self.work / every[len(every) // 2]

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "rate": self.rate}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        return cls(data["size"], data["work"], data["rounds_ns"])


@dataclass(frozen=True)
class Peak:
    """How fast a provider multiplies matrices in one arithmetic.

    Attributes:
        provider: that multiplied.
        arithmetic: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        width: of the square matrix that rows are multiplied by.
        runs: one a size.
        error: why there are none.
    """

    provider: str
    arithmetic: str
    width: int
    runs: tuple[Run, ...] = ()
    error: str = ""

    @property
    def gflops(self) -> float | None:
        """The best of the sizes, 10⁹ operations a second; None when it could not be measured."""
        return max((run.rate for run in self.runs), default=None)

    def to_json(self) -> dict[str, JSON]:
        return {**vars(self), "gflops": self.gflops, "runs": [run.to_json() for run in self.runs]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Peak:
        runs = tuple(map(Run.from_json, data["runs"]))
        return cls(data["provider"], data["arithmetic"], data["width"], runs, data["error"])


@dataclass(frozen=True)
class Bandwidth:
    """How fast memory is copied, and how fast it is read.

    Attributes:
        device: ``cpu``, or the provider whose memory it is.
        runs: copies, one a working set, ascending.
        error: why there are none.
        reads: the same of calls that read and write nothing; none where they were not asked for, or could not be.
    """

    device: str
    runs: tuple[Run, ...] = ()
    error: str = ""
    reads: tuple[Run, ...] = ()

    def gb_per_s(self, needed: int) -> float | None:
        """For a call that moves so many bytes: that of the largest working set which is not larger.

        The same call is timed again and again, so that what fits into a cache stays there; a roof has to be that of
        the cache then, or the call would be above it. None when nothing could be measured.
        """
        return _rate(self.runs, needed)

    def read_gb_per_s(self, needed: int) -> float | None:
        """The same for a call that reads so many bytes and hardly writes: what is faster, a read or a copy.

        A copy has a second stream to write, which on some machines costs more than it moves.
        """
        rates = [rate for runs in (self.runs, self.reads) if (rate := _rate(runs, needed)) is not None]
        return max(rates, default=None)

    def to_json(self) -> dict[str, JSON]:
        said = {"device": self.device, "runs": [run.to_json() for run in self.runs], "error": self.error}
        return {**said, "reads": [run.to_json() for run in self.reads]} if self.reads else said

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Bandwidth:
        runs, reads = (tuple(map(Run.from_json, data.get(name, ()))) for name in ("runs", "reads"))
        return cls(data["device"], runs, data["error"], reads)


def _rate(runs: Sequence[Run], needed: int) -> float | None:
    """GB/s of the largest working set that is not larger than what a call needs."""
    fitting = [run for run in runs if run.size * 2**20 <= needed] or list(runs[:1])
    return fitting[-1].rate if fitting else None


@dataclass(frozen=True)
class Roofline:
    """All roofs of one run.

    Attributes:
        peaks: one a provider and arithmetic that some candidate computes in.
        bandwidths: one a device.
        seconds: that measuring them took.
    """

    peaks: tuple[Peak, ...]
    bandwidths: tuple[Bandwidth, ...]
    seconds: float = 0.0

    def peak(self, key: Key) -> float | None:
        """10⁹ operations a second; None when it was not measured, or could not be."""
        wanted = (str(key[0]), key[1])
        return next((p.gflops for p in self.peaks if (p.provider, p.arithmetic) == wanted), None)

    def bandwidth(self, provider: Provider, needed: int) -> float | None:
        """GB/s of the memory that a provider computes in, for a call that moves so many bytes."""
        device = provider.name if on_gpu(provider) else "cpu"
        return next((b.gb_per_s(needed) for b in self.bandwidths if b.device == device), None)

    def sentences(self) -> list[str]:
        """What was measured, roof by roof."""
        said = []
        for peak in self.peaks:
            rate = f"{peak.gflops:,.0f} GFLOP/s" if peak.gflops is not None else "not known"
            said.append(f"{peak.arithmetic} on {peak.provider} {rate}")
        for bandwidth in self.bandwidths:
            if bandwidth.runs:
                slow = bandwidth.runs[-1]
                said.append(f"copy of {slow.size} MiB on {bandwidth.device} {slow.rate:.1f} GB/s")
        return said

    def to_json(self) -> dict[str, JSON]:
        return {
            "peaks": [peak.to_json() for peak in self.peaks],
            "bandwidths": [bandwidth.to_json() for bandwidth in self.bandwidths],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Roofline:
        return cls(
            tuple(map(Peak.from_json, data["peaks"])),
            tuple(map(Bandwidth.from_json, data["bandwidths"])),
            data["seconds"],
        )


def on_gpu(provider: Provider) -> bool:
    """Whether a provider computes on a GPU, in its own memory."""
    return provider.name in _ON_GPU


def measure_roofline(keys: Sequence[Key], plan: Plan, scratch: Path, progress: Progress) -> Roofline:
    """Measure every peak that is asked for, and the bandwidth of the memory behind it.

    Args:
        keys: what candidates compute in; each once.
        plan: that of the candidates, for its threads and its timeout.
        scratch: an empty folder.
        progress: told of every step.

    Returns:
        roofs with every sample; one that could not be measured says why.
    """
    started = time.monotonic()
    peaks: list[Peak] = []
    for gpu in (False, True):
        here = [key for key in keys if on_gpu(key[0]) is gpu]
        if here:
            peaks += _peaks(here, gpu, plan, _made(scratch / f"gemm-{int(gpu)}"), progress)
    bandwidths = measure_bandwidths([provider for provider, _ in keys], plan, scratch, progress)
    return Roofline(tuple(peaks), bandwidths, time.monotonic() - started)


def measure_bandwidths(
    providers: Sequence[Provider], plan: Plan, scratch: Path, progress: Progress, *, reading: bool = False
) -> tuple[Bandwidth, ...]:
    """Measure how fast memory is copied where these providers compute, as :func:`measure_roofline` does.

    Args:
        providers: what computes.
        plan: that of the candidates, for its threads and its timeout.
        scratch: an empty folder.
        progress: told of every step.
        reading: measure as well how fast a processor's memory is read.
    """
    found = []
    if any(not on_gpu(provider) for provider in providers):
        found.append(_copies(plan, _made(scratch / "copy"), progress, reading))
    for provider in dict.fromkeys(provider for provider in providers if on_gpu(provider)):
        found.append(_gpu_copies(provider, plan, _made(scratch / f"copy-{provider.name}"), progress))
    return tuple(found)


def roofline_s(peaks: int) -> float:
    """About how many seconds :func:`measure_roofline` takes for so many peaks on a processor."""
    each = _SECONDS + _WARM_S
    return peaks * (_OPEN_S + len(_GEMMS[False][0]) * each) + _OPEN_S + (len(_SETS) + 1) * each


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _quick(plan: Plan, sizes: Sequence[int]) -> Plan:
    """A second or so for each size, warm-up and all."""
    shapes = tuple(map(Shape, sizes))
    return Plan(shapes, plan.threads, _ROUNDS, _SECONDS, _ROUNDS, plan.seed, plan.timeout, _WARM_S)


def _takes(fed: str, sizes: Sequence[int], width: int) -> dict[str, JSON]:
    """What a provider that compiles is told of an input: rows of these numbers, best for the most."""
    rows = Range((min(sizes), width), (max(sizes), width), (max(sizes), width))
    return {"profile": Profile({fed: rows}).to_json()}


def _peaks(keys: Sequence[Key], gpu: bool, plan: Plan, scratch: Path, progress: Progress) -> list[Peak]:
    sizes, width = _GEMMS[gpu]
    candidates = []
    for number, (provider, arithmetic) in enumerate(keys):
        path = scratch / f"gemm-{number}.onnx"
        gemm_graph(arithmetic, width, path)
        takes = _takes(arithmetic, sizes, width)
        candidates.append(Candidate(f"{arithmetic} GEMM on {provider}", path, provider, model=takes))

    def feeds_for(specs: tuple[TensorSpec, ...]) -> Feeds:
        del specs
        arrays = {n: gemm_feeds({arithmetic for _, arithmetic in keys}, n, width) for n in sizes}
        return Feeds({Shape(n): save(scratch, f"rows-{n}", [arrays[n]]) for n in sizes}, [])

    lanes = measure(candidates, _quick(plan, sizes), feeds_for, scratch, progress)
    return [
        Peak(str(provider), arithmetic, width, *_runs(lane, {n: 2 * n * width * width for n in sizes}))
        for (provider, arithmetic), lane in zip(keys, lanes, strict=True)
    ]


def _copies(plan: Plan, scratch: Path, progress: Progress, reading: bool) -> Bandwidth:
    """In the processor's memory, by numpy."""
    # A process that reads has its working sets at the same time.
    sizes = _working_sets(last_cache_bytes(), memory_bytes() // (2 if reading else 1))
    kernels = [Candidate("copy", scratch, Provider("cpu"), command=_COPIER)]
    if reading:
        kernels.append(Candidate("read", scratch, Provider("cpu"), command=(*_COPIER, "read")))
    lanes = measure(
        kernels,
        _quick(plan, sizes),
        lambda _: Feeds({Shape(n): [scratch] for n in sizes}, []),  # nothing is fed: the process makes its own buffers
        scratch,
        progress,
    )
    reads = _bandwidth("cpu", lanes[1], sizes).runs if reading else ()
    return replace(_bandwidth("cpu", lanes[0], sizes), reads=reads)


def _working_sets(cache: int, memory: int) -> list[int]:
    """MiB to copy: inside the caches, and beyond the last one.

    Beyond is eight times the cache, source and target being four times each: STREAM's rule (McCalpin, *Memory bandwidth
    and machine balance in current high performance computers*, 1995). No more than an eighth of memory is taken.
    """
    beyond = max(8 * cache // 2**20, 4 * _SETS[-1])
    most = max(_SETS[0], memory // 8 // 2**20)
    return sorted({min(size, most) for size in (*_SETS, beyond)})


def _gpu_copies(provider: Provider, plan: Plan, scratch: Path, progress: Progress) -> Bandwidth:
    """In a GPU's own memory, by the provider that computes there."""
    import numpy as np

    path = scratch / "copy.onnx"
    copy_graph(_COLUMNS, path)

    def feeds_for(specs: tuple[TensorSpec, ...]) -> Feeds:
        del specs
        arrays = {n: {"copy": np.ones((n, _COLUMNS), np.float32)} for n in _GPU_SETS}
        return Feeds({Shape(n): save(scratch, f"copy-{n}", [arrays[n]]) for n in _GPU_SETS}, [])

    candidate = Candidate(f"copy on {provider}", path, provider, model=_takes("copy", _GPU_SETS, _COLUMNS))
    (lane,) = measure([candidate], _quick(plan, _GPU_SETS), feeds_for, scratch, progress)
    return _bandwidth(provider.name, lane, _GPU_SETS)


def _bandwidth(device: str, lane: Lane, sizes: Sequence[int]) -> Bandwidth:
    return Bandwidth(device, *_runs(lane, {n: n * 2**20 for n in sizes}))


def _runs(lane: Lane, work: Mapping[int, int]) -> tuple[tuple[Run, ...], str]:
    """What a lane measured, and why it did not."""
    if lane.error:
        return (), " ".join(filter(None, (lane.error, lane.hint)))
    return tuple(Run(size, work[size], lane.rounds[Shape(size)]) for size in sorted(work)), ""
