"""The columns of the table of candidates, for the page and for the terminal alike: a new one is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.search.gates import RISE

__all__ = ["COLUMNS", "Column", "filled", "size"]


@dataclass(frozen=True)
class Column:
    """One number of a candidate.

    Attributes:
        head: what stands above it.
        path: keys to it in the candidate's JSON (:meth:`CandidateReport.to_json`).
        form: the number as it is read.
        stays: rank in a terminal that is too narrow for all of them, the lowest leaves first; 0 is for the page alone.
    """

    head: str
    path: tuple[str, ...]
    form: Callable[[Any], str]
    stays: int = 0

    def cell(self, candidate: Mapping[str, Any]) -> str:
        """The number as text; empty where the candidate has none."""
        value: Any = candidate
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "" if value is None else self.form(value)


def size(count: float) -> str:
    """Bytes as people read them, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _ran(runs: Mapping[str, Any]) -> str:
    """What products ran in: ``37 int8, 12 float32``, and how many of them were to run in int8."""
    back = len(runs.get("fell_back", ()))
    counts = [f"{count} {name}" for name, count in runs.items() if name != "fell_back"]
    return ", ".join(counts) + (f" ({back} fell back)" if back else "")


def _rise(gates: Sequence[Mapping[str, Any]]) -> str:
    """How far a metric rises that is the better the lower it is, and at most."""
    found = next((gate for gate in gates if gate["name"].endswith(RISE)), None)
    return "" if found is None else f"{found['value']:+.2%} (to {found['high']:+.2%})"


#: From what is judged to what it costs. A column that no candidate fills is not shown.
COLUMNS: tuple[Column, ...] = (
    Column("accuracy", ("accuracy", "value"), "{:.2%}".format, stays=8),
    Column("rise", ("gates",), _rise, stays=10),
    Column("same decision", ("agreement", "value"), "{:.2%}".format, stays=4),
    Column("worst cosine", ("cosine", "worst"), "{:.5f}".format, stays=6),
    Column("mean cosine", ("cosine", "mean"), "{:.5f}".format, stays=1),
    Column("mean KL", ("kl", "mean"), "{:.2g}".format),
    Column("rows seen", ("seen",), lambda seen: f"{seen:,}" if seen else ""),
    Column("ms", ("speed", "p50_ms"), "{:.2f}".format, stays=7),
    Column("speed-up", ("speed", "ratio", "value"), "{:.2f} ×".format, stays=9),
    Column("rows/s", ("speed", "rows_per_s"), "{:,.0f}".format, stays=3),
    Column("% of GEMM peak", ("speed", "peak_share"), "{:.0%}".format),
    Column("size", ("speed", "bytes"), size, stays=5),
    Column("memory", ("speed", "peak_rss"), size, stays=2),
    Column("load", ("speed", "load_s"), "{:.1f} s".format),
    Column("products ran in", ("runs",), _ran),
)


#: Of candidates that write text: what tokens there are in place of rows, and what counts at each number of texts.
_TOKENS = {"same decision": "same token", "rows seen": "texts seen", "ms": "ms a call"}
_OF_TEXTS: tuple[Column, ...] = (
    Column("decode/s", ("decode_per_s",), "{:,.0f}".format, stays=6),
    Column("prefill/s", ("prefill_per_s",), "{:,.0f}".format, stays=2),
    Column("first token ms", ("first_token_ms",), "{:.1f}".format),
    Column("% of bandwidth", ("bandwidth_share",), "{:.0%}".format),
)


def filled(candidates: Sequence[Mapping[str, Any]], metric: str) -> list[Column]:
    """The columns that at least one candidate fills; that of the metric is called by its name."""
    columns = [replace(column, head=metric) if column.path[0] == "accuracy" else column for column in COLUMNS]
    if metric == "perplexity":
        columns = _for_texts(columns, candidates)
    return [column for column in columns if any(column.cell(each) for each in candidates)]


def _for_texts(columns: Sequence[Column], candidates: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns of candidates that write text: their tokens at every number of texts that was timed."""
    counts = sorted({count for each in candidates for count in (each["speed"] or {}).get("texts", {})}, key=int)
    found = []
    for column in columns:
        if column.path[0] == "accuracy":
            column = replace(column, form="{:.4g}".format)
        if column.path[-1] == "rows_per_s":
            found += [
                replace(
                    each,
                    head=f"{each.head}, {count} text{'' if count == '1' else 's'}",
                    path=("speed", "texts", count, *each.path),
                )
                for each in _OF_TEXTS
                for count in counts
            ]
        else:
            found.append(replace(column, head=_TOKENS.get(column.head, column.head)))
    return found
