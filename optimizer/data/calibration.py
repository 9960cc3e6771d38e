"""Calibration sets: real rows, chosen to look like the file they come from, and described for the manifest."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.data.columns import label_of, named_columns
from optimizer.data.preprocess import Batch, Preprocessor
from optimizer.data.readers import Row, format_of, kept_set, read_rows
from optimizer.digest import digest_file, digest_json, digest_tree
from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["CalibrationSet", "coverage", "describe", "digest_data", "digest_of", "distinct", "sample"]

#: The rows of a label are cut into this many groups of equal size by their length.
_LENGTH_STRATA = 8


def sample(
    rows: Sequence[Row],
    n: int,
    *,
    content: Callable[[Row], str],
    lengths: Sequence[int] | None = None,
    labels: Sequence[JSON] | None = None,
    seed: int = 0,
) -> list[int]:
    """Choose ``n`` rows that cover the lengths and labels of all of them.

    Duplicates are dropped (the first stays). Every label gives its share of ``n``, and within a label every stratum of
    like length gives its share of that, both rounded by largest remainder. Within a stratum the rows with the smallest
    sha256 of seed and content are taken, so that the choice depends on nothing but the rows: not on their order, not
    on the version of a random generator.

    Args:
        rows: what to choose from.
        n: how many to choose; all that are left when there are fewer.
        content: what makes two rows the same (:meth:`Preprocessor.content`).
        lengths: length of each row; None where rows have none.
        labels: label of each row; None where there are none.
        seed: another seed, another choice.

    Returns:
        places in ``rows``, ascending.
    """
    if n < 1:
        raise ValueError("a sample needs at least one row")
    first = distinct(rows, content)
    rank = {place: hashlib.sha256(f"{seed} {digest}".encode()).digest() for digest, place in first.items()}
    by_label: dict[str, list[int]] = defaultdict(list)
    for place in rank:
        by_label[repr(labels[place]) if labels is not None else ""].append(place)
    groups = [by_label[label] for label in sorted(by_label)]
    chosen: list[int] = []
    for group, share in zip(groups, _shares([len(group) for group in groups], min(n, len(rank))), strict=True):
        ordered = sorted(group, key=lambda place: (lengths[place] if lengths is not None else 0, rank[place]))
        count = min(_LENGTH_STRATA if lengths is not None else 1, share)
        strata = [ordered[len(group) * i // count : len(group) * (i + 1) // count] for i in range(count)]
        for stratum, part in zip(strata, _shares([len(stratum) for stratum in strata], share), strict=True):
            chosen += sorted(stratum, key=rank.__getitem__)[:part]
    return sorted(chosen)


def distinct(rows: Iterable[Row], content: Callable[[Row], str]) -> dict[str, int]:
    """Where each content comes first among some rows."""
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(content(row), place)
    return first


def _shares(sizes: Sequence[int], n: int) -> list[int]:
    """``n`` shared out in proportion to ``sizes`` by largest remainder (Hamilton's method)."""
    total = sum(sizes)
    shares = [n * size // total for size in sizes]
    remainders = sorted(range(len(sizes)), key=lambda i: (-(n * sizes[i] % total), i))
    for i in remainders[: n - sum(shares)]:
        shares[i] += 1
    return shares


def coverage(
    offered: Collection[int],
    used: Collection[int],
    *,
    lengths: Sequence[int] | None = None,
    labels: Sequence[JSON] | None = None,
) -> dict[str, JSON]:
    """How much of what was offered the chosen rows cover.

    Args:
        offered: places of the rows that could be chosen.
        used: places of those that were.
        lengths: length of the row at each place; None where rows have none.
        labels: label of the row at each place; None where there are none.

    Returns:
        ``strata`` (``from`` and ``to``, lengths, both included, of about an eighth of the rows each; ``offered`` and
        ``used``, how many; None without lengths), ``labels`` (label → ``offered``, ``used``; None without labels) and
        ``missed``: the strata and labels that are offered and have no chosen row, in words.
    """
    strata: list[dict[str, JSON]] | None = None
    missed: list[str] = []
    if lengths is not None:
        ordered = sorted(lengths[place] for place in offered)
        starts = sorted({ordered[len(ordered) * i // _LENGTH_STRATA] for i in range(_LENGTH_STRATA)})
        strata = []
        for low, high in zip(starts, [*(start - 1 for start in starts[1:]), ordered[-1]], strict=True):
            count = [sum(low <= lengths[place] <= high for place in places) for places in (offered, used)]
            strata.append({"from": low, "to": high, "offered": count[0], "used": count[1]})
        missed += [f"lengths {each['from']} to {each['to']}" for each in strata if not each["used"]]
    by_label: dict[str, JSON] | None = None
    if labels is not None:
        counts = [Counter(str(labels[place]) for place in places) for places in (offered, used)]
        by_label = {name: {"offered": counts[0][name], "used": counts[1][name]} for name in sorted(counts[0])}
        missed += [f"the label {name}" for name in by_label if not counts[1][name]]
    return {"strata": strata, "labels": by_label, "missed": missed}


def digest_of(rows: Iterable[Row], content: Callable[[Row], str]) -> str:
    """sha256 of rows in their order, by what the model is given of them: files that say the same have the same."""
    return digest_json([content(row) for row in rows])


def describe(
    path: Path,
    rows: Sequence[Row],
    used: Sequence[Row],
    *,
    lengths: Sequence[int] | None = None,
    labels: Sequence[JSON] | None = None,
) -> dict[str, JSON]:
    """What a manifest says of the data that a stage used.

    Args:
        path: the file or folder; of a calibration set its content is meant, and not when and by whom it was made.
        rows: every row of it.
        used: the rows that were used.
        lengths: lengths of the used rows.
        labels: labels of the used rows.

    Returns:
        ``file``, ``format``, ``sha256`` (of a folder: of its names and contents), ``rows``, ``rows_used``, ``lengths``
        (``min``, ``median``, ``p95``, ``max``, or None) and ``labels`` (count by label, or None).
    """
    return {
        "file": path.name,
        "format": format_of(path),
        "sha256": digest_data(path),
        "rows": len(rows),
        "rows_used": len(used),
        "lengths": _summary(lengths) if lengths else None,
        "labels": dict(sorted(Counter(map(str, labels)).items())) if labels else None,
    }


def digest_data(path: Path) -> str:
    """sha256 of a data file's bytes, or of a folder's names and contents (without a calibration set's manifest)."""
    if (kept := kept_set(path)) is not None:
        return kept.digest
    if path.is_dir():
        return digest_tree(path, sorted(file for file in path.rglob("*") if file.is_file()))
    return digest_file(path)


def _summary(lengths: Sequence[int]) -> dict[str, JSON]:
    """Quantiles by nearest rank: every number is the length of a real row."""
    ordered = sorted(lengths)

    def quantile(q: float) -> int:
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)]

    return {"min": ordered[0], "median": quantile(0.5), "p95": quantile(0.95), "max": ordered[-1]}


@dataclass(frozen=True)
class CalibrationSet:
    """Rows of a data file, ready to be fed to a model.

    Attributes:
        rows: the rows that were chosen, in the order of the file.
        summary: see :func:`describe`; also ``duplicates`` (rows that say what an earlier one says, which are left out),
            ``rows_sha256`` (:func:`digest_of` the chosen rows) and, of a calibration set, ``set`` (its ``key``, and the
            ``file``, ``sha256`` and ``rows`` that it was chosen from).
        covers: see :func:`coverage`.
        asked: how many rows were asked for.
    """

    rows: tuple[Row, ...]
    summary: dict[str, JSON]
    covers: dict[str, JSON]
    asked: int
    _preprocessor: Preprocessor
    _most: int | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        preprocessor: Preprocessor,
        *,
        samples: int | None = None,
        usual: int = 200,
        seed: int = 0,
    ) -> CalibrationSet:
        """Read a file, refuse it if a row of it cannot be fed, and choose rows.

        Args:
            path: the data file or folder; see :func:`read_rows`.
            preprocessor: of the model that is to be calibrated.
            samples: how many rows; all there are when there are fewer (``summary["rows_used"]`` says how many).
            usual: how many when ``samples`` is None; of a calibration set it is then all, as they were chosen already.
            seed: see :func:`sample`.

        Raises:
            BadInput: see :func:`read_rows` and :meth:`Preprocessor.check`.
        """
        rows = read_rows(path)
        preprocessor.check(rows)
        lengths = preprocessor.lengths(rows)
        found = [label_of(row, preprocessor.columns) for row in rows]
        labels = found if all(isinstance(label, str | int) for label in found) else None
        kept = kept_set(path)
        asked = samples or (usual if kept is None else len(rows))
        known = {row.number: digest for row, digest in zip(rows, map(preprocessor.content, rows), strict=True)}

        def content(row: Row) -> str:
            return known[row.number]

        places = sample(rows, asked, content=content, lengths=lengths, labels=labels, seed=seed)
        used = tuple(rows[place] for place in places)
        offered = distinct(rows, content).values()
        summary = describe(
            path,
            rows,
            used,
            lengths=[lengths[place] for place in places] if lengths else None,
            labels=[labels[place] for place in places] if labels else None,
        )
        summary["duplicates"] = len(rows) - len(offered)
        summary["rows_sha256"] = digest_of(used, content)
        if kept is not None:
            origin = kept.manifest.facts.get("calibration", {})
            summary["set"] = {"key": kept.manifest.key, **{k: origin.get(k) for k in ("file", "sha256", "rows")}}
        covers = coverage(offered, places, lengths=lengths, labels=labels)
        return cls(used, summary, covers, asked, preprocessor)

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        path: Path,
        column: Sequence[str] = (),
        *,
        samples: int | None,
        usual: int = 200,
        seed: int = 0,
    ) -> CalibrationSet:
        """:meth:`open` for an artifact, columns named as ``--column`` has it.

        Raises:
            BadInput: see :meth:`open`; also columns of a calibration set, which are called what they are.
        """
        if column and kept_set(path) is not None:
            raise BadInput(
                f"{path.name} is a calibration set, whose columns are called what they are to the model",
                "leave --column out",
            )
        preprocessor = Preprocessor.open(artifact.path, artifact.model_info, columns=named_columns(column))
        opened = cls.open(path, preprocessor, samples=samples, usual=usual, seed=seed)
        return replace(opened, _most=artifact.model_info.get("max_batch"))

    def split(self, every: int) -> tuple[CalibrationSet, CalibrationSet]:
        """Two sets of other rows: every ``every``-th one to judge on (second), the rest to fit to (first)."""
        fit = tuple(row for place, row in enumerate(self.rows) if place % every)
        return replace(self, rows=fit), replace(self, rows=self.rows[::every])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Every chosen row once, rows of like length together, so that little padding is calibrated on.

        No batch has more rows than the artifact takes that the set was opened for.
        """
        return self._preprocessor.batches(self.rows, min(batch_size, self._most or batch_size), sort=True)
