"""An encoder-decoder in ONNX Runtime: a prompt is read once by one graph, and answered token by token by another.

Texts that are equally long make a step together: their positions are then the same, whether a model counts them from
the beginning or backwards. What they attend to stays stacked while the same texts make the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.config import DecoderConfig
from optimizer.runtimes._ort_errors import ort_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EncoderDecoder"]

_SIDES = ("key", "value")


@dataclass(eq=False)
class _Text:
    """What one text attends to, by the names of the decoder's inputs.

    Attributes:
        read: keys and values of the prompt, ``[1, heads, tokens, head size]``.
        past: its own, ``[1, heads, tokens so far, head size]``.
        length: tokens so far.
    """

    read: dict[str, NDArray[np.float32]]
    past: dict[str, NDArray[np.float32]]
    length: int = 0


@dataclass
class _Together:
    """Texts that made the last step together, and what they attend to in one piece."""

    texts: list[_Text]
    mask: NDArray[np.int64]
    read: dict[str, NDArray[np.float32]]
    past: dict[str, NDArray[np.float32]]


class EncoderDecoder:
    """Two open graphs, and room for ``slots`` texts; see :class:`optimizer.runtimes._decode_loop.Rows`.

    Raises:
        BadInput: the graphs are not an encoder and the decoder to it.
    """

    #: Prompts that are read in one run, the shorter ones padded.
    together = 8

    def __init__(self, encoder: Any, decoder: Any, config: DecoderConfig, slots: int) -> None:
        self._encoder, self._decoder, self._config, self.slots = encoder, decoder, config, slots
        places = [f"{layer}.{side}" for layer in range(config.layers) for side in _SIDES]
        self._read = [f"cross.{place}" for place in places]
        self._past = [f"past_key_values.{place}" for place in places]
        self._present = [f"present.{place}" for place in places]
        self._names = {each.name for each in decoder.get_inputs()}
        made = {each.name for each in encoder.get_outputs()}
        if missing := [name for name in (*self._read, *self._past) if name not in self._names]:
            raise BadInput(f"{config.file} has no input {missing[0]}: it is no decoder that reads from an encoder")
        if missing := [name for name in self._read if name not in made]:
            raise BadInput(f"{config.encoder} has no output {missing[0]}, which the decoder beside it reads")
        self._texts: list[_Text] = []
        self._groups: list[_Together] = []

    def read(self, row: int, prompts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Read prompts and begin their answers; logits of what follows, ``[prompts, vocabulary]``."""
        import numpy as np

        config = self._config
        ids = np.zeros((len(prompts), max(prompt.size for prompt in prompts)), np.int64)
        mask = np.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, : prompt.size], mask[place, : prompt.size] = prompt, 1
        with ort_errors(config.file, "cpu"):
            found = self._encoder.run(self._read, {"input_ids": ids, "attention_mask": mask})
        empty = np.zeros((1, config.kv_heads, 0, config.head_size), np.float32)
        texts = [
            _Text(
                {n: array[place : place + 1, :, : prompt.size] for n, array in zip(self._read, found, strict=True)},
                dict.fromkeys(self._past, empty),
            )
            for place, prompt in enumerate(prompts)
        ]
        self._texts[row:] = texts
        group = self._stacked(texts)
        for token in config.start:
            logits = self._run(group, [token] * len(texts))
        return logits

    def step(self, tokens: list[int], lengths: list[int]) -> NDArray[np.float32]:
        """One more token of each of the first rows; logits of what follows, ``[rows, vocabulary]``."""
        import numpy as np

        rows = len(tokens)
        by_length: dict[int, list[int]] = {}
        for row in range(rows):
            by_length.setdefault(self._texts[row].length, []).append(row)
        logits = np.empty((rows, self._config.vocabulary), np.float32)
        groups = []
        for members in by_length.values():
            group = self._stacked([self._texts[row] for row in members])
            logits[members] = self._run(group, [tokens[row] for row in members])
            groups.append(group)
        self._groups = groups
        return logits

    def _stacked(self, texts: list[_Text]) -> _Together:
        """What texts attend to in one piece: as the last step left it, where they made it together."""
        import numpy as np

        for group in self._groups:
            if group.texts == texts:
                return group
        longest = max(text.read[self._read[0]].shape[2] for text in texts)
        mask = np.zeros((len(texts), longest), np.int64)
        for row, text in enumerate(texts):
            mask[row, : text.read[self._read[0]].shape[2]] = 1

        def padded(array: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.pad(array, ((0, 0), (0, 0), (0, longest - array.shape[2]), (0, 0)))

        return _Together(
            texts,
            mask,
            {name: np.concatenate([padded(text.read[name]) for text in texts]) for name in self._read},
            {name: np.concatenate([text.past[name] for text in texts]) for name in self._past},
        )

    def _run(self, group: _Together, tokens: list[int]) -> NDArray[np.float32]:
        """One token more for texts that are equally long; logits, ``[texts, vocabulary]``."""
        import numpy as np

        feeds: dict[str, Any] = {
            "input_ids": np.array(tokens, np.int64)[:, None],
            "encoder_attention_mask": group.mask,
            **group.read,
            **group.past,
        }
        with ort_errors(self._config.file, "cpu"):
            answer, *present = self._decoder.run(
                ["logits", *self._present], {name: value for name, value in feeds.items() if name in self._names}
            )
        group.past = dict(zip(self._past, present, strict=True))
        for row, text in enumerate(group.texts):
            text.past = {name: array[row : row + 1] for name, array in group.past.items()}
            text.length += 1
        logits: NDArray[np.float32] = answer[:, 0]
        if self._config.never:
            logits[:, list(self._config.never)] = -np.inf
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Put a text in another row's place."""
        del length
        self._texts[target] = self._texts[source]

    def score(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Refused: what follows a token depends on a text that was read."""
        raise BadInput(
            f"{self._config.folder} reads one text and writes another: texts alone cannot be scored with it",
            "compare what it writes with what PyTorch wrote: ml-opt verify REF --against golden",
        )
