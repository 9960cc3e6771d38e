"""Rows into a model's inputs, from the files that lie beside the model: no torch, no transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimizer.data.columns import Columns, label_of
from optimizer.data.readers import Row
from optimizer.errors import BadInput, Damaged
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizer.data.text import TextEncoder, Token

__all__ = ["Batch", "Preprocessor", "RowTexts"]


class _Encoder(Protocol):
    """One modality: makes some of the model's inputs from a row."""

    inputs: tuple[str, ...]

    def content(self, row: Row) -> tuple[Any, ...]: ...

    def values(self, row: Row) -> dict[str, Any]: ...

    def lengths(self, rows: Sequence[Row]) -> list[int] | None: ...

    def feeds(self, rows: Sequence[Row], pad_to: int | None) -> dict[str, NDArray[np.generic]]: ...


@dataclass(frozen=True)
class Batch:
    """Rows that share one run of the model.

    Attributes:
        rows: places in the sequence of rows that the batches were made from.
        feeds: arrays by input name.
    """

    rows: tuple[int, ...]
    feeds: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class RowTexts:
    """One row as a tokenizer sees it.

    Attributes:
        texts: the text, or the two.
        tokens: what the model is given, in order, padding left out.
        words: those that the text was put together from; None where the row came with a text.
    """

    texts: tuple[str, ...]
    tokens: tuple[Token, ...]
    words: list[str] | None


