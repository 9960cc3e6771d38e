"""A model proves itself before it is ready: golden inputs through its queue, alone, together, and at ragged lengths."""

from __future__ import annotations

from optimizer.serving.served import Served

__all__ = ["prove"]


async def prove(served: Served) -> None:
    """Replay what was kept beside the model."""
