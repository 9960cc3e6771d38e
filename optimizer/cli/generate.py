"""Typer commands made from the declarations of stages and checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from optimizer.check import Check
from optimizer.cli.output import Output
from optimizer.options import OptionField, Options
from optimizer.stage import Stage
from optimizer.store import Store
from optimizer.types import Kind

__all__ = [
    "COMMON",
    "Common",
    "check_command",
    "check_parameters",
    "common",
    "complete_ref",
    "option_parameters",
    "plain",
    "stage_command",
    "typed_values",
    "with_parameters",
]

_PANEL = "Everywhere"


def complete_ref(ctx: typer.Context, incomplete: str) -> list[str]:
    """References of the store, for the shell's completion; a broken store completes to nothing.

    Where a subcommand could stand instead (``ml-opt bench sh``), those too.
    """
    subcommands = [] if ctx.params.get("refs") else getattr(ctx.command, "commands", ())
    named = [name for name in subcommands if name.startswith(incomplete)]
    try:
        return named + Store(ctx.params.get("store")).complete(incomplete)
    except Exception:
        return named


def plain(text: str) -> str:
    """Words as they are: typer would read ``[what the model allows]`` as a style, and show nothing of it."""
    return text.replace("[", "\\[")


_Store = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="DIR", help="Folder of artifacts [$ML_OPT_STORE, or ./models].", rich_help_panel=_PANEL
    ),
]
_Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, all talk on stderr.", rich_help_panel=_PANEL)
]
_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing but results and errors.", rich_help_panel=_PANEL)
]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Let the libraries talk.", rich_help_panel=_PANEL)]

COMMON: dict[str, tuple[Any, Any]] = {
    "store": (_Store, None),
    "json": (_Json, False),
    "quiet": (_Quiet, False),
    "verbose": (_Verbose, False),
}


class Common:
    """The flags that every command has."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.store = Store(values.pop("store"))
        self.output = Output(values.pop("json"), values.pop("quiet"), values.pop("verbose"))


