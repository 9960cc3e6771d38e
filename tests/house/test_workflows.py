"""The workflows of this project, and those that docs/ci.md has to paste from, are well formed and call what there is.

Their schema is GitHub's own, as check-jsonschema carries it. The ``ml-opt`` lines of their scripts, and those of every
other block of that page, are parsed by the command line itself.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup
from typer.exceptions import TyperException

from optimizer.cli.app import build_app
from optimizer.cli.groups import CommandWithSubcommands

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGE = ROOT / "docs" / "ci.md"
_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}\Z")
_COMMAND = re.compile(r"(?:^|[\s/])ml-opt((?: +[^\s|;]+)+)")
#: What a shell or GitHub puts in the place of these is a word.
_EXPANDED = re.compile(r"\$\{\{.*?\}\}|\$\w+|\$\(.*?\)")


def blocks(language: str) -> list[str]:
    """The page's blocks in one language."""
    return [text for found, text in _FENCE.findall(PAGE.read_text(encoding="utf-8")) if found == language]


def pasted() -> list[str]:
    """Its whole workflows; a block with single steps is none."""
    return [text for text in blocks("yaml") if text.startswith("name:")]


def commands(script: str) -> Iterator[list[str]]:
    """The arguments of every call of ``ml-opt`` in a shell script."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        for found in _COMMAND.finditer(line):
            yield shlex.split(_EXPANDED.sub("word", found[1]))


def scripts(workflow: dict[str, Any]) -> Iterator[str]:
    for job in workflow["jobs"].values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def parse(words: list[str]) -> None:
    """Let the command line read its arguments, and do nothing with them."""
    command: Any = typer.main.get_command(build_app())
    with command.make_context("ml-opt", words) as context:
        while isinstance(command, TyperGroup) and not isinstance(command, CommandWithSubcommands):
            _, command, words = command.resolve_command(context, words)
        command.make_context("ml-opt", words, parent=context)


def test_commands_are_found_in_scripts() -> None:
    script = 'code=0\na/.venv/bin/ml-opt bench "$x" \\\n  --report r.xml || code=$?\npip install "ml-opt[cpu]"\n'
    assert list(commands(script)) == [["bench", "word", "--report", "r.xml"]]


@pytest.mark.parametrize(
    "words", [["bench", "a", "--fail-if-slowr", "5%"], ["bensh", "a"], ["quantize", "dynamc", "a"]]
)
def test_a_command_that_is_not_there_is_found(words: list[str]) -> None:
    with pytest.raises(TyperException):
        parse(words)


@pytest.mark.parametrize("place", range(len(WORKFLOWS) + len(pasted())))
def test_workflows_have_githubs_schema_pins_limits_and_commands_that_exist(place: int, tmp_path: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in WORKFLOWS] + pasted()
    path = tmp_path / "workflow.yml"
    path.write_text(texts[place], encoding="utf-8")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    workflow = yaml.safe_load(texts[place])
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert "uses" not in step or _PINNED.match(step["uses"]), step
    for script in scripts(workflow):
        for command in commands(script):
            parse(command)


def test_every_other_command_of_the_page_exists() -> None:
    found = [
        words for kind in ("console", "bash", "yaml", "groovy") for text in blocks(kind) for words in commands(text)
    ]
    assert sum(words[0] == "bench" for words in found) >= 4
    for words in found:
        parse(words)
