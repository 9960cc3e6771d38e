"""The adapter around ``onnxruntime_genai.models.builder``: every use of it is in this file.

The builder writes graphs for the decoders that it knows by hand: attention with its rotation and its cache in one node
(GroupQueryAttention), weights in blocks (MatMulNBits).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, missing_package
from optimizer.hf import quiet_libraries, root_logger_kept
from optimizer.hf_errors import first_lines
from optimizer.types import JSON, Precision

__all__ = ["ALGORITHMS", "KNOWN", "Build", "build", "knows"]

#: Classes that the builder of 0.18 has a graph for, and whose graph answered here as PyTorch does. It knows more: of
#: OLMo it made another model, Gemma 3 and Phi 3 stop it, and ONNX Runtime does not run its Gemma 2. Those, and all
#: that it does not know, are traced (:mod:`optimizer.exporting.genai_decoder`).
KNOWN = frozenset(
    f"{name}ForCausalLM"
    for name in ("Gemma", "Granite", "HunYuanDenseV1", "Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
)
#: How weights are rounded, by the builder's own names. ``…_last`` keeps the last product in 8 bits, ``…_mixed``
#: those too that llama.cpp found sensitive: of the first and last layers and of every third between them.
ALGORITHMS = ("default", "rtn", "k_quant", "rtn_last", "k_quant_last", "k_quant_mixed")
#: GroupQueryAttention rotates heads of a multiple of this many numbers.
_HEAD_STEP = 16
#: Modules that the builder imports by names of its own, without a package.
_OWN = ("builder_config", "builders", "kv_cache_variant", "loaders", "quantization", "split_cpu_embedding")


@dataclass(frozen=True)
class Build:
    """What to build.

    Attributes:
        precision: of the weights.
        provider: ``cpu`` or ``cuda``: which kernels the graph is for.
        block_size: weights that share a scale.
        algorithm: one of :data:`ALGORITHMS`.
        float_head: the last product stays in float.
        share_embeddings: one matrix is head and table, where the model ties them.
        accuracy_level: what products in blocks may round activations to; None for the builder's choice.
        trust_remote_code: run the Python files of the folder.
    """

    precision: Precision
    provider: str
    block_size: int
    algorithm: str
    float_head: bool
    share_embeddings: bool
    accuracy_level: int | None
    trust_remote_code: bool

    def extra(self, tied: bool) -> list[str]:
        """The builder's ``KEY=VALUE`` options."""
        said = {"hf_token": "false", "hf_remote": str(self.trust_remote_code).lower()}
        if tied:
            said["shared_embeddings"] = str(self.share_embeddings).lower()
        if self.precision in (Precision.INT4, Precision.INT8):
            said |= {"block_size": str(self.block_size), "algo_config": self.algorithm}
            if self.accuracy_level is not None:
                said["accuracy_level"] = str(self.accuracy_level)
            if self.float_head:
                said["nodes_to_exclude"] = "/lm_head/MatMul"
        return [f"{key}={value}" for key, value in said.items()]


def knows(class_name: str, config: Mapping[str, JSON]) -> bool:
    """Whether the builder has a graph for a checkpoint, and ONNX Runtime kernels for its size of heads."""
    heads = config.get("num_attention_heads") or 1
    head_size = config.get("head_dim") or int(config.get("hidden_size") or 0) // int(heads)
    return class_name in KNOWN and head_size % _HEAD_STEP == 0


def build(folder: Path, out: Path, asked: Build, config: Mapping[str, JSON]) -> None:
    """Write ``model.onnx``, ``model.onnx.data`` and ``genai_config.json`` into ``out``.

    Args:
        folder: a Hugging Face model folder with a tokenizer.
        out: an empty folder.
        asked: what to build.
        config: the folder's ``config.json``.

    Raises:
        BadInput: the builder refuses; its reason is handed on.
        MissingPiece: onnxruntime-genai is not installed.
    """
    tied = bool(config.get("tie_word_embeddings"))
    with tempfile.TemporaryDirectory(dir=out) as work, _builder() as builder, _quiet():
        made = Path(work) / "made"
        place = (None, str(folder), str(made), asked.precision.value, asked.provider, str(Path(work) / "cache"))
        try:
            extra = builder.parse_extra_options(*place, asked.extra(tied))
            builder.create_model(*place, **extra)
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"the builder of onnxruntime-genai does not take {folder} in {asked.precision}: {_reason(error)}",
                "--algorithm default with --block-size 32 takes every size of weights",
            ) from error
        for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
            if (made / name).is_file():
                (made / name).rename(out / name)


def _reason(error: BaseException) -> str:
    return first_lines(error) if isinstance(error, Exception) else f"it gave up ({error})"


@contextlib.contextmanager
def _builder() -> Iterator[Any]:
    """The builder's module.

    It puts its own folder onto the path and imports modules called ``builders`` or ``quantization`` from there. While
    it works those names are its own; before and after they are whoever's they were.
    """
    try:
        root = Path(str(importlib.import_module("onnxruntime_genai").__file__)).parent / "models"
    except ImportError as error:
        raise missing_package(error.name or "onnxruntime_genai", "export-genai") from None
    theirs = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in _OWN}
    for name in theirs:
        del sys.modules[name]
    before = list(sys.path)
    sys.path.insert(0, str(root))
    try:
        # Importing the quantizer calls ``logging.basicConfig``, and all logs would go to stderr from then on.
        with quiet_libraries(), root_logger_kept():
            sys.modules.update(_kept)
            yield importlib.import_module("onnxruntime_genai.models.builder")
    finally:
        sys.path[:] = before
        for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
            _kept[name] = sys.modules.pop(name)
        sys.modules.update(theirs)


#: The builder's own modules, between two uses of it.
_kept: dict[str, Any] = {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the builder prints, its bars, and the log of the quantizer under it."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before
