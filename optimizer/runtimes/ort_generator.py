"""Text by ONNX Runtime alone: a decode loop of our own, for graphs with GroupQueryAttention, for those whose cache
comes out longer than it went in, and for pairs of an encoder and a decoder.

onnxruntime-genai's own engine batches on a processor at most four texts, and begins none before all of these are over
(:mod:`.genai`).
"""

from __future__ import annotations

import time
from pathlib import Path

from optimizer.environment import cpu_threads
from optimizer.generating.config import read_config
from optimizer.generator import GeneratorOptions, GeneratorRuntime
from optimizer.runtimes._decode_loop import SLOTS, LoopGenerator, Rows
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._ort_decoder import Decoder
from optimizer.runtimes._ort_graph import open_session
from optimizer.runtimes._ort_growing import GrowingDecoder
from optimizer.runtimes._ort_seq2seq import EncoderDecoder

__all__ = ["GENERATOR"]


def _open(folder: Path, options: GeneratorOptions) -> LoopGenerator:
    import onnxruntime

    config = read_config(folder)
    started = time.perf_counter()
    threads, slots = options.threads or cpu_threads(), options.slots or SLOTS
    rows: Rows
    if config.grows:
        rows = GrowingDecoder(open_session(config.file, threads), config, slots)
    elif config.encoder is None:
        rows = Decoder(open_session(config.file, threads), config, slots)
    else:
        rows = EncoderDecoder(open_session(config.encoder, threads), open_session(config.file, threads), config, slots)
    return LoopGenerator(
        rows,
        config,
        {
            "runtime": GENERATOR.name,
            "provider": "cpu",
            "threads": threads,
            "huge_pages": onto_huge_pages(),
            "load_seconds": time.perf_counter() - started,
            "onnxruntime": onnxruntime.__version__,
        },
    )


GENERATOR = GeneratorRuntime(
    name="onnxruntime",
    help="ONNX Runtime and a decode loop of our own, which batches continuously.",
    providers=("cpu",),
    modules=("numpy", "onnxruntime"),
    open=_open,
    rank=0,
)
