"""Commands made from declarations: what is declared is what ``--help`` says."""

from __future__ import annotations

import re

import pytest

from optimizer import check, stage
from optimizer.cli.main import run

DECLARATIONS = {**stage.discover(), **check.discover()}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_the_help_of_a_command_says_all_that_was_declared(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets too: typer would read ``[what the model allows]`` as a style and show nothing."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    does = DECLARATIONS[name]
    words = list(does.words)
    assert run([*words, "--help"]) == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for sentence in (does.help, does.details):
        assert re.sub(r"\s+", " ", sentence) in shown
    for field in does.options.fields():
        assert (field.name.upper() if field.opt.positional else field.flag) in shown
        assert re.sub(r"\s+", " ", field.opt.help) in shown
        if field.required:
            assert f"{field.opt.help} (required)" in shown
    for flag in ("--store", "--json", "--quiet", "--verbose"):
        assert flag in shown
