"""Results on stdout, talk on stderr, and libraries do not talk."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
import toys as toybox

from optimizer.cli import output as output_module
from optimizer.cli.output import Output, Talker
from optimizer.errors import BadInput


@pytest.fixture
def shout(toy_source: Path, tmp_path: Path) -> list[object]:
    return ["toy", "make", toy_source, "--store", tmp_path / "models", "--trouble", "shout"]


def test_what_libraries_print_does_not_leak(shout: list[object]) -> None:
    done = toybox.run(*shout, "--json")
    assert "LEAK" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["ref"] == "source@1:fp32"
    assert "writing bytes" in done.stderr


def test_verbose_lets_them_talk(shout: list[object]) -> None:
    done = toybox.run(*shout, "--verbose")
    assert (done.stdout + done.stderr).count("LEAK") == 4


def test_quiet_says_results_and_errors_only(shout: list[object]) -> None:
    done = toybox.run(*shout, "--quiet")
    assert done.stderr == ""
    assert done.stdout.startswith("source@1:fp32")
    failed = toybox.run(*shout, "--quiet", "--seed", "666")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "seed 666" in failed.stderr


def test_a_bug_shows_what_the_libraries_said(toy_source: Path, tmp_path: Path) -> None:
    script = (
        "import toys; toys.install()\n"
        "from toy_stages import toy_make\n"
        "def get_into(t):\n"
        "    print('last words'); raise KeyError('planted')\n"
        "from optimizer.stage import get_stage\n"
        "get_stage('toy-make').run.__globals__['get_into'] = get_into\n"
        "import sys; from optimizer.cli.main import run; sys.exit(run(sys.argv[1:]))\n"
    )
    import sys

    words = ["toy", "make", str(toy_source), "--store", str(tmp_path / "m"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=toybox.environment()
    )
    assert done.returncode == 70
    assert "last words" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 70


def test_stdout_is_given_back_after_work(capfd: pytest.CaptureFixture[str]) -> None:
    output = Output()
    for _ in range(3):
        with output.work() as progress:
            progress("working")
            os.write(1, b"LEAK")
            os.write(2, b"LEAK")
        os.write(1, b"result\n")
    with pytest.raises(BadInput), output.work():
        os.write(1, b"LEAK")
        raise BadInput("x")
    out, err = capfd.readouterr()
    assert out == "result\n" * 3
    assert err == "  working\n" * 3


def test_no_file_descriptor_is_lost() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with Output().work():
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_error_is_for_people_and_under_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True, quiet=True).error(BadInput("it is wrong", "do it right"))
    out, err = capsys.readouterr()
    error = {"type": "BadInput", "message": "it is wrong", "hint": "do it right", "exit_code": 2}
    assert json.loads(out) == {"error": error}
    assert err == "error: it is wrong\n  try: do it right\n"


def test_progress_in_a_file_is_one_line_a_phase_and_no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(output_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    talker = Talker(stream, quiet=False)
    for done in range(100):
        talker("first", done, 100)
    talker("too soon")
    clock[0] += 60
    talker("second")
    talker.stop()
    assert stream.getvalue() == "  first\n  second\n"


def test_progress_in_a_terminal_is_a_bar_that_goes_away() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    talker = Talker(stream, quiet=False)
    talker("first phase", 1, 2)
    talker("second phase")
    talker.stop()
    talker.stop()
    assert "first phase" in stream.getvalue() or "second phase" in stream.getvalue()
    assert "second phase" in stream.getvalue()


def test_quiet_progress_says_nothing() -> None:
    stream = io.StringIO()
    Talker(stream, quiet=True)("working", 1, 2)
    assert stream.getvalue() == ""
