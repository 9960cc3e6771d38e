"""Held-out text as a decoder is asked about it: documents in tokens, and windows in which each is scored once.

Of a model that reads with an encoder, a document is an answer to a prompt.

Tokens come from ``tokenizer.json`` alone, as everywhere where serving must not need PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.data.columns import Columns
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput, Damaged, missing_package

__all__ = ["Answers", "Document", "Window", "read_documents", "read_pairs", "windows"]


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: where it stands: ``text.jsonl, row 3``.
        tokens: of the text, behind a begin token where the tokenizer puts one; or of an answer, behind what every
            answer begins with.
        read: tokens of the prompt that is answered, which an encoder reads; none where there is no encoder.
        first: the first token that is scored, as nothing is asked of those before it.
    """

    name: str
    tokens: tuple[int, ...]
    read: tuple[int, ...] = ()
    first: int = 1

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.tokens) - self.first

    def windows(self, window: int, stride: int) -> Iterator[Window]:
        """The windows of :func:`windows`; an answer is one, however long it is."""
        if self.read:
            return iter((Window(0, len(self.tokens), self.first),))
        return windows(len(self.tokens), window, stride)


@dataclass(frozen=True)
class Answers:
    """What a model that reads with an encoder says of its answers.

    Attributes:
        start: tokens that every answer begins with.
        end: the token that ends one; None where there is none.
        prompt: most tokens of a prompt.
        longest: most tokens of an answer, its end token among them.
    """

    start: tuple[int, ...]
    end: int | None
    prompt: int
    longest: int


@dataclass(frozen=True)
class Window:
    """A run of a document's tokens, some of which are scored.

    Attributes:
        begin: its first token.
        end: the one behind its last.
        first: the first one that is scored, and those behind it are too; the ones before are context.
    """

    begin: int
    end: int
    first: int


def read_documents(
    path: Path, folder: Path, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Document]:
    """The documents of a data file.

    Args:
        path: one document a row, in any format that :func:`~optimizer.data.readers.read_rows` reads.
        folder: holds ``tokenizer.json``.
        columns: role → column, where the text is in a column of an unusual name.
        limit: the first so many rows.

    Returns:
        those of two tokens or more: nothing of a shorter one can be scored.

    Raises:
        BadInput: the file cannot be read, a row has no text, or no row has two tokens.
        Damaged: the tokenizer cannot be read.
        MissingPiece: ``tokenizers`` is not installed.
    """
    chosen = Columns(columns)
    rows = read_rows(path, limit=limit)
    encodings = _tokenizer(folder).encode_batch([_text(row, chosen, "text") for row in rows])
    found = [Document(str(row), _tokens(encoding)) for row, encoding in zip(rows, encodings, strict=True)]
    found = [each for each in found if len(each.tokens) > 1]
    if not found:
        raise BadInput(f"no row of {path} has two tokens, so that there is none to predict")
    return found


def read_pairs(
    path: Path, folder: Path, answers: Answers, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Document]:
    """The prompts and answers of a data file, for a model that reads with an encoder.

    Args:
        path: a prompt (``text``) and what it should be answered with (``target``) a row.
        folder: holds ``tokenizer.json``.
        answers: what the model says of its answers.
        columns: role → column, where the texts are in columns of unusual names.
        limit: the first so many rows.

    Returns:
        one document a row. Its prompt has what the tokenizer puts around a text; its answer has what answers begin
        with, and the end token, which is scored too.

    Raises:
        BadInput: the file cannot be read, a row lacks a text, or one is longer than the model reads or writes.
        Damaged: the tokenizer cannot be read.
        MissingPiece: ``tokenizers`` is not installed.
    """
    chosen = Columns(columns)
    rows = read_rows(path, limit=limit)
    prompts, targets = ([_text(row, chosen, role) for row in rows] for role in ("text", "target"))
    tokenizer = _tokenizer(folder)
    ends = () if answers.end is None else (answers.end,)
    found = []
    for row, prompt, target in zip(rows, tokenizer.encode_batch(prompts), tokenizer.encode_batch(targets), strict=True):
        content = tuple(
            token for token, special in zip(target.ids, target.special_tokens_mask, strict=True) if not special
        )
        said = (*content, *ends)
        for what, count, most in (("prompt", len(prompt.ids), answers.prompt), ("answer", len(said), answers.longest)):
            if not count:
                raise BadInput(f"{row}: its {what} has no token", "leave the row out")
            if count > most:
                raise BadInput(
                    f"{row}: its {what} has {count} tokens, and the model takes {most}",
                    "leave the row out, or export with a larger --max-length",
                )
        found.append(Document(str(row), (*answers.start, *said), tuple(prompt.ids), len(answers.start)))
    return found


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """The windows of a document: every token is scored once, but for the first, which nothing comes before.

    A window begins ``stride`` tokens behind the one before, and of it only those are scored that no window before
    held: each of them sees at least ``window - stride`` tokens, as far as the document has them.

    Args:
        length: tokens of the document.
        window: most tokens of a window.
        stride: 1 to ``window - 1``: the token that is scored first needs one before it.

    Raises:
        BadInput: there are no such windows.
    """
    if not 1 <= stride < window:
        raise BadInput(
            f"a stride of {stride} leaves tokens of windows of {window} without one before them",
            f"the stride is 1 to {max(1, window - 1)}",
        )
    first = 1
    for begin in range(0, max(1, length - 1), stride):
        end = min(begin + window, length)
        yield Window(begin, end, first)
        if end == length:
            return
        first = end


def _text(row: Row, columns: Columns, role: str) -> str:
    value = columns.get(row, role)
    if not isinstance(value, str):
        raise BadInput(f"{row}: {columns.find(row, role)} should be a text, not a {type(value).__name__}")
    return value


def _tokenizer(folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise missing_package("tokenizers", "preparing text") from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{folder} has no tokenizer.json, without which its tokens are not known")
    try:
        # The library raises bare Exception for a file that it cannot parse.
        found = Tokenizer.from_file(str(path))
    except Exception as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    found.no_padding()
    found.no_truncation()
    return found


def _tokens(encoding: Any) -> tuple[int, ...]:
    """Those of a text with what stands before it; what a tokenizer puts behind it is no part of the text."""
    ids: Sequence[int] = encoding.ids
    last = len(ids)
    while last and encoding.special_tokens_mask[last - 1]:
        last -= 1
    return tuple(ids[:last])
