"""A trained model in a folder: a Hugging Face model like any other, and beside it what its int8 graph is made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import RANGES_NAME
from optimizer.errors import Damaged
from optimizer.training.scheme import WEIGHT_LEVELS, Scheme

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from optimizer.quantizing.marked import Levels, Range
    from optimizer.training.quantized import QuantizedModel

__all__ = ["load_quantized", "ranges_of", "rounded_of", "save_quantized", "weights_of"]


def save_quantized(model: QuantizedModel, folder: Path) -> None:
    """Write the model (``config.json``, ``model.safetensors``) and its ranges."""
    model.module.save_pretrained(folder)
    activations = [
        # The logarithm is what was trained: its exponential is the very scale, where the scale's logarithm is not.
        {
            "site": site,
            "scale": float(each.scale.detach()),
            "log_scale": float(each.log_scale.detach()),
            "zero_point": int(each.zero_point),
            "multiplier": None if each.multiplier is None else each.multiplier.tolist(),
        }
        for site, each in zip(model.sites, model.quantizers, strict=True)
    ]
    ranges = {"schema": 1, "scheme": asdict(model.scheme), "off": sorted(model.off), "activations": activations}
    (folder / RANGES_NAME).write_text(json.dumps(ranges, indent=1) + "\n", encoding="utf-8")


def load_quantized(module: torch.nn.Module, folder: Path, sample: dict[str, torch.Tensor]) -> QuantizedModel:
    """A model as it answered when it was saved.

    Args:
        module: loaded from the folder.
        folder: where :func:`save_quantized` wrote.
        sample: any inputs of the model.

    Raises:
        Damaged: the ranges are not those of this model.
    """
    import torch

    from optimizer.training.intercept import Phase
    from optimizer.training.quantized import QuantizedModel

    path = folder / RANGES_NAME
    try:
        ranges = json.loads(path.read_bytes())
        model = QuantizedModel(module, Scheme(**ranges["scheme"]), sample)
        activations = ranges["activations"]
        sites = [each["site"] for each in activations]
        model.off = set(ranges["off"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
    if sites != list(model.sites):
        raise Damaged(f"{path} has ranges for {len(sites)} activations, and the model has {len(model.sites)} others")
    model.phase = Phase.ROUND
    with torch.no_grad():
        for quantizer, each in zip(model.quantizers, activations, strict=True):
            quantizer.log_scale.fill_(each["log_scale"])
            quantizer.zero_point.fill_(each["zero_point"])
            if each.get("multiplier") is not None:
                quantizer.multiplier = torch.tensor(each["multiplier"])
    return model


def ranges_of(model: QuantizedModel) -> dict[int, Range]:
    """Each activation's range, by its number."""
    from optimizer.quantizing.marked import Range

    return {
        number: Range(float(each.scale.detach()), int(each.zero_point), model.scheme.symmetric)
        for number, each in enumerate(model.quantizers)
    }


def weights_of(model: QuantizedModel) -> dict[str, Levels]:
    """Each weight that is rounded to 8 bits: the very levels that training saw."""
    import torch

    from optimizer.quantizing.marked import Levels
    from optimizer.training.quantizers import round_weight, weight_scale

    found: dict[str, Levels] = {}
    weights: dict[str, Any] = dict(model.module.named_parameters())
    for name, axis in model.rounded.items():
        if model.scheme.weight_bits != 8 and name not in model.tables:
            continue
        weight = model.smoothed(name, weights[name].detach().cpu())
        most = WEIGHT_LEVELS if name in model.tables else model.scheme.most
        scale = weight_scale(weight, axis, most)
        along = scale if axis is None else scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
        levels = (round_weight(weight, axis, most=most) / along).round().to(torch.int8)
        found[name] = Levels(levels.numpy(), scale.numpy(), axis)
    return found


def rounded_of(model: QuantizedModel) -> dict[str, NDArray[Any]]:
    """Each weight that is rounded to 4 bits, in float on its levels."""
    from optimizer.training.quantizers import round_blocks

    weights: dict[str, Any] = dict(model.module.named_parameters())
    return {
        name: round_blocks(weights[name].detach().cpu(), model.scheme.block).numpy()
        for name in model.rounded
        if name not in model.tables
    }
