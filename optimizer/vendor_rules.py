"""A vendor's messages into errors of this house, by a table of what is found in their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import MlOptError

__all__ = ["Rule", "matched", "translated"]


@dataclass(frozen=True)
class Rule:
    """One row: what is found in a message, and the error that it becomes.

    ``message`` and ``hint`` may use the names that :func:`matched` is given and the pattern's groups.
    """

    pattern: str
    error: type[MlOptError]
    message: str
    hint: str = ""


def matched(subject: str, table: Sequence[Rule], **names: object) -> MlOptError:
    """The error that a message means.

    Args:
        subject: the message.
        table: looked through from the top; the first match wins, and the last row matches everything.
        names: what rows may use in their sentences.
    """
    for rule in table:
        if (found := re.search(rule.pattern, subject, re.DOTALL)) is None:
            continue
        groups = {**names, **{name: value or "" for name, value in found.groupdict().items()}}
        return rule.error(rule.message.format(**groups), rule.hint.format(**groups))
    raise AssertionError("the last rule matches everything")


def translated(
    error: Exception, table: Sequence[Rule], path: Path, provider: str, plain: Callable[[str], str]
) -> MlOptError:
    """What an exception means; rows are looked for in ``"<exception's name>: <its text>"``.

    Args:
        error: as the vendor raised it.
        table: see :func:`matched`; rows may use ``{path}``, ``{provider}`` and ``{text}``.
        path: the file that was opened or run.
        provider: that it was opened with.
        plain: takes the sentence out of the vendor's message.
    """
    text = str(error)
    return matched(f"{type(error).__name__}: {text}", table, path=path, provider=provider, text=plain(text))
