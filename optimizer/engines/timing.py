"""Timings of kernels, kept between builds: in a folder for each version, GPU and driver, so that none is ever stale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.environment import gpu_facts
from optimizer.files import Lock, disk_errors
from optimizer.layout import machine_cache, used

if TYPE_CHECKING:
    from optimizer.engines.flavors import Flavor

__all__ = ["TimingCache"]


@dataclass(frozen=True)
class TimingCache:
    """One file of timings."""

    path: Path

    @classmethod
    def of(cls, root: Path | None, flavor: Flavor, version: str) -> TimingCache | None:
        """The one for a flavour on this machine; None for a flavour that times nothing while it builds.

        Args:
            root: where caches lie; None for the user's cache folder.
            flavor: whose timings.
            version: of its library.
        """
        if flavor.capabilities:
            return None
        folder = machine_cache("timing", (flavor.name, version), next(iter(gpu_facts()), None))
        return cls((folder if root is None else root / folder.name) / "timing.cache")

    def read(self) -> bytes:
        """Its content; empty when there is none yet."""
        used(self.path)
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> None:
        """Put a new content in its place, by one rename."""
        with disk_errors("keeping kernel timings", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with Lock(self.path.with_suffix(".lock")):
                fresh = self.path.with_suffix(".new")
                fresh.write_bytes(content)
                fresh.replace(self.path)
