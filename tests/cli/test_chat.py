"""A conversation in a real terminal: pieces as they come, Ctrl-C for the answer, Ctrl-D for the end."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from generators import greedy, reference

WAIT = 90

#: The command, whose model makes a step for each byte of a pipe, and tells another one when a text is cancelled.
PACED = """
import os, sys
from optimizer.cli.main import run
from optimizer.generating.stream import Stream
from optimizer.runtimes._ort_decoder import Decoder

leave, told = int(sys.argv[1]), int(sys.argv[2])
step, cancel = Decoder.step, Stream.cancel

def on_leave(decoder, *given):
    os.read(leave, 1)
    return step(decoder, *given)

def telling(stream):
    cancel(stream)
    os.write(told, b"c")

Decoder.step, Stream.cancel = on_leave, telling
sys.exit(run(sys.argv[3:]))
"""


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, words: list[str], program: tuple[str, ...] = ("-m", "optimizer"), *given: int) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *program, *words],
            pass_fds=given,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: _control(theirs),
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
        )
        os.close(theirs)
        self.seen = ""

    def until(self, pattern: str) -> str:
        """Read up to what matches; what was read since the last time."""
        end = time.monotonic() + WAIT
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.seen!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.ours, 4096).decode()
                except OSError:  # the other end is closed
                    assert pattern == r"\Z", f"it ended: {self.seen!r}"
                    break
        said, self.seen = (self.seen, "") if found is None else (self.seen[: found.end()], self.seen[found.end() :])
        return said.replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())


def _control(terminal: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal(list(words)))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.ours)


class Paced(Terminal):
    """The same, and its model goes on when it is told to."""

    def __init__(self, words: list[str]) -> None:
        leave, self._leave = os.pipe()
        self._told, told = os.pipe()
        super().__init__(words, ("-c", PACED, str(leave), str(told)), leave, told)
        os.close(leave)
        os.close(told)

    def step(self, count: int = 1) -> None:
        """Let the model make steps; each is a token more."""
        os.write(self._leave, b"s" * count)

    def cancelled(self) -> None:
        """Wait until a text is cancelled."""
        assert select.select([self._told], [], [], WAIT)[0], "nothing was cancelled"
        os.read(self._told, 1)

    def close(self) -> None:
        os.close(self._leave)
        os.close(self._told)


@pytest.fixture
def paced(chatting: Path) -> Iterator[Paced]:
    """A conversation of answers of 12 tokens, the first of which comes with the prompt."""
    opened = Paced(["generate", str(chatting), "--max-tokens", "12", "--threads", "1"])
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.ours)
    opened.close()


@pytest.fixture
def chatting(llama_generator: Path, tmp_path: Path) -> Path:
    """The tiny Llama with a template that says who speaks."""
    shutil.copytree(llama_generator, tmp_path / "m")
    template = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a: "
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    return tmp_path / "m"


def answer(prompt: str, new: int) -> str:
    tokenizer = reference()[1]
    return str(tokenizer.decode(greedy(tokenizer(prompt, add_special_tokens=False)["input_ids"], new)))


def test_pieces_come_while_the_model_has_not_made_the_next(paced: Paced) -> None:
    """Each is read before the step is made that the next one comes from."""
    known = [answer("u: import\na: ", count) for count in range(1, 13)]
    assert len(set(known)) > 8
    paced.until("> ")
    paced.type("import\n")
    paced.until("import\r\n")
    said = paced.until(re.escape(known[0].replace("\n", "\r\n")))
    for before, after in itertools.pairwise(known):
        paced.step()
        if new := after.removeprefix(before):
            said += paced.until(re.escape(new.replace("\n", "\r\n")))
    assert said == known[-1]
    assert "tokens/s" in paced.until(r"tokens/s\r\n> ")


def test_ctrl_c_cuts_the_answer_short(paced: Paced) -> None:
    """In the middle of it: what the step under way still makes is all that follows, and then there is the next turn."""
    known = [answer("u: import\na: ", count) for count in range(1, 13)]
    paced.until("> ")
    paced.type("import\n")
    paced.until("import\r\n")
    said = paced.until(re.escape(known[0].replace("\n", "\r\n")))
    paced.type("\x03")
    paced.cancelled()
    paced.step(100)
    rest = paced.until("> ")
    told, _, _ = rest.replace("^C", "").partition("\n  ")
    assert said + told in (known[0], known[1])
    assert "ended by cancelled" in rest
    paced.type("os\n")
    assert "ended by length" in paced.until(r"tokens/s\r\n> ")


def test_turns_are_remembered_until_a_new_conversation(chatting: Path, terminal: Callable[..., Terminal]) -> None:
    shell = terminal("generate", str(chatting), "--max-tokens", "8", "--threads", "1")
    first = answer("u: import\na: ", 8)
    second = answer(f"u: import\na: {first}\nu: os\na: ", 8)
    shell.until("> ")
    shell.type("import\n")
    assert first in shell.until(r"tokens/s\r\n> ")
    shell.type("os\n")
    assert second in shell.until(r"tokens/s\r\n> ")
    shell.type("/new\n")
    shell.until("> ")
    shell.type("import\n")
    assert first in shell.until(r"tokens/s\r\n> ")
    shell.type("\x04")
    assert shell.process.wait(WAIT) == 0


def test_ctrl_c_ends_the_answer_only(chatting: Path, terminal: Callable[..., Terminal]) -> None:
    shell = terminal("generate", str(chatting), "--max-tokens", "120", "--threads", "1", "--chat")
    shell.until("> ")
    for _ in range(2):
        shell.type("class A:\n")
        shell.until(r"class A:\r\n")
        shell.type("\x03")
        shell.until(r"> ")
    # At the prompt it drops the line. Python sees it once its readline waits for a key, a moment after the prompt.
    shell.type("half a line")
    shell.until("half a line")
    time.sleep(0.3)
    shell.type("\x03")
    shell.until(r"> ")
    shell.type("\x04")
    assert shell.process.wait(WAIT) == 0


def test_a_question_that_cannot_be_asked_ends_nothing(chatting: Path, terminal: Callable[..., Terminal]) -> None:
    shell = terminal("generate", str(chatting), "--max-tokens", "4", "--threads", "1")
    shell.until("> ")
    shell.type("word " * 200 + "\n")
    assert "prompt and answer together" in shell.until(r"error:[^>]*> ")
    shell.type("import\n")
    assert answer("u: import\na: ", 4) in shell.until(r"tokens/s\r\n> ")
    shell.type("\x04")
    assert shell.process.wait(WAIT) == 0


def test_a_model_without_a_template_goes_on_from_all_of_it(
    llama_generator: Path, terminal: Callable[..., Terminal]
) -> None:
    shell = terminal("generate", str(llama_generator), "--max-tokens", "4", "--threads", "1")
    assert "no chat template" in shell.until("> ")
    tokenizer = reference()[1]
    first = tokenizer.decode(greedy(tokenizer("import")["input_ids"], 4))
    second = tokenizer.decode(greedy(tokenizer(f"import{first}\nclass")["input_ids"], 4))
    for typed, said in (("import", first), ("class", second)):
        shell.type(typed + "\n")
        assert said in shell.until(r"tokens/s\r\n> ")


def test_one_text_is_streamed_and_summed_up(llama_generator: Path, terminal: Callable[..., Terminal]) -> None:
    shell = terminal("generate", str(llama_generator), "import", "--max-tokens", "20", "--threads", "1")
    said = shell.until(r"tokens/s")
    tokenizer = reference()[1]
    assert tokenizer.decode(greedy(tokenizer("import")["input_ids"], 20)) in said
    assert shell.process.wait(WAIT) == 0
