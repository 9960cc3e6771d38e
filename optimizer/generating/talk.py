"""An open model and its tokenizer, to be asked for texts: one by one, or in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from optimizer.errors import BadInput
from optimizer.generating.tokens import TextTokenizer
from optimizer.generating.writing import Writing
from optimizer.generator import Generator, GeneratorOptions, Sampling, open_generator

__all__ = ["Talk"]


class Talk:
    """A generator's folder, opened.

    Attributes:
        generator: what writes.
        tokenizer: what makes tokens of text, and text of tokens.
    """

    def __init__(
        self,
        folder: Path,
        options: GeneratorOptions,
        sampling: Sampling,
        stop: Sequence[str] = (),
        *,
        fewer: bool = False,
    ) -> None:
        """Open what is in ``folder``.

        Args:
            folder: of the generator.
            options: how it is run.
            sampling: how each text is written.
            stop: strings that end a text.
            fewer: take what a model has room for where that is less than ``sampling.max_tokens``, which is refused
                otherwise.
        """
        self.tokenizer = TextTokenizer(folder)
        self.generator: Generator = open_generator(folder, options)
        if fewer:
            most = min(sampling.max_tokens, self.generator.answers or self.generator.context)
            sampling = replace(sampling, max_tokens=most)
        self._sampling, self._stop = sampling, tuple(stop)
        self._messages: list[dict[str, str]] = []
        self._written = ""

    @property
    def has_template(self) -> bool:
        """Whether the model was made for conversations."""
        return self.tokenizer.chat is not None

    def complete(self, prompt: str) -> Writing:
        """Go on from a prompt.

        Raises:
            BadInput: the prompt is empty, or what is asked cannot be.
        """
        if not prompt:
            raise BadInput("the prompt is empty", "give the model some text to go on from")
        return self._write(self.tokenizer.encode(prompt))

    def ask(self, question: str) -> Writing:
        """The next turn of a conversation; :meth:`answered` ends it.

        A model without a chat template goes on from all that was written so far.

        Raises:
            BadInput: the template is broken, or the conversation has grown out of the context.
        """
        template = self.tokenizer.chat
        if template is None:
            return self.complete(self._written + question)
        asked = [*self._messages, {"role": "user", "content": question}]
        return self._write(self.tokenizer.encode(template.prompt(asked), special=False))

    def answered(self, question: str, answer: str) -> None:
        """Keep a turn for those that follow."""
        self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self._written += f"{question}{answer}\n"

    def forget(self) -> None:
        """Begin the conversation anew."""
        self._messages, self._written = [], ""

    def _write(self, prompt: list[int]) -> Writing:
        return Writing(self.generator, self.tokenizer, prompt, self._sampling, self._stop)

    def close(self) -> None:
        """Give back memory and threads."""
        self.generator.close()
