"""A conversation on the terminal: one line a turn, Ctrl-C ends the answer, Ctrl-D the conversation."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from optimizer.check import Check
from optimizer.cli.generate import Common
from optimizer.cli.speak import summary
from optimizer.environment import need_modules
from optimizer.errors import MlOptError

if TYPE_CHECKING:
    from optimizer.checks.generate import Generate
    from optimizer.generating.talk import Talk
    from optimizer.generating.writing import Writing

__all__ = ["hold"]

_HELP = "Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one."


def hold(check: Check, ref: str, options: Generate, outside: Common) -> int:
    """Hold a conversation; its turns are kept until it ends."""
    from optimizer.checks.generate import open_talk

    need_modules(check.modules, check.name)
    output = outside.output
    with output.work() as progress:
        talk = open_talk((ref,), options, outside.store, progress)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and those before be had again with the arrow keys
    output.talk(_HELP)
    if not talk.has_template:
        output.talk("This model has no chat template: it goes on from all that was written.")
    try:
        with _Interrupts() as interrupts:
            return _turns(talk, interrupts, outside)
    finally:
        talk.close()


class _Interrupts:
    """Ctrl-C as a conversation means it: while a line is typed it drops the line, and else it ends the answer.

    An answer is cancelled and not broken off by an exception, which could come between any two steps.
    """

    def __init__(self) -> None:
        self.typing = False
        self.writing: Writing | None = None
        self.asked = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        if self.typing:
            raise KeyboardInterrupt
        self.asked = True
        if self.writing is not None:
            self.writing.cancel()


def _turns(talk: Talk, interrupts: _Interrupts, outside: Common) -> int:
    while True:
        try:
            interrupts.typing = True
            line = input("> ")
            interrupts.typing = False
        except EOFError:
            interrupts.typing = False
            sys.stdout.write("\n")
            return 0
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        interrupts.asked = False
        if line.strip() == "/new":
            talk.forget()
        elif line.strip():
            _turn(talk, line, interrupts, outside)


def _turn(talk: Talk, line: str, interrupts: _Interrupts, outside: Common) -> None:
    """One question and its answer; one that cannot be asked is said, and the conversation goes on."""
    try:
        writing = interrupts.writing = talk.ask(line)
        if interrupts.asked:  # before there was anything to cancel
            writing.cancel()
        for text in writing:
            sys.stdout.write(text)
            sys.stdout.flush()
    except MlOptError as error:
        outside.output.error(error)
        return
    finally:
        interrupts.writing = None
    sys.stdout.write("\n")
    sys.stdout.flush()
    assert writing.answer is not None
    talk.answered(line, writing.answer.text)
    summary(outside.output, writing.answer)
