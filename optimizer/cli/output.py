"""The one voice of the command line: results on stdout, talk on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from optimizer.errors import MlOptError
from optimizer.types import JSON

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Output", "Talker"]

_PIPE_WIDTH = 160
#: Where there is no bar, a line is said this often at most, in seconds: a log should be read, not scrolled.
_LINE_EVERY = 2.0


@dataclass
class Output:
    """Where a command's words go.

    Attributes:
        json: one JSON document on stdout and nothing else there.
        quiet: say nothing on stderr but errors.
        verbose: let the libraries talk.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, document: JSON) -> None:
        """Print the JSON document that ``--json`` promised."""
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def console(self) -> Console:
        """Rich on stdout, for results made for people; a pipe has no width of its own and gets a roomy one."""
        from rich.console import Console

        piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        return Console(highlight=False, width=_PIPE_WIDTH if piped else None)

    def talk(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def line(self, text: str) -> None:
        """A line for whoever reads the log by machine: on stdout, or beside the one document that is there."""
        stream = sys.stderr if self.json else sys.stdout
        stream.write(text + "\n")
        stream.flush()

    def error(self, error: MlOptError) -> None:
        """Say what is wrong and what to type next, to people and, under ``--json``, to machines."""
        if self.json:
            fields = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
            self.result({"error": {**fields, "exit_code": error.exit_code}})
        bold, red, off = ("\033[1m", "\033[31m", "\033[0m") if _colour(sys.stderr) else ("", "", "")
        sys.stderr.write(f"{bold}{red}error:{off} {error.message}\n")
        if error.hint:
            sys.stderr.write(f"{bold}  try:{off} {error.hint}\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def work(self) -> Iterator[Talker]:
        """While this is open, libraries cannot print: their words go to a log, shown only when something breaks.

        Python's and C++'s stdout and stderr alike are turned away, at the file descriptor, because exporters and
        runtimes print from both. With ``--verbose`` nothing is turned away.
        """
        if self.verbose:
            yield Talker(sys.stderr, self.quiet, sys.stdout)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        with tempfile.TemporaryFile("w+b") as log:
            kept = os.dup(1), os.dup(2)
            ours = os.fdopen(os.dup(kept[1]), "w", encoding="utf-8", buffering=1)
            out = os.fdopen(os.dup(kept[0]), "w", encoding="utf-8")
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            talker = Talker(ours, self.quiet, out)
            failed: BaseException | None = None
            try:
                yield talker
            except BaseException as error:
                failed = error
                raise
            finally:
                talker.stop()
                sys.stdout.flush()
                sys.stderr.flush()
                os.dup2(kept[0], 1)
                os.dup2(kept[1], 2)
                for fd in kept:
                    os.close(fd)
                ours.close()
                with contextlib.suppress(BrokenPipeError):
                    out.close()
                if failed is not None and not isinstance(failed, (MlOptError, KeyboardInterrupt, SystemExit)):
                    log.seek(0)
                    sys.stderr.write(log.read().decode(errors="replace")[-4000:])


class Talker:
    """Draws progress: a rich bar in a terminal, one line a phase elsewhere."""

    def __init__(self, stream: TextIO, quiet: bool, out: TextIO | None = None) -> None:
        self._stream = stream
        self._out = out or sys.stdout
        self._quiet = quiet
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._doing = ""
        self._said = -_LINE_EVERY

    def __call__(self, doing: str, done: float | None = None, total: float | None = None) -> None:
        if self._quiet:
            return
        if not self._stream.isatty():
            now = time.monotonic()
            if doing != self._doing and now - self._said >= _LINE_EVERY:
                self._stream.write(f"  {doing}\n")
                self._stream.flush()
                self._doing, self._said = doing, now
            return
        if self._bars is None:
            self._bars = self._draw()
        if doing != self._doing or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(doing, total=total)
            self._doing = doing
        self._bars.update(self._task, completed=done or 0, total=total)

    def say(self, text: str) -> None:
        """A piece of a result that is a text, on stdout as soon as it is there; takes the bar away."""
        self.stop()
        self._out.write(text)
        self._out.flush()

    def _draw(self) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bars.start()
        return bars

    def stop(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._task = None


def _colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ
