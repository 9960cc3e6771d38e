"""The command of a check that speaks: its text is printed while it is written, or a conversation is held."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimizer.check import Check
from optimizer.cli.generate import Common, check_parameters, typed_values, with_parameters
from optimizer.errors import BadInput

if TYPE_CHECKING:
    from optimizer.checks.generate import Generate
    from optimizer.cli.output import Output

__all__ = ["spoken_command", "summary"]


def spoken_command(check: Check) -> Callable[..., int]:
    """The command of ``generate``."""

    def command(**values: Any) -> int:
        outside = Common(values)
        ref = values.pop("refs")
        typed = values["prompt"]
        options: Generate = check.options.from_mapping(typed_values(check.options, values), check.name)  # type: ignore[assignment]
        if typed == "-" or (typed is None and not sys.stdin.isatty()):
            options = dataclasses.replace(options, prompt=_piped())
        if options.prompt is None and outside.output.json:
            raise BadInput("--json wants a prompt", "write it behind the reference, or pipe it in")
        if options.prompt is None and options.logprobs:
            raise BadInput("--logprobs is not for conversations", "give a prompt, and --json")
        if options.prompt is None:
            from optimizer.cli.chat import hold

            return hold(check, ref, options, outside)
        if outside.output.json:
            options = dataclasses.replace(options, stream=False)
        with outside.output.work() as progress:
            report: Any = check.apply((ref,), options, outside.store, progress)
        if outside.output.json:
            outside.output.result(report.to_json())
        elif options.stream:
            summary(outside.output, report.answer)
        else:
            sys.stdout.write(report.text + "\n")
        if options.logprobs and not outside.output.json:
            outside.output.talk("What --logprobs tells is in the JSON: add --json.")
        return int(report.exit_code)

    return with_parameters(command, check_parameters(check))


def _piped() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"what was piped in is not UTF-8: {error}") from error
    return text.removesuffix("\n")


def summary(output: Output, answer: Any) -> None:
    """A line on stderr about an answer, where somebody sits before it."""
    if not sys.stderr.isatty():
        return
    words = [f"{answer.prompt_tokens} + {len(answer.tokens)} tokens", f"ended by {answer.finish.value}"]
    if answer.first_seconds is not None:
        words.append(f"first after {answer.first_seconds * 1e3:.0f} ms")
    if answer.tokens_per_second is not None:
        words.append(f"then {answer.tokens_per_second:.0f} tokens/s")
    output.talk("  " + ", ".join(words))
