"""What ``benchmarks.generation`` found as one table: a column a number that one may want, the best of each marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.benching.formats.markdown import md_table
from optimizer.benching.stats import Ratio, brief, speedup

__all__ = ["Column", "behind", "columns", "to_markdown"]


@dataclass(frozen=True)
class Column:
    """A number of every row; the largest is the best.

    Attributes:
        head: what stands over it.
        batch: texts at once.
        prompt: tokens of each one's prompt.
        prefill: of reading prompts alone, and not of the whole call.
    """

    head: str
    batch: int
    prompt: int
    prefill: bool = False

    def cell(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The measurement that it is of."""
        found: list[Mapping[str, Any]] = row["cells"]
        return next(each for each in found if (each["batch"], each["prompt"]) == (self.batch, self.prompt))

    def value(self, row: Mapping[str, Any]) -> float:
        """Tokens a second, of prompts or new ones."""
        return float(self.cell(row)["prefill_per_s" if self.prefill else "tokens_per_s"])

    def rounds(self, row: Mapping[str, Any]) -> Sequence[Sequence[int]]:
        """Nanoseconds, one list a round."""
        cell = self.cell(row)
        if self.prefill:
            return [[int(part["prefill_ns"]) for part in parts] for parts in cell["parts"]]
        found: Sequence[Sequence[int]] = cell["rounds_ns"]
        return found


def columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """New tokens a second at every size, and what reading the longest prompts comes to."""
    sizes = list(dict.fromkeys((cell["batch"], cell["prompt"]) for row in rows for cell in row["cells"]))
    longest = max(prompt for _, prompt in sizes)
    texts = {1: "1 text"}
    whole = [Column(f"{texts.get(batch, f'{batch} texts')}, {prompt}", batch, prompt) for batch, prompt in sizes]
    reading = [
        Column(f"prefill/s, {texts.get(batch, f'{batch} texts')}, {prompt}", batch, prompt, prefill=True)
        for batch, prompt in sizes
        if prompt == longest
    ]
    return [*whole, *reading]


def to_markdown(document: Mapping[str, Any]) -> str:
    """The machine, the table, what was not run, and where something else is ahead of ml-opt.

    Args:
        document: what ``benchmarks.generation`` writes.
    """
    bench = document["bench"]
    rows = [row for row in bench["rows"] if not row["error"]]
    if not rows:
        return "Nothing could be measured.\n"
    shown = columns(rows)
    best = {column: max(column.value(row) for row in rows) for column in shown}
    alike = document.get("alike") or {}

    def cells(row: Mapping[str, Any]) -> list[str]:
        def number(column: Column) -> str:
            value = column.value(row)
            return f"**{brief(value)}**" if value == best[column] else brief(value)

        same = alike.get(row["label"])
        label = f"**{row['label']}**" if _is_ours(row) else row["label"]
        return [
            label, *map(number, shown), brief(row["bytes"] / 1e6), "" if same is None else f"{same:.0%}",
        ]  # fmt: skip

    lines = [*_said(document), ""]
    lines += md_table(["", *(column.head for column in shown), "MB", "alike"], [cells(row) for row in rows])
    failed = {row["label"]: row["error"] for row in bench["rows"] if row["error"]}
    if not_run := [f"- {label}: {why}" for label, why in {**document["not_run"], **failed}.items()]:
        lines += ["", "Not run:", "", *not_run]
    lost = [f"- {line}" for line in behind(rows, shown)]
    lines += ["", "Behind:", "", *lost] if lost else ["", "Level or ahead in every column."]
    return "\n".join([*lines, ""])


def behind(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> Iterator[str]:
    """Columns in which the fastest of the others is ahead of ml-opt's fastest, beyond the interval."""
    ours, others = [row for row in rows if _is_ours(row)], [row for row in rows if not _is_ours(row)]
    if not ours or not others:
        return
    for column in shown:
        mine, theirs = max(ours, key=column.value), max(others, key=column.value)
        ratio: Ratio = speedup(column.rounds(theirs), column.rounds(mine))
        if ratio.high < 1:
            yield (
                f"{column.head}: {theirs['label']} takes {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of "
                f"the time of {mine['label']}"
            )


def _said(document: Mapping[str, Any]) -> list[str]:
    bench = document["bench"]
    settings, cpu = bench["settings"], bench["environment"].get("cpu") or {}
    new = next((cell["new"] for row in bench["rows"] for cell in row["cells"]), 0)
    features = ", ".join(cpu.get("features") or ()) or "no vector instructions known"
    return [
        f"{cpu.get('model', 'unknown processor')}, {cpu.get('cores', '?')} cores ({features}), {settings['threads']} "
        f"threads, {settings['rounds']} rounds, {bench['created'][:10]}; model {document['model']}. Tokens a second: "
        f"of {new} new ones a text, by how many texts at once and tokens of their prompts, the whole call; and of "
        f"prompts, of calls that write one token. Medians; the best of each column is bold."
    ]


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Neither PyTorch nor a peer."""
    return row["provider"].partition(":")[0] != "torch" and "-peer" not in row["provider"]
