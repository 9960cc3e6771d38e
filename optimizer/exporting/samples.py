"""Real inputs for a model that was just loaded: they trace the export and become the artifact's golden inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput
from optimizer.hf import LoadedModel, quiet_libraries
from optimizer.hf_errors import first_lines
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sample", "labels_of", "make_sample"]

#: Four sentences of different lengths: short, long, with numbers, with punctuation. Their padding is part of the trace.
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Great food and service, huge portions, and they were open until 11:30 on a Sunday night!",
    "Why?",
    "I would not recommend this phone to anybody: the battery died after 2 days, and nobody answered my letters.",
)
_QUESTIONS = ("What happened?",) * len(_SENTENCES)


@dataclass(frozen=True)
class Sample:
    """Inputs of at least two rows and two steps, so that no dimension is traced as the constant 1.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        arrays: input name → array, batch first.
        axes: input name → axis → name of the dynamic dimension.
        min_length: fewest steps the model takes; None without a sequence (where ``max_length`` is None too).
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

    @property
    def tensors(self) -> dict[str, Any]:
        """The arrays as torch's tensors, of the same memory."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays.items()}

    @property
    def specs(self) -> list[TensorSpec]:
        """The inputs as a manifest names them, dynamic dimensions by name."""
        return [
            TensorSpec(name, str(array.dtype), tuple(self.axes[name].get(d, n) for d, n in enumerate(array.shape)))
            for name, array in self.arrays.items()
        ]


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
    taken = set(inspect.signature(loaded.module.forward).parameters)
    main = str(getattr(loaded.module, "main_input_name", ""))
    if main not in taken and "input_ids" in taken:
        main = "input_ids"
    if "input_ids" in taken and "pixel_values" in taken:
        raise BadInput(
            f"{loaded.class_name} has a text and an image half",
            "save each half as a model of its own (CLIPTextModel, CLIPVisionModel) and export those",
        )
    if main == "input_ids":
        return _text(loaded, folder, task, taken, max_length)
    if main == "input_values" and hasattr(loaded.config, "conv_kernel"):
        return _waveform(loaded, folder, max_length)
    if max_length is not None:
        raise BadInput(f"--max-length is for models with a sequence; {loaded.class_name} takes {main or 'none'}")
    if main == "pixel_values":
        return _image(loaded, folder)
    if main == "input_features" and hasattr(loaded.config, "max_source_positions"):
        return _spectrogram(loaded, folder)
    raise BadInput(
        f"{loaded.class_name} takes {main or sorted(taken)} in a form that is not known here",
        "text (input_ids), images (pixel_values), waveforms and Whisper's spectrograms are; "
        "export it to .onnx with its own library and give that file",
    )


def _text(loaded: LoadedModel, folder: Path, task: str, taken: set[str], max_length: int | None) -> Sample:
    import numpy as np

    limit = _position_limit(loaded)
    if max_length is not None and limit is not None and max_length > limit:
        raise BadInput(f"--max-length {max_length} is beyond the model: it has positions for {limit} tokens")
    longest = max_length or limit
    tokenizer, warnings = _usable_tokenizer(loaded, folder)
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in taken and (getattr(loaded.config, "type_vocab_size", 0) or 0) > 1:
        names.append("token_type_ids")
    names = [name for name in names if name in taken]
    if tokenizer is None:
        arrays = _counted_ids(loaded, names, longest)
    else:
        first, second = (_SENTENCES, None) if task != "question-answering" else (_QUESTIONS, _SENTENCES)
        with quiet_libraries():
            encoded = tokenizer(list(first), second and list(second), padding=True, truncation=True, max_length=longest)
        arrays = {n: np.asarray(encoded[n], dtype=np.int64) for n in names if n in encoded}
        if "token_type_ids" in names and "token_type_ids" not in arrays:
            arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    axes = {name: {0: "batch", 1: "sequence"} for name in arrays}
    companions = (tokenizer,) if tokenizer is not None else ()
    return Sample("text", arrays, axes, 1, longest, companions, warnings)


def _usable_tokenizer(loaded: LoadedModel, folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The folder's tokenizer if the model has an embedding for each of its tokens, and what is to be said."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return None, ("no tokenizer in the folder: golden inputs are token ids in order, and texts cannot be fed",)
    table = _vocabulary(loaded)
    if len(tokenizer) > table:
        many = f"the tokenizer has {len(tokenizer)} tokens and the model embeddings for {table}"
        return None, (f"{many}: it was left out, golden inputs are token ids in order, and texts cannot be fed",)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer, ()


def _vocabulary(loaded: LoadedModel) -> int:
    """Rows of the embedding table: the number of tokens there really are, whatever the configuration calls it."""
    return int(loaded.module.get_input_embeddings().weight.shape[0])


def _counted_ids(loaded: LoadedModel, names: list[str], longest: int | None) -> dict[str, NDArray[Any]]:
    """Token ids spread over the vocabulary, for a model without a tokenizer; the second row is shorter and padded."""
    import numpy as np

    config, table = loaded.config, _vocabulary(loaded)
    steps = min(16, longest or 16)
    ids = (np.arange(2 * steps).reshape(2, steps) * 37 + 11) % max(table - 2, 1)
    mask = np.ones((2, steps), dtype=np.int64)
    mask[1, steps * 3 // 4 :] = 0
    eos = getattr(config, "eos_token_id", None)
    if isinstance(eos, int) and 0 <= eos < table:
        # CLIP pools at its end token: a row without one would be pooled at the wrong place.
        ids[np.arange(2), mask.sum(1) - 1] = eos
    pad = getattr(config, "pad_token_id", None) or 0
    ids = np.where(mask == 1, ids, pad if 0 <= pad < table else 0).astype(np.int64)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: made[name] for name in names}


def _position_limit(loaded: LoadedModel) -> int | None:
    """Most tokens a text model takes, from its table of positions; None for relative positions without a limit.

    RoBERTa and its kin count positions from the padding id on, and lose that many rows of the table: there the table
    has a ``padding_idx``.
    """
    import torch

    for name, table in loaded.module.named_modules():
        if name.endswith(("position_embeddings", "position_embedding")) and isinstance(table, torch.nn.Embedding):
            return int(table.num_embeddings) - (table.padding_idx + 1 if table.padding_idx is not None else 0)
    limit = getattr(loaded.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, or None when it has none."""
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each tokenizer has its own way to fail on a bad file
            raise BadInput(
                f"the tokenizer of {folder} cannot be loaded: {first_lines(error)}",
                "mend it, or take its files out of the folder to export without a tokenizer",
            ) from error


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
        light = np.cos((5 - row) * y) + (x * y > 0.1 * row) - 0.5
        rows.append(np.stack([np.sin((3 + row) * x * (plane + 1)) + light for plane in range(channels)]))
    arrays = {"pixel_values": np.stack(rows).astype(np.float32)}
    companions = (processor,) if processor is not None else ()
    return Sample("image", arrays, {"pixel_values": {0: "batch"}}, companions=companions)


