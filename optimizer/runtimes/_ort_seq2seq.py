"""An encoder-decoder in ONNX Runtime: a prompt is read once by one graph, and answered token by token by another.

Texts that are equally long make a step together: their positions are then the same, whether a model counts them from
the beginning or backwards. What they attend to stays stacked while the same texts make the next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass
class _Group:
    """What texts attend to in one piece, a row each, by the names of the decoder's inputs.

    Attributes:
        mask: ``[texts, tokens]``, 1 for tokens of the prompt.
        read: keys and values of the prompts, ``[texts, heads, tokens, head size]``.
        past: their own, ``[texts, heads, tokens so far, head size]``.
    """

    mask: NDArray[np.int64]
    read: dict[str, NDArray[np.float32]]
    past: dict[str, NDArray[np.float32]]


@dataclass(eq=False)
class _Text:
    """One text: how many tokens its prompt has, its row of a group, and how many tokens there are so far."""

    prompt: int
    group: _Group
    row: int
    length: int = 0


class EncoderDecoder:
    """Two open graphs, and room for ``slots`` texts; see :class:`optimizer.runtimes._decode_loop.Rows`.

    Raises:
        BadInput: the graphs are not an encoder and the decoder to it.
    """

    #: Prompts that are read in one run, the shorter ones padded.
    together = 8

    def __init__(self, encoder: Any, decoder: Any, config: DecoderConfig, slots: int) -> None:
        self._encoder, self._decoder, self._config, self.slots = encoder, decoder, config, slots
        self._read = _of_layers(config, config.inputs, "cross_past", "cross")
        self._past = _of_layers(config, config.inputs, "past", "past_key_values")
        self._present = _of_layers(config, config.outputs, "present", "present")
        self._ids = config.inputs.get("input_ids", "input_ids")
        self._mask = config.inputs.get("encoder_attention_mask", "encoder_attention_mask")
        self._logits = config.outputs.get("logits", "logits")
        self._names = {each.name for each in decoder.get_inputs()}
        made = {each.name for each in encoder.get_outputs()}
        if missing := [name for name in (*self._read, *self._past) if name not in self._names]:
            raise BadInput(f"{config.file} has no input {missing[0]}: it is no decoder that reads from an encoder")
        if missing := [name for name in self._read if name not in made]:
            raise BadInput(f"{config.encoder} has no output {missing[0]}, which the decoder beside it reads")
        self._texts: list[_Text] = []
        #: Who made the last step together.
        self._last: list[tuple[list[_Text], _Group]] = []

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Read prompts and begin their answers; logits of what follows, ``[prompts, vocabulary]``."""
        group = self._encoded(prompts)
        texts = [_Text(prompt.size, group, place) for place, prompt in enumerate(prompts)]
        self._texts[row:] = texts
        for token in self._config.start:
            logits = self._written(texts, group, [token] * len(texts))
        return self._chosen(logits)

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows; logits of what follows, ``[rows, vocabulary]``."""
        import numpy as np

        rows = len(tokens)
        by_length: dict[int, list[int]] = {}
        for row in range(rows):
            by_length.setdefault(self._texts[row].length, []).append(row)
        logits = np.empty((rows, self._config.vocabulary), np.float32)
        last = []
        for members in by_length.values():
            texts = [self._texts[row] for row in members]
            group = self._group(texts)
            logits[members] = self._written(texts, group, [tokens[row] for row in members])
            last.append((texts, group))
        self._last = last
        return self._chosen(logits)

    def _encoded(self, prompts: Sequence[NDArray[np.int64]]) -> _Group:
        """What answers to prompts attend to, before their first token."""
        import numpy as np

        config = self._config
        ids = np.zeros((len(prompts), max(prompt.size for prompt in prompts)), np.int64)
        mask = np.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, : prompt.size], mask[place, : prompt.size] = prompt, 1
        with ort_errors(config.file, "cpu"):
            found = self._encoder.run(self._read, {"input_ids": ids, "attention_mask": mask})
        empty = np.zeros((len(prompts), config.kv_heads, 0, config.head_size), np.float32)
        return _Group(mask, dict(zip(self._read, found, strict=True)), dict.fromkeys(self._past, empty))

    def _chosen(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits by which no token comes that never does."""
        if self._config.never:
            logits[:, list(self._config.never)] = -math.inf
        return logits

    def _group(self, texts: list[_Text]) -> _Group:
        """What texts attend to in one piece: as the last step left it, where they made it together."""
        import numpy as np

        for known, group in self._last:
            if known == texts:
                return group
        longest = max(text.prompt for text in texts)

        def one(text: _Text, array: NDArray[np.float32]) -> NDArray[np.float32]:
            row = array[text.row : text.row + 1, :, : text.prompt]
            return np.pad(row, ((0, 0), (0, 0), (0, longest - text.prompt), (0, 0)))

        return _Group(
            np.array([[place < text.prompt for place in range(longest)] for text in texts], np.int64),
            {name: np.concatenate([one(text, text.group.read[name]) for text in texts]) for name in self._read},
            {
                name: np.concatenate([text.group.past[name][text.row : text.row + 1] for text in texts])
                for name in self._past
            },
        )

    def _written(self, texts: list[_Text], group: _Group, tokens: list[int]) -> NDArray[np.float32]:
        """One token more for texts that are equally long, which are the group's rows from then on."""
        logits = self._run(group, tokens)
        for row, text in enumerate(texts):
            text.group, text.row = group, row
            text.length += 1
        return logits

    def _run(self, group: _Group, tokens: Sequence[int]) -> NDArray[np.float32]:
        """One token more for each row of a group; logits, ``[rows, vocabulary]``."""
        import numpy as np

        feeds: dict[str, Any] = {
            self._ids: np.array(tokens, np.int64)[:, None],
            self._mask: group.mask,
            **group.read,
            **group.past,
        }
        with ort_errors(self._config.file, "cpu"):
            answer, *present = self._decoder.run(
                [self._logits, *self._present],
                {name: value for name, value in feeds.items() if name in self._names},
            )
        group.past = dict(zip(self._past, present, strict=True))
        logits: NDArray[np.float32] = answer[:, 0]
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Put a text in another row's place."""
        del length
        self._texts[target] = self._texts[source]

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token of answers to prompts that are equally long, written one by one, as they would be;
        tokens that are never chosen have theirs too.
        """
        import numpy as np

        config = self._config
        assert read is not None  # the loop sees to it
        check_scored(tokens, config.answers + len(config.start) - 1, config.vocabulary)
        check_scored(read, config.context, config.vocabulary)
        group = self._encoded(list(read))
        return np.stack([self._run(group, column.tolist()) for column in tokens.T], axis=1)


def _of_layers(config: DecoderConfig, names: Mapping[str, str], part: str, usual: str) -> list[str]:
    """Names of keys and values of every layer, in the order of the layers."""
    of_sides = [names.get(f"{part}_{side}_names", f"{usual}.%d.{side}") for side in _SIDES]
    return [name % layer for layer in range(config.layers) for name in of_sides]
