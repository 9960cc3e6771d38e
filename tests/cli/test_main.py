"""One boundary: every error becomes words and an exit code, and a reader who goes away is no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toys as toybox
import typer.main

from optimizer.cli import main as main_module
from optimizer.cli.app import build_app
from optimizer.cli.main import run

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def words(toy_source: Path, tmp_path: Path) -> list[str]:
    """A command that works, to be added to."""
    return ["toy", "make", str(toy_source), "--store", str(tmp_path / "models")]


@pytest.mark.parametrize(
    ("added", "code", "says"),
    [
        ([], 0, ""),
        (["--trouble", "gate"], 1, "error: asked for one thing, got another\n  try: ask for something else"),
        (["--seed", "x"], 2, "--seed"),
        (["--size", "-1"], 2, "--size is out of range: -1"),
        (["--mode", "fanzy"], 2, "did you mean fancy?"),
        (["--sead", "3"], 2, "--seed"),
        (["--name", "a b"], 2, "cannot name a model"),
        (["extra-word"], 2, "extra-word"),
        (["--trouble", "enospc"], 4, "no room on the disk"),
        (["--trouble", "bug"], 70, "this is a bug in ml-opt: KeyError: 'planted'"),
        (["--trouble", "exit"], 70, "the library gives up"),
        (["--trouble", "nan"], 70, "bug"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes(
    words: list[str], added: list[str], code: int, says: str, as_json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, *added, *(["--json"] if as_json else [])]) == code
    out, err = capfd.readouterr()
    assert says in err
    if as_json:
        document = json.loads(out)
        if code:
            assert list(document) == ["error"]
            assert document["error"]["exit_code"] == code
            assert {"type", "message", "hint"} <= set(document["error"])
        else:
            assert {"ref", "path", "cached", "facts", "seconds"} <= set(document)
    elif code:
        assert out == ""
        assert err.count("error:") == 1
        assert "Traceback" not in err


def test_a_check_decides_the_exit_code(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    for verdict in (0, 1, 3):
        capfd.readouterr()
        store = str(tmp_path / "models")
        assert run(["toy-judge", "source", "--verdict", str(verdict), "--json", "--store", store]) == verdict
        assert json.loads(capfd.readouterr().out)["exit_code"] == verdict


def test_damage_is_five(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    (tmp_path / "models" / "source" / "1" / "fp32" / "model.onnx").write_bytes(b"x")
    for command in (words, ["toy-derive", "source", "--store", words[-1]], ["check", "--store", words[-1]]):
        assert run(command) == 5
    out, err = capfd.readouterr()
    assert "is damaged: model.onnx has 1 bytes" in err
    assert "DAMAGED source@1:fp32" in out


def test_a_bug_shows_its_traceback_when_asked(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--trouble", "bug"]) == 70
    assert "ML_OPT_DEBUG=1" in capfd.readouterr().err
    monkeypatch.setenv("ML_OPT_DEBUG", "1")
    assert run([*words, "--trouble", "bug"]) == 70
    assert 'raise KeyError("planted")' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (["exprt-onnx"], "export-onnx"),
        (["quantize", "dynamc"], "dynamic"),
        (["gcc"], "gc"),
        (["export-onnx", "m", "--opest", "20"], "--opset"),
        (["ls", "--jsn"], "--json"),
    ],
)
def test_what_is_unknown_is_an_error_with_the_nearest(
    typed: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(typed) == 2
    err = capsys.readouterr().err
    assert near in err.splitlines()[0]
    assert "--help" in err


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ([], ["quantize"]):
        assert run(typed) == 2
        assert "Usage: ml-opt" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import optimizer

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ml-opt {optimizer.__version__}\n"


def test_python_m_is_the_command(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "optimizer"], [str(Path(sys.executable).parent / "ml-opt")]):
        done = subprocess.run(
            [*command, "ls", "--json"], capture_output=True, text=True, cwd=tmp_path, env=toybox.environment()
        )
        assert json.loads(done.stdout) == {"store": "models", "artifacts": [], "aliases": {}}, done.stderr


def test_a_command_of_no_stage_looks_for_none(tmp_path: Path) -> None:
    """A server is up sooner without what `optimize` would need; and it is the same command as among all of them."""
    code = "import sys; from optimizer.cli.main import run; code = run({words!r}); "
    code += "print([name for name in ('optimizer.stages', 'optimizer.checks') if name in sys.modules]); sys.exit(code)"
    for words, looks in ((["ls"], False), (["keys", "list"], False), (["serve"], False), (["bench"], True)):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{words!r}", repr(words))],
            capture_output=True, text=True, cwd=tmp_path, env=toybox.environment(),
        )  # fmt: skip
        said = done.stdout.splitlines()[-1]
        assert (said != "[]") is looks, (words, done.stdout, done.stderr)


def test_each_command_by_itself_is_the_one_among_all() -> None:
    def described(command: Any) -> Any:
        inside = {name: described(each) for name, each in getattr(command, "commands", {}).items()}
        return (
            command.name,
            command.help,
            command.hidden,
            [(each.opts, each.default) for each in command.params],
            inside,
        )

    whole: Any = typer.main.get_command(build_app())
    assert {"serve", "quantize", "export", "export-onnx", "bench", "toy"} <= set(whole.commands)
    for first, same in whole.commands.items():
        alone: Any = typer.main.get_command(build_app(first))
        assert described(alone.commands[first]) == described(same)
        assert len(alone.commands) < len(whole.commands)
    assert build_app("no-such-command") is build_app()


def test_interrupted_under_quiet_and_json(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(first: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.cli.app.build_app", interrupted)
    assert run(["ls", "--json", "--quiet"]) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["exit_code"] == 130
    assert "interrupted; the store is as it was" in err


@pytest.mark.parametrize(
    ("code", "ends"), [(None, 0), (0, 0), (3, 3), ("words", 70)], ids=["none", "zero", "three", "words"]
)
def test_a_library_that_exits(monkeypatch: pytest.MonkeyPatch, code: object, ends: int, capsys) -> None:
    def leave(first: str) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("optimizer.cli.app.build_app", leave)
    assert run(["ls"]) == ends


@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["--help"], ["show", "source"], ["check"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str], command: list[str]) -> None:
    assert run(words) == 0
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(Path(toybox.__file__)), *command],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=toybox.environment(ML_OPT_STORE=words[-1]),
    )
    os.close(writing)
    assert not {"error", "Traceback", "Broken"} & set(done.stderr.replace(":", " ").split())
    assert done.returncode == 0


def test_the_store_is_chosen_by_flag_then_environment_then_folder(toy_source: Path, tmp_path: Path) -> None:
    def made(*words: str, **env: str) -> Path:
        done = toybox.run("toy", "make", "source", *words, "--json", cwd=tmp_path, **env)
        return (tmp_path / json.loads(done.stdout)["path"]).resolve()

    assert made().is_relative_to(tmp_path / "models")
    assert made(ML_OPT_STORE=str(tmp_path / "env")).is_relative_to(tmp_path / "env")
    both = made("--store", "flag", ML_OPT_STORE=str(tmp_path / "env"))
    assert both.is_relative_to(tmp_path / "flag")


def test_a_store_that_cannot_be_written(toy_source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = toybox.run("toy", "make", toy_source, "--store", tmp_path / "file" / "models", "--json")
    assert done.returncode == 4
    assert "is a file where a folder is needed" in json.loads(done.stdout)["error"]["message"]
    assert (tmp_path / "file").read_text() == "x"


def test_completion(words: list[str]) -> None:
    assert run(words) == 0
    assert run(["alias", "source@1:fp32", "prod", "--store", words[-1]]) == 0

    def complete(typed: str, place: int, **env: str) -> list[str]:
        asked = {"_ML_OPT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(place)}
        return toybox.run(**asked, **env).stdout.split()

    assert complete("ml-opt sho", 1) == ["show"]
    assert "--precision" in complete("ml-opt toy make m --pre", 4)
    assert complete("ml-opt show so", 2, ML_OPT_STORE=words[-1]) == ["source@1:fp32", "source:fp32", "source@prod"]
    assert complete(f"ml-opt show --store {words[-1]} source@p", 4) == ["source@prod"]
    assert complete("ml-opt show so", 2, ML_OPT_STORE="/proc/nothing") == []


def test_the_bug_code_is_the_documented_one() -> None:
    assert str(main_module.BUG_EXIT_CODE) in (main_module.run.__doc__ or "")
