"""Loading a Hugging Face model folder: which class, which task, which weights; the one place that knows.

Shared by the export and by the torch runtime, so that what is verified is loaded the way it was exported.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, GateFailed, UnknownName, missing_package
from optimizer.types import JSON

__all__ = [
    "SUPPORTED_TASKS",
    "LoadedModel",
    "flat_outputs",
    "infer_task",
    "load_model",
    "quiet_libraries",
    "read_config",
]

#: What a class name ends in → its task. Longer endings first: ``ForSequenceClassification`` of an audio model is
#: settled by the modality afterwards.
_SUFFIXES = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "image-classification"),
    ("ForImageClassificationWithTeacher", "image-classification"),
    ("ForAudioClassification", "audio-classification"),
    ("ForMaskedLM", "fill-mask"),
    ("ForPreTraining", "feature-extraction"),
    ("EncoderModel", "feature-extraction"),
    ("Encoder", "feature-extraction"),
    ("Model", "feature-extraction"),
)

#: Task → the ``transformers`` class that picks the architecture's own.
_AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "fill-mask": "AutoModelForMaskedLM",
}
SUPPORTED_TASKS = tuple(_AUTO_CLASSES)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and what loading it showed.

    Attributes:
        module: the ``torch.nn.Module``.
        config: its ``PreTrainedConfig``.
        class_name: the class it was loaded with; ``WhisperModel.encoder`` means that model's encoder.
        dropped: outputs that would come from weights the checkpoint does not have.
        warnings: what a reader should know.
    """

    module: Any
    config: Any
    class_name: str
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the bars, banners and logs of transformers, torch and their kin while this is open."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.suppress(ImportError):
                from transformers.utils import logging as hf_logging

                hf_logging.disable_progress_bar()
            yield
    finally:
        logging.disable(before)


def read_config(folder: Path) -> dict[str, JSON]:
    """``config.json`` as it lies in the folder. Raises :class:`BadInput` when it is not a model's configuration."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadInput(
            f"{folder / 'config.json'} has no model_type, so it is not a transformers model",
            "export it to .onnx with the library it comes from, and give that file",
        )
    return config


def infer_task(config: Mapping[str, JSON]) -> str:
    """The task of a checkpoint, from the class it was saved by; ``feature-extraction`` when it names none.

    Raises:
        BadInput: the class has no task here (text generation has a command of its own).
    """
    architectures = config.get("architectures") or []
    if not architectures:
        return "feature-extraction"
    name = str(architectures[0])
    for suffix, task in _SUFFIXES:
        if name.endswith(suffix):
            if task == "text-classification" and _is_audio(config):
                return "audio-classification"
            return task
    raise BadInput(
        f"{name} is not a model that export-onnx knows a task for",
        f"choose one it has the weights for: --task {'|'.join(SUPPORTED_TASKS)}",
    )


def _is_audio(config: Mapping[str, JSON]) -> bool:
    return any(name in config for name in ("conv_dim", "num_mel_bins", "feat_extract_norm"))


def load_model(
    folder: Path,
    task: str,
    *,
    class_name: str = "",
    dtype: str = "fp32",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a folder's model for a task, in evaluation mode on the CPU.

    Args:
        folder: holds ``config.json`` and weights.
        task: one of :data:`SUPPORTED_TASKS`.
        class_name: what an earlier load chose (:attr:`LoadedModel.class_name`); empty to choose now.
        dtype: ``fp32``, ``fp16`` or ``bf16``: what the weights are converted to.
        attention: ``eager`` or ``sdpa``; None leaves it to the library.
        trust_remote_code: run the Python files of the folder.

    Raises:
        BadInput: the architecture is unknown or does not have the task, or the weights are damaged.
        GateFailed: the checkpoint lacks weights that the task needs: they would be random.
        MissingPiece: torch or transformers is not installed.
    """
    if task not in _AUTO_CLASSES:
        raise UnknownName("task", task, SUPPORTED_TASKS)
    raw = read_config(folder)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_package(error.name or "torch", "loading a PyTorch model") from None
    if "auto_map" in raw and not trust_remote_code and raw["model_type"] not in transformers.CONFIG_MAPPING:
        raise BadInput(
            f"{folder} comes with Python code of its own ({raw['model_type']}), which would run on this machine",
            "read that code, and if you trust it add --trust-remote-code",
        )
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    chosen = class_name.removesuffix(".encoder") or _choose_class(raw, task, transformers)
    cls = getattr(transformers, chosen, None) or getattr(transformers, _AUTO_CLASSES[task])
    arguments: dict[str, Any] = {"dtype": wanted, "output_loading_info": True, "local_files_only": True}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    with quiet_libraries():
        try:
            model, info = cls.from_pretrained(str(folder), **arguments)
        except Exception as error:
            raise _translated(error, folder, raw, task) from error
    missing = sorted(info["missing_keys"])
    notes: list[str] = []
    dropped: tuple[str, ...] = ()
    if missing and all("pooler" in key for key in missing):
        dropped = ("pooler_output",)
        notes.append("the checkpoint has no pooler; its output would be random and is left out")
    elif missing:
        raise GateFailed(
            f"{folder} has no weights for {_shown(missing)}, which {task} needs: they would be random",
            f"export the task it was trained for: --task {_safe_infer(raw)}",
        )
    if mismatched := [str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())]:
        raise BadInput(f"{folder}: the shapes of {_shown(mismatched)} do not match config.json")
    model.eval()
    name = type(model).__name__
    if class_name.endswith(".encoder") or (
        task == "feature-extraction" and model.config.is_encoder_decoder and hasattr(model, "get_encoder")
    ):
        model, name = model.get_encoder().eval(), f"{name}.encoder"
    return LoadedModel(model, model.config, name, dropped, tuple(notes))


