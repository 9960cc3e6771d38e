"""Write what is made from the declarations: docs/cli/*.md and the typed stub of the public functions.

``python docs/generate.py`` writes; with ``--check`` it exits with 1 when what lies there is not what it would write.
"""

from __future__ import annotations

import enum
import inspect
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import typer.main

from optimizer import check as checks
from optimizer import stage as stages
from optimizer.api import functions
from optimizer.cli.app import build_app
from optimizer.options import OptionField, Options

ROOT = Path(__file__).parent.parent
_DOORS = "## The same in Python and in a recipe"
_COMMON = """## Everywhere

| flag | meaning |
|---|---|
| `--store DIR` | folder of artifacts; default `$ML_OPT_STORE`, or `./models` |
| `--json` | one JSON document on stdout, all talk on stderr |
| `--quiet`, `-q` | say nothing but results and errors |
| `--verbose`, `-v` | let the libraries talk |
"""


def pages() -> Iterator[tuple[Path, str]]:
    """Every generated file and its content."""
    index = ["# Commands", "", "| command | does |", "|---|---|"]
    for stage in sorted(stages.discover().values(), key=lambda s: ("source" not in s.accepts, s.words)):
        words = " ".join(stage.words)
        target = "MODEL" if "source" in stage.accepts else "REF"
        also = f" (also `ml-opt {'`, `ml-opt '.join(stage.aliases)}`)" if stage.aliases else ""
        body = [f"# ml-opt {words}", "", stage.help + also, "", stage.details, "", *_usage(words, target)]
        body += _options(stage.options)
        extra = [("--variant NAME", "the variant's name in the store; says what was done when left out")]
        if "source" in stage.accepts:
            extra.insert(0, ("--name NAME", "the model's name in the store; the source's own when left out"))
        body += ["## Where it goes", "", *_rows(extra), "", _COMMON]
        body += [
            _DOORS,
            "",
            *_doors(stage.name, stage.function, "source", stage.options, target),
        ]
        yield ROOT / "docs" / "cli" / f"{stage.name}.md", "\n".join(body)
        index.append(f"| [`{words}`]({stage.name}.md) | {stage.help} |")
    for check in checks.discover().values():
        words = " ".join(check.words)
        behind = [f"[{field.name.upper()}]" for field in check.options.fields() if field.opt.positional]
        usage = _usage(words, " ".join([check.takes, *behind]))
        body = [f"# ml-opt {words}", "", check.help, "", check.details, "", *usage]
        body += [*_options(check.options), _COMMON]
        body += [_DOORS, "", *_doors(check.name, check.function, "of", check.options, check.takes)]
        yield ROOT / "docs" / "cli" / f"{check.name}.md", "\n".join(body)
        index.append(f"| [`{words}`]({check.name}.md) | {check.help} |")
    for name, text in _written_by_hand():
        page = name.replace(" ", "-")
        yield ROOT / "docs" / "cli" / f"{page}.md", text
        index.append(f"| [`{name}`]({page}.md) | {text.splitlines()[2]} |")
    index += ["", _COMMON, _EXIT_CODES]
    yield ROOT / "docs" / "cli" / "index.md", "\n".join(index)
    yield ROOT / "optimizer" / "__init__.pyi", _stub()


_EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a gate failed: what was made or measured is not what was asked |
| 2 | bad input or usage |
| 3 | inconclusive: too little data, or too much noise |
| 4 | this machine lacks something; the message names the exact line to type |
| 5 | an artifact is damaged |
| 70 | a bug in ml-opt (`ML_OPT_DEBUG=1` shows the traceback) |
| 130, 143 | interrupted, terminated; the store is as it was |
"""


def _usage(words: str, target: str) -> list[str]:
    return ["```", f"ml-opt {words} {target} [OPTIONS]", "```", ""]


def _options(options: type[Options]) -> list[str]:
    lines: list[str] = []
    for heading in (None, *options.panels):
        lines += [f"### {heading}" if heading else "## Options", ""]
        lines += ["| flag | value | default | meaning |", "|---|---|---|---|"]
        for field in options.fields():
            if options.panel(field.name) == heading:
                lines.append(f"| {_flag(field)} | {_value(field)} | {_default(field)} | {_cell(field.opt.help)} |")
        lines.append("")
    return lines


def _flag(field: OptionField) -> str:
    if field.opt.positional:
        return f"`{field.name.upper()}`"
    if field.element is bool:
        return f"`{field.flag}` / `--no-{field.flag[2:]}`"
    return f"`{field.flag}`" + (" (repeatable)" if field.many else "")


def _value(field: OptionField) -> str:
    if field.opt.choices:
        return ", ".join(f"`{c}`" for c in field.opt.choices)
    if isinstance(field.element, type) and issubclass(field.element, enum.Enum):
        return ", ".join(f"`{m.value}`" for m in field.element)
    bounds = " to ".join(f"{b:g}" for b in (field.opt.ge, field.opt.le) if b is not None)
    name = {bool: "", int: "whole number", float: "number", str: "text", Path: "path"}[field.element]
    if field.opt.time:
        name = (
            "seconds, or a time such as 90s or 10m;" if field.opt.le is not None else "seconds, or a time such as 90s"
        )
    if field.opt.share:
        name += ", or percent such as 2%;"
    return f"{name} {bounds}".strip() if field.opt.le is not None else name


def _default(field: OptionField) -> str:
    if field.required:
        return "**required**"
    if field.default in (None, ()):
        return ""
    if field.element is bool:
        return "on" if field.default else "off"
    values = field.default if field.many else (field.default,)
    return " ".join(f"`{getattr(v, 'value', v)}`" for v in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("[", "\\[")


def _rows(pairs: list[tuple[str, str]]) -> list[str]:
    return ["| flag | meaning |", "|---|---|", *(f"| `{flag}` | {meaning} |" for flag, meaning in pairs)]


def _doors(name: str, function: str, key: str, options: type[Options], takes: str) -> list[str]:
    required = [f for f in options.fields() if f.required]
    example = {Path: '"calib.jsonl"', str: '"fp16"'}
    keywords = "".join(f", {f.name}={example.get(f.element, '...')}" for f in required)
    toml = [f"{f.name} = {example.get(f.element, '...')}" for f in required]
    first = {"MODEL": '"path/to/model"', "FILE": '"report.json"', "FILE…": '"base.json", "head.json"'}.get(
        takes, '"minilm:fp32"'
    )
    of = f"of = [{first}]" if takes.startswith("FILE") else 'of = ["fp32"]'
    origin = [] if takes == "MODEL" else ['from = "fp32"' if key == "source" else of]
    return [
        "```python",
        "import optimizer",
        "",
        f"optimizer.{function}({first}{keywords})",
        "```",
        "",
        "```toml",
        "[[step]]",
        f'run = "{name}"',
        *origin,
        *toml,
        "```",
        "",
    ]


def _written_by_hand() -> Iterator[tuple[str, str]]:
    """Pages of the commands that are neither a stage nor a check, from the command line's own parser."""
    root = typer.main.get_command(build_app())
    made = {name for s in stages.discover().values() for name in (s.words[0], *s.aliases)} | set(checks.discover())
    for words, command in _commands(root, ()):
        name = " ".join(words)
        if words[0] in made or command.hidden:
            continue
        arguments, options = [], []
        for parameter in command.params:
            if parameter.name in ("store", "json", "quiet", "verbose", "help"):
                continue
            (arguments if parameter.param_type_name == "argument" else options).append(parameter)
        usage = " ".join(a.metavar or a.name.upper() for a in arguments)
        lines = [f"# ml-opt {name}", "", inspect.cleandoc(command.help or "").split("\n\n")[0], ""]
        lines += _usage(name, usage)
        if options:
            lines += ["## Options", "", *_rows([(", ".join(o.opts), o.help or "") for o in options]), ""]
        yield name, "\n".join([*lines, _COMMON])


