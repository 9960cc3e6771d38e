"""Encoder-decoders (T5, BART and their kin) as two graphs: what reads a prompt, and what writes one token.

The encoder's graph answers with what every layer of the decoder attends to, its keys and values of the prompt; they
are computed once a text. The decoder's graph writes one token of several texts: its own keys and values go in and come
out one token longer. Those of texts with fewer tokens than others lie at the right end, behind as many that are not
read; models that count positions from the beginning are told how many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.exporting.exchange import attention_exchanged, cause
from optimizer.exporting.genai_decoder import clean
from optimizer.hf import LoadedModel, quiet_libraries

if TYPE_CHECKING:
    import onnx_ir

__all__ = ["LENGTHS", "Graphs", "trace"]

#: The decoder's input that says how many tokens of the past are a text's own.
LENGTHS = "past_lengths"

_OPSET = 20
_NAME = "ml_opt_seq2seq"
#: Sizes of the traced example; any that are neither 0 nor 1, nor equal to each other, are as good.
_ROWS, _READ, _PAST = 2, 5, 3


@dataclass(frozen=True)
class Graphs:
    """An encoder-decoder's two graphs.

    Attributes:
        encoder: ``input_ids`` and ``attention_mask`` ``[batch, encoder_sequence]`` → ``cross.N.key`` and
            ``cross.N.value`` ``[batch, heads, encoder_sequence, head_size]``.
        decoder: ``input_ids`` ``[batch, 1]``, ``encoder_attention_mask``, ``past_lengths`` ``[batch]`` (how many
            tokens of the past are a text's own, the last ones), ``cross.N.…``, and ``past_key_values.N.key`` and
            ``.value`` ``[batch, heads, past, head_size]`` → ``logits`` ``[batch, 1, vocabulary]`` and ``present.N.…``,
            one token longer.
        layers: of the decoder.
        heads: of its attention.
        head_size: numbers of one head.
    """

    encoder: onnx_ir.Model
    decoder: onnx_ir.Model
    layers: int
    heads: int
    head_size: int


def trace(loaded: LoadedModel) -> Graphs:
    """Trace both graphs of an encoder-decoder.

    Args:
        loaded: the model; its attention is exchanged while it is traced.

    Raises:
        BadInput: it cannot be traced.
    """
    import torch
    from torch.export import Dim

    refused = functools.partial(_not_ours, loaded)
    with attention_exchanged(loaded, _NAME, _attention, refused), quiet_libraries(), torch.no_grad():
        try:
            reader = _reader(loaded.module)
            ids = torch.ones(_ROWS, _READ, dtype=torch.long)
            cross = reader(ids, torch.ones_like(ids))
            layers, (_, heads, _, size) = len(cross), cross[0][0].shape
            names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
            rows, open_rows = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
            encoder = torch.onnx.export(
                reader, (ids, torch.ones_like(ids)), dynamic_shapes=(open_rows, open_rows),
                input_names=["input_ids", "attention_mask"], output_names=[f"cross.{name}" for name in names],
                opset_version=_OPSET, dynamo=True, verbose=False,
            ).model  # fmt: skip
            past = [tuple(torch.zeros(_ROWS, heads, _PAST, size) for _ in range(2)) for _ in range(layers)]
            grows = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
            decoder = torch.onnx.export(
                _writer(loaded.module, layers), (ids[:, :1], torch.ones_like(ids), _own_lengths(), cross, past),
                dynamic_shapes=(rows, open_rows, rows, [(grows, grows)] * layers, [(grows, grows)] * layers),
                input_names=["input_ids", "encoder_attention_mask", LENGTHS, *(f"cross.{name}" for name in names),
                             *(f"past_key_values.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
                opset_version=_OPSET, dynamo=True, verbose=False,
            ).model  # fmt: skip
        except Exception as error:
            raise refused(cause(error)) from error
    for model in (encoder, decoder):
        _name_dimensions(model)
        clean(model)
    return Graphs(encoder, decoder, layers, heads, size)


def _name_dimensions(model: onnx_ir.Model) -> None:
    """Give the tracer's symbols names that say what they count."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        name = value.name or ""
        if value.shape is None:
            continue
        names = {0: "batch_size"}
        if name.startswith("cross"):
            names[2] = "encoder_sequence_length"
        elif name.startswith(("past", "present")):
            names[2] = f"{'past' if name.startswith('past') else 'total'}_sequence_length"
        elif len(value.shape) == 2 and not isinstance(value.shape[1], int):
            names[1] = "encoder_sequence_length"
        value.shape = onnx_ir.Shape([names.get(place, dim) for place, dim in enumerate(value.shape)])


def _not_ours(loaded: LoadedModel, why: str) -> BadInput:
    return BadInput(
        f"{loaded.class_name} cannot be exported as an encoder and a decoder with its cache: {why}",
        "ml-opt export-onnx --task feature-extraction exports its encoder",
    )


class _Run:
    """What is added to the scores of attention, which its caller does not hand on.

    Attributes:
        prompt: to those of tokens of the prompt, ``[batch, 1, 1, encoder_sequence]``: 0 for what is one.
        reads: the keys that are the prompt's, one a layer; None for all.
        past: to those of tokens of the answer, ``[batch, 1, 1, past + 1]``: 0 for what is the text's own; None for
            nothing.
    """

    def __init__(self, prompt: Any, reads: list[Any] | None, past: Any = None) -> None:
        self.prompt, self.reads, self.past = _left_out(prompt == 0), reads, past


def _left_out(places: Any) -> Any:
    """What takes tokens out of attention, ``[batch, tokens]`` → ``[batch, 1, 1, tokens]``."""
    import torch

    return (places.to(torch.float32) * torch.finfo(torch.float32).min)[:, None, None, :]


#: The run that is being traced.
_running: list[_Run] = []


def _own_lengths() -> Any:
    """Those of the traced example: another one for each row."""
    import torch

    return torch.arange(_PAST - _ROWS + 1, _PAST + 1)


@contextmanager
def _run(run: _Run) -> Iterator[None]:
    _running.append(run)
    try:
        yield
    finally:
        _running.pop()


def _reader(module: Any) -> Any:
    """The module that becomes the encoder's graph."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class Reader(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            with _run(_Run(attention_mask, None)):
                states = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            # A step of the decoder fills the cache with keys and values of the prompt; nothing else of it is kept.
            with _run(_Run(attention_mask, [])):
                self.model.get_decoder()(
                    input_ids=input_ids[:, :1], encoder_hidden_states=states[0], past_key_values=cache, use_cache=True
                )
            return [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]

    return Reader().eval()


def _writer(module: Any, layers: int) -> Any:
    """The module that becomes the decoder's graph."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    embed = getattr(module.get_decoder(), "embed_positions", None)
    table = _table(embed)

    class Writer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, input_ids: Any, encoder_attention_mask: Any, past_lengths: Any, cross: Any, past: Any) -> Any:
            cache, own = _cache(cross, past)
            before = past[0][0].shape[2]
            others = torch.arange(before + 1)[None, :] < (before - past_lengths)[:, None]
            # That there are states says that this attention is to the prompt; what they hold is in the cache.
            rows, read = encoder_attention_mask.shape
            states = torch.zeros(rows, read, 1, dtype=cross[0][0].dtype)
            run = _Run(encoder_attention_mask, [keys for keys, _ in cross], _left_out(others))
            with _run(run), _places(embed, past_lengths, table):
                answer = self.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states),
                    attention_mask=encoder_attention_mask,
                    decoder_input_ids=input_ids,
                    past_key_values=cache,
                    use_cache=True,
                )
            return answer.logits, [own.present[layer] for layer in range(layers)]

    return Writer().eval()


