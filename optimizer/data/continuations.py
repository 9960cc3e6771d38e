"""Golden continuations: what PyTorch wrote after a few prompts, kept beside a generator.

They let a runtime prove, without PyTorch, that a generator still writes what its model wrote.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from optimizer.errors import Damaged

__all__ = ["CONTINUATIONS_NAME", "Continuation", "load_continuations", "save_continuations"]

CONTINUATIONS_NAME = "golden_generation.json"
#: Raised by one whenever a reader of the older number would misread the file.
_SCHEMA = 1


@dataclass(frozen=True)
class Continuation:
    """One prompt, and the likeliest token after it, again and again.

    Attributes:
        text: the prompt, as it was typed; empty where there are only tokens.
        prompt: its tokens.
        tokens: what followed, the end token included where there is one.
        margins: of each, how far its logit was above the next one's. Where this is small, rounding may choose another.
    """

    text: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def save_continuations(folder: Path, continuations: tuple[Continuation, ...]) -> None:
    """Write ``golden_generation.json``."""
    document = {"schema": _SCHEMA, "continuations": [asdict(each) for each in continuations]}
    text = json.dumps(document, ensure_ascii=False, indent=1)
    (folder / CONTINUATIONS_NAME).write_text(text + "\n", encoding="utf-8")


def load_continuations(folder: Path) -> tuple[Continuation, ...]:
    """Read ``golden_generation.json`` of an artifact; none where there is no such file.

    Raises:
        Damaged: the file cannot be read.
    """
    path = folder / CONTINUATIONS_NAME
    if not path.is_file():
        return ()
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != _SCHEMA:
            raise ValueError(f"schema {document['schema']} is not known here")
        return tuple(
            Continuation(each["text"], tuple(each["prompt"]), tuple(each["tokens"]), tuple(each["margins"]))
            for each in document["continuations"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