class Preprocessor:
    """Turns rows into the inputs of one model; :meth:`open` builds it.

    A row that has a column for every input (or a column mapped to it) is taken as it is; this is how bring-your-own
    models are fed. Every other row goes through the tokenizer, image processor or feature extractor of the model.
    """

    def __init__(self, specs: Sequence[TensorSpec], encoders: Sequence[_Encoder], columns: Columns) -> None:
        self._specs = tuple(specs)
        self._encoders = tuple(encoders)
        self._columns = columns

    @classmethod
    def open(
        cls, folder: Path, model: Mapping[str, JSON], *, columns: Mapping[str, str] | None = None, megapixels: int = 0
    ) -> Preprocessor:
        """Build the preprocessor of an artifact.

        Args:
            folder: holds ``tokenizer.json`` and ``tokenizer_config.json``, or ``preprocessor_config.json``, or neither
                for a model that is fed arrays.
            model: the manifest's ``model``: ``inputs`` (``{"name", "dtype", "shape"}`` each), ``task``, ``max_length``.
            columns: role (see :data:`~optimizer.data.columns.ROLES`) or input name → column, where the usual names do
                not fit.
            megapixels: of the largest picture that is decoded; 0 for
                :data:`~optimizer.data.image.MOST_MEGAPIXELS`.

        Raises:
            BadInput: the model's processor is of a sort that is not known here.
            Damaged: a tokenizer or processor file cannot be read.
            MissingPiece: the extra ``data`` is not installed.
            UnknownName: a role that does not exist.
        """
        specs = [TensorSpec.from_json(spec) for spec in model["inputs"]]
        names = [spec.name for spec in specs]
        chosen = Columns(columns, names)
        encoders: list[_Encoder] = []
        if "input_ids" in names and (folder / "tokenizer.json").is_file():
            from optimizer.data.text import TextEncoder

            encoders.append(TextEncoder(folder, model, chosen))
        if "pixel_values" in names and (settings := _processor(folder, "image_processor")):
            from optimizer.data.image import MOST_MEGAPIXELS, ImageEncoder

            encoders.append(ImageEncoder(settings, model, chosen, megapixels or MOST_MEGAPIXELS))
        if {"input_values", "input_features"} & set(names) and (settings := _processor(folder, "feature_extractor")):
            from optimizer.data.audio import AudioEncoder

            encoders.append(AudioEncoder(settings, chosen))
        return cls(specs, encoders, chosen)

    def feeds(self, rows: Sequence[Row], *, pad_to: int | None = None) -> dict[str, NDArray[np.generic]]:
        """One batch.

        Args:
            rows: at least one.
            pad_to: cut and pad every row to exactly this length (tokens or samples); default: pad to the longest row,
                cut at the model's longest. A model whose sequence axis is fixed gets that length whatever is asked.

        Returns:
            arrays by input name, of the model's own element types.

        Raises:
            BadInput: a row lacks a column or has a value that cannot be used; row and columns are named.
        """
        if not rows:
            raise ValueError("a batch needs at least one row")
        if self._is_tensors(rows[0]):
            arrays = {spec.name: self._stacked(rows, spec) for spec in self._specs}
        else:
            arrays = {}
            for encoder in self._encoders:
                arrays.update(encoder.feeds(rows, self._fixed_length(encoder) or pad_to))
            self._need_all(rows[0], arrays)
        return {spec.name: _fitted(arrays[spec.name], spec, rows) for spec in self._specs}

    def token_feeds(self, row: Row, ids: Sequence[int]) -> dict[str, NDArray[np.generic]]:
        """One row whose tokens are given: as they are, without special ones, cut at the model's longest.

        Args:
            row: for messages.
            ids: its tokens.

        Raises:
            BadInput: the model is not fed from tokens, or has no such one.
        """
        encoder = self.text
        if encoder is None:
            raise BadInput(f"{row}: tokens are for models that have a tokenizer", "send what this model reads")
        arrays = encoder.given(row, ids, self._fixed_length(encoder))
        self._need_all(row, arrays)
        return {spec.name: _fitted(arrays[spec.name], spec, [row]) for spec in self._specs}

    def cut(self, rows: Sequence[Row]) -> list[int]:
        """Of each row, how many tokens its text has beyond the model's longest; 0 for what is no text."""
        encoder = self.text
        return [0] * len(rows) if encoder is None else encoder.cut(rows)

    def padding(self) -> dict[str, int]:
        """What each input is padded with that a tokenizer makes, by name; 0 for the rest."""
        encoder = self.text
        return {} if encoder is None else {"input_ids": encoder.pad_id or 0, "token_type_ids": encoder.pad_type_id}

    @property
    def text(self) -> TextEncoder | None:
        """What makes tokens of texts, and texts of tokens; None for a model that is not fed from texts."""
        from optimizer.data.text import TextEncoder

        return next((each for each in self._encoders if isinstance(each, TextEncoder)), None)

    def placed(self, row: Row) -> tuple[dict[str, NDArray[np.generic]], RowTexts]:
        """One row's arrays, and where its tokens stand in its text.

        Raises:
            BadInput: the model is not fed from texts, or not from such a row.
        """
        encoder = self._need_text(row)
        arrays, tokens = encoder.placed(row, self._fixed_length(encoder))
        return self._of_row(row, arrays), RowTexts(encoder.content(row), tokens, encoder.words(row))

    def windows(self, row: Row, longest: int, most: int) -> list[tuple[dict[str, NDArray[np.generic]], RowTexts]]:
        """The same of a question with its context, in windows of at most so many tokens.

        What a window shares with the one before is half of its tokens, and no more than 128: as the question-answering
        pipeline of ``transformers`` had it.

        Args:
            row: has both.
            longest: tokens of a window; no more than the model takes.
            most: windows that may come of it.

        Raises:
            BadInput: as :meth:`placed`; or the question leaves a window no room for its context; or there would be
                more of them.
        """
        encoder = self._need_text(row)
        fixed = self._fixed_length(encoder)
        size = fixed or min(longest, encoder.max_length or longest)
        texts = encoder.content(row)
        return [
            (self._of_row(row, arrays), RowTexts(texts, tokens, None))
            for arrays, tokens in encoder.windows(row, size, min(size // 2, 128), most, fixed)
        ]

    def _of_row(self, row: Row, arrays: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        self._need_all(row, arrays)
        return {spec.name: _fitted(arrays[spec.name], spec, [row]) for spec in self._specs}

    def _need_text(self, row: Row) -> TextEncoder:
        if (encoder := self.text) is None or self._is_tensors(row):
            raise BadInput(
                f"{row}: where a token stands in a text is known for texts only, and this row has none",
                "give texts instead of arrays, and a model with its tokenizer.json",
            )
        return encoder

    @property
    def columns(self) -> Columns:
        """Which column is what."""
        return self._columns

    def texts(self, rows: Sequence[Row]) -> list[RowTexts]:
        """What the tokenizer makes of each row, for metrics that ask where in a text something stands.

        Raises:
            BadInput: the model is not fed from texts.
        """
        encoder = self._need_text(rows[0])
        tokens = encoder.tokens(rows, self._fixed_length(encoder))
        return [
            RowTexts(encoder.content(row), each, encoder.words(row)) for row, each in zip(rows, tokens, strict=True)
        ]

    def batches(
        self, rows: Sequence[Row], batch_size: int, *, sort: bool = False, pad_to: int | None = None
    ) -> Iterator[Batch]:
        """Every row once, ``batch_size`` at a time (the last batch may be smaller).

        Args:
            rows: what to feed.
            batch_size: rows in a batch.
            sort: longest rows first, which pads least; :attr:`Batch.rows` says who is who.
            pad_to: see :meth:`feeds`.
        """
        order = list(range(len(rows)))
        if sort and (lengths := self.lengths(rows)) is not None:
            order.sort(key=lambda index: -lengths[index])
        for start in range(0, len(order), batch_size):
            places = tuple(order[start : start + batch_size])
            yield Batch(places, self.feeds([rows[place] for place in places], pad_to=pad_to))

    def lengths(self, rows: Sequence[Row]) -> list[int] | None:
        """Length of each row as the model sees it (tokens, samples); None where rows have no length."""
        if not rows or self._is_tensors(rows[0]):
            return None
        for encoder in self._encoders:
            if (found := encoder.lengths(rows)) is not None:
                return found
        return None

    def content(self, row: Row) -> str:
        """sha256 of what the model is given of a row (not its label, not its number): equal rows are duplicates."""
        if self._is_tensors(row):
            import numpy as np

            parts: list[Any] = []
            for spec in self._specs:
                array = np.ascontiguousarray(self._columns.get(row, spec.name))
                parts += [array.dtype.str, str(array.shape), array.tobytes()]
        else:
            self._need_all(row, {name for encoder in self._encoders for name in encoder.inputs})
            parts = [part for encoder in self._encoders for part in encoder.content(row)]
        digest = hashlib.sha256()
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()

    def values(self, row: Row) -> dict[str, Any]:
        """What the model is given of a row and its label, by role: all that is needed to feed the row anywhere.

        Files are bytes, arrays numpy's (or lists, where the row had lists); a row without a label has no ``label``.
        """
        if self._is_tensors(row):
            found = {spec.name: self._columns.get(row, spec.name) for spec in self._specs}
        else:
            found = {role: value for encoder in self._encoders for role, value in encoder.values(row).items()}
        label = label_of(row, self._columns)
        return found if label is None else {**found, "label": label}

    def check(self, rows: Sequence[Row]) -> None:
        """Raise :class:`BadInput` naming the first row that cannot be fed, and how many cannot."""
        first: BadInput | None = None
        bad = 0
        for row in rows:
            try:
                # Arrays are checked against the model's types and shapes too; that costs no more than reading them.
                _ = self.feeds([row]) if self._is_tensors(row) else self.content(row)
            except BadInput as error:
                first = first or error
                bad += 1
        if first is not None:
            more = f"; {bad} of {len(rows)} rows are bad" if bad > 1 else ""
            raise BadInput(first.message + more, first.hint)

    def _is_tensors(self, row: Row) -> bool:
        return all(self._columns.find(row, spec.name) is not None for spec in self._specs)

    def _need_all(self, row: Row, made: Mapping[str, Any] | set[str]) -> None:
        lacking = [spec.name for spec in self._specs if spec.name not in made]
        if lacking:
            raise BadInput(
                f"{row}: nothing here makes the model's input {lacking[0]!r}: "
                f"wanted {', '.join(spec.name for spec in self._specs)}; found {', '.join(row.values) or 'no column'}",
                "give an .npz file with one array an input, named as the input (or name the columns of its inputs)",
            )

    def _fixed_length(self, encoder: _Encoder) -> int | None:
        """The sequence length that is written into the model, if it is."""
        for spec in self._specs:
            if spec.name in encoder.inputs and len(spec.shape) == 2 and isinstance(spec.shape[1], int):
                return spec.shape[1]
        return None

    def _stacked(self, rows: Sequence[Row], spec: TensorSpec) -> NDArray[np.generic]:
        import numpy as np

        try:
            return np.stack([np.asarray(self._columns.get(row, spec.name)) for row in rows])
        except (ValueError, TypeError) as error:
            raise BadInput(f"{rows[0]} to {rows[-1].number}: {spec.name} makes no array ({error})") from None


def _processor(folder: Path, part: str) -> Mapping[str, JSON] | None:
    """Settings of an image processor or feature extractor; newer folders keep both in ``processor_config.json``."""
    for name, pick in _PROCESSOR_FILES:
        path = folder / name
        if path.is_file():
            try:
                found = pick(json.loads(path.read_bytes()), part)
            except (ValueError, AttributeError) as error:
                raise Damaged(f"{path} cannot be read: {error}") from None
            if found:
                return found
    return None


_PROCESSOR_FILES: tuple[tuple[str, Callable[[Any, str], Mapping[str, JSON] | None]], ...] = (
    ("preprocessor_config.json", lambda settings, part: settings),
    ("processor_config.json", lambda settings, part: settings.get(part)),
)


def _fitted(array: NDArray[np.generic], spec: TensorSpec, rows: Sequence[Row]) -> NDArray[np.generic]:
    """The array in the element type of the input, or :class:`BadInput` when type or shape do not fit."""
    import numpy as np

    wanted = [d if isinstance(d, int) else None for d in spec.shape]
    if len(wanted) != array.ndim or any(w not in (None, h) for w, h in zip(wanted, array.shape, strict=True)):
        raise BadInput(
            f"{_place(rows)}: {spec.name} is {list(array.shape)}, and the model takes {list(spec.shape)}",
            "the first axis counts the rows of the batch",
        )
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        raise BadInput(f"the model's input {spec.name} is {spec.dtype}, which cannot be fed from here") from None
    if array.dtype == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise BadInput(
            f"{_place(rows)}: {spec.name} is {array.dtype}, and the model takes {dtype}", "convert it in the file"
        )
    cast = array.astype(dtype)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(cast, array):
        raise BadInput(f"{_place(rows)}: {spec.name} holds numbers that do not fit into {dtype}")
    return cast


def _place(rows: Sequence[Row]) -> str:
    """Where a batch comes from, for messages alone: it takes longer to put together than an array to look at."""
    return str(rows[0]) if len(rows) == 1 else f"{rows[0]} to {rows[-1].number}"
