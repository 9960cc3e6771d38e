"""Smoothing a file: recording its channels, choosing alpha, and proving that nothing changed in float."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, GateFailed
from optimizer.quantizing.kept import Kept
from optimizer.quantizing.prepare import digest_proto, load_proto, quiet_options, save_proto
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
#: Bytes of the float graph's answers that a search holds, to compare every alpha with.
_HELD = 256 * 2**20


def smooth_file(
    path: Path,
    work: Path,
    chosen: Sequence[str],
    data: CalibrationSet,
    batch: int,
    alpha: float | None,
    quantized: Callable[[Path, CalibrationSet, Path], Path],
    model: Mapping[str, JSON],
    asked: Mapping[str, JSON],
    kept: Kept,
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
        asked: what ``quantized`` depends on beside the graph, the chosen nodes and the rows.
        kept: what is known of these rows already.
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

    def peaks_on(rows: CalibrationSet) -> bytes:
        seen = record(path, watched, rows.batches(batch), len(rows.rows), progress)
        return _packed([seen[name].peaks for name in watched])

    def smoothed(peaks: bytes, alpha: float, folder: Path) -> tuple[Path, dict[str, int]]:
        changed = load_proto(path)
        by_name = dict(zip(watched, _unpacked(peaks), strict=True))
        counts = smooth(changed, sites, scales_of(changed, sites, by_name, alpha))
        save_proto(changed, folder / "smoothed.onnx")
        return folder / "smoothed.onnx", counts

    def tried() -> bytes:
        fit, judge = data.split(_EVERY)
        peaks, found = peaks_on(fit), {}
        batches = list(islice(judge.batches(batch), _BATCHES_JUDGED))
        exact = _held(path, batches)
        for candidate in GRID:
            progress(f"trying alpha {candidate:g}")
            with tempfile.TemporaryDirectory(dir=work) as name:
                folder = Path(name)
                target = quantized(smoothed(peaks, candidate, folder)[0], fit, folder)
                each = cosines(exact(), _answers(target, batches), model)
            found[f"{candidate:g}"] = {"worst": min(each), "mean": sum(each) / len(each)}
        return json.dumps(found).encode()

    facts: dict[str, JSON] = {}
    if alpha is None:
        facts["tried"] = json.loads(kept.recall("tried alphas", path, tried, chosen=list(chosen), **asked))
        alpha = max(GRID, key=lambda each: float(facts["tried"][f"{each:g}"]["mean"]))
    peaks = kept.recall("peaks", path, lambda: peaks_on(data), watched=watched)
    target, counts = smoothed(peaks, alpha, work)

    def difference() -> bytes:
        return json.dumps(check_exact(path, target, islice(data.batches(batch), _BATCHES_COMPARED))).encode()

    largest = json.loads(kept.recall("largest difference", path, difference, smoothed=digest_proto(target)))
    return target, {"alpha": alpha, **facts, **counts, "largest_difference": largest}


def _packed(arrays: Sequence[NDArray[Any]]) -> bytes:
    import numpy as np

    packed = io.BytesIO()
    np.savez(packed, *arrays)
    return packed.getvalue()


def _unpacked(packed: bytes) -> list[NDArray[Any]]:
    import numpy as np

    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return [arrays[f"arr_{place}"] for place in range(len(arrays.files))]


def _held(path: Path, batches: Sequence[Batch]) -> Callable[[], Iterable[tuple[Batch, dict[str, Any]]]]:
    """A graph's answers to the same batches as often as they are wanted: held where they fit into memory."""
    found, size = [], 0
    for each in _answers(path, batches):
        found.append(each)
        size += sum(array.nbytes for array in each[1].values())
        if size > _HELD:
            return lambda: _answers(path, batches)
    return lambda: found


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
