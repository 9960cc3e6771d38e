"""A decoder's graph in ONNX Runtime, whatever its cache does: its names and types, what it is fed, and scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.generating.asked import check_scored
from optimizer.generating.config import DecoderConfig
from optimizer.graph.head import LOGITS_FROM
from optimizer.runtime import Provider, SessionOptions
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_gpu import Asked
from optimizer.runtimes._ort_load import not_loaded
from optimizer.runtimes._ort_open import plain_options, vendor_session
from optimizer.runtimes._ort_providers import PROVIDERS, devices_of, library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["READ_AT_ONCE", "DecoderGraph", "open_session"]

#: Tokens of a prompt that are read in one run: attention makes ``[heads, tokens, tokens so far]`` numbers of them.
READ_AT_ONCE = 512
#: ONNX Runtime's element types: numpy's, and ONNX's number where numpy has none (bits are held instead).
_ELEMENTS: dict[str, tuple[str, int]] = {
    "tensor(float)": ("float32", 1),
    "tensor(float16)": ("float16", 10),
    "tensor(bfloat16)": ("uint16", 16),
}


def open_session(path: Path, threads: int, provider: str = "cpu") -> Any:
    """Open a graph on the processor, or for scores on a GPU: what is bound in the processor's memory is copied there.

    Raises:
        BadInput: ONNX Runtime cannot load it.
        MissingPiece: there is no such provider here.
    """
    row, onnxruntime = PROVIDERS[provider], library()
    if not path.is_file():
        raise BadInput(f"no such file: {path}", "the folder's genai_config.json names it as its decoder")
    settings = plain_options(onnxruntime, provider, threads)
    devices = devices_of(onnxruntime, provider, row, "")
    asked = Asked(SessionOptions(Provider(provider)))
    session = vendor_session(onnxruntime, str(path), path, row, asked, settings, devices)
    if row.ep not in session.get_providers():
        raise not_loaded(onnxruntime, provider, row.ep)
    return session


class DecoderGraph:
    """An open decoder.

    Raises:
        BadInput: its inputs are not those of a decoder.
    """

    def __init__(self, session: Any, config: DecoderConfig) -> None:
        self._session, self._config = session, config
        names = {one.name: one.type for one in session.get_inputs()}
        layers, inputs, outputs = range(config.layers), config.inputs, config.outputs
        self._ids = inputs.get("input_ids", "input_ids")
        self._mask = inputs.get("attention_mask", "attention_mask")
        positions = inputs.get("position_ids", "position_ids")
        self._positions = positions if positions in names else ""
        sides = ("key", "value")
        self._past = [_layer(inputs, f"past_{s}_names", f"past_key_values.%d.{s}", n) for n in layers for s in sides]
        self._present = [_layer(outputs, f"present_{s}_names", f"present.%d.{s}", n) for n in layers for s in sides]
        self._logits = outputs.get("logits", "logits")
        wanted = {self._ids, self._mask, *self._past}
        unknown = set(names) - wanted - {self._positions}
        if missing := sorted(wanted - set(names)):
            raise BadInput(f"{config.file} has no input {missing[0]}, which its genai_config.json names")
        if unknown:
            raise BadInput(f"{config.file} has the input {sorted(unknown)[0]}, which no decoder here feeds")
        self._cache_type = self._type_of(names[self._past[0]])
        self._last_alone = LOGITS_FROM in {one.name for one in session.get_overridable_initializers()}
        logits = {one.name: one.type for one in session.get_outputs()}.get(self._logits)
        if logits is None:
            raise BadInput(f"{config.file} has no output {self._logits}")
        self._logits_type = self._type_of(logits)

    def _type_of(self, name: str) -> tuple[str, int]:
        if name not in _ELEMENTS:
            raise BadInput(f"{self._config.file} keeps its cache or its logits in {name}, which cannot be used here")
        return _ELEMENTS[name]

    def in_place(self) -> bool:
        """Whether the graph leaves a longer cache as long as it is, as GroupQueryAttention does."""
        import numpy as np

        feeds = self._feeds(np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64))
        config = self._config
        empty = np.zeros((1, config.kv_heads, 2, config.head_size), self._cache_type[0])
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in self._past:
            self._bind(binding.bind_input, name, empty)
        for name in (self._logits, *self._present):
            binding.bind_output(name)
        with ort_errors(config.file, "cpu"):
            try:
                self._session.run_with_iobinding(binding)
                length = binding.get_outputs()[1].shape()[2]
            except Exception as error:
                # Its mask has to be as long as past and new tokens together; how that is said depends on the graph.
                if not config.grows and not any(word in str(error).lower() for word in ("shape", "dimension")):
                    raise
                length = None
        return bool(length == 2)

    def _feeds(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """What a run of whole rows is fed beside the caches: tokens, mask, and positions where the graph has them."""
        import numpy as np

        feeds = {self._ids: np.ascontiguousarray(ids, np.int64), self._mask: mask}
        if self._positions:
            places = np.arange(mask.shape[1] - ids.shape[1], mask.shape[1], dtype=np.int64)
            feeds[self._positions] = np.ascontiguousarray(np.broadcast_to(places, ids.shape))
        return feeds

    def _bind(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        """Bind an array's own memory."""
        element: Any = array.dtype if self._cache_type[0] != "uint16" else self._cache_type[1]
        bind(name, "cpu", 0, element, list(array.shape), array.ctypes.data)

    def _bind_logits(self, binding: Any, logits: NDArray[Any]) -> None:
        element: Any = logits.dtype if self._logits_type[0] != "uint16" else self._logits_type[1]
        binding.bind_output(self._logits, "cpu", 0, element, list(logits.shape), logits.ctypes.data)

    def _floats(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        import numpy as np

        if self._logits_type[0] == "uint16":
            return (logits.astype(np.uint32) << 16).view(np.float32)
        return logits.astype(np.float32, copy=False)

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``; touches no row."""
        import numpy as np

        del read  # there is no encoder
        config = self._config
        check_scored(tokens, config.context, config.vocabulary)
        feeds = self._feeds(tokens, np.ones(tokens.shape, np.int64))
        empty = np.zeros((tokens.shape[0], config.kv_heads, 0, config.head_size), self._cache_type[0])
        logits = np.empty((*tokens.shape, config.vocabulary), self._logits_type[0])
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in self._past:
            self._bind(binding.bind_input, name, empty)
        self._bind_logits(binding, logits)
        with ort_errors(config.file, "cpu"):
            self._session.run_with_iobinding(binding)
        return self._floats(logits)


def _layer(names: Any, key: str, default: str, layer: int) -> str:
    return str(names.get(key, default)) % layer