def _image_size(config: Any, processor: Any) -> tuple[int, int]:
    """Height and width: what the processor makes, for that is what the model will be fed; or what it was built for."""
    sizes: list[Any] = []
    if processor is not None and getattr(processor, "do_center_crop", False):
        sizes.append(getattr(processor, "crop_size", None))
    elif processor is not None and getattr(processor, "do_resize", False):
        sizes.append(getattr(processor, "size", None))
    sizes.append(getattr(config, "image_size", None))
    for size in sizes:
        if hasattr(size, "get"):
            edge = size.get("shortest_edge")
            size = (size.get("height") or edge, size.get("width") or edge)
        elif isinstance(size, int):
            size = (size, size)
        if isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size):
            return int(size[0]), int(size[1])
    return 224, 224  # what ImageNet models are trained at when neither file says otherwise


def _waveform(loaded: LoadedModel, folder: Path, max_length: int | None) -> Sample:
    import numpy as np

    config = loaded.config
    shortest = _receptive_field(config)
    if max_length is not None and max_length < 2 * shortest:
        raise BadInput(f"--max-length {max_length} is too short: {loaded.class_name} hears {shortest} samples at once")
    steps = min(max(shortest * 2, 3200), max_length or 3200)
    time = np.arange(steps) / 16000.0
    rows = [np.sin(2 * np.pi * f * time) + 0.3 * np.sin(2 * np.pi * 3.1 * f * time) for f in (220.0, 330.0)]
    values = np.stack(rows).astype(np.float32)
    processor = _processor(folder, "AutoFeatureExtractor")
    arrays: dict[str, NDArray[Any]] = {"input_values": values}
    # Group-norm models were trained without a mask, on padding of silence (Wav2Vec2FeatureExtractor says so too).
    masked = getattr(config, "feat_extract_norm", "group") == "layer"
    if getattr(processor, "return_attention_mask", masked):
        mask = np.ones((2, steps), dtype=np.int64)
        mask[1, steps * 3 // 4 :] = 0
        arrays = {"input_values": (values * mask).astype(np.float32), "attention_mask": mask}
    axes = {name: {0: "batch", 1: "samples"} for name in arrays}
    companions = (processor,) if processor is not None else ()
    return Sample("audio", arrays, axes, shortest, max_length, companions)


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
            raise BadInput(f"{folder / 'preprocessor_config.json'} cannot be used: {first_lines(error)}") from error


def labels_of(config: Any, task: str) -> list[str]:
    """Names of a classifier's classes in order; empty for tasks without classes."""
    if not task.endswith("-classification"):
        return []
    mapping: Mapping[Any, JSON] = getattr(config, "id2label", None) or {}
    return [str(mapping[key]) for key in sorted(mapping, key=int)]
