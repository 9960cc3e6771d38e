"""Texts that have to fit a JSON schema or a regular expression: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import need_modules
from optimizer.errors import BadInput
from optimizer.generator import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Guide", "Guides", "check_schema", "spaced"]


#: Blanks as `json.dumps` writes them: where any number is allowed, a model that is unsure writes nothing else.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Guide:
    """Where one text is in its grammar.

    A matcher that has failed says that it is over and lets end tokens come, as one does whose text is complete.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits with -inf where a token would leave the grammar; ``[vocabulary]``.

        Raises:
            BadInput: what may come next takes more than the library's limits to find out.
        """
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little", count=min(bits.size * 8, logits.size)).astype(bool)
        masked = np.full_like(logits, -np.inf)
        masked[: allowed.size][allowed] = logits[: allowed.size][allowed]
        return masked

    def take(self, token: int) -> bool:
        """Go on by a token; whether the text is complete, and nothing can follow.

        Raises:
            BadInput: the token leaves the grammar, or following it takes more than the library's limits.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(
                f"the text cannot be held to its grammar any further: {_first_line(self._matcher.get_error())}",
                "make the JSON schema or the regular expression simpler: fewer alternatives, and smaller numbers of "
                "repetitions",
            )


class Guides:
    """Makes guides for one model's tokens; its tokenizer is read with the first one."""

    def __init__(self, folder: Path, vocabulary: int, end_tokens: tuple[int, ...]) -> None:
        self._folder, self._vocabulary, self._ends = folder, vocabulary, end_tokens
        self._tokens: Any = None

    def guide(self, sampling: Sampling) -> Guide | None:
        """A new guide; None where nothing is asked of the text.

        Raises:
            BadInput: the schema or expression is not one, or asks for what the library does not know.
            MissingPiece: llguidance is not installed.
        """
        if not (sampling.json_schema or sampling.regex):
            return None
        need_modules(("llguidance",), "generating by a JSON schema or a regular expression")
        import llguidance

        if sampling.json_schema:
            check_schema(sampling.json_schema, "the JSON schema")
            grammar = llguidance.LLMatcher.grammar_from_json_schema(spaced(sampling.json_schema))
        else:
            grammar = llguidance.LLMatcher.grammar_from_regex(sampling.regex)
        if self._tokens is None:
            path = self._folder / "tokenizer.json"
            if not path.is_file():
                raise BadInput(f"{self._folder} has no tokenizer.json, which a guided text needs")
            self._tokens = llguidance.LLTokenizer(
                path.read_text(encoding="utf-8"), self._vocabulary, list(self._ends) or None
            )
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            what = "JSON schema" if sampling.json_schema else "regular expression"
            raise BadInput(f"the {what} cannot be followed: {_first_line(matcher.get_error())}")
        return Guide(matcher)


def _first_line(error: str) -> str:
    """What the library says without the state that it adds."""
    return (error.strip().splitlines() or ["no reason is said"])[0]


def check_schema(text: str, name: str) -> None:
    """Refuse what is no JSON schema: an object, or true.

    Raises:
        BadInput: it is not JSON, or JSON of another sort.
    """
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise BadInput(f"{name} is not a JSON schema: it is a {type(schema).__name__}, and an object is wanted")


def spaced(schema: str) -> str:
    """A schema that says which blanks its text has, in the words of llguidance."""
    return json.dumps({"x-guidance": _SPACING, **json.loads(schema)})
