"""The golden answers as a session: what a machine without PyTorch compares with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimizer.data.golden import Golden
from optimizer.types import JSON, TensorSpec

__all__ = ["GoldenSession"]


class GoldenSession:
    """Gives the kept answers to the kept inputs, whatever it is fed."""

    def __init__(self, golden: Golden) -> None:
        self._answers = golden.outputs
        self.inputs = _specs(golden.inputs)
        self.outputs = _specs(golden.outputs)
        self.facts: dict[str, JSON] = {"provider": "golden"}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The kept answers."""
        return dict(self._answers)

    def bind(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """Nothing to run."""
        return lambda: None

    def runs(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing to give back."""


def _specs(arrays: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(array.dtype), tuple(array.shape)) for name, array in arrays.items())
