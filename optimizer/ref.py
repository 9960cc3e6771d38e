"""How artifacts are named: ``name[@version|@alias][:variant]``, e.g. ``minilm@3:int8-static``, ``minilm@prod``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optimizer.errors import BadInput

__all__ = ["NAME_RULE", "REPORTS", "Ref", "check_name", "is_name", "safe_name"]

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_WORD_RE = re.compile(rf"{_WORD}\Z")
_REF_RE = re.compile(rf"(?P<name>{_WORD})(?:@(?P<at>{_WORD}))?(?::(?P<variant>{_WORD}))?\Z")

#: Beside the variants of a version lie its reports.
REPORTS = "reports"

NAME_RULE = "letters, digits, dots, dashes and underscores, beginning with a letter or digit, at most 100"


def check_name(what: str, name: str) -> str:
    """The name, or :class:`BadInput` saying what a ``what`` may be called.

    An alias or variant that is all digits is refused as an alias only: it would read as a version.
    """
    if not is_name(name):
        raise BadInput(f"{name!r} cannot name a {what}: use {NAME_RULE}")
    if what == "variant" and name == REPORTS:
        raise BadInput(f"{name!r} cannot name a variant: the reports of a version lie there")
    if what == "alias" and name.isdigit():
        raise BadInput(f"{name!r} cannot name an alias: it would read as a version number")
    return name


def is_name(text: str) -> bool:
    """Whether a model, a variant or an alias can be called this."""
    return _WORD_RE.match(text) is not None and ".." not in text


def safe_name(text: str) -> str:
    """The nearest allowed name to a folder's or hub id's last part; ``model`` when nothing of it can be kept."""
    last = text.rstrip("/").rpartition("/")[2]
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", last.removesuffix(".onnx")).strip("-._")
    return re.sub(r"\.{2,}", ".", cleaned)[:100] or "model"


@dataclass(frozen=True)
class Ref:
    """A parsed reference; every part but the name may be left out.

    Attributes:
        name: the model's name.
        at: a version number or an alias, as typed; empty for the newest version.
        variant: what was done to it; empty when the version has only one.
    """

    name: str
    at: str = ""
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Parse a reference.

        Raises:
            BadInput: it is not of the form ``name[@version|@alias][:variant]``.
        """
        match = _REF_RE.match(text)
        if not match or ".." in text:
            raise BadInput(
                f"{text!r} is not a reference",
                "write name[@version|@alias][:variant], e.g. minilm@2:int8-dynamic; `ml-opt ls` lists what there is",
            )
        return cls(match["name"], match["at"] or "", match["variant"] or "")

    @property
    def version(self) -> int | None:
        """The version number, when one was typed."""
        return int(self.at) if self.at.isdigit() else None

    def __str__(self) -> str:
        return self.name + (f"@{self.at}" if self.at else "") + (f":{self.variant}" if self.variant else "")
