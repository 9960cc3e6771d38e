"""The ways to a decoder's graph: built by onnxruntime-genai, or traced by PyTorch, with or without an encoder's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.errors import BadInput
from optimizer.stage import Progress
from optimizer.types import JSON, Precision

if TYPE_CHECKING:
    import onnx_ir

    from optimizer.exporting.decoder_step import Shape
    from optimizer.hf import LoadedModel
    from optimizer.stages.export_genai import ExportGenai

__all__ = ["BITS", "LEARNED", "build_graph", "offer_last_row", "trace_graph", "trace_pair"]

#: Bits of a weight where weights are rounded in blocks.
BITS = {Precision.INT4: 4, Precision.INT8: 8}
#: Algorithms that learn from text: GPTQ chooses levels, AWQ scales weights before; the rest is done by the other.
LEARNED = {
    f"{name}{kept}": f"k_quant{kept}" for name in ("gptq", "awq") for kept in ("", "_last", "_mixed")
}  # fmt: skip


def build_graph(
    loaded: LoadedModel,
    folder: Path,
    out: Path,
    options: ExportGenai,
    floats: Path | None,
    raw: Mapping[str, JSON],
    progress: Progress,
) -> None:
    """Write the graph of a decoder that onnxruntime-genai's builder knows, and its genai_config.json.

    Args:
        loaded: the model; its weights are given up, as the builder reads the folder's itself.
        folder: weights and config.json, as the builder shall read them.
        out: where the graph goes.
        options: what was asked for.
        floats: where the same graph goes in float, for GPTQ to learn from; None: nowhere.
        raw: the model's config.json.
        progress: told of each step.

    Raises:
        BadInput: the blocks do not fit the algorithm.
    """
    from optimizer.exporting import genai_builder

    grid = _grid(options, loaded)
    loaded.module.to("meta")
    given = {field: getattr(options, field) for field in genai_builder.Build.__dataclass_fields__}
    asked = genai_builder.Build(**{**given, "algorithm": grid})
    if floats is not None:
        progress(f"building {raw['architectures'][0]} in fp32, to learn from")
        plain = replace(asked, precision=Precision.FP32, provider="cpu")
        genai_builder.build(folder, floats, plain, raw)
    progress(f"building {raw['architectures'][0]} in {options.precision}")
    genai_builder.build(folder, out, asked, raw)


def trace_graph(
    loaded: LoadedModel, out: Path, options: ExportGenai, context: int, floats: Path | None, progress: Progress
) -> None:
    """Write PyTorch's own graph of a decoder that the builder does not know, and its genai_config.json.

    Args:
        loaded: the model; its weights are given up at the end, and were halved before for a GPU.
        out: where the graph goes.
        options: what was asked for; for int4 and int8, its products' weights are rounded in blocks.
        context: most tokens of a prompt and its answer together.
        floats: where the same graph goes in float, for GPTQ to learn from; None: nowhere.
        progress: told of each step.

    Raises:
        BadInput: the blocks do not fit the algorithm, or the model cannot be traced.
    """
    from optimizer.exporting.genai_decoder import shape_of, write_genai_config
    from optimizer.exporting.genai_golden import end_tokens
    from optimizer.graph.io import save
    from optimizer.quantizing.decoder_blocks import fold_transposes

    shape, grid = shape_of(loaded), _grid(options, loaded)
    on_gpu = options.provider != "cpu"
    if on_gpu and floats is None:
        _halve(loaded, options)
    progress(f"tracing {loaded.class_name} with its cache")
    model, grows = _traced(loaded, shape, on_gpu)
    if floats is not None:
        fold_transposes(model)
        save(model, floats)
        if on_gpu:
            _halve(loaded, options)
            model, grows = _traced(loaded, shape, on_gpu)
    inputs = {value.name or "" for value in model.graph.inputs}
    if options.precision in BITS:
        progress(f"rounding weights to {options.precision}")
        model = _in_blocks(model, options, grid, shape.layers, options.float_head)
    save(model, out)
    ends = end_tokens(loaded)
    special: dict[str, JSON] = {"eos_token_id": list(ends) if len(ends) > 1 else ends[0] if ends else 0}
    for key in ("bos_token_id", "pad_token_id"):
        found = getattr(loaded.config, key, None)
        special[key] = found if isinstance(found, int) else (ends or (0,))[0]
    write_genai_config(out, shape, special, context, options.provider, inputs, grows)
    loaded.module.to("meta")


def _traced(loaded: LoadedModel, shape: Shape, on_gpu: bool) -> tuple[onnx_ir.Model, bool]:
    """A decoder's graph, and whether its cache grows: where its attention is its own, it stays as the model has it.

    Raises:
        BadInput: the model cannot be traced, or not for a GPU.
    """
    from optimizer.exporting.exchange import exchangeable
    from optimizer.exporting.genai_decoder import refuse_changing_rotation, trace
    from optimizer.exporting.growing_decoder import trace_growing

    refuse_changing_rotation(loaded)
    if exchangeable(loaded):
        # What transformers says is not all: some of the layers may have another attention, or one with more to it.
        with contextlib.suppress(BadInput):
            return trace(loaded), False
    if on_gpu:
        raise BadInput(
            f"{loaded.class_name} has attention of its own, which is exported for processors alone",
            "leave --provider out",
        )
    return trace_growing(loaded, shape), True


def trace_pair(loaded: LoadedModel, out: Path, options: ExportGenai, context: int, progress: Progress) -> None:
    """Write the two graphs of a model that reads with an encoder, and their genai_config.json.

    Args:
        loaded: the model; its weights are given up at the end.
        out: where the graphs go.
        options: what was asked for; for int4 and int8, products' weights of both graphs are rounded in blocks.
        context: most tokens that either side has positions for.
        progress: told of each step.

    Raises:
        BadInput: the blocks do not fit the algorithm, or the model cannot be traced.
    """
    from optimizer.exporting.seq2seq import ENCODER_NAME, write_config
    from optimizer.exporting.seq2seq_graphs import trace
    from optimizer.graph.io import MODEL_NAME, save

    grid = _grid(options, loaded)
    progress(f"tracing the encoder and the decoder of {loaded.class_name}")
    found = trace(loaded)
    write_config(out, found, loaded, context)
    for name, model in ((ENCODER_NAME, found.encoder), (MODEL_NAME, found.decoder)):
        if options.precision in BITS:
            progress(f"rounding weights of {name} to {options.precision}")
            # What an encoder ends in is no head, but keys and values like those of every other layer.
            algorithm = grid if name == MODEL_NAME else grid.removesuffix("_last")
            model = _in_blocks(model, options, algorithm, found.layers, options.float_head and name == MODEL_NAME)
        save(model, out, name)
    loaded.module.to("meta")


def _in_blocks(
    model: onnx_ir.Model, options: ExportGenai, algorithm: str, layers: int, float_head: bool
) -> onnx_ir.Model:
    """The same graph, the weights of its products rounded in blocks."""
    import onnx_ir

    from optimizer.hf import quiet_libraries
    from optimizer.quantizing.decoder_blocks import fold_transposes, quantize_decoder

    fold_transposes(model)
    level = options.accuracy_level
    with quiet_libraries():
        proto = quantize_decoder(
            onnx_ir.to_proto(model),
            bits=BITS[options.precision],
            block_size=options.block_size,
            algorithm=algorithm,
            accuracy_level=(4 if options.provider == "cpu" else 0) if level is None else level,
            layers=layers,
            float_head=float_head,
        )
    return onnx_ir.from_proto(proto)


def offer_last_row(out: Path, outputs: Mapping[str, str]) -> None:
    """Let the file's readers ask for logits of the last token alone; weights that lie beside it stay untouched."""
    import onnx_ir

    from optimizer.graph.head import choose_rows
    from optimizer.graph.io import MODEL_NAME

    model = onnx_ir.load(str(out / MODEL_NAME))
    if choose_rows(model, outputs.get("logits", "logits")):
        onnx_ir.save(model, str(out / MODEL_NAME))


