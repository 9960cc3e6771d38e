"""The shapes that a provider is told to compile for, so that it never compiles again while something runs.

TensorRT's providers, left alone, look at the first rows that come and compile the graph again whenever others come:
minutes inside of what looks like one call, without a word. Here they are always told a profile, and shapes outside of
it are refused by name before the vendor sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Artifact
from optimizer.engines.profiles import Profile, usual
from optimizer.errors import BadInput
from optimizer.types import JSON, Kind, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Shapes", "check_shapes", "shape_options", "shapes_of"]


@dataclass(frozen=True)
class Shapes:
    """What a graph is compiled for.

    Attributes:
        profile: ranges of its open dimensions; None where every dimension is fixed.
        content: sha256 of the artifact's files; empty for a file outside of a store, for whose content nobody vouches.
        engine: what the manifest says of the compiled graph that the file holds (an EP context); None for others.
    """

    profile: Profile | None = None
    content: str = ""
    engine: Mapping[str, JSON] | None = None


def shapes_of(path: Path, model: Mapping[str, JSON]) -> Shapes:
    """The shapes to compile a file for: those that its manifest records, else the usual ones of its model.

    Args:
        path: an ``.onnx`` file.
        model: the manifest's ``model`` with its ``inputs``; the file's own are read where it has none. A ``profile`` in
            it is what somebody knows who made the file.

    Raises:
        BadInput: a dimension is open that is neither rows nor steps, so that nothing can be supposed of it.
    """
    artifact = Artifact.found_in(path.parent)
    if artifact is not None and artifact.kind is not Kind.ONNX:
        artifact = None
    content = artifact.digest if artifact else ""
    engine = artifact.manifest.facts.get("engine") if artifact else None
    if engine is not None:
        recorded = [Profile.from_json(each) for each in engine["profiles"]]
        return Shapes(recorded[0] if recorded else None, content, engine)
    if (told := model.get("profile")) is not None:
        return Shapes(Profile.from_json(told), content)
    specs = [TensorSpec.from_json(each) for each in model.get("inputs") or ()] or _inputs_of(path)
    try:
        return Shapes(usual(specs, model), content)
    except BadInput as error:
        raise BadInput(
            error.message,
            "compile it for shapes of yours: ml-opt build-ep-context REF --profile DIMENSION=MIN:BEST:MAX,…",
        ) from None


def _inputs_of(path: Path) -> list[TensorSpec]:
    from optimizer.graph.facts import fed_inputs, tensor_specs
    from optimizer.graph.io import load

    return list(tensor_specs(fed_inputs(load(path))))


def shape_options(prefix: str, profile: Profile | None) -> dict[str, str]:
    """A profile as provider options: ``{"trt_profile_min_shapes": "ids:1x1,mask:1x1", …}``.

    Args:
        prefix: ``trt`` or ``nv``.
        profile: None gives no options.
    """
    if profile is None:
        return {}

    def written(which: str) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, getattr(each, which)))}" for name, each in profile.ranges.items())

    return {f"{prefix}_profile_{which}_shapes": written(which) for which in ("min", "opt", "max")}


def check_shapes(profile: Profile | None, feeds: Mapping[str, NDArray[np.generic]], provider: str) -> None:
    """Refuse inputs that a graph was not compiled for.

    Raises:
        BadInput: naming what is fed, what is taken, and how to get more.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    if profile is None or profile.holds(shapes):
        return
    given = ", ".join(f"{name} {'x'.join(map(str, shapes[name]))}" for name in profile.ranges)
    raise BadInput(
        f"{provider} compiled this model for other shapes than these: {given}",
        f"it takes {profile}; compile it for more: ml-opt build-ep-context REF --provider {provider} --profile …",
    )