def _choose_class(raw: Mapping[str, JSON], task: str, transformers: Any) -> str:
    """The checkpoint's own class when it does the task (some have several for one), the Auto class otherwise."""
    architectures = raw.get("architectures") or []
    own = str(architectures[0]) if architectures else ""
    if own and hasattr(transformers, own) and _safe_infer(raw) == task and not own.endswith("ForPreTraining"):
        return own
    if task == "feature-extraction" and raw.get("is_encoder_decoder"):
        encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
        if raw["model_type"] in encoders:
            return str(encoders[raw["model_type"]])
    return _AUTO_CLASSES[task]


def _safe_infer(raw: Mapping[str, JSON]) -> str:
    try:
        return infer_task(raw)
    except BadInput:
        return "feature-extraction"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _translated(error: Exception, folder: Path, raw: Mapping[str, JSON], task: str) -> Exception:
    """The vendor's exception in our words; what is not recognized is handed on as it is, a bug to report."""
    text = str(error)
    kind = type(error).__name__
    lowered = text.lower()
    if kind == "SafetensorError" or "safetensor" in lowered and ("header" in lowered or "incomplete" in lowered):
        return BadInput(f"the weights of {folder} are damaged or cut short: {text}", "download or save them again")
    if kind in ("UnpicklingError", "EOFError") or "PytorchStreamReader" in text:
        return BadInput(f"the weights of {folder} are damaged or cut short: {text.splitlines()[0]}")
    if "Unrecognized configuration class" in text or "for this kind of AutoModel" in text:
        return BadInput(
            f"a {raw['model_type']} model cannot do {task}", f"this one was saved for: --task {_safe_infer(raw)}"
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text or isinstance(error, KeyError):
        return BadInput(
            f"transformers does not know the architecture {raw['model_type']!r} of {folder}",
            "a newer transformers may; or export it to .onnx with its own library and give that file",
        )
    if "size mismatch" in lowered or "mismatched" in lowered:
        return BadInput(f"the weights of {folder} do not match its config.json: {_first_lines(text)}")
    if isinstance(error, ImportError):
        return missing_package(error.name or text.split()[0], f"loading {folder}")
    if isinstance(error, (OSError, ValueError, RuntimeError)):
        return BadInput(f"{folder} cannot be loaded for {task}: {_first_lines(text)}")
    return error


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]


def flat_outputs(answers: Any) -> dict[str, Any]:
    """The tensors of a model's answer by name, in order: nested ones as ``outer.inner``, None left out."""
    import torch

    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat[prefix] = value
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        elif isinstance(value, (tuple, list)):
            for place, inner in enumerate(value):
                walk(f"{prefix}.{place}" if prefix else str(place), inner)

    walk("", answers)
    return flat
