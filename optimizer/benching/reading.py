"""Reading the JSON of a report: what every sort of report is held to before its own fields are looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput

__all__ = ["check_schema", "read_json"]


def read_json(path: Path) -> Any:
    """What a JSON file says; raises :class:`BadInput` where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def check_schema(data: Any, report: str, newest: int, where: str, made_by: str) -> None:
    """Hold a document to what it should be.

    Args:
        data: the document.
        report: the sort of report that it must say it is.
        newest: the largest schema number that can be read.
        where: what it is called in messages.
        made_by: the command that writes it.

    Raises:
        BadInput: it is another sort of document, or a newer ml-opt wrote it.
    """
    if not isinstance(data, Mapping) or data.get("report") != report or not isinstance(data.get("schema"), int):
        raise BadInput(f"{where} is not a {report} report", f"{made_by} --report FILE.json writes one")
    if data["schema"] > newest:
        raise BadInput(
            f"{where} has report schema {data['schema']}; this ml-opt reads up to {newest}",
            "run: pip install --upgrade ml-opt",
        )
