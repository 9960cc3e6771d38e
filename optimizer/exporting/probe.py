"""Finding out by trying what a file without documentation takes, and keeping its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import Golden, counts_rows, is_sequence
from optimizer.data.synthetic import synthetic_feeds
from optimizer.environment import has_module
from optimizer.errors import BadInput, GateFailed
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

__all__ = ["Probe", "probe", "same_answers"]

_SEED = 0
#: Rows, steps, and the size of other open dimensions (height and width, mostly), in the order they are tried.
_ROWS, _STEPS, _OTHERS = (2, 1), (16, 512, 16000), (1, 64, 224)
#: Longest sequences tried where nobody says how long they may be.
_LONGEST = (512, 256, 128, 64, 32)
#: Two graphs that differ only in the spelling of their operators differ by less than this.
_UPGRADE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Probe:
    """What trying showed.

    Attributes:
        golden: inputs that the file takes, and its answers; None when none were found.
        repeats: the same inputs gave the same answers twice.
        min_length: fewest steps that it took; None without a sequence.
        max_length: most steps that it took, when it refused longer ones; None when it refused none.
        max_batch: 1 when it takes one row only though its first dimension is open.
        warnings: what a reader should know.
    """

    golden: Golden | None = None
    repeats: bool = True
    min_length: int | None = None
    max_length: int | None = None
    max_batch: int | None = None
    warnings: tuple[str, ...] = ()


def probe(
    path: Path, specs: Sequence[TensorSpec], limits: dict[str, tuple[float, float]], max_length: int | None
) -> Probe:
    """Run a file on made-up inputs of a few shapes, on ONNX Runtime without its optimizations.

    Args:
        path: the file.
        specs: its inputs.
        limits: smallest and largest value by input name.
        max_length: most steps it will be given; None to find out.

    Raises:
        BadInput: ONNX Runtime cannot load the file.
    """
    if not has_module("onnxruntime"):
        return Probe(warnings=("no golden answers: onnxruntime is not installed",))
    session = _open(path)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Arrays) -> list[Any]:
        return list(session.run(names, feeds))

    reason = ""
    for rows, steps, sized in _shapes(specs, max_length):
        feeds = synthetic_feeds(sized, rows, steps, _SEED, limits)
        try:
            answers = run(feeds)
        except Exception as error:  # whatever a kernel says of a shape that it cannot take
            reason = reason or _first_line(error)
            continue
        golden = Golden(feeds, dict(zip(names, answers, strict=True)))
        found = _lengths(Probe(golden), run, sized, limits, steps, max_length)
        if rows == 1 and any(counts_rows(spec.shape[0], 0) for spec in specs if spec.shape):
            found = replace(found, max_batch=1, warnings=(*found.warnings, "it takes one row at a time"))
        if not all(_same(a, b) for a, b in zip(answers, run(feeds), strict=True)):
            warning = "the same inputs gave different answers twice: it draws random numbers, and cannot be compared"
            found = replace(found, repeats=False, warnings=(*found.warnings, warning))
        return found
    return Probe(warnings=(f"no golden inputs: it takes none of the shapes that were tried ({reason})",))


def _shapes(specs: Sequence[TensorSpec], max_length: int | None) -> Iterator[tuple[int, int, tuple[TensorSpec, ...]]]:
    """Rows, steps, and the inputs with every other open dimension filled in, in the order of trying."""
    dims = [(dim, place, len(spec.shape)) for spec in specs for place, dim in enumerate(spec.shape)]
    has_steps = any(_is_step(*dim) for dim in dims)
    has_others = any(isinstance(dim[0], str) and not counts_rows(*dim[:2]) and not _is_step(*dim) for dim in dims)
    for steps in _STEPS if has_steps else _STEPS[:1]:
        if max_length is not None and steps > max_length:
            steps = max_length
        for other in _OTHERS if has_others else _OTHERS[:1]:
            sized = tuple(
                TensorSpec(
                    spec.name,
                    spec.dtype,
                    tuple(
                        d if isinstance(d, int) or counts_rows(d, p) or _is_step(d, p, len(spec.shape)) else other
                        for p, d in enumerate(spec.shape)
                    ),
                )
                for spec in specs
            )
            for rows in _ROWS:
                yield rows, steps, sized


def _is_step(dim: int | str, place: int, rank: int) -> bool:
    """Whether a dimension counts steps, by its name or (like :func:`symbol_sizes`) as the second of two."""
    return is_sequence(dim) or (isinstance(dim, str) and place == 1 and rank == 2 and not counts_rows(dim, place))


def _lengths(
    found: Probe,
    run: Any,
    specs: Sequence[TensorSpec],
    limits: dict[str, tuple[float, float]],
    worked: int,
    max_length: int | None,
) -> Probe:
    """Which lengths it takes, where a dimension is called a sequence."""
    if not any(is_sequence(dim) for spec in specs for dim in spec.shape):
        return found

    def takes(steps: int) -> bool:
        try:
            run(synthetic_feeds(specs, 1, steps, _SEED, limits))
        except Exception:
            return False
        return True

    shortest = 1 if takes(1) else worked
    warnings = () if shortest == 1 else (f"it does not take 1 step; {worked} is the fewest that was tried and taken",)
    longest = None
    if max_length is None and worked < _LONGEST[0] and not takes(_LONGEST[0]):
        longest = next((steps for steps in _LONGEST[1:] if steps > worked and takes(steps)), worked)
        warnings = (*warnings, f"it does not take {_LONGEST[0]} steps; {longest} is recorded as its longest")
    return replace(found, min_length=shortest, max_length=longest, warnings=(*found.warnings, *warnings))


def same_answers(path: Path, golden: Golden, opset: int) -> None:
    """Hold a converted file to the original's answers. Raises :class:`GateFailed` when they differ."""
    import numpy as np

    names = list(golden.outputs)
    for name, got in zip(names, _open(path).run(names, golden.inputs), strict=True):
        want = golden.outputs[name]
        scale = float(np.abs(np.nan_to_num(want.astype(np.float64))).max(initial=1.0))
        if not _same(want, got, _UPGRADE_TOLERANCE * scale):
            raise GateFailed(
                f"converted to opset {opset}, output {name!r} is not what the file answered before",
                "leave --opset out to keep the file as it is",
            )


def _same(a: NDArray[Any], b: NDArray[Any], tolerance: float = 0.0) -> bool:
    """Equal shapes and values; NaN is equal to NaN."""
    import numpy as np

    return a.shape == b.shape and bool(
        np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=tolerance, equal_nan=True)
    )


def _open(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Plain execution: the reference must not owe its answers to an optimization.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its C++ has a dozen exception types for a model that it does not like
        raise BadInput(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
