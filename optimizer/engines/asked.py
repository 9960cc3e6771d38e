"""What an engine is asked to be: the words of build-trt-engine's options, read and held to the model and the GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact
from optimizer.data.columns import named_columns
from optimizer.engines.flavors import Flavor, numbers
from optimizer.engines.profiles import Profile, check_limits, from_lengths, parse, read_range, usual
from optimizer.environment import gpu_facts
from optimizer.errors import BadInput, UnknownName
from optimizer.options import parse_size
from optimizer.types import Precision, TensorSpec

if TYPE_CHECKING:
    from optimizer.engines.vendor import Input

__all__ = ["Asked", "capabilities_of", "profiles_of", "read_batch", "read_bytes", "specs_of"]

#: The first compute capability that has an arithmetic (NVIDIA's support matrices of TensorRT and TensorRT-RTX).
_NEEDS = {Precision.BF16: (8, 0), Precision.FP8: (8, 9), Precision.INT4: (8, 0)}


@dataclass(frozen=True)
class Asked:
    """What an engine is to be.

    Attributes:
        profiles: shapes it takes.
        values: inputs whose values are a shape.
        capabilities: compute capabilities by name (``8.6``); empty for the flavour's own choice.
        workspace: bytes of scratch memory on the GPU; 0 for all of it.
        level: of the builder's optimization, 0 to 5; None for the vendor's own.
        tf32: fp32 products may round their factors to TF32.
        version_compatible: later versions of the same major number can run it.
        hardware_compatible: GPUs from Ampere on can run it.
        strip: leave out weights that the ONNX file has.
        refit: weights can be exchanged.
        stream: weights may stay in host memory.
        strict_nans: keep NaN and infinity exact.
        timing_cache: the content of a timing cache, or None.
    """

    profiles: tuple[Profile, ...] = ()
    values: frozenset[str] = frozenset()
    capabilities: tuple[str, ...] = ()
    workspace: int = 0
    level: int | None = None
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip: bool = False
    refit: bool = False
    stream: bool = False
    strict_nans: bool = False
    timing_cache: bytes | None = None


def read_batch(text: str) -> tuple[int, ...]:
    """``1:8:32`` as smallest, best and largest number of rows; empty for nothing. Raises :class:`BadInput`."""
    return read_range(text, "batch", f"--batch {text}", "MIN:BEST:MAX, such as --batch 1:8:32") if text else ()


def read_bytes(text: str) -> int:
    """``2GiB`` as bytes; 0 for nothing. Raises :class:`BadInput`."""
    return parse_size(text, "--workspace") if text else 0


def capabilities_of(
    flavor: Flavor, precision: Precision, asked: Sequence[str], hardware_compatible: bool
) -> Sequence[str]:
    """Compute capabilities that an engine is for, each checked to have the arithmetic.

    Args:
        flavor: whose builder.
        precision: what the engine computes in.
        asked: capabilities by name (``8.6``); empty for the flavour's own choice, or this machine's GPUs.
        hardware_compatible: the engine is to run on every GPU from Ampere on.

    Raises:
        BadInput: the flavour is not told GPUs in this way, or one of them lacks the arithmetic.
        UnknownName: a capability that the flavour does not build for.
    """
    if hardware_compatible and flavor.capabilities:
        raise BadInput(
            f"engines of {flavor.title} run on every GPU they name: --hardware-compatible is TensorRT's",
            "name the GPUs: --compute-capability 8.6 --compute-capability 8.9",
        )
    if asked and not flavor.capabilities:
        raise BadInput(
            f"{flavor.title} builds for the GPU of this machine; --compute-capability is for --flavor rtx",
            "leave it out; --hardware-compatible lets the engine run on others",
        )
    for each in asked:
        if each not in flavor.capabilities:
            raise UnknownName(f"compute capability of {flavor.title}", each, flavor.capabilities)
    here = [str(gpu["compute_capability"]) for gpu in gpu_facts()]
    found = list(asked) or list(flavor.portable) or here
    least = _NEEDS.get(precision)
    for each in found:
        if least and numbers(each) < least:
            raise BadInput(
                f"GPUs of compute capability {each} have no {precision}; it begins with {least[0]}.{least[1]}",
                f"leave {each} out, or choose another --precision",
            )
    return found


def profiles_of(
    source: Artifact,
    inputs: Sequence[Input],
    profile: Sequence[str],
    profiles_from: Path | None,
    column: Sequence[str],
    batch: str,
) -> tuple[list[Profile], str]:
    """The profiles of an engine, and where they come from, as a phrase.

    Args:
        source: the model.
        inputs: of its network.
        profile: ``--profile``, as it was typed.
        profiles_from: data whose lengths choose profiles, where none were typed.
        column: ``--column``, of that data.
        batch: ``--batch``, of profiles that are chosen.

    Raises:
        BadInput: a profile that cannot be, one that the model does not take, or a dimension of which nothing is known.
        UnknownName: an input or a dimension that the model does not have.
    """
    specs = specs_of(inputs, source.manifest.inputs)
    values = {each.name: each.shape[0] if each.shape else 1 for each in inputs if each.values}
    model = source.model_info
    if profile:
        found = [parse(text, specs, values) for text in profile]
        why = "asked for"
    elif profiles_from is not None:
        lengths = _lengths(source, profiles_from, column)
        found = from_lengths(lengths, specs, model, read_batch(batch))
        why = f"from the lengths of {len(lengths)} rows of {profiles_from.name}"
    else:
        if values:
            name = next(iter(values))
            raise BadInput(
                f"the values of {name} are a shape, and nothing says which", f"--profile {name}:MIN:BEST:MAX,…"
            )
        one = usual(specs, model, read_batch(batch))
        found, why = ([one] if one else []), "the usual: nothing was asked for"
    for each in found:
        check_limits(each, specs, model)
    return found, why if found else "every dimension is fixed"


def _lengths(source: Artifact, data: Path, column: Sequence[str]) -> list[int]:
    """Of every row of a file, as the model sees it."""
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import read_rows

    rows = read_rows(data)
    made = Preprocessor.open(source.path, source.model_info, columns=named_columns(column))
    lengths = made.lengths(rows)
    if lengths is None:
        raise BadInput(f"the rows of {data} have no length to choose profiles by", "say them with --profile")
    return lengths


def specs_of(found: Sequence[Input], known: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a network as a manifest has them: what is open has the name that the export gave it.

    Args:
        found: of the network.
        known: of the model that it was read from; where it has no name for a dimension, that is ``<tensor>_<place>``.
    """
    names = {spec.name: spec.shape for spec in known}
    made = []
    for each in found:
        dims = names.get(each.name, ())
        dims = dims if len(dims) == len(each.shape) else each.shape
        shape = tuple(
            size if size >= 0 else (name if isinstance(name, str) else f"{each.name}_{place}")
            for place, (size, name) in enumerate(zip(each.shape, dims, strict=True))
        )
        made.append(TensorSpec(each.name, each.dtype, shape))
    return tuple(made)
