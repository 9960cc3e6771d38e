"""What was traced once in a run of the tests is not traced again: the same weights, traced in the same way, are copied.

Tracing a model of two layers takes PyTorch six seconds of processor time, and the tests ask for some of them dozens of
times. Tests of exporting itself trace every time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optimizer.exporting.samples import Sample
from optimizer.graph.io import MODEL_NAME, load, save
from optimizer.hf import LoadedModel

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["install", "remembered"]

#: Where every export is one that is tested, by the beginning of its path.
TRACED = ("tests/stages/test_export_onnx", "tests/exporting/")


def key_of(loaded: LoadedModel, sample: Sample, opset: int) -> str:
    """A digest of all that decides what a model is traced to."""
    found = hashlib.sha256(repr([loaded.class_name, loaded.dropped, sample.axes, opset]).encode())
    found.update(loaded.config.to_json_string().encode())
    tensors = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in loaded.module.state_dict().items()}
    for name, array in [*tensors.items(), *sample.arrays.items()]:
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def remembered(
    trace: Callable[[LoadedModel, Sample, int], onnx_ir.Model], home: Path
) -> Callable[[LoadedModel, Sample, int], onnx_ir.Model]:
    """The same function, asked once for everything; other processes find what it said in the same folder."""

    def export(loaded: LoadedModel, sample: Sample, opset: int) -> onnx_ir.Model:
        if os.environ.get("PYTEST_CURRENT_TEST", "").startswith(TRACED):
            return trace(loaded, sample, opset)
        kept = home / key_of(loaded, sample, opset)
        if not kept.exists():
            home.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=home))
            save(trace(loaded, sample, opset), made)
            try:
                made.rename(kept)
            except OSError:  # another process was faster
                shutil.rmtree(made)
        return load(kept / MODEL_NAME)

    return export


def install(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Have every export of this process remember."""
    import optimizer.exporting.transformers_exporter as exporter

    patch.setattr(exporter, "export", remembered(exporter.export, home))
