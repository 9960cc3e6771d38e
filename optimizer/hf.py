"""Loading a Hugging Face model folder: which class, which task, which weights; the one place that knows.

Shared by the export and by the torch runtime, so that what is verified is loaded the way it was exported.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.errors import BadInput, UnknownName, missing_package
from optimizer.hf_errors import config_error, weights_error
from optimizer.types import JSON

__all__ = [
    "AUTO_CLASSES",
    "LoadedModel",
    "flat_outputs",
    "generator_class",
    "infer_task",
    "load_model",
    "quiet_libraries",
    "read_config",
    "root_logger_kept",
]

#: What a class name ends in → its task.
_SUFFIXES = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "image-classification"),
    ("ForImageClassificationWithTeacher", "image-classification"),
    ("ForAudioClassification", "audio-classification"),
    ("ForMaskedLM", "fill-mask"),
    ("ForPreTraining", "feature-extraction"),
    ("ModelWithProjection", "feature-extraction"),
    ("Encoder", "feature-extraction"),
    ("Model", "feature-extraction"),
)
#: … and what the class name of a model that writes text ends in. (``GPT2LMHeadModel`` ends in ``Model`` as well.)
_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "DoubleHeadsModel")
#: Architectures that read a text with an encoder and write another with a decoder, and what such classes end in.
_SEQ2SEQ = frozenset(
    ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "mt5", "pegasus", "plbart", "t5", "umt5")
)
_SEQ2SEQ_CLASSES = ("ForConditionalGeneration", "MTModel")

#: Weights that only training reads: a checkpoint without them answers all the same.
_TRAINING_ONLY = ("masked_spec_embed", "mask_token")

#: Task → the ``transformers`` class that picks the architecture's own.
AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "fill-mask": "AutoModelForMaskedLM",
}
#: … and of what writes text, which is exported with its cache of keys and values, by a stage of its own.
_LOADED = {
    **AUTO_CLASSES,
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}


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
            if "transformers" in sys.modules:  # importing it only to silence it would cost more than most stages
                sys.modules["transformers"].utils.logging.disable_progress_bar()
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """Importing the quantizer calls ``logging.basicConfig``, and all logs would go to stderr from then on."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


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
        BadInput: the class writes text, or does something else that is no task here.
    """
    name = _own_class(config)
    if not name:
        return "feature-extraction"
    if name.endswith(_GENERATORS):
        hint = "--task feature-extraction exports its encoder alone"
        if config.get("model_type") in _SEQ2SEQ:
            hint = f"ml-opt export-genai exports encoder and decoder; {hint}"
        elif not config.get("is_encoder_decoder"):
            hint = (
                "ml-opt export-genai exports it with its cache of keys and values (optimize: --task text-generation); "
                "--task feature-extraction exports its hidden states alone"
            )
        raise BadInput(f"{name} generates text; export-onnx is for encoders and classifiers", hint)
    for suffix, task in _SUFFIXES:
        if name.endswith(suffix):
            return "audio-classification" if task == "text-classification" and _is_audio(config) else task
    raise BadInput(
        f"{name} does none of the tasks that export-onnx knows ({', '.join(AUTO_CLASSES)})",
        "--task feature-extraction exports what lies under its head",
    )


def generator_class(config: Mapping[str, JSON]) -> str:
    """The class of a checkpoint that writes text, one token after another.

    Raises:
        BadInput: it does something else, or what it reads with its encoder is no text (Whisper).
    """
    name = _own_class(config)
    if config.get("is_encoder_decoder"):
        if config.get("model_type") in _SEQ2SEQ and name.endswith(_SEQ2SEQ_CLASSES):
            return name
        raise BadInput(
            f"{name or config.get('model_type')} reads with an encoder and writes with a decoder; "
            f"export-genai takes decoders alone, and of such pairs {', '.join(sorted(_SEQ2SEQ))} that read text",
            "--task feature-extraction of ml-opt export-onnx exports its encoder",
        )
    if not name:
        raise BadInput(
            f"config.json names no class ({config.get('model_type')}): nobody can say that it writes text",
            'save the model with save_pretrained, which writes "architectures"',
        )
    if not name.endswith(_GENERATORS) or name.endswith("ForConditionalGeneration"):
        try:
            hint = f"ml-opt export-onnx exports it for {infer_task(config)}"
        except BadInput as error:
            hint = error.hint
        raise BadInput(f"{name} does not write text, or not from text alone; export-genai takes causal decoders", hint)
    return name


def _own_class(config: Mapping[str, JSON]) -> str:
    """The class that a checkpoint was saved by, or nothing."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


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

    Its answers are named (``return_dict``), and hold neither caches nor the states and attentions between layers,
    whatever its configuration asks for.

    Args:
        folder: holds ``config.json`` and weights.
        task: one of :data:`AUTO_CLASSES`, ``text-generation``, or ``text2text-generation`` of an encoder-decoder.
        class_name: what an earlier load chose (:attr:`LoadedModel.class_name`); empty to choose now.
        dtype: ``fp32``, ``fp16`` or ``bf16``: what the weights are converted to.
        attention: ``eager`` or ``sdpa``; None leaves it to the library.
        trust_remote_code: run the Python files of the folder.

    Raises:
        BadInput: the architecture is unknown or does not have the task; the weights are damaged, do not fit the
            configuration, or lack some that the task needs: those would be random.
        MissingPiece: torch, transformers or a package that the model wants is not installed.
    """
    if task not in _LOADED:
        raise UnknownName("task", task, AUTO_CLASSES)
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
    chosen = class_name.removesuffix(".encoder") or _choose_class(raw, task, transformers, trust_remote_code)
    cls = getattr(transformers, chosen, None) or getattr(transformers, _LOADED[task])
    arguments: dict[str, Any] = {
        "dtype": wanted,
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
        "local_files_only": True,
        # Where there are safetensors, nothing else is read: a pickle beside them was never asked about.
        "use_safetensors": any(folder.glob("*.safetensors")),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # … so that they are reported by name, and refused below
    }
    with quiet_libraries():
        try:
            transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        except Exception as error:
            raise config_error(error, folder, raw) from error
        try:
            model, info = cls.from_pretrained(str(folder), **arguments)
        except Exception as error:
            raise weights_error(error, folder, raw, task, _saved_for(raw)) from error
    dropped, notes = _judge_weights(info, folder, raw, task)
    model.eval()
    name = type(model).__name__
    if class_name.endswith(".encoder") or (
        task == "feature-extraction" and model.config.is_encoder_decoder and hasattr(model, "get_encoder")
    ):
        model, name = model.get_encoder().eval(), f"{name}.encoder"
    model.config.return_dict = True
    for extra in ("use_cache", "output_hidden_states", "output_attentions"):
        if getattr(model.config, extra, False):
            setattr(model.config, extra, False)
    return LoadedModel(model, model.config, name, dropped, notes)


def _judge_weights(
    info: Mapping[str, Any], folder: Path, raw: Mapping[str, JSON], task: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Outputs to leave out, and what to say about it; :class:`BadInput` when an answer would be random."""
    if mismatched := sorted(info["mismatched_keys"]):
        key, stored, built = mismatched[0]
        more = f" ({len(mismatched)} such weights)" if len(mismatched) > 1 else ""
        raise BadInput(
            f"the weights of {folder} do not match its config.json: {key} is stored as {list(stored)}, and the "
            f"configuration makes it {list(built)}{more}"
        )
    missing = sorted(key for key in info["missing_keys"] if not key.endswith(_TRAINING_ONLY))
    if not missing:
        return (), ()
    # Hidden states do not pass through the pooler; a classifier's logits do.
    if task == "feature-extraction" and all("pooler" in key for key in missing):
        return ("pooler_output",), ("the checkpoint has no pooler; its output would be random and is left out",)
    saved_for = _saved_for(raw)
    other = f"export the task it was trained for: --task {saved_for}"
    raise BadInput(
        f"{folder} has no weights for {_shown(missing)}, which {task} needs: they would be random",
        other if saved_for != task else "save the whole model again",
    )


def _choose_class(raw: Mapping[str, JSON], task: str, transformers: Any, trust_remote_code: bool) -> str:
    """The checkpoint's own class when it does the task (some have several for one), the Auto class otherwise."""
    auto = _LOADED[task]
    own = _own_class(raw)
    if trust_remote_code and auto in (raw.get("auto_map") or {}):
        return auto  # a class of the folder's own code, which may be called like one of the library's
    if hasattr(transformers, own) and not own.endswith("ForPreTraining"):
        with contextlib.suppress(BadInput):
            if infer_task(raw) == task:
                return own
    if task == "feature-extraction" and raw.get("is_encoder_decoder"):
        encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
        if raw["model_type"] in encoders:
            return str(encoders[raw["model_type"]])
    return auto


def _saved_for(raw: Mapping[str, JSON]) -> str:
    """The task to offer instead of one that does not work."""
    try:
        return infer_task(raw)
    except BadInput:
        return "feature-extraction"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
