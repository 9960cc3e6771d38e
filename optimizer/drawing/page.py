"""The parts of a page: one HTML file that loads nothing, for a browser, a phone and paper."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from optimizer.drawing.style import STYLE
from optimizer.types import JSON

__all__ = ["bullets", "document", "escape", "facts", "machine", "number_cell", "prose", "section"]


def document(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: of the window, plain text.
        body: its parts as HTML; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def escape(value: object) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def prose(text: str) -> str:
    """A sentence, with `commands` and --flags as such: a line should not end inside of one."""
    said = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)(?![^<]*</code>)", r"<code>\1</code>", said)


def section(title: str, body: str) -> str:
    """A heading and what belongs to it; nothing where there is nothing."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def bullets(items: Iterable[str]) -> str:
    """A list of sentences; nothing without any."""
    lines = "".join(f"<li>{prose(item)}</li>" for item in items)
    return f"<ul>{lines}</ul>" if lines else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Boxes with a large figure and what it is."""
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(text)}</span></div>" for value, text in pairs)
    return f'<div class="facts">{cells}</div>' if cells else ""


def number_cell(head: str, text: str) -> str:
    """A number of a table; on a phone, where tables have no heads, ``head`` stands before it."""
    return f'<td class="n" data-head="{escape(head)}">{escape(text)}</td>' if text else '<td class="n"></td>'


def machine(environment: Mapping[str, JSON], *more: str) -> str:
    """The machine and its versions, from what :func:`optimizer.environment.describe` gave, and sentences behind it."""
    cpu = environment["cpu"]
    governor = f", governor {cpu['governor']}" if cpu.get("governor") else ""
    items = [
        f"{cpu['model']}, {cpu['cores']} cores{governor}, {environment['memory_bytes'] / 2**30:.0f} GiB",
        f"features: {', '.join(cpu['features']) or 'none that matter here'}",
        *(f"{gpu['name']}, driver {gpu['driver']}" for gpu in environment["gpus"]),
        f"{environment['platform']}, Python {environment['python']}",
        ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        *more,
    ]
    return bullets(items)
