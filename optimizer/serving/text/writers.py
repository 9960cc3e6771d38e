"""A served text generator: who may wait, prompts into tokens, and texts begun."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optimizer.digest import digest_json
from optimizer.errors import BadInput
from optimizer.generating.tokens import TextTokenizer
from optimizer.generator import Generator, room
from optimizer.serving.problems import Problem
from optimizer.serving.statistics import Statistics
from optimizer.serving.text.asked import Asked
from optimizer.serving.text.observer import Observer
from optimizer.serving.text.replies import Reply, Text

if TYPE_CHECKING:
    from optimizer.serving.guard.redaction import Redactor

__all__ = ["Writer"]

#: The share of a new measurement in a running mean.
_NEW = 0.2


class Writer:
    """One model that writes. All its methods belong to the event loop's thread, but for what they hand to others.

    Args:
        name: what the model is called.
        version: which of it.
        ref: what was loaded.
        generator: open.
        tokenizer: the model's.
        max_waiting: most texts that wait for a place.
        observer: is told of tokens and times.
        statistics: of the model; of its own where left out.

    Attributes:
        under_way: texts that were let in and are not over.
    """

    def __init__(
        self,
        name: str,
        version: str,
        ref: str,
        generator: Generator,
        tokenizer: TextTokenizer,
        max_waiting: int,
        observer: Observer,
        statistics: Statistics | None = None,
    ) -> None:
        self.name, self.version, self.ref = name, version, ref
        self.generator, self.tokenizer, self.observer = generator, tokenizer, observer
        self.statistics = Statistics() if statistics is None else statistics
        self._max_waiting = max_waiting
        self._slots = int(str(generator.facts.get("slots", 1)))
        self._mean: float | None = None
        self._pace: float | None = None
        self._left_at: float | None = None
        self.under_way = 0

    @property
    def fingerprint(self) -> str:
        """Changes when the same seed may give another text: the artifact, and what writes."""
        facts = self.generator.facts
        names = ("runtime", "provider", "threads", "onnxruntime", "openvino")
        libraries = [str(facts[name]) for name in names if name in facts]
        return f"fp_{digest_json([self.ref, *libraries])[:10]}"

    def wait_seconds(self, count: int) -> float:
        """How long the last of so many new texts would wait for its place."""
        return max(0, self.under_way + count - self._slots) * self._seconds_a_place

    @property
    def _seconds_a_place(self) -> float:
        """From one free place to the next: as it was when all were taken, or else by the mean time of a text."""
        if self._pace is not None:
            return self._pace
        return (self._mean or 0.0) / self._slots

    def _over(self, begun: float, count: int) -> None:
        """Learn from texts that are over, before their places are given back."""
        now = time.perf_counter()
        self._mean = _mean(self._mean, now - begun)
        if self.under_way < self._slots:
            self._left_at = None
            return
        if self._left_at is not None:
            self._pace = _mean(self._pace, (now - self._left_at) / count)
        self._left_at = now

    @contextmanager
    def places(self, count: int, deadline: float | None = None) -> Iterator[None]:
        """Let texts in, before anything else is done for them.

        Args:
            count: texts.
            deadline: seconds in which they are wanted; None for any.

        Raises:
            Problem: 429 with Retry-After: too many wait already, or the wait would be longer than the deadline.
        """
        over = self.under_way + count - self._slots - self._max_waiting
        if over > 0 and count > self._slots + self._max_waiting:
            raise Problem(400, f"{count} texts at once are more than this server lets wait", param="n")
        if over > 0:
            raise _busy("too many texts are waiting", over * self._seconds_a_place, "queue_full")
        wait = self.wait_seconds(count)
        if deadline is not None and wait > deadline:
            message = f"the wait would be {wait:.1f} s, and the answer is wanted in {deadline:.1f} s"
            raise _busy(message, wait - deadline, "deadline")
        self._let_in(count)
        begun = time.perf_counter()
        try:
            yield
            self._over(begun, count)
        finally:
            self._let_in(-count)

    def _let_in(self, count: int) -> None:
        self.under_way += count
        self.observer.places(self.under_way, self._slots)

    async def idle(self, seconds: float) -> None:
        """Wait until no text is under way, for so long at most."""
        end = time.perf_counter() + seconds
        while self.under_way and time.perf_counter() < end:
            await asyncio.sleep(0.01)

    async def encode(self, asked: Asked) -> list[list[int]]:
        """Tokens of every prompt; in a thread, as a long one takes a while.

        Raises:
            Problem: 400: a prompt is empty or longer than the context, or no chat template of the model takes it.
        """
        if any(not prompt for prompt in asked.prompts):  # a begin token alone is nothing to go on from
            raise Problem(400, "the prompt is empty", param=asked.prompt_field)
        self._check_choice(asked)
        prompts = await asyncio.to_thread(lambda: [self._encode(prompt) for prompt in asked.prompts])
        for prompt in prompts:
            self._room(prompt, asked)
        return prompts

    def _check_choice(self, asked: Asked) -> None:
        """Refuse to choose tokens in a way that is none for this model."""
        vocabulary, beams = self.generator.vocabulary, asked.sampling.num_beams
        if strange := [token for token, _ in asked.sampling.logit_bias if token >= vocabulary]:
            message = f"logit_bias has the token {strange[0]}, and tokens are from 0 to {vocabulary - 1}"
            raise Problem(400, message, param=f"{asked.prefix}logit_bias")
        if beams > self._slots:
            message = f"{beams} beams were asked for, and this model writes {self._slots} texts at once"
            raise Problem(400, message, param=f"{asked.prefix}num_beams")

    def _encode(self, prompt: str | Sequence[int] | Sequence[Mapping[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        tokens = [token for token in prompt if isinstance(token, int)]
        if len(tokens) == len(prompt):
            return tokens
        template = self.tokenizer.chat
        if template is None:
            message = f"the model {self.name} has no chat template: ask for completions"
            raise Problem(400, message, param="model", code="no_chat_template")
        try:
            text = template.prompt(prompt)  # type: ignore[arg-type]
        except BadInput as error:
            raise Problem(400, error.message, param="messages", code="chat_template") from error
        return self.tokenizer.encode(text, special=False)

    def _room(self, prompt: Sequence[int], asked: Asked) -> None:
        context, answers, vocabulary = self.generator.context, self.generator.answers, self.generator.vocabulary
        where = asked.prompt_field
        if not prompt:
            raise Problem(400, "the prompt has no tokens", param=where)
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise Problem(400, f"the prompt has a token outside 0 … {vocabulary - 1}", param=where)
        read = len(prompt) if answers else len(prompt) + 1
        together = f"and the model reads {context}" if answers else f"and prompt and answer together may have {context}"
        if read > context:
            raise Problem(
                400,
                f"the prompt has {len(prompt)} tokens, {together}",
                param=where,
                code="context_length_exceeded",
            )
        if asked.max_tokens is not None and asked.max_tokens > self._left(prompt):
            told = f"an answer may have {answers}" if answers else f"prompt and answer together may have {context}"
            raise Problem(
                400,
                f"the prompt has {len(prompt)} tokens and {asked.max_tokens} more were asked for; {told}",
                param=asked.max_field,
                code="context_length_exceeded",
            )

    def _left(self, prompt: Sequence[int]) -> int:
        """Most tokens of an answer to a prompt."""
        return room(len(prompt), self.generator.context, self.generator.answers)

    def most_tokens(self, asked: Asked, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that a request may at most come to: those of its prompts once, and all that may be written."""
        return sum(len(prompt) + asked.n * self._most_new(asked, prompt) for prompt in prompts)

    def _most_new(self, asked: Asked, prompt: Sequence[int]) -> int:
        room = self._left(prompt)
        return min(asked.max_tokens or asked.default_tokens or room, room)

    async def begin(
        self,
        asked: Asked,
        prompts: Sequence[Sequence[int]],
        begun: float,
        redactor: Callable[[], Redactor | None],
    ) -> list[Reply]:
        """Begin all texts, those of the first prompt first.

        Args:
            asked: which texts.
            prompts: tokens of each prompt.
            begun: when it was asked for, by ``time.perf_counter()``.
            redactor: makes for each text what takes personal data out of it; None where it is left as it is.

        Answers to one prompt have seeds that follow each other, so that the first is the one that is given alone.

        Raises:
            Problem: 400: what was asked of the text cannot be followed.
        """
        replies: list[Reply] = []
        try:
            for prompt in prompts:
                self.observer.prompt(len(prompt))
                most = self._most_new(asked, prompt)
                for number in range(asked.n):
                    out, seed = redactor(), asked.sampling.seed
                    sampling = dataclasses.replace(
                        asked.sampling,
                        max_tokens=most,
                        seed=None if seed is None else (seed + number) % 2**64,
                    )
                    if sampling.json_schema or sampling.regex:  # a grammar takes a while
                        generation = await asyncio.to_thread(self.generator.submit, prompt, sampling)
                    else:
                        generation = self.generator.submit(prompt, sampling)
                    text = Text(self.tokenizer, () if self.generator.answers else prompt, asked.stop, out)
                    replies.append(Reply(generation, text, begun, self.observer))
        except BaseException as error:
            for reply in replies:
                reply.close()
            if isinstance(error, BadInput):
                field = asked.guided_field if asked.sampling.json_schema or asked.sampling.regex else None
                raise Problem(400, error.message, param=field) from error
            raise
        return replies


def _busy(message: str, seconds: float, reason: str) -> Problem:
    headers = {"Retry-After": str(max(1, math.ceil(seconds))), "Retry-After-Ms": str(max(1, math.ceil(seconds * 1000)))}
    return Problem(429, message, headers, code="overloaded", reason=reason)


def _mean(before: float | None, new: float) -> float:
    return new if before is None else before + _NEW * (new - before)
