"""Options that several quantizers have, each written once: which rows they see, which nodes they take, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimizer.options import opt
from optimizer.types import Kind

__all__ = [
    "calib_opt",
    "exclude_opt",
    "include_opt",
    "optional_calib_opt",
    "per_channel_opt",
    "reduce_range_opt",
    "samples_opt",
    "seed_opt",
    "symmetric_opt",
]


#: A file, or a set that is kept.
_CALIBRATION: Mapping[str, Any] = {"data": True, "metavar": "FILE|REF", "kind": Kind.CALIBRATION}


def calib_opt() -> Any:
    """``calib``: what is calibrated on."""
    return opt(
        help="Data like the model will see: jsonl, csv, parquet, npz, txt, a folder of images, or a calibration set.",
        **_CALIBRATION,
    )


def optional_calib_opt(help: str) -> Any:
    """``calib`` where it may be left out."""
    return opt(None, help, **_CALIBRATION)


def samples_opt(purpose: str, usual: int) -> Any:
    """``samples``: how many rows of it, and what for; ``usual`` of a file when nothing is asked for."""
    help = f"Rows to {purpose}, chosen by length and label [{usual}, or all of a calibration set]."
    return opt(None, help, ge=1, le=100000)


def seed_opt() -> Any:
    """``seed``: which rows."""
    return opt(0, "Another seed chooses other rows.", ge=0)


def per_channel_opt() -> Any:
    """``per_channel``: how many scales a weight has."""
    return opt(True, "One scale for each output channel of a weight instead of one for the whole.")


def symmetric_opt() -> Any:
    """``symmetric``: the form of activations."""
    return opt(False, "Signed activations around zero, the only int8 that TensorRT takes.")


def reduce_range_opt() -> Any:
    """``reduce_range``: weights that no sum of int8 products saturates with."""
    return opt(False, "7-bit weights, for processors without VNNI whose int8 sums saturate.")


def include_opt() -> Any:
    """``include``: the only nodes that are taken."""
    return opt((), "Only nodes whose name matches (* and ?).", metavar="NODE")


def exclude_opt() -> Any:
    """``exclude``: nodes that are not."""
    return opt((), "Leave nodes in float whose name matches (* and ?).", metavar="NODE")
