"""The command of a check that speaks: its text is printed while it is written, or a conversation is held."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimizer.check import Check
from optimizer.cli.generate import Common, check_parameters, typed_values, with_parameters
from optimizer.errors import BadInput

if TYPE_CHECKING:
    from optimizer.checks.generate import Generate
    from optimizer.cli.output import Output

__all__ = ["spoken_command"]


def spoken_command(check: Check) -> Callable[..., int]:
    """The command of ``generate``."""

    def command(**values: Any) -> int:
        outside = Common(values)
        ref = values.pop("refs")
        typed = values["prompt"]
        options: Generate = check.options.from_mapping(typed_values(check.options, values), check.name)  # type: ignore[assignment]
        if typed == "-" or (typed is None and not sys.stdin.isatty()):
            options = _with_prompt(options, _piped())
        if options.prompt is None and outside.output.json:
            raise BadInput("--json wants a prompt", "write it behind the reference, or pipe it in")
        if options.prompt is None:
            from optimizer.cli.chat import hold

            return hold(check, ref, options, outside)
        if outside.output.json or not options.stream:
            with outside.output.work() as progress:
                report: Any = check.apply((ref,), options, outside.store, progress)
            if outside.output.json:
                outside.output.result(report.to_json())
            else:
                _write(report.text + "\n")
            return int(report.exit_code)
        return _streamed(check, ref, options, outside)

    return with_parameters(command, check_parameters(check))


def _with_prompt(options: Generate, prompt: str) -> Generate:
    import dataclasses

    return dataclasses.replace(options, prompt=prompt)


def _piped() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"what was piped in is not UTF-8: {error}") from error
    return text.removesuffix("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _streamed(check: Check, ref: str, options: Generate, outside: Common) -> int:
    """Print a text while it is written; Ctrl-C ends it, and what is there stays."""
    from optimizer.checks.generate import begin, open_talk
    from optimizer.environment import need_modules

    need_modules(check.modules, check.name)
    assert options.prompt is not None
    with outside.output.work() as progress:
        talk = open_talk((ref,), options, outside.store, progress)
        try:
            writing = begin(talk, options, options.prompt)
        except BaseException:
            talk.close()
            raise
    try:
        for text in writing:
            _write(text)
        _write("\n")
    except KeyboardInterrupt:
        _write("\n")
        raise
    finally:
        talk.close()
    summary(outside.output, writing.answer)
    return 0


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
