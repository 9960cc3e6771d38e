"""Compiled graphs in ONNX files (EPContext nodes), which open without compiling.

The TensorRT-RTX plugin is asked through ONNX Runtime's ModelCompiler. The built-in TensorRT provider writes the file
itself while a session is opened, told by the session options of ONNX Runtime's EP context design
(https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimizer.engines.profiles import Profile
from optimizer.errors import BadInput
from optimizer.runtime import SessionOptions
from optimizer.runtimes._ort_errors import ort_errors
from optimizer.runtimes._ort_gpu import tf32_allowed, without_tf32
from optimizer.runtimes._ort_open import asked_of, session_options, vendor_session
from optimizer.runtimes._ort_providers import PROVIDERS, check_got, devices_of, library
from optimizer.runtimes._ort_shapes import Shapes
from optimizer.types import JSON

__all__ = ["compile_context"]


def compile_context(
    path: Path, target: Path, options: SessionOptions, profile: Profile | None, *, embed: bool
) -> dict[str, JSON]:
    """Write a graph as its provider compiles it: an ONNX file with EPContext nodes.

    Args:
        path: an ``.onnx`` file.
        target: what is written; where ``embed`` is off, a file with the compiled graph is written beside it.
        options: the provider, and whether TF32 is allowed.
        profile: the shapes that it is compiled for; None where every dimension is fixed.
        embed: the compiled graph is in the file itself, which then must not exceed 2 GiB.

    Returns:
        ``onnxruntime`` and, for a plugin, ``plugin``: the versions that compiled.

    Raises:
        BadInput: the provider does not compile, or cannot read the file.
        MissingPiece: it cannot load on this machine.
    """
    row = PROVIDERS[options.provider.name]
    if not row.compiles:
        takers = [name for name, each in PROVIDERS.items() if each.compiles]
        raise BadInput(f"the provider {options.provider} compiles no graphs", f"use {' or '.join(takers)}")
    onnxruntime = library()
    asked = replace(asked_of(options, row), shapes=Shapes(profile))
    devices = devices_of(onnxruntime, options.provider.name, row, asked.precision)
    release = None if tf32_allowed(options, None) else without_tf32()
    try:
        settings = session_options(onnxruntime, asked)
        if devices:
            flags = onnxruntime.OrtCompileApiFlags
            with ort_errors(path, options.provider.name):
                settings.add_provider_for_devices(devices, row.settings(asked))
                compiler = onnxruntime.ModelCompiler(
                    settings,
                    str(path),
                    embed_compiled_data_into_model=embed,
                    flags=flags.ERROR_IF_NO_NODES_COMPILED | flags.ERROR_IF_OUTPUT_FILE_EXISTS,
                )
                compiler.compile_to_file(str(target))
        else:
            settings.add_session_config_entry("ep.context_enable", "1")
            settings.add_session_config_entry("ep.context_file_path", str(target))
            settings.add_session_config_entry("ep.context_embed_mode", "1" if embed else "0")
            session = vendor_session(onnxruntime, str(path), path, row, asked, settings, devices)
            check_got(onnxruntime, session, options.provider.name, row, path)
            del session
    finally:
        if release:
            release()
    versions: dict[str, JSON] = {"onnxruntime": onnxruntime.__version__}
    return {**versions, "plugin": row.plugin_version} if row.plugin else versions