def common(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a hand-written command the common flags; it gets them as a :class:`Common` in its first parameter."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def wrapper(**values: Any) -> int | None:
        outside = Common(values)
        return command(outside, **values)

    wrapper.__doc__ = command.__doc__
    return with_parameters(wrapper, [*own, *_common_parameters()])


def stage_command(stage: Stage) -> Callable[..., int]:
    """The command of a stage."""
    from_source = Kind.SOURCE in stage.accepts

    def command(**values: Any) -> int:
        from optimizer.api import run_stage
        from optimizer.cli.render import render_result
        from optimizer.memory import reuse_freed

        reuse_freed()
        outside = Common(values)
        source, name, variant = values.pop("source"), values.pop("name", None), values.pop("variant")
        with outside.output.work() as progress:
            result = run_stage(
                stage,
                source,
                typed_values(stage.options, values),
                store=outside.store,
                name=name,
                variant=variant,
                progress=progress,
            )
        if outside.output.json:
            outside.output.result(result.to_json())
        else:
            render_result(result, outside.output)
        return 0

    help = (
        "Model folder, .onnx file, or hub id (org/name)."
        if from_source
        else "Artifact: name[@version|@alias][:variant]."
    )
    argument = typer.Argument(
        metavar="MODEL" if from_source else "REF", help=help, autocompletion=None if from_source else complete_ref
    )
    parameters = [_parameter("source", Annotated[str, argument], inspect.Parameter.empty)]
    parameters += option_parameters(stage.options)
    if from_source:
        named = typer.Option("--name", help="The model's name in the store.", show_default="the source's own name")
        parameters.append(_parameter("name", Annotated[str | None, named], None))
    varied = typer.Option("--variant", help="The variant's name in the store.", show_default="says what was done")
    parameters.append(_parameter("variant", Annotated[str | None, varied], None))
    return with_parameters(command, [*parameters, *_common_parameters()])


def check_command(check: Check) -> Callable[..., int]:
    """The command of a check."""

    def command(**values: Any) -> int:
        from optimizer.cli.render import render_report

        outside = Common(values)
        refs = values.pop("refs")
        options = check.options.from_mapping(typed_values(check.options, values), check.name)
        with outside.output.work() as progress:
            report = check.apply(tuple(refs) if check.many else (refs,), options, outside.store, progress)
        if outside.output.json:
            outside.output.result(report.to_json())
        else:
            render_report(report, outside.output)
        for line in check.lines(report, options) if check.lines is not None else ():
            outside.output.line(line)
        return report.exit_code

    return with_parameters(command, check_parameters(check))


def check_parameters(check: Check) -> list[inspect.Parameter]:
    """What a check's command takes."""
    argument = typer.Argument(
        metavar=check.takes, help=plain(_taken(check)), autocompletion=None if check.files else complete_ref
    )
    annotation: Any = Annotated[list[str], argument] if check.many else Annotated[str, argument]
    parameters = [_parameter("refs", annotation, inspect.Parameter.empty)]
    parameters += option_parameters(check.options)
    return [*parameters, *_common_parameters()]


def _taken(check: Check) -> str:
    """What a check's argument is, in words."""
    if check.url:
        return "Where the server is: http://HOST:PORT."
    if check.files:
        return "A report, as JSON: what `--report FILE.json` wrote."
    help = "Artifact: name[@version|@alias][:variant]" + (", +provider[:precision] if you like." if check.many else ".")
    return f"Model folder, .onnx file, hub id (org/name), or {help[0].lower()}{help[1:]}" if check.model else help


def typed_values(options: type[Options], values: dict[str, Any]) -> dict[str, Any]:
    """What was really typed: typer fills what was not with None, or an empty list."""
    given = {}
    for field in options.fields():
        value = values[field.name]
        if value is None or (field.many and not value):
            continue
        given[field.name] = value
    return given


def option_parameters(options: type[Options]) -> list[inspect.Parameter]:
    """The flags of an options class."""
    return [_option(field, options) for field in options.fields()]


def _option(field: OptionField, options: type[Options]) -> inspect.Parameter:
    """One flag, or what stands behind the reference without one.

    Choices and ranges are checked by the options class alone, so that every door says the same.
    """
    kind: Any = bool if field.element is bool else Path if field.element is Path else field.element
    if kind not in (bool, int, float, Path) or field.opt.time or field.opt.share:
        kind = str
    if field.opt.positional:
        behind = typer.Argument(metavar=field.name.upper(), help=plain(field.opt.help), show_default=False)
        return _parameter(field.name, Annotated[str | None, behind], None)
    names = [field.flag] + ([field.opt.short] if field.opt.short else [])
    metavar = field.opt.metavar or ("TIME" if field.opt.time else "SHARE" if field.opt.share else None)
    if field.opt.choices:
        metavar = "|".join(field.opt.choices)
    elif hasattr(field.element, "__members__"):
        metavar = "|".join(str(m.value) for m in field.element)
    if kind is bool:
        names = [f"{field.flag}/--no-{field.flag[2:]}"]
    help = field.opt.help
    if field.required:
        help += " (required)"
    elif field.default not in (None, (), ""):
        default = field.default
        if kind is bool:
            shown = "on" if default else "off"
        else:
            shown = " ".join(map(str, default)) if field.many else str(getattr(default, "value", default))
        help += f" [default: {shown}]"
    panel = options.panel(field.name)
    option = typer.Option(*names, help=plain(help), show_default=False, metavar=metavar, rich_help_panel=panel)
    annotation: Any = Annotated[list[kind] | None, option] if field.many else Annotated[kind | None, option]
    return _parameter(field.name, annotation, None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _common_parameters() -> list[inspect.Parameter]:
    return [_parameter(name, annotation, default) for name, (annotation, default) in COMMON.items()]


def with_parameters(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """Give a function the signature that typer reads its flags from."""
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function
