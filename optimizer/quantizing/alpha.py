"""Smoothing a file: recording its channels, choosing alpha, and proving that nothing changed in float."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, GateFailed
from optimizer.quantizing.prepare import load_proto, quiet_options, save_proto
from optimizer.quantizing.record import record
from optimizer.quantizing.smooth import find_sites, scales_of, smooth
from optimizer.stage import Progress
from optimizer.task import get_task
from optimizer.types import JSON

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimizer.data.calibration import CalibrationSet
    from optimizer.data.preprocess import Batch

__all__ = ["GRID", "check_exact", "cosines", "smooth_file"]

#: The alphas that are tried. The paper uses .5 for OPT and BLOOM, .75 for GLM, whose outliers are larger.
GRID = (0.5, 0.6, 0.7, 0.8, 0.9)
#: A search judges on every fourth row, and wants two of them at least.
_EVERY = 4
_FEWEST = 8
#: Largest difference that smoothing may make in float32, of the larger of 1 and the output's largest magnitude.
_EXACT = 1e-4
_BATCHES_COMPARED = 8
_BATCHES_JUDGED = 32


def smooth_file(
    path: Path,
    work: Path,
    chosen: Iterable[str],
    data: CalibrationSet,
    batch: int,
    alpha: float | None,
    quantized: Callable[[Path, CalibrationSet, Path], Path],
    model: Mapping[str, JSON],
    progress: Progress,
) -> tuple[Path, dict[str, JSON]]:
    """Smooth a prepared graph.

    Args:
        path: the graph.
        work: a scratch folder.
        chosen: names of the nodes that will be quantized.
        data: rows to record channels on, to search on and to compare on.
        batch: rows in a batch.
        alpha: 0 leaves all in the activations, 1 moves all into the weights; None: the one of :data:`GRID` whose int8
            graph, calibrated on three quarters of the rows, has the highest mean cosine to the float one on the rest.
        quantized: makes the int8 graph of a file, with ranges from some rows, in an empty folder.
        model: the manifest's ``model``; its task says what a cosine is taken of.
        progress: told what is being done.

    Returns:
        the smoothed file, and facts: ``alpha``, ``tried`` (alpha → worst and mean cosine), the number of sites folded
        into a ``norm`` or ``linear`` before and of ``insert``-ed Muls, and ``largest_difference`` in float.

    Raises:
        GateFailed: the smoothed graph answers otherwise in float.
        BadInput: nothing can be smoothed, or there are too few rows to search.
    """
    if alpha is None and len(data.rows) < _FEWEST:
        raise BadInput(
            f"{len(data.rows)} rows are too few to search for alpha, {_FEWEST} are the fewest", "give one: --alpha 0.7"
        )
    sites = find_sites(load_proto(path), chosen)
    watched = {site.value: site.channels for site in sites}

    def peaks_on(rows: CalibrationSet) -> dict[str, NDArray[Any]]:
        seen = record(path, watched, rows.batches(batch), len(rows.rows), progress)
        return {name: each.peaks for name, each in seen.items()}

    def smoothed(peaks: Mapping[str, NDArray[Any]], alpha: float, folder: Path) -> tuple[Path, dict[str, int]]:
        changed = load_proto(path)
        counts = smooth(changed, sites, scales_of(changed, sites, peaks, alpha))
        save_proto(changed, folder / "smoothed.onnx")
        return folder / "smoothed.onnx", counts

    facts: dict[str, JSON] = {}
    if alpha is None:
        fit, judge = data.split(_EVERY)
        peaks, tried = peaks_on(fit), {}
        batches = list(islice(judge.batches(batch), _BATCHES_JUDGED))
        for candidate in GRID:
            progress(f"trying alpha {candidate:g}")
            with tempfile.TemporaryDirectory(dir=work) as name:
                folder = Path(name)
                target = quantized(smoothed(peaks, candidate, folder)[0], fit, folder)
                found = cosines(_answers(path, batches), _answers(target, batches), model)
            tried[f"{candidate:g}"] = {"worst": min(found), "mean": sum(found) / len(found)}
        alpha = max(GRID, key=lambda each: tried[f"{each:g}"]["mean"])
        facts["tried"] = tried
    target, counts = smoothed(peaks_on(data), alpha, work)
    difference = check_exact(path, target, islice(data.batches(batch), _BATCHES_COMPARED))
    return target, {"alpha": alpha, **facts, **counts, "largest_difference": difference}


def cosines(
    reference: Iterable[tuple[Batch, dict[str, Any]]],
    judged: Iterable[tuple[Batch, dict[str, Any]]],
    model: Mapping[str, JSON],
) -> list[float]:
    """Cosine of every row's answer, as the model's task compares them."""
    task = get_task(str(model.get("task") or "generic"))
    found: list[float] = []
    for (batch, exact), (_, other) in zip(reference, judged, strict=True):
        found += map(float, task.agree(exact, other, batch.feeds, model)["cosine"])
    return found


def check_exact(before: Path, after: Path, batches: Iterable[Batch]) -> float:
    """Hold a smoothed graph to the answers of the one it was made of, both in float.

    Returns:
        the largest difference, relative to the larger of 1 and the output's largest magnitude.

    Raises:
        GateFailed: it is beyond 1e-4.
    """
    import numpy as np

    worst = 0.0
    every = list(batches)
    for (_, exact), (_, other) in zip(_answers(before, every), _answers(after, every), strict=True):
        for name, array in exact.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            same = (array == other[name]) | (np.isnan(array) & np.isnan(other[name]))
            with np.errstate(invalid="ignore"):
                apart = np.where(same, 0, np.abs(array - other[name]))
            largest = np.abs(array[np.isfinite(array)]).max(initial=1)
            difference = float(apart.max() / largest)
            if not difference <= _EXACT:
                raise GateFailed(
                    f"smoothing changed {name!r} by {difference:.1e} of its size in float, and may by {_EXACT:g}",
                    "leave --smooth out, or choose an --alpha nearer to 0.5",
                )
            worst = max(worst, difference)
    return worst


def _answers(path: Path, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[str, Any]]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), quiet_options(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in batches:
        yield batch, dict(zip(names, session.run(names, batch.feeds), strict=True))