@contextmanager
def _places(embed: Any, lengths: Any, table: Any) -> Iterator[None]:
    """Inside the block, the token of each text has a position of its own, ``[batch]``: it would be the same for all.

    Args:
        embed: the decoder's embedding of positions; None for T5's, which counts from the token backwards.
        lengths: how many tokens are before it.
        table: of :func:`_table`.
    """
    import torch

    if embed is None:
        yield
        return
    pad = embed.padding_idx

    def forward(ids: Any, *others: Any, **more: Any) -> Any:
        if table is None:  # BART's first positions are no positions
            return torch.nn.Embedding.forward(embed, lengths[:, None] + getattr(embed, "offset", 0))
        return table[torch.where(ids == pad, pad, (lengths + pad + 1)[:, None])]

    embed.forward = forward
    try:
        yield
    finally:
        del embed.forward


def _table(embed: Any) -> Any:
    """The positions of M2M-100, which looks in every run whether it has enough of them; None for others. Padding has
    one, and all others lie behind it.
    """
    if not hasattr(embed, "make_weights"):
        return None
    return embed.get_embedding(embed.num_positions + embed.padding_idx + 1, embed.embedding_dim, embed.padding_idx)


def _cache(cross: Any, past: Any) -> tuple[Any, Any]:
    """A cache of both sorts, from tensors; and its own part, which holds what comes out."""
    import torch
    from transformers.cache_utils import Cache, EncoderDecoderCache

    class Layer:
        is_initialized = True

        def __init__(self, keys: Any, values: Any) -> None:
            self.keys, self.values = keys, values

    class Given(Cache):  # type: ignore[misc]
        def __init__(self, pairs: Any) -> None:
            self.layers = [Layer(*pair) for pair in pairs]
            self.present: dict[int, tuple[Any, Any]] = {}

        def update(self, keys: Any, values: Any, layer: int, *place: Any, **more: Any) -> tuple[Any, Any]:
            old = self.layers[layer]
            self.present[layer] = (torch.cat([old.keys, keys], 2), torch.cat([old.values, values], 2))
            return self.present[layer]

        def get_seq_length(self, layer: int = 0, *place: Any, **more: Any) -> Any:
            return self.layers[0].keys.shape[2]

        def get_mask_sizes(self, *place: Any, **more: Any) -> tuple[Any, int]:
            return self.layers[0].keys.shape[2] + 1, 0

    own, read = Given(past), Given(cross)
    both = EncoderDecoderCache(own, read)
    both.is_updated = dict.fromkeys(range(len(cross)), True)
    return both, own


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **asked: Any) -> tuple[Any, None]:
    """Attention as it is written: ``[batch, heads, sequence, size]`` → ``[batch, sequence, heads, size]``."""
    import torch

    run = _running[-1]
    scaling, position_bias = asked.get("scaling"), asked.get("position_bias")
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if run.reads is None or any(key is each for each in run.reads):
        scores = scores + run.prompt
    elif run.past is not None:
        scores = scores + run.past
    return (torch.softmax(scores, -1) @ value).transpose(1, 2), None
