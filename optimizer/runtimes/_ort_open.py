"""How a session of ONNX Runtime is opened: what both running a graph and writing a compiled one begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimizer.environment import cpu_threads
from optimizer.runtime import SessionOptions
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_gpu import Asked
from optimizer.runtimes._ort_load import not_loaded
from optimizer.runtimes._ort_providers import PROVIDERS, ProviderRow

__all__ = ["SLOWER_FUSED", "asked_of", "plain_options", "session_options", "vendor_session"]

#: Fusions of ONNX Runtime whose kernels on a processor are slower than the operators that they replace. In 1.32
#: SkipLayerNormalization adds up element by element where LayerNormalization computes in vectors of AVX2: 6 ns an
#: element, beside 1.1 of an Add and a LayerNormalization; BiasGelu takes 1.2 ns, Add and Gelu 1.1
#: (benchmarks/fusions.py).
SLOWER_FUSED = ("SkipLayerNormFusion", "BiasGeluFusion")


def asked_of(options: SessionOptions, row: ProviderRow) -> Asked:
    """What is asked of a provider, its own defaults filled in."""
    precision = options.provider.precision or (row.precisions[0] if row.precisions else "")
    return Asked(options, precision, max(1, (options.threads or cpu_threads()) // options.streams))


def plain_options(onnxruntime: Any, provider: str, threads: int) -> Any:
    """Session options of every session here: threads, a log that is silent, and no fusion that costs time."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    if provider == "cpu":
        settings.add_session_config_entry("optimization.disable_specified_optimizers", ";".join(SLOWER_FUSED))
    return settings


def session_options(onnxruntime: Any, asked: Asked) -> Any:
    """Session options without a provider."""
    settings = plain_options(onnxruntime, asked.options.provider.name, asked.threads)
    if not asked.options.spin:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return settings


def vendor_session(
    onnxruntime: Any,
    source: str | bytes,
    path: Path,
    row: ProviderRow,
    asked: Asked,
    settings: Any,
    devices: list[Any],
    more: Mapping[str, str] | None = None,
) -> Any:
    """The vendor's session, by the plugin's devices or by the provider's name and the one behind it.

    Args:
        onnxruntime: the module.
        source: a file, or the bytes of one.
        path: for messages.
        row: of the provider.
        asked: what it is asked for.
        settings: of the session.
        devices: of a plugin.
        more: provider options beside those of the provider's row.
    """
    name, given = asked.options.provider.name, {**row.settings(asked), **(more or {})}
    with ort_errors(path, name):
        if devices:
            settings.add_provider_for_devices(devices, given)
            return onnxruntime.InferenceSession(source, settings, enable_fallback=False)
        providers = [(row.ep, given)]
        if row.behind:
            behind = PROVIDERS[row.behind]
            providers.append((behind.ep, behind.settings(replace(asked, options=replace(asked.options, extra={})))))
        try:
            return onnxruntime.InferenceSession(source, settings, providers=providers, enable_fallback=False)
        except RuntimeError as error:
            if "install TensorRT libraries" in str(error):  # the only thing that it says of any library that is missing
                raise not_loaded(onnxruntime, name, row.ep) from error
            raise
