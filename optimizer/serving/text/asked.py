"""Fields of a JSON body, each refused by its own name; what a text is asked to be, whichever dialect asked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.generator import Sampling
from optimizer.serving.problems import Problem

__all__ = ["CHOOSING", "Asked", "Fields", "choosing", "stops"]

#: As many stop strings as OpenAI takes.
_STOPS = 4
#: Text that may be the beginning of a stop string is held back: the longest one that is taken, in characters.
_STOP_LENGTH = 1000
#: Texts of one request.
_TEXTS = 128
#: Fields that say how tokens are chosen, in every dialect: OpenAI's first, then what transformers and others call so.
CHOOSING = (
    "temperature", "presence_penalty", "frequency_penalty", "logit_bias", "repetition_penalty", "no_repeat_ngram_size",
    "min_p", "min_tokens", "num_beams", "length_penalty", "early_stopping",
)  # fmt: skip
#: Beams of one text.
_BEAMS = 64
#: Tokens that one request has a bias for, and the largest, as OpenAI has it.
_BIASES, _BIAS = 1024, 100.0
#: A longer sequence than this comes twice in no text that anybody would miss.
_NGRAM = 1000


@dataclass(frozen=True)
class Asked:
    """Texts that one request asks for.

    Attributes:
        prompts: texts, tokens, or conversations (``role`` and ``content`` of each message).
        sampling: how tokens are chosen; its ``max_tokens`` counts for nothing.
        max_tokens: most new tokens; None for ``default_tokens``.
        default_tokens: the same where nobody asked: cut to what the context leaves. None for all of that.
        max_field: what the field is called.
        prompt_field: what the field is called that has the prompts.
        guided_field: what the field is called that holds the text to a grammar.
        prefix: what stands before the names of fields that say how tokens are chosen.
        n: answers to each prompt.
        stop: strings that end a text.
        stream: answer while it is written.
        usage: say at the end of a stream how many tokens it took.
        echo: say the prompt before the answer.
    """

    prompts: tuple[str | Sequence[int] | Sequence[Mapping[str, str]], ...]
    sampling: Sampling
    max_tokens: int | None = None
    default_tokens: int | None = None
    max_field: str = "max_tokens"
    prompt_field: str = "prompt"
    guided_field: str = "response_format"
    prefix: str = ""
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    echo: bool = False

    @property
    def rows(self) -> int:
        """Of the model, which are taken: one for each text, and for each of its beams."""
        return len(self.prompts) * self.n * self.sampling.num_beams

    def __post_init__(self) -> None:
        if self.n > 1 and self.sampling.num_beams > 1:
            raise Problem(400, "num_beams finds the one best answer, and n asks for more", param="n")
        if len(self.prompts) * self.n > _TEXTS:
            raise Problem(400, f"one request may ask for {_TEXTS} texts, not {len(self.prompts) * self.n}", param="n")


class Fields:
    """A body's fields.

    Args:
        body: parsed JSON.
        prefix: what stands before the names in messages.

    Raises:
        Problem: 400: it is no object.
    """

    def __init__(self, body: Any, prefix: str = "") -> None:
        if not isinstance(body, dict):
            where = prefix.rstrip(".") or "the body"
            raise Problem(400, f"{where} must be a JSON object, not {_sort(body)}", param=prefix.rstrip(".") or None)
        self._body: dict[str, Any] = body
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._body.get(name) is not None

    def raw(self, name: str) -> Any:
        """A field as it is; null is as good as not there."""
        return self._body.get(name)

    def refuse(self, name: str, why: str, code: str | None = None) -> Problem:
        """An error about a field, to be raised."""
        return Problem(400, f"{self._prefix}{name} {why}", param=f"{self._prefix}{name}", code=code)

    def only(self, known: Collection[str]) -> None:
        """Refuse every field that nobody knows."""
        unknown = [name for name in self._body if name not in known]
        if unknown:
            name = f"{self._prefix}{unknown[0]}"[:100]
            raise Problem(400, f"unknown field: {name}", param=name, code="unknown_field")

    def not_used(self, harmless: Mapping[str, Any]) -> None:
        """Refuse fields that this server cannot honour, unless they have the value that changes nothing."""
        for name, value in harmless.items():
            if name in self and self._body[name] not in (value, [], {}):
                raise self.refuse(name, "is not supported by this server")

    def text(self, name: str, default: str | None = None) -> str:
        """A string; one that is no Unicode is refused."""
        value = self._body.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.refuse(name, "is missing", "missing_required_parameter")
        return self.string(name, value)

    def string(self, name: str, value: Any) -> str:
        """A value that has to be a string."""
        if not isinstance(value, str):
            raise self.refuse(name, f"must be a string, not {_sort(value)}", "invalid_type")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.refuse(name, "is not Unicode: it has half of a surrogate pair") from None
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is not there."""
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, not {_sort(value)}", "invalid_type")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in a range."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(name, f"must be a number, not {_sort(value)}", "invalid_type")
        if not (math.isfinite(value) and low <= value <= high):
            raise self.refuse(name, f"must be from {low:g} to {high:g}, not {value:g}", "out_of_range")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in a range; None where it is not there."""
        value = self._body.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, f"must be a whole number, not {_sort(value)}", "invalid_type")
        if not low <= value <= high:
            raise self.refuse(name, f"must be from {low} to {high}, not {str(value)[:30]}", "out_of_range")
        return value


def stops(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    """Stop strings: one, or a list of at most four."""
    value = fields.raw(name)
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if len(found) > _STOPS:
        raise fields.refuse(name, f"may have {_STOPS} strings, not {len(found)}")
    strings = tuple(fields.string(name, one) for one in found)
    if "" in strings:
        raise fields.refuse(name, "may not be empty: it would end every text before it began")
    if any(len(one) > _STOP_LENGTH for one in strings):
        raise fields.refuse(name, f"may have {_STOP_LENGTH} characters")
    return strings


def choosing(fields: Fields, temperature: float, most: int | None, guided: bool) -> dict[str, Any]:
    """What :data:`CHOOSING` say, as arguments of :class:`~optimizer.generator.Sampling`.

    Args:
        fields: of the body.
        temperature: where nobody says one, and no beams.
        most: tokens that were asked for at most; None where nobody said.
        guided: the text is held to a grammar.

    Raises:
        Problem: 400, naming the field.
    """
    least = fields.integer("min_tokens", 0, 2**31) or 0
    if most is not None and least > most:
        raise fields.refuse("min_tokens", f"is {least}, and at most {most} tokens were asked for")
    size = fields.integer("no_repeat_ngram_size", 0, _NGRAM) or 0
    if size and guided:
        raise fields.refuse("no_repeat_ngram_size", "forbids what a grammar has to repeat: leave one of them out")
    beams = fields.integer("num_beams", 1, _BEAMS) or 1
    heat = fields.number("temperature", 0.0 if beams > 1 else temperature, 0.0, 2.0)
    if beams > 1 and heat:
        raise fields.refuse("temperature", "draws, and num_beams searches: leave one of them out")
    if beams > 1 and guided:
        raise fields.refuse("num_beams", "is not taken for a text that is held to a grammar")
    return {
        "temperature": heat,
        "num_beams": beams,
        "length_penalty": fields.number("length_penalty", 1.0, -10.0, 10.0),
        "early_stopping": fields.flag("early_stopping"),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2.0, 2.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0.01, 100.0),
        "min_p": fields.number("min_p", 0.0, 0.0, 1.0),
        "no_repeat_ngram_size": size,
        "min_tokens": least,
        "logit_bias": _biases(fields),
    }


def _biases(fields: Fields) -> tuple[tuple[int, float], ...]:
    """Tokens and what is added to their logits; JSON has the tokens as strings."""
    if "logit_bias" not in fields:
        return ()
    given = fields.raw("logit_bias")
    if not isinstance(given, dict):
        raise fields.refuse("logit_bias", f"must be an object, not {_sort(given)}", "invalid_type")
    if len(given) > _BIASES:
        raise fields.refuse("logit_bias", f"may have {_BIASES} tokens, not {len(given)}")
    inner = Fields(given, "logit_bias.")
    found: dict[int, float] = {}
    for name in given:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise fields.refuse("logit_bias", f"is by token, and {name[:30]!r} is no whole number from 0 up")
        found[int(name)] = inner.number(name, 0.0, -_BIAS, _BIAS)
    return tuple(found.items())


def _sort(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
