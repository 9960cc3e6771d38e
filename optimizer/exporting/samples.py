"""Real inputs for a model that was just loaded: they trace the export and become the artifact's golden inputs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.hf import LoadedModel, quiet_libraries
from optimizer.types import JSON

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sample", "make_sample"]

#: Four sentences of different lengths: short, long, with numbers, with punctuation. Their padding is part of the trace.
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Great food and service, huge portions, and they were open until 11:30 on a Sunday night!",
    "Why?",
    "I would not recommend this phone to anybody: the battery died after 2 days, and nobody answered my letters.",
)
_QUESTION = "What happened?"


@dataclass(frozen=True)
class Sample:
    """Inputs of at least two rows and two steps, so that no dimension is traced as the constant 1.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        arrays: input name → array, batch first.
        axes: input name → axis → name of the dynamic dimension.
        min_length: fewest steps the model takes; None without a sequence.
        max_length: most steps the model takes; None when nothing limits it.
        companions: the tokenizer or processor, for ``save_pretrained``.
        warnings: what a reader should know.
    """

    modality: str
    arrays: dict[str, NDArray[Any]]
    axes: dict[str, dict[int, str]]
    min_length: int | None = None
    max_length: int | None = None
    companions: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = field(default=())


def make_sample(loaded: LoadedModel, folder: Path, task: str, max_length: int | None) -> Sample:
    """Build the sample for a model from its folder's own tokenizer or processor.

    Args:
        loaded: the model.
        folder: its folder.
        task: the task it is loaded for.
        max_length: most steps asked for; None for what the model allows.

    Raises:
        BadInput: the model takes inputs that are neither text, images nor audio, or ``max_length`` is beyond it.
    """
    main = getattr(loaded.module, "main_input_name", "")
    taken = set(inspect.signature(loaded.module.forward).parameters)
    if main == "input_ids" or (main not in taken and "input_ids" in taken):
        if "pixel_values" in taken:
            raise BadInput(
                f"{loaded.class_name} has a text and an image half",
                "save each half as a model of its own (CLIPTextModel, CLIPVisionModel) and export those",
            )
        return _text(loaded, folder, task, taken, max_length)
    if max_length is not None and main != "input_values":
        raise BadInput(f"--max-length is for models with a sequence; {loaded.class_name} takes {main or 'none'}")
    if main == "pixel_values":
        return _image(loaded, folder)
    if main == "input_values":
        return _waveform(loaded, folder, max_length)
    if main == "input_features":
        return _spectrogram(loaded, folder)
    raise BadInput(f"{loaded.class_name} takes {main or sorted(taken)}: neither text, images nor audio")


def _text(loaded: LoadedModel, folder: Path, task: str, taken: set[str], max_length: int | None) -> Sample:
    import numpy as np

    limit = _position_limit(loaded.config, folder)
    if max_length is not None and limit is not None and max_length > limit:
        raise BadInput(f"--max-length {max_length} is beyond the model: it has positions for {limit} tokens")
    longest = max_length or limit
    warnings: tuple[str, ...] = ()
    tokenizer = _tokenizer(folder)
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in taken and (getattr(loaded.config, "type_vocab_size", 0) or 0) > 1:
        names.append("token_type_ids")
    names = [name for name in names if name in taken]
    if tokenizer is not None and len(tokenizer) <= loaded.config.vocab_size:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        first = list(_SENTENCES) if task != "question-answering" else [_QUESTION] * len(_SENTENCES)
        second = list(_SENTENCES) if task == "question-answering" else None
        encoded = tokenizer(first, second, padding=True, truncation=True, max_length=longest, return_tensors="np")
        arrays = {n: np.asarray(encoded[n], dtype=np.int64) for n in names if n in encoded}
        if "token_type_ids" in names and "token_type_ids" not in arrays:
            arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    else:
        if tokenizer is not None:
            warnings = ("the tokenizer has more tokens than the model has embeddings; it was not used",)
            tokenizer = None
        else:
            warnings = ("no tokenizer in the folder: golden inputs are token ids in order, and texts cannot be fed",)
        arrays = _counted_ids(loaded.config, names, longest)
    axes = {name: {0: "batch", 1: "sequence"} for name in arrays}
    companions = (tokenizer,) if tokenizer is not None else ()
    return Sample("text", arrays, axes, 1, longest, companions, warnings)


def _counted_ids(config: Any, names: list[str], longest: int | None) -> dict[str, NDArray[Any]]:
    """Token ids spread over the vocabulary, for a model without a tokenizer; the second row is shorter and padded."""
    import numpy as np

    steps = min(16, longest or 16)
    ids = (np.arange(2 * steps).reshape(2, steps) * 37 + 11) % max(config.vocab_size - 2, 1)
    mask = np.ones((2, steps), dtype=np.int64)
    if steps > 2:
        mask[1, steps * 3 // 4 :] = 0
    eos = getattr(config, "eos_token_id", None)
    if isinstance(eos, int) and eos < config.vocab_size:
        # CLIP pools at its end token: a row without one would be pooled at the wrong place.
        ids[np.arange(2), mask.sum(1) - 1] = eos
    pad = getattr(config, "pad_token_id", 0) or 0
    ids = np.where(mask == 1, ids, pad if pad < config.vocab_size else 0).astype(np.int64)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: made[name] for name in names}


def _position_limit(config: Any, folder: Path) -> int | None:
    """Most tokens a text model takes, from its position table; None for relative positions without a limit.

    RoBERTa and its kin begin positions after the padding id, and lose that many rows of the table.
    """
    table = getattr(config, "max_position_embeddings", None)
    if getattr(config, "model_type", "") in ("t5", "mt5", "umt5") or not table or table < 0:
        table = None
    if table and config.model_type in _OFFSET_POSITIONS:
        table -= (config.pad_token_id or 0) + 1
    limits = [table] if table else []
    sentence = folder / "sentence_bert_config.json"
    if sentence.is_file():
        # A sentence-transformers model was trained, and is always run, at this length.
        wanted = json.loads(sentence.read_text(encoding="utf-8")).get("max_seq_length")
        if isinstance(wanted, int) and not table:
            limits.append(wanted)
    return min(limits) if limits else None


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "roberta-prelayernorm")


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None when it has none."""
    if not any((folder / f).is_file() for f in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")):
        return None
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise BadInput(f"the tokenizer of {folder} cannot be loaded: {str(error).splitlines()[0]}") from error


def _image(loaded: LoadedModel, folder: Path) -> Sample:
    import numpy as np

    config = loaded.config
    processor = _processor(folder, "AutoImageProcessor")
    height, width = _image_size(config, processor)
    channels = int(getattr(config, "num_channels", 3) or 3)
    # Two smooth pictures with edges and texture, in the range that normalized pixels have.
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    rows = []
    for row in range(2):
        planes = [np.sin((3 + row) * x * (c + 1)) + np.cos((5 - row) * y) + (x * y > 0.1 * row) - 0.5 for c in range(channels)]
        rows.append(np.stack(planes))
    arrays = {"pixel_values": np.stack(rows).astype(np.float32)}
    companions = (processor,) if processor is not None else ()
    return Sample("image", arrays, {"pixel_values": {0: "batch"}}, companions=companions)


def _image_size(config: Any, processor: Any) -> tuple[int, int]:
    size: Any = getattr(config, "image_size", None)
    if size is None and processor is not None:
        crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        size = crop or getattr(processor, "size", None)
    if isinstance(size, Mapping) or hasattr(size, "get"):
        size = (size.get("height") or size.get("shortest_edge"), size.get("width") or size.get("shortest_edge"))
    if isinstance(size, int):
        size = (size, size)
    if not size or not all(isinstance(s, int) and s > 0 for s in size):
        size = (224, 224)  # what ImageNet models are trained at when neither file says otherwise
    return int(size[0]), int(size[1])


def _waveform(loaded: LoadedModel, folder: Path, max_length: int | None) -> Sample:
    import numpy as np

    config = loaded.config
    shortest = _receptive_field(config)
    steps = max(shortest * 2, 3200)
    time = np.arange(steps) / 16000.0
    rows = [np.sin(2 * np.pi * f * time) + 0.3 * np.sin(2 * np.pi * 3.1 * f * time) for f in (220.0, 330.0)]
    values = np.stack(rows).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {"input_values": values}
    # Group-norm models were trained without a mask and ignore padding by themselves (Wav2Vec2FeatureExtractor).
    if getattr(config, "feat_extract_norm", "group") == "layer":
        mask = np.ones((2, steps), dtype=np.int64)
        mask[1, steps * 3 // 4 :] = 0
        arrays = {"input_values": values * mask, "attention_mask": mask}
        arrays["input_values"] = arrays["input_values"].astype(np.float32)
    processor = _processor(folder, "AutoFeatureExtractor")
    axes = {name: {0: "batch", 1: "samples"} for name in arrays}
    companions = (processor,) if processor is not None else ()
    return Sample("audio", arrays, axes, shortest, max_length or 16000, companions)


def _receptive_field(config: Any) -> int:
    """Samples that one frame of a Wav2Vec2-like encoder sees: the shortest waveform it can take."""
    field_size, stride = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field_size += (kernel - 1) * stride
        stride *= step
    return field_size


def _spectrogram(loaded: LoadedModel, folder: Path) -> Sample:
    import numpy as np

    config = loaded.config
    # Whisper's position table is used whole: it takes exactly 30 s, two frames a position.
    frames = 2 * int(config.max_source_positions)
    mels = np.arange(config.num_mel_bins)[:, None]
    rows = [np.cos(mels / (3.0 + r) + np.arange(frames)[None, :] / (11.0 + r)) for r in range(2)]
    processor = _processor(folder, "AutoFeatureExtractor")
    companions = (processor,) if processor is not None else ()
    arrays = {"input_features": np.stack(rows).astype(np.float32)}
    return Sample("audio", arrays, {"input_features": {0: "batch"}}, companions=companions)


def _processor(folder: Path, auto: str) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        return None
    import transformers

    with quiet_libraries():
        try:
            return getattr(transformers, auto).from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise BadInput(f"preprocessor_config.json of {folder} cannot be used: {str(error).splitlines()[0]}") from error


def labels_of(config: Any, task: str) -> list[str]:
    """Names of a classifier's classes in order; empty for tasks without classes."""
    if not task.endswith("-classification"):
        return []
    mapping: Mapping[Any, JSON] = getattr(config, "id2label", None) or {}
    return [str(mapping[key]) for key in sorted(mapping, key=int)]
