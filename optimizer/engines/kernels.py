"""Kernels that TensorRT-RTX compiled for a GPU, kept so that the next session need not compile them again.

Every engine has a file of its own, in a folder for each version, GPU and driver; the vendor compares all three once
more and leaves out what does not fit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.layout import machine_cache, used
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.engines.flavors import Flavor

__all__ = ["CompiledKernels"]


@dataclass(frozen=True)
class CompiledKernels:
    """One engine's file."""

    path: Path

    @classmethod
    def of(cls, flavor: Flavor, version: str, gpu: Mapping[str, JSON], key: str) -> CompiledKernels | None:
        """The file of an engine on this machine; None for a flavour that compiles nothing where an engine is loaded.

        Args:
            flavor: whose engine.
            version: of its library.
            gpu: ``name``, ``compute_capability`` and ``driver``.
            key: of the engine.
        """
        if not flavor.capabilities:
            return None
        return cls(machine_cache("kernels", (flavor.name, version), gpu) / f"{key}.kernels")

    def read(self) -> bytes:
        """Its content; empty when there is none yet, or none that can be read."""
        used(self.path)
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> bool:
        """Put a new content in its place, by one rename.

        Returns:
            whether that was possible. Where it was not (no room, no permission), the next session compiles again.
        """
        temp = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd, temp = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            os.replace(temp, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            return False
        return True
