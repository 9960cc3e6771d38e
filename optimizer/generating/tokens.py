"""Prompts into tokens, and tokens into text as they come, by a model's ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.environment import need_modules
from optimizer.errors import BadInput
from optimizer.generating.chat import ChatTemplate

__all__ = ["Text", "TextTokenizer"]

#: What decoders write for bytes that are no character.
_BROKEN = "\N{REPLACEMENT CHARACTER}"
#: So many of these at the end may be the beginning of one character: UTF-8 has at most four bytes.
_UNFINISHED = 3
#: Tokens of the prompt that are decoded before the first one of the answer, which may join with them.
_BEFORE = 6


class TextTokenizer:
    """A model's tokenizer.

    Attributes:
        chat: its chat template; None where it has none.

    Raises:
        BadInput: the folder has no tokenizer.json, or one that cannot be read.
        MissingPiece: tokenizers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        need_modules(("tokenizers",), "generating text")
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadInput(f"{folder} has no tokenizer.json", "export the model again with its tokenizer beside it")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise BadInput(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = _settings(folder / "tokenizer_config.json")
        self.chat = ChatTemplate.of(folder, self._config)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text.

        Args:
            text: it may name special tokens, as chat templates do.
            special: add the begin token where the model has one: as its tokenizer.json does, unless
                ``add_bos_token`` of its tokenizer_config.json says otherwise.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        begin = self._begin()
        if special and begin is not None and (wanted := self._config.get("add_bos_token")) is not None:
            if wanted and ids[:1] != [begin]:
                ids = [begin, *ids]
            elif not wanted and ids[:1] == [begin] and not text.startswith(str(self._tokenizer.id_to_token(begin))):
                ids = ids[1:]
        return ids

    def _begin(self) -> int | None:
        token = self._config.get("bos_token")
        token = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(token) if isinstance(token, str) else None

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, without special tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def after(self, prompt: Sequence[int]) -> Text:
        """The text of what follows a prompt, piece by piece."""
        return Text(self, prompt)


class Text:
    """Tokens into text as they come: a character is held back until its last byte is there.

    All pieces together are what decoding prompt and answer whole gives behind the prompt's own text.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # Decoded again with each step are only tokens that the next one may join with: [start, known) were said.
        self._tokens = list(prompt[-_BEFORE:])
        self._start, self._known = 0, len(self._tokens)
        self._said = len(tokenizer.decode(self._tokens))

    def add(self, tokens: Sequence[int]) -> str:
        """What can be said with these tokens; the beginning of a character waits for the rest."""
        self._tokens += tokens
        text = self._tokenizer.decode(self._tokens[self._start :])
        whole = text
        for _ in range(_UNFINISHED):
            whole = whole.removesuffix(_BROKEN)
        new = whole[self._said :]
        self._said = max(self._said, len(whole))
        if whole == text and new:
            self._start, self._known = self._known, len(self._tokens)
            self._said = len(self._tokenizer.decode(self._tokens[self._start : self._known]))
        return new

    def would(self, token: int) -> str:
        """What one more token would add, which is not added."""
        text = self._tokenizer.decode([*self._tokens[self._start :], token])
        return text.rstrip(_BROKEN)[self._said :]

    def end(self) -> str:
        """What was held back: bytes that never became a character."""
        return self._tokenizer.decode(self._tokens[self._start :])[self._said :]


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise BadInput(f"{path} holds no settings")
    return settings
