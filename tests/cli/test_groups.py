"""``bench`` is a command by itself and has subcommands: the first word decides, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toys as toybox

from optimizer.cli.main import run

GOLDEN = Path(__file__).parents[1] / "golden" / "bench-3.json"


def test_the_help_names_options_and_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: ml-opt bench [OPTIONS] " in shown
    assert "--min-samples" in shown
    commands = shown[shown.index("─ Commands ") :]
    assert "show" in commands
    assert run(["bench", "show", "--help"]) == 0
    assert "Usage: ml-opt bench show [OPTIONS] " in capsys.readouterr().out


def test_the_first_word_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path)]
    assert run(["bench", "show", str(GOLDEN)]) == 1
    capsys.readouterr()
    # A model of the store may have the name of a subcommand: as no first word, or with its version, it is meant.
    for words in (["show@1:fp32"], ["--threads", "1", "show"], ["other", "show"]):
        assert run(["bench", *words, *store]) == 2
        wanted = "other" if "other" in words else "show"
        assert f"is empty): '{wanted}'" in capsys.readouterr().err


def test_options_stand_before_and_behind_the_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    quick = ["--duration", "0", "--min-samples", "4", "--rounds", "3", "--no-roofline", "--threads", "1"]
    assert run(["bench", *quick, f"fake:{tmp_path / 'a.json'}", "--shape", "2x4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["shapes"] == ["2x4"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bench"], "Missing argument"),
        (["bench", "show"], "Missing argument"),
        (["bench", "show", "a", "b"], "b"),
        (["bench", "--no-such"], "--no-such"),
        (["bench", "show", "a", "--threads", "2"], "--threads"),
    ],
)
def test_errors_are_words_and_a_document(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert says in error["message"]
    assert error["hint"] == f"run: ml-opt {' '.join(words[: 2 if 'show' in words else 1])} --help"
    assert "error:" in err


def test_the_shell_completes_both(tmp_path: Path) -> None:
    def complete(typed: str, place: int) -> list[str]:
        asked = {"_ML_OPT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(place)}
        return toybox.run(**asked, ML_OPT_STORE=str(tmp_path)).stdout.split()

    assert complete("ml-opt bench sh", 2) == ["show"]
    assert "--github" in complete("ml-opt bench show --gi", 3)
    assert complete("ml-opt bench a sh", 3) == []
    assert "--min-samples" in complete("ml-opt bench a --min", 3)
