"""``ml-opt keys``: who may ask the server, for what and how often."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.generate import Common, common

__all__ = ["HELP", "add", "create", "listing", "revoke"]

HELP = "Keys of the server: make one, list them, take one away."
_File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", help="The file of keys [$ML_OPT_KEYS, or ~/.config/ml-opt/keys.json]."),
]


def add(app: typer.Typer, panel: str) -> None:
    """Add the group to the app."""
    group = typer.Typer(no_args_is_help=True, help=HELP)
    for name, command in (("create", create), ("list", listing), ("revoke", revoke)):
        group.command(name)(common(command))
    app.add_typer(group, name="keys", rich_help_panel=panel)


def create(
    ctx: Common,
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="What it may do: infer, admin, metrics; infer when left out.")
    ] = None,
    rate: Annotated[str | None, typer.Option("--rate", help="Requests in a time, e.g. 100/minute.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Tokens in a time, e.g. 100000/day.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="How long it is good for, e.g. 30d, 12h.")] = None,
    file: _File = None,
) -> int:
    """Make a key for the server; it is shown this once, and only its digest is kept."""
    from optimizer.serving.guard.keys import KeyFile
    from optimizer.serving.guard.rates import Rate, parse_duration

    kept = KeyFile(file)
    key, shown = kept.create(
        name=name,
        scopes=scope or ["infer"],
        rate=Rate.parse(rate, "--rate") if rate is not None else None,
        tokens=Rate.parse(tokens, "--tokens") if tokens is not None else None,
        seconds=parse_duration(expires, "--expires") if expires is not None else None,
    )
    if ctx.output.json:
        ctx.output.result({"key": shown, "file": str(kept.path), **key.to_json()})
    else:
        print(shown)
        limits = "; ".join([f"{r} {what}" for r, what in ((key.rate, "requests"), (key.tokens, "tokens")) if r])
        ctx.output.talk(f"key {key.id} may {', '.join(sorted(key.scopes))}{'; ' + limits if limits else ''}")
        ctx.output.talk(f"it is shown this once; its digest lies in {kept.path}")
        ctx.output.talk('try: curl -H "Authorization: Bearer KEY" http://127.0.0.1:8000/v2')
    return 0


def listing(ctx: Common, file: _File = None) -> int:
    """List the keys, those that expired or were revoked too; no secret is among what is shown."""
    from optimizer.cli.tables import escape, table
    from optimizer.serving.guard.keys import KeyFile

    kept = KeyFile(file)
    now = datetime.now(UTC)
    keys = kept.read().keys
    if ctx.output.json:
        ctx.output.result({"file": str(kept.path), "keys": [{**k.to_json(), "state": k.state(now)} for k in keys]})
        return 0
    if not keys:
        print(f"no keys in {kept.path}; a server listens on this machine alone, and is open there")
        return 0
    drawn = table("id", "name", "scopes", "requests", "tokens", "expires", "state")
    for key in keys:
        limits = [str(r) if r else "-" for r in (key.rate, key.tokens)]
        until = key.expires.strftime("%Y-%m-%d %H:%M") if key.expires else "never"
        scopes = ", ".join(sorted(key.scopes))
        drawn.add_row(key.id, escape(key.name or "-"), scopes, *limits, until, key.state(now))
    ctx.output.console().print(drawn)
    return 0


def revoke(
    ctx: Common,
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="The key's id or name.")],
    file: _File = None,
) -> int:
    """Take a key away; servers that run refuse it from their next request on."""
    from optimizer.serving.guard.keys import KeyFile

    gone, stood = KeyFile(file).revoke(key)
    if ctx.output.json:
        ctx.output.result({**gone.to_json(), "changed": stood})
    else:
        called = f"{gone.id} ({gone.name})" if gone.name else gone.id
        print(f"revoked {called}" if stood else f"{called} was revoked already")
    return 0
