"""Python's own library as a corpus: text that every machine has, some modules of it held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optimizer.digest import digest_json

__all__ = ["Corpus", "corpus"]

#: Left out: tests and their fixtures, tables, what belongs to the machine, and what Linux distributions take out
#: of the library or later Pythons no longer have, so that the corpus is much the same everywhere.
LEFT_OUT = frozenset(
    {
        "__phello__", "__pycache__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib-dynload",
        "lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
    }
)  # fmt: skip
#: Of the machine as well: by the beginning of a file's or folder's name.
LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
#: One top-level module in so many is held out.
HELD_OUT = 16


@dataclass(frozen=True)
class Corpus:
    """Source texts by their path in the library: to train on, and of other top-level modules to judge on."""

    train: dict[str, str]
    heldout: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 of all names and texts: another one for another version of Python."""
        return digest_json({"train": dict(self.train), "heldout": dict(self.heldout)})


def corpus(seed: int = 0, limit: int | None = None) -> Corpus:
    """The running Python's library, split by top-level module: ``json`` or ``_json`` is all in one part.

    Args:
        seed: another one holds other modules out; whether a module is held out depends on this and its name alone.
        limit: characters to train on, at most, and an eighth of it to judge on: whole modules, in an order that looks
            drawn, those that fit.

    Raises:
        SystemExit: this Python has its library without sources.
    """
    train: dict[str, str] = {}
    heldout: dict[str, str] = {}
    for name, text in _sources(Path(sysconfig.get_path("stdlib"))):
        chosen = heldout if _number(seed, _family(name)) % HELD_OUT == 0 else train
        chosen[name] = text
    if not train or not heldout:
        raise SystemExit("this Python has no sources of its library to train on; use one that was installed with them")
    return Corpus(_some(train, seed, limit), _some(heldout, seed, limit and limit // 8))


def _sources(library: Path) -> Iterator[tuple[str, str]]:
    """Names relative to the library, and texts, in the order of their names."""
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if any(part in LEFT_OUT or part.startswith(LEFT_OUT_PREFIXES) for part in name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # links that lead nowhere; the few sources in another encoding
            continue
        if text.strip():
            yield name.as_posix(), text


def _family(name: str) -> str:
    """The top-level module, its C half's or Python half's underscore aside: they have much text in common."""
    return name.split("/")[0].removesuffix(".py").strip("_")


def _number(seed: int, name: str) -> int:
    """A number that looks drawn, the same on every machine and for every other set of modules."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def _some(texts: dict[str, str], seed: int, limit: int | None) -> dict[str, str]:
    """All texts, in an order that looks drawn; with a limit those of them that fit."""
    kept: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: _number(seed, name)):
        if limit is None or sum(map(len, kept.values())) + len(texts[name]) <= limit:
            kept[name] = texts[name]
    return kept
