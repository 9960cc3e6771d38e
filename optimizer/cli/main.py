"""The entry point: one boundary where every error becomes words and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.errors import BUG_EXIT_CODE, BadInput, MlOptError, missing_package

if TYPE_CHECKING:
    from typer.exceptions import TyperException

__all__ = ["main", "run"]


def main() -> None:
    """Run ``ml-opt`` with this process's arguments."""
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run one command line and return its exit code.

    0 done · 1 a gate failed · 2 bad input or usage · 3 inconclusive · 4 this machine lacks something · 5 an artifact
    is damaged · 70 a bug · 130 interrupted · 143 terminated.
    """
    import typer.main
    from typer.exceptions import Abort, Exit, TyperException

    from optimizer.cli.app import build_app

    # SIGTERM ends in the same clean-up as Ctrl-C; only kill -9 leaves scratch folders, and `gc` removes those.
    signal.signal(signal.SIGTERM, _terminated)
    output = Output(json="--json" in words, quiet="--quiet" in words)
    try:
        completing = "_ML_OPT_COMPLETE" in os.environ
        command = typer.main.get_command(build_app("" if completing or not words else words[0]))
        if completing:  # the shell asks what could come next
            command.main(words, prog_name="ml-opt")
        # Not `command.main`: it has its own ideas about Ctrl-C and closed pipes.
        with command.make_context("ml-opt", words) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MlOptError as error:
        output.error(error)
        return error.exit_code
    except Exit as leaving:
        return leaving.exit_code
    except TyperException as error:
        return _usage(error, output)
    except (KeyboardInterrupt, Abort) as ended:
        return _stopped("interrupted", signal.SIGINT, output, str(ended))
    except _Terminated:
        return _stopped("terminated", signal.SIGTERM, output)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # rich noticed it first, and would end with 1
            return 0
        if isinstance(leaving.code, str):  # a library gave up in words: that is not success
            return _bug(RuntimeError(leaving.code), output)
        return leaving.code or 0
    except BrokenPipeError:
        # The reader went away (`ml-opt ls | head`): that is not an error, and there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except ModuleNotFoundError as error:
        # A library that brings another one along may find it missing where our own checks did not look.
        missing = missing_package(error.name or str(error), f"`ml-opt {' '.join(words[:2])}`")
        if os.environ.get("ML_OPT_DEBUG") == "1" or (error.name or "").startswith("optimizer"):
            return _bug(error, output)
        output.error(missing)
        return missing.exit_code
    except Exception as error:
        return _bug(error, output)


class _Terminated(SystemExit):
    """SIGTERM: like SystemExit, no ``except Exception`` of a library holds it up."""


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise _Terminated(128 + signum)


def _stopped(how: str, signum: int, output: Output, more: str = "") -> int:
    stopped = MlOptError(f"{how}; the store is as it was", more)
    stopped.exit_code = 128 + signum
    output.error(stopped)
    return stopped.exit_code


def _usage(error: TyperException, output: Output) -> int:
    """Typer's own complaints, in our words and with our exit codes."""
    if type(error).__name__ == "NoArgsIsHelpError":  # typer shows the help and calls it an error
        sys.stdout.write(f"{error}\n")
        return BadInput.exit_code
    context = getattr(error, "ctx", None)
    message = error.format_message()
    path = context.command_path if context is not None else "ml-opt"
    output.error(BadInput(message, f"run: {path} --help"))
    return BadInput.exit_code


def _bug(error: Exception, output: Output) -> int:
    if os.environ.get("ML_OPT_DEBUG") == "1":
        traceback.print_exc()
        hint = ""
    else:
        hint = "run it again with ML_OPT_DEBUG=1 for the traceback, and please report it"
    bug = MlOptError(f"this is a bug in ml-opt: {type(error).__name__}: {error}", hint)
    bug.exit_code = BUG_EXIT_CODE
    output.error(bug)
    return BUG_EXIT_CODE
