"""What lies beside an exported or a trained model: what serving needs, and what PyTorch answered to a sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import SourceModel
from optimizer.errors import BadInput
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.exporting.samples import Sample
    from optimizer.hf import LoadedModel

__all__ = ["write_companions", "write_golden"]


def write_golden(loaded: LoadedModel, sample: Sample, out: Path) -> list[str]:
    """Save the sample with PyTorch's own answers to it; returns the names of the outputs."""
    import torch

    from optimizer.data.golden import Golden
    from optimizer.hf import flat_outputs, quiet_libraries
    from optimizer.hf_errors import first_lines

    try:
        with torch.inference_mode(), quiet_libraries():
            answers = flat_outputs(loaded.module(**sample.tensors))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in sample.arrays.items())
        raise BadInput(f"{loaded.class_name} does not take {shapes}: {first_lines(error)}") from error
    arrays = {
        name: (answer.float() if answer.is_floating_point() else answer).numpy()
        for name, answer in answers.items()
        if name not in loaded.dropped
    }
    Golden(sample.arrays, arrays).save(out)
    return list(arrays)


def write_companions(
    loaded: LoadedModel,
    sample: Sample,
    source: SourceModel,
    out: Path,
    task: str,
    *,
    max_batch: int | None,
    trust_remote_code: bool,
) -> tuple[dict[str, JSON], list[str]]:
    """Put what serving needs beside the model, and say what the model is.

    Returns:
        the manifest's ``model``, but for what only a graph says (``limits``, ``inputs``, ``outputs``), and warnings.
    """
    from optimizer.exporting.samples import labels_of
    from optimizer.exporting.sentence import pooling_of
    from optimizer.hf import quiet_libraries

    with quiet_libraries():
        for companion in sample.companions:
            companion.save_pretrained(out)
    shutil.copyfile(source.path / "config.json", out / "config.json")
    labels = labels_of(loaded.config, task)
    if labels:
        (out / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    pooling, warnings = pooling_of(source.path) if sample.modality == "text" else ("", [])
    about = {
        "task": task,
        "modality": sample.modality,
        "architecture": loaded.class_name,
        "class": loaded.class_name,
        "model_type": loaded.config.model_type,
        "min_length": sample.min_length,
        "max_length": sample.max_length,
        "max_batch": max_batch,
        "labels": labels,
        "trust_remote_code": trust_remote_code,
        "source": source.to_json(),
    }
    about["pooling"] = pooling if task == "feature-extraction" else ""
    return about, warnings
