"""The tree of commands: those made from stages and checks, and those about the store and the machine."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from optimizer import check as checks
from optimizer import stage as stages
from optimizer.cli import key_commands, store_commands
from optimizer.cli.generate import check_command, plain, stage_command
from optimizer.cli.groups import CommandWithSubcommands
from optimizer.cli.machine_commands import doctor
from optimizer.cli.recipe_command import run_recipe_file
from optimizer.cli.serve_command import serve
from optimizer.cli.speak import spoken_command
from optimizer.cli.why_command import why

__all__ = ["build_app"]

_GROUPS = {
    "quantize": "Make numbers smaller: weights and activations in 8 bits (dynamic, static), or weights alone in 4 or 8."
}


def _version(wanted: bool) -> None:
    if wanted:
        from optimizer import __version__

        print(f"ml-opt {__version__}")
        raise typer.Exit


@functools.cache
def build_app(first: str = "") -> typer.Typer:
    """The commands, ready to run; cheap, because nothing heavy is imported before a command works.

    Args:
        first: the first word of a command line. Where it names a command, no other is made; and where that is made from
            no stage and no check, those are not looked for: a server is up sooner, and the store is listed sooner.
    """
    app = _top()
    if first:
        _add_own(app)
        if first not in _names(app):
            app = _top()
            _add_made(app, first)
        return app if first in _names(app) else build_app()
    _add_made(app)
    _add_own(app)
    return app


def _names(app: typer.Typer) -> set[str | None]:
    return {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}


def _add_made(app: typer.Typer, first: str = "") -> None:
    """What is made from stages and checks; only those whose first word it is, where one is given."""
    groups: dict[str, typer.Typer] = {}
    for stage in _in_order(stages.discover()):
        if first and first not in (stage.words[0], *stage.aliases):
            continue
        *group, last = stage.words
        home = app
        if group:
            home = groups.setdefault(group[0], typer.Typer(no_args_is_help=True, help=_GROUPS.get(group[0], "")))
        home.command(last, help=_help(stage.help, stage.details), rich_help_panel="Make artifacts")(
            stage_command(stage)
        )
        for alias in stage.aliases:
            app.command(alias, hidden=True, help=f"The same as {' '.join(stage.words)}.")(stage_command(stage))
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name, rich_help_panel="Make artifacts")
    for check in checks.discover().values():
        if len(check.words) == 1 and first in ("", check.name):
            _add_check(app, check, [c for c in checks.discover().values() if c.words[:-1] == check.words])


def _top() -> typer.Typer:
    """The app without a command."""
    app = typer.Typer(
        name="ml-opt",
        help="From a trained model to the fastest artifact that still meets your accuracy budget: "
        "export, optimize, quantize, verify, bench; every artifact versioned.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None: ...

    return app


def _add_own(app: typer.Typer) -> None:
    """What is made from no stage and no check."""
    app.command("run", rich_help_panel="Make artifacts")(run_recipe_file)
    app.command("serve", rich_help_panel="Serve artifacts")(serve)
    app.command("why", rich_help_panel="Serve artifacts")(why)
    store_commands.add(app)
    key_commands.add(app, "Serve artifacts")
    app.command("doctor", rich_help_panel="This machine")(doctor)


def _add_check(app: typer.Typer, check: checks.Check, subcommands: list[checks.Check]) -> None:
    """The command of a check; with others under its name both ``ml-opt bench REF`` and ``ml-opt bench show FILE``."""
    help, panel = _help(check.help, check.details), "Judge artifacts"
    if not subcommands:
        made = spoken_command(check) if check.speaks else check_command(check)
        app.command(check.name, help=help, rich_help_panel=panel)(made)
        return
    group = typer.Typer()
    for each in subcommands:
        group.command(each.words[-1], help=_help(each.help, each.details))(check_command(each))
    run = check_command(check)
    app.add_typer(group, name=check.name, cls=CommandWithSubcommands, callback=run, help=help, rich_help_panel=panel)


def _in_order(found: dict[str, stages.Stage]) -> list[stages.Stage]:
    """Stages in the order people use them: those that take a source first, the rest by name."""
    return sorted(found.values(), key=lambda s: ("source" not in s.accepts, s.words))


def _help(line: str, details: str) -> str:
    return plain(f"{line}\n\n{details}" if details else line)
