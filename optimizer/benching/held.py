"""The memory that texts of each size take: each in a process of its own, which has held nothing larger before.

A process that is timed at all sizes says little of one of them: caches of keys and values grow and do not shrink, and
allocators keep what was given back. Nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from optimizer.benching.measure import Plan, opening
from optimizer.benching.process import CandidateFailed, WorkerProcess
from optimizer.benching.workload import Load, name_of
from optimizer.runtime import Candidate
from optimizer.stage import Progress

__all__ = ["held_at"]


def held_at(
    candidates: Sequence[Candidate], plan: Plan, feeds: Mapping[Load, list[Path]], scratch: Path, progress: Progress
) -> list[dict[Load, int]]:
    """Write the texts of each size once.

    Args:
        candidates: that can be opened.
        plan: its shapes are sizes of texts.
        feeds: a file for each size, which says what to write.
        scratch: a folder for logs.
        progress: told of every step.

    Returns:
        of each candidate, by size, the most bytes that its process held from when the model was open. A size at which
        that process failed is left out.
    """
    found: list[dict[Load, int]] = []
    for number, candidate in enumerate(candidates):
        found.append({})
        for place, load in enumerate(plan.shapes):
            progress(f"memory of {candidate.label} at {load}", number, len(candidates))
            process = WorkerProcess.of(candidate, scratch / f"memory-{number}-{place}.log", plan.threads)
            try:
                process.ask({"do": "open", **opening(candidate, plan)}, plan.timeout)
                asked = {"do": "memory", "shape": name_of(load), "feeds": str(feeds[load][0])}
                found[-1][load] = int(process.ask(asked, plan.timeout)["rss"])
            except CandidateFailed:
                continue
            finally:
                process.kill()
    return found
