"""What stays for as long as a model is served is no garbage, and Python's collector need not look for any in it."""

from __future__ import annotations

import gc

__all__ = ["settled"]


def settled(gone: bool = False) -> None:
    """Take all that is there out of the collector's sight (``gc.freeze``).

    Its third generation holds what was imported and loaded: some 300,000 objects, which it goes through every few
    seconds under load. That stops the event loop for 70 to 120 ms, and whoever asks meanwhile waits.

    Args:
        gone: something that was there is not used any more: it is looked for among all that was out of sight.
    """
    if gone:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
