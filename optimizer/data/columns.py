"""Which column of a row is which of a model's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.data.readers import Row
from optimizer.errors import BadInput, UnknownName
from optimizer.options import opt

__all__ = ["ANSWERS", "LABEL_COLUMNS", "ROLES", "Columns", "column_opt", "label_of", "named_columns"]

#: Role → the columns that play it when none is named, the first that a row has.
ROLES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "premise"),
    "text_pair": ("text_pair", "sentence2", "hypothesis"),
    "question": ("question",),
    "context": ("context",),
    "image": ("image", "img"),
    "audio": ("audio", "speech"),
    "target": ("target", "answer", "summary", "translation"),
    "label": ("label", "labels"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "pos_tags", "labels"),
    "answers": ("answers", "answer"),
    "score": ("score", "similarity_score", "similarity"),
}
LABEL_COLUMNS = ROLES["label"]
#: Roles that say what is right, and are no part of what a model is fed.
ANSWERS = ("target", "label", "tags", "answers", "score")


def column_opt() -> Any:
    """The option ``column`` of whatever reads a data file: ``text=review``, repeatable."""
    return opt(
        (),
        f"Which column is what, where its name is unusual: text=review, label=stars; repeatable. Roles: "
        f"{', '.join(ROLES)}, or a model's own input.",
        metavar="ROLE=COLUMN",
    )


def named_columns(typed: Sequence[str]) -> dict[str, str]:
    """``("text=review", "label=stars")`` as role → column.

    Raises:
        BadInput: one is of another form, or a role is given twice. Whether there is such a role is for
            :class:`Columns` to say, which knows the model's inputs.
    """
    found: dict[str, str] = {}
    for each in typed:
        role, equals, column = (part.strip() for part in each.partition("="))
        if not (role and equals and column):
            raise BadInput(f"--column {each!r} names no column", "write ROLE=COLUMN: --column text=review")
        if role in found:
            raise BadInput(f"--column says twice which one is {role}: {found[role]} and {column}", "leave one out")
        found[role] = column
    return found


class Columns:
    """A mapping of roles (and of a model's own inputs) to columns.

    Args:
        chosen: role or input name → column, where the usual names do not fit.
        inputs: names of the model's inputs, which may be mapped too.

    Raises:
        UnknownName: a role that does not exist.
    """

    def __init__(self, chosen: Mapping[str, str] | None = None, inputs: Sequence[str] = ()) -> None:
        self._chosen = dict(chosen or {})
        for role in self._chosen:
            if role not in ROLES and role not in inputs:
                raise UnknownName("column role", role, [*ROLES, *inputs])

    def candidates(self, role: str) -> tuple[str, ...]:
        """The columns that would do for a role, in order of preference."""
        return (self._chosen[role],) if role in self._chosen else ROLES.get(role, (role,))

    def find(self, row: Row, role: str) -> str | None:
        """The row's column for a role, or None; a column that was chosen by hand must be there."""
        if row.by_role:
            return role if role in row.values else None
        for name in self.candidates(role):
            if name in row.values:
                return name
        if role in self._chosen:
            raise self.missing(row, role)
        return None

    def get(self, row: Row, role: str) -> Any:
        """The row's value for a role; raises :class:`BadInput` naming the columns wanted and those found."""
        name = self.find(row, role)
        if name is None:
            raise self.missing(row, role)
        return row.values[name]

    def missing(self, row: Row, role: str) -> BadInput:
        """The error for a row without a column for this role."""
        wanted = " or ".join(self.candidates(role))
        found = ", ".join(map(str, row.values)) or "none"
        return BadInput(
            f"{row} has no column for {role}: wanted {wanted}, found {found}",
            f"name the right column of the file: --column {role}=COLUMN",
        )


def label_of(row: Row, columns: Columns | None = None) -> Any:
    """The row's label, or None when it has none."""
    columns = columns or Columns()
    name = columns.find(row, "label")
    value: Any = None if name is None else row.values[name]
    # An .npz holds numpy's numbers: a label is a plain one.
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
