"""``ml-opt why``: where the time of a request went, as the server that answered it tells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from optimizer.cli.generate import Common, common
from optimizer.cli.output import Output
from optimizer.errors import BadInput, MissingPiece

__all__ = ["why"]

_BAR = 32
_MATES = 8
#: Lines of each list, and how often each worker is asked for, if nothing is said by it before.
_LISTED, _DRAWN = 20, 10


def _why(
    ctx: Common,
    request: Annotated[
        str,
        typer.Argument(metavar="[REQUEST_ID]", help="X-Request-Id of an answer; the slowest and newest when left out."),
    ] = "",
    url: Annotated[str, typer.Option("--url", metavar="URL", help="The server.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option("--key", metavar="KEY", help="A key with the scope admin [$ML_OPT_KEY].", show_default=False)
    ] = "",
) -> int:
    """Tell where the time of a request went: queue, tokenizer, run, padding, batch mates; or why it was refused.

    Asks a server that runs. It keeps the newest 1,000 requests that asked a model, the 100 slowest, and the newest
    1,000 that were refused; of texts and tensors it keeps nothing.
    """
    status, found = _asked(url, request, key or os.environ.get("ML_OPT_KEY", ""))
    if status != 200:
        raise _refused(status, str(found.get("error") or found), request, url)
    if ctx.output.json:
        ctx.output.result(found)
    elif request:
        _explain(found, ctx.output)
    else:
        _list(found, ctx.output)
    return 0


why = common(_why)


def _asked(url: str, request: str, key: str) -> tuple[int, dict[str, Any]]:
    """What the server says; of several workers, each of which knows its own requests, those that it takes.

    Which of them answers is drawn anew for each connection: of N, one is missed by ten times N with a chance of N e⁻¹⁰.
    """
    from optimizer.serving.remote import fetch

    path = f"/v2/requests/{quote(request, safe='')}" if request else "/v2/requests"
    status, found, headers = fetch(url, path, key)
    if request:
        left = _DRAWN * int(headers.get("X-Workers", 1)) if status == 404 else 0
        while status == 404 and left > 1:
            status, found, _ = fetch(url, path, key)
            left -= 1
        return status, found
    told = {found.get("worker"): found}
    for _ in range(_DRAWN * int(found.get("workers", 1)) if status == 200 else 0):
        if len(told) == int(found.get("workers", 1)):
            break
        _, other, _ = fetch(url, path, key)
        told[other.get("worker")] = other
    if len(told) > 1:
        every = {name: [each for one in told.values() for each in one.get(name, ())] for name in ("slowest", "newest")}
        every["slowest"].sort(key=lambda each: -each["seconds"])
        every["newest"].sort(key=lambda each: each["at"], reverse=True)
        found = {**found, **{name: each[:_LISTED] for name, each in every.items()}}
    return status, found


def _refused(status: int, message: str, request: str, url: str) -> Exception:
    if status == 401:
        return BadInput(f"the server at {url} wants a key: {message}", "give one: --key KEY, or set ML_OPT_KEY")
    if status == 403:
        return BadInput(f"the server refuses this: {message}", "make a key for it: ml-opt keys create --scope admin")
    if status == 404 and request and "is kept" in message:
        return BadInput(message, f"ml-opt why --url {url} lists the slowest and the newest")
    if status >= 500 or status == 429:
        return MissingPiece(f"the server at {url} cannot tell now ({status}): {message}", "ask again in a while")
    return BadInput(f"what answers at {url} knows nothing of requests ({status}): {message}", "is it ml-opt serve?")


def _explain(found: dict[str, Any], output: Output) -> None:
    from optimizer.cli.tables import escape, table

    console = output.console()
    total = found["seconds"]
    for line in _head(found):
        console.print(escape(line))
    parts = [part for part in found["parts"] if part["seconds"] > 0]
    if parts:
        drawn = table("part", "ms", "share", "", "what", right=("ms", "share"))
        before = 0.0
        for part in parts:
            took = part["seconds"]
            share = took / total if total else 0.0
            bar = _bar(before, took, total)
            name = f"[bold]{escape(part['part'])}[/bold]" if part["part"] == found["longest"] else escape(part["part"])
            drawn.add_row(name, f"{took * 1000:.3f}", f"{share:.0%}", bar, escape(part["what"]))
            before += took
        console.print(drawn)
    for run in found["runs"]:
        console.print(escape(_run(run)))
    if found["refused"] is not None:
        reason = found["refused"]["reason"]
        console.print(escape(f"Refused{f' ({reason})' if reason else ''}: {found['refused']['message']}"))
    elif parts:
        longest = next(part for part in parts if part["part"] == found["longest"])
        what, took = longest["what"] or longest["part"], longest["seconds"] * 1000
        console.print(escape(f"Most of the time went into {longest['part']} ({took:.3f} ms): {what}."))
    for advice in filter(None, found["advice"]):
        console.print(escape(f"  - {advice}"))


def _head(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['id']}: {found['status']} after {found['seconds'] * 1000:.3f} ms, {found['at']}"]
    if found["model"]:
        by = f" on {found['provider']}" if found["provider"] else ""
        lines.append(f"{found['endpoint']}: {found['model']} version {found['version']} ({found['ref']}){by}")
    else:
        lines.append(str(found["endpoint"]))
    if found["who"]:
        lines.append(f"asked by {found['who']}")
    if "tokens" in found:
        lines.append(f"{found.get('prompt_tokens', 0)} tokens of prompt, {found['tokens']} written")
    if "trace" in found:
        lines.append(f"trace {found['trace']}")
    if "cache" in found:
        lines.append(f"answers that were kept: {found['cache']}")
    if found["same_id"] > 1:
        lines.append(f"{found['same_id']} requests are kept under this id; this is the newest")
    return lines


def _bar(before: float, took: float, total: float) -> str:
    """Where a part lies in the whole, as on a clock: parts follow each other."""
    if not total:
        return ""
    start = min(round(before / total * _BAR), _BAR - 1)
    return " " * start + "█" * max(1, min(round(took / total * _BAR), _BAR - start))


def _run(run: dict[str, Any]) -> str:
    words = f"Run of {run['requests']} request{'s' if run['requests'] != 1 else ''}: {run['rows']} rows"
    words += f" of {run['length']} tokens" if run["length"] > 1 else ""
    words += f", {run['seconds'] * 1000:.3f} ms; its own: {run['own_rows']} rows"
    words += f", {run['own_tokens']} tokens" if run["length"] > 1 else ""
    words += f"; {run['padding']:.0%} padding" if run["padding"] else "; no padding"
    words += "; on a share of the cores, beside others" if run["beside"] else ""
    return f"{words}. {_mates(run['mates'], run['mates_not_named'])}"


def _mates(mates: Sequence[str], more: int) -> str:
    if not mates:
        return "It ran alone."
    shown = ", ".join(mates[:_MATES])
    left = len(mates) - _MATES + more if len(mates) > _MATES else more
    return f"With: {shown}{f' and {left} more' if left else ''}."


def _list(found: dict[str, Any], output: Output) -> None:
    from optimizer.cli.tables import escape, table

    console = output.console()
    for title in ("slowest", "newest"):
        drawn = table(title, "ms", "status", "model", "endpoint", "at", right=("ms", "status"))
        for each in found[title]:
            model = f"{each['model']}@{each['version']}" if each["model"] else "-"
            words = (
                each["id"],
                f"{each['seconds'] * 1000:.3f}",
                str(each["status"]),
                model,
                each["endpoint"],
                each["at"],
            )
            drawn.add_row(*map(escape, words))
        console.print(drawn)
