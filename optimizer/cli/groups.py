"""A command that is one by itself and has subcommands as well."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["CommandWithSubcommands"]


class CommandWithSubcommands(TyperGroup):
    """``ml-opt bench REF… [OPTIONS]``, and ``ml-opt bench show FILE`` where the first word names a subcommand.

    To the parser it is a command like any other, whose callback has the options; to ``--help`` and to whoever walks
    over the commands it is a group.
    """

    allow_extra_args = False
    allow_interspersed_args = True

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of this command, or that of the subcommand which the first word names."""
        if args and (named := self.commands.get(args[0])) is not None:
            return named.make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    # What a group does with its arguments is to look for a subcommand among them: here none is, by now.
    collect_usage_pieces = TyperCommand.collect_usage_pieces
    parse_args = TyperCommand.parse_args
    invoke = TyperCommand.invoke
