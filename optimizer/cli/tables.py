"""The house style of tables and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.search.columns import size

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["escape", "size", "table"]


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table with a rule under its head and no box; the first column is never broken."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=place == 0 or column in right,
        )
    return made


def escape(text: str) -> str:
    """Text with brackets that rich must not read as markup (``ml-opt[cpu]``, ``int64[batch, 3]``)."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)
