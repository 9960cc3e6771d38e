"""Text by OpenVINO, with a paged cache and the decode loop that ONNX Runtime has here too.

It runs what ``export-genai`` makes for processors, fp32, int8 or int4, and computes in fp32, bf16 or fp16: the provider
says which. Its products of many rows are the faster ones (prompts, many texts at once), ONNX Runtime's those of one.
Keys and values are kept in what is computed in, or with ``-kv8`` behind it in 8 bits.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from optimizer.errors import GateFailed
from optimizer.generating.config import DecoderConfig, read_config
from optimizer.generator import KV8, GeneratorOptions, GeneratorRuntime, computed_and_kept
from optimizer.runtime import Provider, SessionOptions
from optimizer.runtimes._decode_loop import SLOTS, LoopGenerator
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._openvino import PRECISIONS
from optimizer.runtimes._openvino_decoder import PagedDecoder
from optimizer.runtimes._openvino_paged import Weights, paged, readable, weights_of
from optimizer.types import JSON

__all__ = ["GENERATOR"]

_PROVIDER = "openvino-native"
#: Keys and values in 8 bits, which is OpenVINO's own default: a scale and a zero point for each channel of a page's
#: keys, and for each token's values.
_IN_8_BITS = "u8"
#: Types that a product's weights have in the compiled graph when they are read in integers.
_INTEGERS = ("u8", "i8", "u4", "i4")


def _open(folder: Path, options: GeneratorOptions) -> LoopGenerator:
    """Open a generator's folder.

    Raises:
        BadInput: the graph is no decoder that OpenVINO can be given.
        MissingPiece: OpenVINO is not installed, or the processor does not compute in that precision.
        GateFailed: what was compiled is not what the file says.
    """
    from optimizer.graph.io import load
    from optimizer.runtimes.openvino import compiled_model

    config = read_config(folder)
    config.need_decoder("OpenVINO")
    started = time.perf_counter()
    provider = Provider.parse(options.provider)
    precision = provider.precision or next(iter(PRECISIONS))
    computed, in_8_bits = computed_and_kept(precision)
    kept = _IN_8_BITS if in_8_bits else PRECISIONS[computed]
    graph = load(config.file)
    weights = weights_of(graph)
    extra = {"KV_CACHE_PRECISION": kept}
    if not weights.rounds_activations:
        extra["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    asked = SessionOptions(Provider(provider.name, computed), options.threads, extra=extra)
    source = readable(graph, config.file)
    compiled, facts = compiled_model(source, config.file, asked, lambda model: paged(model, config))
    facts |= _read_back(compiled, config, weights, kept)
    decoder = PagedDecoder(compiled, config, options.slots or SLOTS, _PROVIDER)
    facts |= {"runtime": GENERATOR.name, "provider": options.provider, "huge_pages": onto_huge_pages()}
    facts["precision"] = precision  # with how the cache is kept
    facts["load_seconds"] = time.perf_counter() - started
    return LoopGenerator(decoder, config, facts)


def _read_back(compiled: Any, config: DecoderConfig, weights: Weights, kept: str) -> dict[str, JSON]:
    """Hold the graph that will be executed to the file, and its cache to what was asked for.

    Returns:
        ``products`` (how many by the type of their weights), ``cache`` (the type of keys and values).

    Raises:
        GateFailed: an attention is not one kernel, weights that are integers in the file are read in float, or the
            cache is kept in another type.
    """
    attention, products = 0, Counter[str]()
    for node in compiled.get_runtime_model().get_ordered_ops():
        said = node.get_rt_info()
        kind = str(said["layerType"].value)
        attention += kind == "PagedAttention"
        if kind in ("FullyConnected", "MatMul"):
            products[str(said["runtimePrecision"].value)] += 1
    if attention != config.layers:
        raise GateFailed(f"OpenVINO runs {attention} attentions of {config.layers} layers with their cache")
    rounded = sum(products[each] for each in _INTEGERS)
    if rounded < weights.rounded:
        raise GateFailed(
            f"{weights.rounded} products of {config.file} have weights in integers, and OpenVINO reads {rounded} so",
            "use the provider cpu",
        )
    port = next(port for port in compiled.inputs if "_cache." in port.get_any_name())
    if (cache := port.get_element_type().get_type_name()) != kept:
        raise GateFailed(f"OpenVINO keeps keys and values in {cache}, and not in {kept}")
    return {"products": dict(sorted(products.items())), "cache": cache}


GENERATOR = GeneratorRuntime(
    name="openvino",
    help="OpenVINO with a paged cache, and the same decode loop.",
    providers=(_PROVIDER, *(f"{_PROVIDER}:{precision}{kept}" for precision in PRECISIONS for kept in ("", KV8))),
    modules=("numpy", "onnx_ir", "openvino"),
    open=_open,
    rank=10,
)
