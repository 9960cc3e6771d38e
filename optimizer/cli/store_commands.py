"""Commands about what is in the store: ls, show, diff, alias, rm, gc, check."""

from __future__ import annotations

from typing import Annotated

import typer

from optimizer import upkeep
from optimizer.cli.generate import Common, common, complete_ref
from optimizer.errors import BadInput, Damaged
from optimizer.ref import Ref

__all__ = ["add", "alias", "check", "diff", "gc", "ls", "rm", "show"]

_PANEL = "The store"
_Ref = Annotated[
    str, typer.Argument(metavar="REF", help="name[@version|@alias][:variant]", autocompletion=complete_ref)
]


def add(app: typer.Typer) -> None:
    """Add every command of this file to the app."""
    for name, command in (
        ("ls", ls),
        ("show", show),
        ("diff", diff),
        ("alias", alias),
        ("rm", rm),
        ("gc", gc),
        ("check", check),
    ):
        app.command(name, rich_help_panel=_PANEL)(common(command))


def ls(
    ctx: Common,
    name: Annotated[str | None, typer.Argument(help="Only this model.", autocompletion=complete_ref)] = None,
) -> int:
    """List what is in the store."""
    from optimizer.cli.render import render_listing

    store, only = ctx.store, None
    if name is not None:
        wanted = Ref.parse(name)
        only, version, variant = store.locate(wanted)
        listed = [f"{only}@{version}:{variant}"] if variant else [r for r in store.refs() if Ref.parse(r).name == only]
        if wanted.at and not variant:
            listed = [r for r in listed if Ref.parse(r).version == version]
    else:
        listed = store.refs()
    artifacts = [a for a in store.artifacts(only) if a.ref in listed]
    if unreadable := len(listed) - len(artifacts):
        ctx.output.talk(f"{unreadable} artifact(s) cannot be read; run: ml-opt check")
    aliases = {n: store.aliases(n) for n in sorted({Ref.parse(a.ref).name for a in artifacts})}
    if ctx.output.json:
        rows = [
            {
                "ref": a.ref,
                "path": str(a.path),
                "kind": a.kind.value,
                "stage": a.manifest.stage["name"],
                "bytes": a.manifest.bytes,
                "created": a.manifest.created,
            }
            for a in artifacts
        ]
        ctx.output.result({"store": str(store.root), "artifacts": rows, "aliases": aliases})
    else:
        render_listing(store, artifacts, aliases, ctx.output)
    return 0


def show(ctx: Common, ref: _Ref) -> int:
    """Show one artifact: what was asked, what came out, and the line that makes it again."""
    from optimizer.cli.render import render_artifact

    artifact = ctx.store.get(ref)
    if ctx.output.json:
        ctx.output.result({"ref": artifact.ref, "path": str(artifact.path), "manifest": artifact.manifest.to_json()})
    else:
        render_artifact(artifact, ctx.output)
    return 0


def diff(ctx: Common, ref: _Ref, other: _Ref) -> int:
    """Show what differs between two artifacts: options, facts, files, versions."""
    from optimizer.cli.render import render_differences
    from optimizer.diff import differences

    one, two = ctx.store.get(ref), ctx.store.get(other)
    found = differences(one.manifest, two.manifest)
    if ctx.output.json:
        rows = [{"field": d.field, "first": d.first, "second": d.second} for d in found]
        ctx.output.result({"first": one.ref, "second": two.ref, "differences": rows})
    else:
        render_differences(one.ref, two.ref, found, ctx.output)
    return 0


def alias(
    ctx: Common,
    ref: _Ref,
    alias: Annotated[str | None, typer.Argument(help="The name to give it, e.g. production.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="REF is name@alias: remove that alias.")] = False,
) -> int:
    """Name a version or a variant: `ml-opt alias minilm@2:int8-dynamic production`, then `minilm@production`."""
    if delete:
        wanted = Ref.parse(ref)
        if alias is not None or not wanted.at or wanted.at.isdigit():
            raise BadInput("--delete takes name@alias", f"run: ml-opt alias --delete {wanted.name}@ALIAS")
        ctx.store.drop_alias(wanted.name, wanted.at)
        changed = {"alias": f"{wanted.name}@{wanted.at}", "removed": True}
    else:
        if alias is None:
            raise BadInput("an alias needs a name", f"run: ml-opt alias {ref} production")
        before = ctx.store.set_alias(alias, ref)
        changed = {"alias": f"{Ref.parse(ref).name}@{alias}", "ref": ref, "before": before}
    if ctx.output.json:
        ctx.output.result(changed)
    else:
        print("removed" if delete else f"{changed['alias']} → {ref}")
    return 0


def rm(
    ctx: Common,
    refs: Annotated[list[str], typer.Argument(metavar="REF…", autocompletion=complete_ref)],
    force: Annotated[bool, typer.Option("--force", help="Even what an alias points at.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove a whole version or model without asking.")] = False,
) -> int:
    """Remove artifacts; a REF without a variant removes the whole version, a bare name the whole model."""
    for ref in refs:
        wanted = Ref.parse(ref)
        name, version, variant = ctx.store.locate(wanted)
        if not variant and not yes:
            what = f"{name}@{version}" if wanted.at else f"all {len(ctx.store.versions(name))} version(s) of {name}"
            raise BadInput(f"{ref} would remove {what}", f"if that is meant: ml-opt rm --yes {ref}")
    gone = upkeep.remove(ctx.store, *refs, force=force)
    if ctx.output.json:
        ctx.output.result({"removed": gone})
    else:
        for full in gone:
            print(f"removed {full}")
    return 0


def gc(ctx: Common) -> int:
    """Clear what interrupted work left behind, and what is kept to save time; finished artifacts are never touched."""
    garbage = upkeep.gc(ctx.store)
    if ctx.output.json:
        ctx.output.result({"removed": garbage.removed, "bytes": garbage.bytes, "broken": garbage.broken})
    else:
        for path in garbage.removed:
            print(f"removed {path}")
        print(f"{len(garbage.removed)} leftover(s) removed, {garbage.bytes / 2**20:.1f} MiB freed")
        for ref in garbage.broken:
            ctx.output.talk(f"broken, kept: {ref} (remove it with: ml-opt rm {ref})")
    return 0


def check(
    ctx: Common,
    ref: Annotated[str | None, typer.Argument(help="Only this one.", autocompletion=complete_ref)] = None,
) -> int:
    """Read every file again and compare it with its manifest; exit code 5 when one differs."""
    with ctx.output.work() as progress:
        progress("hashing every file again")
        results = upkeep.check(ctx.store, ref)
    wrong = {full: reason for full, reason in results.items() if reason}
    if ctx.output.json:
        ctx.output.result({"checked": len(results), "damaged": wrong})
    else:
        for full, reason in results.items():
            print(f"{'DAMAGED' if reason else 'ok     '} {full}{'  ' + reason if reason else ''}")
        if not results:
            print("nothing to check: the store is empty")
    return Damaged.exit_code if wrong else 0
