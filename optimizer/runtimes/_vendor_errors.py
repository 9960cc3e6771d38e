"""A vendor's exceptions into errors of this house, by a table of what is found in their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import MlOptError

__all__ = ["Rule", "translated"]


@dataclass(frozen=True)
class Rule:
    """One row: what is found in ``"<exception's name>: <its text>"``, and the error that it becomes.

    ``message`` may use ``{path}``, ``{provider}``, ``{text}`` and the pattern's groups.
    """

    pattern: str
    error: type[MlOptError]
    message: str
    hint: str = ""


def translated(
    error: Exception, table: Sequence[Rule], path: Path, provider: str, plain: Callable[[str], str]
) -> MlOptError:
    """What an exception means.

    Args:
        error: as the vendor raised it.
        table: looked through from the top; the first match wins, and the last row matches everything.
        path: the file that was opened or run.
        provider: that it was opened with.
        plain: takes the sentence out of the vendor's message.
    """
    text = str(error)
    subject = f"{type(error).__name__}: {text}"
    for rule in table:
        if (found := re.search(rule.pattern, subject, re.DOTALL)) is None:
            continue
        groups = {name: value or "" for name, value in found.groupdict().items()}
        message = rule.message.format(path=path, provider=provider, text=plain(text), **groups)
        return rule.error(message, rule.hint)
    raise AssertionError("the last rule matches everything")
