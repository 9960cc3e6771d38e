"""Real rows with a trained model's own answers to them: what its graph must answer too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.artifact import PROBE_NAME
from optimizer.evalset import EvalSet
from optimizer.task import get_task
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

__all__ = ["compare", "probe_batches", "read_probe", "write_probe"]

#: Rows that are asked, and how many of them one at a time; the others come in batches as a server makes them.
_ROWS, _ALONE, _BATCH = 256, 16, 8
#: Outputs that decide, best first.
_MAIN = ("logits", "last_hidden_state")


def probe_batches(rows: EvalSet, most: int | None) -> Iterator[Arrays]:
    """Inputs of some rows: alone, and in batches of 8 whose rows are of unequal lengths, as far as the rows are.

    Args:
        rows: the data; up to 256 of them are asked.
        most: rows that a batch may have; None where nothing limits it.
    """
    places = _spread(len(rows.rows), _ROWS)
    size = min(_BATCH, most or _BATCH)
    # Of few rows most go into a batch: what a graph does with one row says nothing of several.
    alone = [places[at] for at in _spread(len(places), min(_ALONE, max(1, len(places) - size)))]
    for place in alone:
        yield rows.feeds([place])
    rest = sorted(set(places) - set(alone))
    if (lengths := rows.lengths) is not None:
        rest.sort(key=lambda place: lengths[place])  # dealt out below: each batch gets short ones and long ones
    count = -(-len(rest) // size)
    for first in range(count):
        yield rows.feeds(rest[first::count])


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` of ``count`` places, from all over: files are sorted at times."""
    taken = min(count, most)
    return [number * count // taken for number in range(taken)]


def write_probe(folder: Path, batches: list[Arrays], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write inputs with the answers to them."""
    import numpy as np

    named: dict[str, Any] = {}
    for number, (feeds, outputs) in enumerate(zip(batches, answers, strict=True)):
        named |= {f"{number}/input/{name}": array for name, array in feeds.items()}
        main = next((name for name in _MAIN if name in outputs), next(iter(outputs)))
        named[f"{number}/output/{main}"] = outputs[main]
    np.savez_compressed(folder / PROBE_NAME, **named)


def read_probe(folder: Path) -> list[tuple[Arrays, Arrays]]:
    """Inputs and answers, batch by batch."""
    import numpy as np

    batches: dict[int, tuple[Arrays, Arrays]] = {}
    with np.load(folder / PROBE_NAME, allow_pickle=False) as data:
        for key in data.files:
            number, side, name = key.split("/", 2)
            batches.setdefault(int(number), ({}, {}))[side == "output"][name] = data[key]
    return [batches[number] for number in sorted(batches)]


def compare(
    probe: list[tuple[Arrays, Arrays]], answer: Callable[[Arrays], Arrays], model: Mapping[str, JSON]
) -> dict[str, JSON]:
    """How far a graph's answers are from the trained model's.

    Rounding makes small differences large: where a value lies within float error of the middle between two levels, the
    two sides take different ones, and all that follows differs by what a level is worth. Most rows agree to the last
    digits; so the usual row and the worst one are both told.

    Args:
        probe: inputs with the trained model's answers.
        answer: inputs → the graph's answers.
        model: the manifest's ``model``.

    Returns:
        ``rows``, how many of them were asked ``alone``, and how many were ``padded`` to the length of their batch; of
        each row's largest difference ``median``, ``p90`` and ``max``; ``worst_cosine``; ``agreement`` (share of rows
        with the same decision; None where the task has none).
    """
    import numpy as np

    task = get_task(str(model["task"]))
    largest: list[float] = []
    cosines: list[Any] = []
    same: list[Any] = []
    alone = padded = 0
    for feeds, wanted in probe:
        mask = feeds.get("attention_mask")
        alone += len(next(iter(feeds.values()))) == 1
        padded += int((mask == 0).any(axis=1).sum()) if mask is not None and mask.ndim == 2 else 0
        got = answer(feeds)
        measures = task.agree(wanted, {name: got[name] for name in wanted}, feeds, model)
        cosines.append(measures["cosine"])
        if "top1" in measures:
            same.append(measures["top1"])
        for name, right in wanted.items():
            off = np.abs(np.asarray(right, np.float64) - np.asarray(got[name], np.float64))
            if mask is not None and off.ndim == 3 and off.shape[:2] == mask.shape:
                off = off * mask[..., None]
            largest += off.reshape(len(off), -1).max(axis=1).tolist()
    return {
        "rows": len(largest),
        "alone": alone,
        "padded": padded,
        "median": float(np.median(largest)),
        "p90": float(np.quantile(largest, 0.9)),
        "max": max(largest),
        "worst_cosine": float(np.concatenate(cosines).min()),
        "agreement": float(np.concatenate(same).mean()) if same else None,
    }
