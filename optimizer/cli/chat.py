"""A conversation on the terminal: one line a turn, Ctrl-C ends the answer, Ctrl-D the conversation."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from optimizer.check import Check
from optimizer.cli.generate import Common
from optimizer.cli.speak import summary
from optimizer.environment import need_modules
from optimizer.errors import MlOptError

if TYPE_CHECKING:
    from optimizer.checks.generate import Generate

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
        while True:
            try:
                line = input("> ")
            except EOFError:
                sys.stdout.write("\n")
                return 0
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                continue
            if line.strip() == "/new":
                talk.forget()
            elif line.strip():
                _turn(talk, line, outside)
    finally:
        talk.close()


def _turn(talk: Any, line: str, outside: Common) -> None:
    """One question and its answer; one that cannot be asked is said, and the conversation goes on."""
    try:
        writing = talk.ask(line)
    except MlOptError as error:
        outside.output.error(error)
        return
    try:
        for text in writing:
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        writing.cancel()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if writing.answer is not None:
        talk.answered(line, writing.answer.text)
        summary(outside.output, writing.answer)
