"""Texts into token ids, with nothing but ``tokenizers`` and the files that a model folder has.

What comes out is what ``transformers``' fast tokenizer gives for the same ``tokenizer.json``: tests compare the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optimizer.data.columns import Columns
from optimizer.data.readers import Row
from optimizer.errors import BadInput, Damaged, missing_package
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TextEncoder", "Token"]

#: A ``model_max_length`` beyond this means "none was set" (transformers writes 10^30).
_NO_LIMIT = 10**6


class Token(NamedTuple):
    """Where a token that a model is given comes from.

    Attributes:
        text: which of the row's texts, counted from 0; -1 for a special token.
        start: its first character there.
        end: the one behind its last.
        word: the number of its word in that text, as the tokenizer splits it; None where it knows no words.
    """

    text: int
    start: int
    end: int
    word: int | None = None


class TextEncoder:
    """The text half of a preprocessor.

    Args:
        folder: holds ``tokenizer.json``, and ``tokenizer_config.json`` or ``special_tokens_map.json`` beside it.
        model: the manifest's ``model``; ``max_length``, ``task`` and ``limits`` are read.
        columns: which column is the text.

    Raises:
        MissingPiece: ``tokenizers`` is not installed.
        Damaged: a tokenizer file cannot be read.
    """

    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, folder: Path, model: Mapping[str, JSON], columns: Columns) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise missing_package("tokenizers", "preparing text") from None
        path = folder / "tokenizer.json"
        try:
            # The library raises bare Exception for a file it cannot parse.
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise Damaged(f"{path} cannot be read: {error}") from None
        config = self._config = _settings(folder)
        self._columns = columns
        self._task = model.get("task")
        self.pad_id = self._pad_id(config)
        self.pad_type_id = int(config.get("pad_token_type_id") or 0)
        self.pads_left = config.get("padding_side", "right") == "left"
        self._truncation_side = str(config.get("truncation_side", "right"))
        own = config.get("model_max_length")
        limit = model.get("max_length") or (own if isinstance(own, int | float) and own < _NO_LIMIT else None)
        self.max_length = int(limit) if limit else None
        known = (model.get("limits") or {}).get("input_ids") or (0, self._tokenizer.get_vocab_size() - 1)
        self._range = int(known[0]), int(known[1])

    def _pad_id(self, config: Mapping[str, JSON]) -> int | None:
        if (token := _content(config.get("pad_token"))) is not None:
            return self._id_of(token)
        padding = self._tokenizer.padding
        return int(padding["pad_id"]) if padding else None

    def _id_of(self, token: str) -> int | None:
        found = self._tokenizer.token_to_id(token)
        return int(found) if found is not None else None

    def special(self, role: str) -> tuple[str, int] | None:
        """A special token and its id by what the tokenizer's settings call it (``mask_token``); None for none."""
        token = _content(self._config.get(role))
        if token is None and role == "unk_token":  # a model of words has its own
            token = getattr(self._tokenizer.model, "unk_token", None)
        found = None if token is None else self._id_of(token)
        return None if token is None or found is None else (token, found)

    def piece(self, token: int) -> str:
        """A token as it stands in the vocabulary (``##ing``)."""
        return str(self._tokenizer.id_to_token(token))

    def number(self, piece: str) -> int | None:
        """The id of a piece of the vocabulary; None for what is none."""
        return self._id_of(piece)

    def joined(self, pieces: Sequence[str]) -> str:
        """Pieces of the vocabulary as a text."""
        decoder = self._tokenizer.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(list(pieces)))

    def decoded(self, tokens: Sequence[int], *, special: bool) -> str:
        """Tokens as a text, with or without those that are special."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))

    def content(self, row: Row) -> tuple[str, ...]:
        """The text, or the pair of texts, of a row; raises :class:`BadInput` when there is none.

        An embedder is given one text, though a row may have a second one to compare it with. Where tokens are
        classified, a row's words are its text, a space between each and the next.
        """
        if self._task == "question-answering":
            return self._text(row, "question"), self._text(row, "context")
        if self._task == "token-classification" and (words := self.words(row)) is not None:
            return (" ".join(words),)
        if self._task != "feature-extraction" and self._columns.find(row, "text_pair") is not None:
            return self._text(row, "text"), self._text(row, "text_pair")
        return (self._text(row, "text"),)

    def values(self, row: Row) -> dict[str, str]:
        """The same by role: ``text`` (and ``text_pair``), or ``question`` and ``context``."""
        names = ("question", "context") if self._task == "question-answering" else ("text", "text_pair")
        return {name: str(text) for name, text in zip(names, self.content(row), strict=False)}

    def words(self, row: Row) -> list[str] | None:
        """The words of a row that comes with them; None for one that does not."""
        column = self._columns.find(row, "tokens")
        if column is None:
            return None
        words = row.values[column]
        words = words.tolist() if hasattr(words, "tolist") else words
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise BadInput(f"{row}: {column} should be a list of words")
        return list(words)

    def tokens(self, rows: Sequence[Row], pad_to: int | None) -> list[tuple[Token, ...]]:
        """Of each row, the tokens that :meth:`feeds` gives the model, padding left out."""
        return [_tokens(encoding) for encoding in self._encode(rows, pad_to or self.max_length)]

    def placed(self, row: Row, pad_to: int | None) -> tuple[dict[str, NDArray[np.generic]], tuple[Token, ...]]:
        """What :meth:`feeds` and :meth:`tokens` give for one row, which is tokenized once."""
        (encoding,) = self._encode([row], pad_to or self.max_length)
        return self._arrays([encoding], pad_to), _tokens(encoding)

    def windows(
        self, row: Row, longest: int, stride: int, most: int, pad_to: int | None
    ) -> list[tuple[dict[str, NDArray[np.generic]], tuple[Token, ...]]]:
        """A pair of texts whose second is longer than the model takes, in windows that each have all of the first.

        Args:
            row: has two texts.
            longest: tokens of a window, special ones included.
            stride: tokens of the second text that a window shares with the one before.
            most: windows that may come of it.
            pad_to: see :meth:`feeds`.

        Raises:
            BadInput: the first text leaves a window no room for more of the second than the stride; or there would be
                more windows. Nothing is made of either.
        """
        first, second = self.content(row)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        encodings = [self._tokenizer.encode(first, second)]
        if (whole := len(encodings[0].ids)) > longest:
            size = encodings[0].sequence_ids.count(0)
            room = longest - self._tokenizer.num_special_tokens_to_add(True) - size
            if room <= stride:
                most = size + room - stride - 1
                raise BadInput(
                    f"the question has {size} tokens, and {most} are the most where the context is read in windows of "
                    f"{longest}",
                    "ask a shorter question, or send a shorter context",
                )
            if (count := 1 + math.ceil((whole - longest) / (room - stride))) > most:
                raise BadInput(
                    f"the context takes {count} windows of {longest} tokens, and {most} are the most",
                    "send a shorter context",
                )
            self._tokenizer.enable_truncation(
                longest, stride=stride, strategy="only_second", direction=self._truncation_side
            )
            encoding = self._tokenizer.encode(first, second)
            encodings = [encoding, *encoding.overflowing]
        return [(self._arrays([each], pad_to), _tokens(each)) for each in encodings]

    def _text(self, row: Row, role: str) -> str:
        value = self._columns.get(row, role)
        if not isinstance(value, str):
            column = self._columns.find(row, role)
            raise BadInput(f"{row}: {column} should be a text, not {_kind(value)}")
        return value

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row, special ones included, after truncation to the model's longest."""
        return [len(encoding.ids) for encoding in self._encode(rows, self.max_length)]

    def cut(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of each row that are beyond the model's longest, and so left out."""
        if self.max_length is None:
            return [0] * len(rows)
        return [max(0, len(encoding.ids) - self.max_length) for encoding in self._encode(rows, None)]

    def feeds(self, rows: Sequence[Row], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        """Token arrays ``[rows, sequence]`` (int64), padded to the longest row, or cut and padded to ``pad_to``."""
        return self._arrays(self._encode(rows, pad_to or self.max_length), pad_to)

    def given(self, row: Row, ids: Sequence[int], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        """The same of one row whose tokens are given: as they are, without special ones, and cut where a text is cut.

        Raises:
            BadInput: there is no token, or one that the model does not have.
        """
        low, high = self._range
        if not ids:
            raise BadInput(f"{row}: there is no token")
        if strange := [token for token in (min(ids), max(ids)) if not low <= token <= high]:
            raise BadInput(f"{row}: {strange[0]} is no token of this model, which has {low} to {high}")
        limit = pad_to or self.max_length
        if limit is not None and len(ids) > limit:
            ids = ids[-limit:] if self._truncation_side == "left" else ids[:limit]
        return self._padded([(ids, [0] * len(ids))], pad_to)

    def _arrays(self, encodings: Sequence[Any], pad_to: int | None) -> dict[str, NDArray[np.generic]]:
        return self._padded([(encoding.ids, encoding.type_ids) for encoding in encodings], pad_to)

    def _padded(
        self, encodings: Sequence[tuple[Sequence[int], Sequence[int]]], pad_to: int | None
    ) -> dict[str, NDArray[np.generic]]:
        """Arrays of rows of tokens and the segments that they are of."""
        import numpy as np

        if len(encodings) == 1 and not pad_to:  # what a server asks all the time: nothing is padded
            ((tokens, of),) = encodings
            row = np.array([tokens], np.int64)
            return {
                "input_ids": row,
                "attention_mask": np.ones_like(row),
                "token_type_ids": np.array([of], np.int64),
            }
        width = pad_to or max(len(tokens) for tokens, _ in encodings)
        if self.pad_id is None and any(len(tokens) != width for tokens, _ in encodings):
            raise BadInput(
                "this tokenizer has no padding token, so that texts of different lengths cannot share a batch",
                "use a batch of one, or set pad_token in the model's tokenizer",
            )
        shape = (len(encodings), width)
        ids = np.full(shape, self.pad_id or 0, np.int64)
        types = np.full(shape, self.pad_type_id, np.int64)
        mask = np.zeros(shape, np.int64)
        for index, (tokens, of) in enumerate(encodings):
            size = len(tokens)
            span = slice(width - size, width) if self.pads_left else slice(0, size)
            ids[index, span] = tokens
            types[index, span] = of
            mask[index, span] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def _encode(self, rows: Sequence[Row], limit: int | None) -> list[Any]:
        texts = [self.content(row) for row in rows]
        added = max((self._tokenizer.num_special_tokens_to_add(len(text) == 2) for text in texts), default=0)
        if limit is not None and limit < added:
            raise BadInput(f"{limit} tokens have no room for the {added} special ones that every text gets")
        # tokenizer.json may carry a padding and a truncation of its own; transformers overrules both, and so do we.
        self._tokenizer.no_padding()
        if limit is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(limit, strategy="longest_first", direction=self._truncation_side)
        if len(texts) == 1:  # a batch would wake the tokenizer's threads, for longer than one text takes
            return [self._tokenizer.encode(texts[0][0], texts[0][1] if len(texts[0]) == 2 else None)]
        encodings: Iterable[Any] = self._tokenizer.encode_batch([t if len(t) == 2 else t[0] for t in texts])
        return list(encodings)


def _tokens(encoding: Any) -> tuple[Token, ...]:
    places = zip(encoding.sequence_ids, encoding.offsets, encoding.word_ids, strict=True)
    return tuple(Token(-1 if text is None else text, start, end, word) for text, (start, end), word in places)


def _content(token: JSON) -> str | None:
    """A token as the settings have it: a string, or an object that holds it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return None if token is None else str(token)


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _settings(folder: Path) -> dict[str, JSON]:
    """``special_tokens_map.json`` (older folders) overlaid with ``tokenizer_config.json``."""
    found: dict[str, JSON] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                found.update(json.loads(path.read_bytes()))
            except (ValueError, TypeError) as error:
                raise Damaged(f"{path} cannot be read: {error}") from None
    return found