def _commands(group: typing.Any, before: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], typing.Any]]:
    """Every command below a group, with the words that it is typed by."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from _commands(command, (*before, name))
        else:
            yield (*before, name), command


def _stub() -> str:
    """``optimizer/__init__.pyi``: the generated functions, for editors and type checkers."""
    lines = [
        '"""Made by docs/generate.py from the declarations of stages and checks."""',
        "",
        "from collections.abc import Callable",
        "from pathlib import Path",
        "",
        "from optimizer.artifact import Artifact as Artifact",
        "from optimizer.benching.scenario import Scenario",
        "from optimizer.check import Report",
    ]
    errors = ("BadInput", "Damaged", "GateFailed", "Inconclusive", "MissingPiece", "MlOptError", "TooLarge",
              "UnknownName")  # fmt: skip
    lines += [f"from optimizer.errors import {name} as {name}" for name in errors]
    lines += [
        "from optimizer.manifest import Manifest as Manifest",
        "from optimizer.pipeline import Result",
        "from optimizer.recipe import Recipe, RecipeReport, Step",
        "from optimizer.ref import Ref as Ref",
        "from optimizer.stage import Progress",
        "from optimizer.store import Store as Store",
        "from optimizer.types import Device, Precision",
        "",
        "__version__: str",
        "",
    ]
    for name, function in sorted(functions().items()):
        lines += [f"def {name}("]
        star = False
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                lines.append(f"    *{parameter.name}: {_annotation(parameter.annotation)},")
                star = True
                continue
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
                lines.append("    *,")
                star = True
            default = "" if parameter.default is inspect.Parameter.empty else " = ..."
            lines.append(f"    {parameter.name}: {_annotation(parameter.annotation)}{default},")
        returns = _annotation(inspect.signature(function).return_annotation)
        lines += [f") -> {returns}: ..."]
    lines += [
        "def run_recipe(",
        "    recipe: Recipe | Path | str,",
        "    *,",
        "    store: Store | Path | str | None = ...,",
        "    progress: Progress = ...,",
        "    seen: Callable[[Step, Result | Report], None] | None = ...,",
        ") -> RecipeReport: ...",
        "",
    ]
    return "\n".join(lines)


def _annotation(annotation: typing.Any) -> str:
    if annotation is type(None):
        return "None"
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple:
        # A list is as good as a tuple at every door; a string is a sequence of strings, and a mistake.
        inner = _annotation(arguments[0])
        return f"tuple[{inner}, ...] | list[{inner}]"
    if arguments:
        parts = dict.fromkeys(part for a in arguments for part in _annotation(a).split(" | "))
        return " | ".join(sorted(parts, key=lambda part: part == "None"))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return f"{annotation.__name__} | str"
    if annotation is Path:
        return "Path | str"
    return str(annotation.__name__)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    wanted = dict(pages())
    for path, text in wanted.items():
        text = text.rstrip("\n") + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    left = [p for p in (ROOT / "docs" / "cli").glob("*.md") if p not in wanted]
    if not check:
        for path in left:
            path.unlink()
    if check and (stale or left):
        names = ", ".join(str(p.relative_to(ROOT)) for p in [*stale, *left])
        print(f"not as generated: {names}\nrun: python docs/generate.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