def _halve(loaded: LoadedModel, options: ExportGenai) -> None:
    """Weights as kernels of GPUs take them."""
    import torch

    loaded.module.to(torch.bfloat16 if options.precision is Precision.BF16 else torch.float16)


def _grid(options: ExportGenai, loaded: LoadedModel) -> str:
    """The algorithm that chooses blocks' scales: under GPTQ and AWQ k_quant, or where blocks do not fit, rtn.

    Raises:
        BadInput: k_quant was asked for, or what only it can do, and it cannot pack the blocks: its zero points are of 4
            bits, two in a byte, row by row.
    """
    import torch

    grid = LEARNED.get(options.algorithm, options.algorithm)
    if options.precision is not Precision.INT4 or not grid.startswith("k_quant"):
        return grid
    widths = {
        module.weight.shape[1]: name
        for name, module in loaded.module.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    odd = [width for width in widths if width % (2 * options.block_size)]
    if odd and options.algorithm in LEARNED and not options.algorithm.endswith("_mixed"):
        return grid.replace("k_quant", "rtn")
    if odd:
        good = [size for size in (16, 32, 64, 128, 256) if all(w % (2 * size) == 0 for w in widths)]
        raise BadInput(
            f"--algorithm {options.algorithm} takes an even number of blocks: {widths[odd[0]]} reads {odd[0]} "
            f"numbers, {odd[0] / options.block_size:g} blocks of {options.block_size}",
            f"write --block-size {good[-1]}" if good else "write --algorithm rtn or default",
        )
    return grid
