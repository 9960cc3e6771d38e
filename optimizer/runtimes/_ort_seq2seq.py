"""An encoder-decoder in ONNX Runtime: a prompt is read once by one graph, and answered token by token by another.

All texts make a step together: what the shorter ones lack is left out of their attention. What they read stays where it
was put, a row each; what they have written stays stacked while the same texts make the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.asked import check_scored
from optimizer.generating.config import DecoderConfig
from optimizer.runtimes._ort_errors import ort_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EncoderDecoder"]

_SIDES = ("key", "value")
#: Tokens of prompts, padding among them, that are read in one run.
_READ_AT_ONCE = 512


class _Prompts:
    """Keys and values of what is read, a row for each text, in arrays with room for more and longer ones.

    Args:
        names: of the decoder's inputs.
        heads: of keys and values.
        size: numbers of a head.
        most: how many rows there may be.
    """

    def __init__(self, names: Sequence[str], heads: int, size: int, most: int) -> None:
        import numpy as np

        self._most = most
        self._lengths: list[int] = []
        self._mask = np.zeros((0, 0), np.int64)
        self._arrays = {name: np.zeros((0, heads, 0, size), np.float32) for name in names}

    def put(self, rows: Sequence[int], lengths: Sequence[int], found: Mapping[str, NDArray[np.float32]]) -> None:
        """Put prompts into rows.

        Args:
            rows: which.
            lengths: tokens of each prompt.
            found: what its encoder made, ``[rows, heads, tokens, size]``, padding at the right.
        """
        width = max(lengths)
        self._room(max(rows) + 1, width)
        for row, length in zip(rows, lengths, strict=True):
            self._lengths[row] = length
            self._mask[row] = 0
            self._mask[row, :length] = 1
        for name, array in self._arrays.items():
            array[list(rows), :, :width] = found[name]

    def copy(self, source: int, target: int) -> None:
        """Put what a row has into another one, which may be the first behind the others."""
        self._room(target + 1)
        self._lengths[target], self._mask[target] = self._lengths[source], self._mask[source]
        length = self._lengths[source]
        for array in self._arrays.values():
            array[target, :, :length] = array[source, :, :length]

    def fed(self, rows: int) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """What the first rows attend to: 1 for tokens, ``[rows, tokens]``; arrays ``[rows, heads, tokens, size]``."""
        longest = max(self._lengths[:rows])
        if 2 * longest <= self._mask.shape[1]:  # what is not read costs time all the same
            self._resize(len(self._mask), longest)
        return self._mask[:rows], {name: array[:rows] for name, array in self._arrays.items()}

    def _room(self, rows: int, width: int = 0) -> None:
        """Make the arrays large enough; what is in them stays."""
        high, wide = self._mask.shape
        if rows > high:
            high = max(rows, min(2 * high, self._most))
        wide = max(width, wide)
        if (high, wide) != self._mask.shape:
            self._resize(high, wide)

    def _resize(self, high: int, width: int) -> None:
        import numpy as np

        kept = (min(high, len(self._mask)), min(width, self._mask.shape[1]))
        mask = np.zeros((high, width), np.int64)
        mask[: kept[0], : kept[1]] = self._mask[: kept[0], : kept[1]]
        self._mask = mask
        self._lengths += [0] * (high - len(self._lengths))
        for name, array in self._arrays.items():
            made = np.zeros((high, array.shape[1], width, array.shape[3]), np.float32)
            made[: kept[0], :, : kept[1]] = array[: kept[0], :, : kept[1]]
            self._arrays[name] = made


@dataclass(eq=False)
class _Group:
    """What texts have written in one piece, a row each, by the names of the decoder's inputs.

    Attributes:
        past: keys and values, ``[texts, heads, tokens so far, head size]``, those of shorter texts at the right end.
        lengths: how many tokens of each text there are so far.
    """

    past: dict[str, NDArray[np.float32]]
    lengths: NDArray[np.int64]


@dataclass(eq=False)
class _Text:
    """One text: its row of a group."""

    group: _Group
    row: int


class EncoderDecoder:
    """Two open graphs, and room for ``slots`` texts; see :class:`optimizer.runtimes._decode_loop.Rows`.

    Raises:
        BadInput: the graphs are not an encoder and the decoder to it.
    """

    #: Prompts that are read at once, if they are short.
    together = 64
    #: An encoder sees all of a prompt at once.
    part = 0

    def __init__(self, encoder: Any, decoder: Any, config: DecoderConfig, slots: int) -> None:
        self._encoder, self._decoder, self._config, self.slots = encoder, decoder, config, slots
        self._read = _of_layers(config, config.inputs, "cross_past", "cross")
        self._past = _of_layers(config, config.inputs, "past", "past_key_values")
        self._present = _of_layers(config, config.outputs, "present", "present")
        self._ids = config.inputs.get("input_ids", "input_ids")
        self._mask = config.inputs.get("encoder_attention_mask", "encoder_attention_mask")
        self._lengths = config.inputs.get("past_lengths", "past_lengths")
        self._logits = config.outputs.get("logits", "logits")
        self._names = {each.name for each in decoder.get_inputs()}
        made = {each.name for each in encoder.get_outputs()}
        if missing := [name for name in (self._lengths, *self._read, *self._past) if name not in self._names]:
            raise BadInput(f"{config.file} has no input {missing[0]}: it is no decoder that reads from an encoder")
        if missing := [name for name in self._read if name not in made]:
            raise BadInput(f"{config.encoder} has no output {missing[0]}, which the decoder beside it reads")
        self._prompts = _Prompts(self._read, config.kv_heads, config.head_size, slots)
        self._texts: list[_Text] = []
        #: Who made the last step together, or were read together, and what they have written.
        self._last: tuple[list[_Text], _Group] | None = None

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]], begin: int = 0) -> None:
        """Read prompts and begin their answers, but for the last token that all begin with: the next step takes it."""
        assert not begin
        read: dict[int, _Text] = {}
        for places in _runs([prompt.size for prompt in prompts]):
            of_run = [prompts[place] for place in places]
            mask, found = self._encoded(of_run)
            group = self._begun(len(places))
            for token in self._config.start[:-1]:
                self._run(group, mask, found, [token] * len(places))
            texts = [_Text(group, number) for number in range(len(places))]
            read.update(zip(places, texts, strict=True))
            self._prompts.put([row + place for place in places], [prompt.size for prompt in of_run], found)
            self._last = texts, group
        self._texts[row:] = [text for _, text in sorted(read.items())]

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows; logits of what follows, ``[rows, vocabulary]``."""
        del lengths  # what was written knows
        texts = self._texts[: len(tokens)]
        group = self._group(texts)
        logits = self._run(group, *self._prompts.fed(len(tokens)), tokens)
        for row, text in enumerate(texts):
            text.group, text.row = group, row
        self._last = texts, group
        return logits

    def _encoded(
        self, prompts: Sequence[NDArray[np.int64]]
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """What answers to prompts attend to of them: 1 for tokens, and keys and values."""
        import numpy as np

        ids = np.zeros((len(prompts), max(prompt.size for prompt in prompts)), np.int64)
        mask = np.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, : prompt.size], mask[place, : prompt.size] = prompt, 1
        with ort_errors(self._config.file, "cpu"):
            found = self._encoder.run(self._read, {"input_ids": ids, "attention_mask": mask})
        return mask, dict(zip(self._read, found, strict=True))

    def _begun(self, rows: int) -> _Group:
        """Texts before their first token."""
        import numpy as np

        return _Group(self._rows(self._past, rows, 0), np.zeros(rows, np.int64))

    def _group(self, texts: list[_Text]) -> _Group:
        """What texts have written in one piece: as the last step left it, where they made it together."""
        import numpy as np

        if self._last is not None and self._last[0] == texts:
            return self._last[1]
        lengths = np.array([text.group.lengths[text.row] for text in texts], np.int64)
        past = int(lengths.max())
        made = _Group(self._rows(self._past, len(texts), past), lengths)
        for row, text in enumerate(texts):
            own, length = text.group, int(lengths[row])
            for name, array in made.past.items():
                array[row, :, past - length :] = own.past[name][text.row, :, own.past[name].shape[2] - length :]
        return made

    def _rows(self, names: Sequence[str], rows: int, tokens: int) -> dict[str, NDArray[np.float32]]:
        """Keys and values that are all 0, by their names."""
        import numpy as np

        shape = (rows, self._config.kv_heads, tokens, self._config.head_size)
        return {name: np.zeros(shape, np.float32) for name in names}

    def _run(
        self,
        group: _Group,
        mask: NDArray[np.int64],
        read: Mapping[str, NDArray[np.float32]],
        tokens: Sequence[int],
    ) -> NDArray[np.float32]:
        """One token more for each row of a group, which has read what :meth:`_encoded` makes; logits,
        ``[rows, vocabulary]``.
        """
        import numpy as np

        feeds: dict[str, Any] = {
            self._ids: np.array(tokens, np.int64)[:, None],
            self._mask: mask,
            self._lengths: group.lengths,
            **read,
            **group.past,
        }
        with ort_errors(self._config.file, "cpu"):
            answer, *present = self._decoder.run(
                [self._logits, *self._present],
                {name: value for name, value in feeds.items() if name in self._names},
            )
        group.past, group.lengths = dict(zip(self._past, present, strict=True)), group.lengths + 1
        logits: NDArray[np.float32] = answer[:, 0]
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Put a text in another row's place."""
        del length
        self._prompts.copy(source, target)
        self._texts[target] = self._texts[source]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a row behind the others go on from the same tokens."""
        del length
        self._prompts.copy(source, target)
        self._texts[target:] = [replace(self._texts[source])]

    def reorder(self, moved: Sequence[tuple[int, int]], length: int) -> None:
        """Let rows go on from what others have; what they read stays, as it is the same."""
        del length
        (group,) = {self._texts[row].group for row, _ in moved}  # they made the last step together
        into, out = ([self._texts[row].row for row in each] for each in zip(*moved, strict=True))
        for array in group.past.values():
            array[into] = array[out]

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token of answers to prompts that are equally long, written one by one, as they would be;
        tokens that are never chosen have theirs too.
        """
        import numpy as np

        config = self._config
        assert read is not None  # the loop sees to it
        check_scored(tokens, config.answers + len(config.start) - 1, config.vocabulary)
        check_scored(read, config.context, config.vocabulary)
        mask, found = self._encoded(list(read))
        group = self._begun(len(read))
        return np.stack([self._run(group, mask, found, column.tolist()) for column in tokens.T], axis=1)


def _runs(lengths: Sequence[int]) -> list[list[int]]:
    """Which prompts are read in each run: those of like length together, so that little of a run is padding."""
    runs: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if runs and (len(runs[-1]) + 1) * lengths[place] <= _READ_AT_ONCE:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _of_layers(config: DecoderConfig, names: Mapping[str, str], part: str, usual: str) -> list[str]:
    """Names of keys and values of every layer, in the order of the layers."""
    of_sides = [names.get(f"{part}_{side}_names", f"{usual}.%d.{side}") for side in _SIDES]
    return [name % layer for layer in range(config.layers) for name in of_sides]
