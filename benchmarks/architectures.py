"""Small models with random weights, one for every architecture that ml-opt must be right on; they need no hub.

``save(name, task, folder)`` writes what ``save_pretrained`` writes: ``config.json``, ``model.safetensors``, and a
tokenizer or processor. Weights are drawn wide enough that a wrong graph shows in the answers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer.hf import AUTO_CLASSES

__all__ = ["ARCHITECTURES", "Architecture", "build", "save"]

HIDDEN, HEADS, LAYERS, VOCAB, POSITIONS = 128, 4, 2, 1000, 128
LABELS = ("negative", "neutral", "positive")
CORPUS = Path(__file__).parent / "data" / "sentiment-train.jsonl"

_TEXT = ("feature-extraction", "text-classification", "token-classification", "question-answering")
_IMAGE = ("feature-extraction", "image-classification")
_AUDIO = ("feature-extraction", "audio-classification")


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix.

    Attributes:
        modality: ``text``, ``image`` or ``audio``.
        tasks: what it is exported for.
        config: its class of configuration, and the settings that make it small.
        classes: task → class, where the Auto class is not the one such checkpoints are saved with.
        companion: the tokenizer (``wordpiece``, ``bpe``, ``unigram``) or processor that is saved beside it.
    """

    modality: str
    tasks: tuple[str, ...]
    config: tuple[str, Mapping[str, Any]]
    companion: str
    classes: Mapping[str, str] = field(default_factory=dict)


_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * HIDDEN,
}
_BERT = {**_ENCODER, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
#: RoBERTa and its kin count positions from pad_token_id + 1.
_ROBERTA = {**_ENCODER, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "type_vocab_size": 1}
_VIT = {k: v for k, v in _ENCODER.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
_SPEECH = {
    **_ENCODER,
    "vocab_size": 40,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 32,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
}
_LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_DEBERTA = {
    **_BERT,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": 4 * HIDDEN,
    "max_position_embeddings": POSITIONS,
}
_T5 = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "d_kv": HIDDEN // HEADS,
    "d_ff": 4 * HIDDEN,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "pad_token_id": 0,
}
_CLIP_TEXT = {
    **_ENCODER,
    "max_position_embeddings": 77,
    "projection_dim": 64,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_RESNET = {
    "embedding_size": 32,
    "hidden_sizes": [64, 128, 128, 256],
    "depths": [1, 1, 1, 1],
    "layer_type": "bottleneck",
}
_CONVNEXT = {"hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "image_size": 64}
_WHISPER = {
    "vocab_size": VOCAB,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": 1,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 4 * HIDDEN,
    "decoder_ffn_dim": 4 * HIDDEN,
    "num_mel_bins": 16,
    "max_source_positions": 64,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture("text", _TEXT, ("BertConfig", _BERT), "wordpiece"),
    "distilbert": Architecture("text", _TEXT, ("DistilBertConfig", _DISTILBERT), "wordpiece"),
    "roberta": Architecture("text", _TEXT, ("RobertaConfig", _ROBERTA), "bpe"),
    "electra": Architecture("text", _TEXT, ("ElectraConfig", {**_BERT, "embedding_size": 64}), "wordpiece"),
    "deberta-v2": Architecture("text", _TEXT, ("DebertaV2Config", _DEBERTA), "wordpiece"),
    "mpnet": Architecture("text", _TEXT, ("MPNetConfig", _ROBERTA), "bpe"),
    "xlm-r": Architecture("text", _TEXT, ("XLMRobertaConfig", _ROBERTA), "unigram"),
    "t5-encoder": Architecture(
        "text", _TEXT[:1], ("T5Config", _T5), "unigram-t5", {"feature-extraction": "T5EncoderModel"}
    ),
    "clip-text": Architecture(
        "text", _TEXT[:1], ("CLIPTextConfig", _CLIP_TEXT), "bpe", {"feature-extraction": "CLIPTextModel"}
    ),
    "vit": Architecture("image", _IMAGE, ("ViTConfig", _VIT), "image"),
    "deit": Architecture(
        "image", _IMAGE, ("DeiTConfig", _VIT), "image", {"image-classification": "DeiTForImageClassification"}
    ),
    "clip-vision": Architecture(
        "image",
        _IMAGE[:1],
        ("CLIPVisionConfig", {**_VIT, "projection_dim": 64}),
        "image",
        {"feature-extraction": "CLIPVisionModel"},
    ),
    "resnet": Architecture("image", _IMAGE, ("ResNetConfig", _RESNET), "image-64"),
    "convnext": Architecture("image", _IMAGE, ("ConvNextConfig", _CONVNEXT), "image-64"),
    "mobilenet-v2": Architecture(
        "image", _IMAGE, ("MobileNetV2Config", {"image_size": 64, "depth_multiplier": 0.5}), "image-64"
    ),
    "wav2vec2": Architecture("audio", _AUDIO, ("Wav2Vec2Config", _SPEECH), "audio"),
    "wav2vec2-layer": Architecture("audio", _AUDIO, ("Wav2Vec2Config", {**_SPEECH, **_LAYER_NORM}), "audio-mask"),
    "hubert": Architecture("audio", _AUDIO, ("HubertConfig", _SPEECH), "audio"),
    "hubert-layer": Architecture("audio", _AUDIO, ("HubertConfig", {**_SPEECH, **_LAYER_NORM}), "audio-mask"),
    "whisper-encoder": Architecture(
        "audio", _AUDIO, ("WhisperConfig", _WHISPER), "mel", {"feature-extraction": "WhisperModel"}
    ),
}


def build(name: str, task: str, *, class_name: str = "", seed: int = 0, **settings: Any) -> Any:
    """A model in evaluation mode.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        task: one of its tasks, or another that its architecture can do.
        class_name: a class of ``transformers`` to build instead of the task's.
        seed: of the weights.
        settings: replace settings of the configuration.
    """
    import torch
    import transformers

    entry = ARCHITECTURES[name]
    kind, small = entry.config
    config = getattr(transformers, kind)(**{**small, **settings})
    if task.endswith("-classification") and "num_labels" not in settings:
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: place for place, label in enumerate(LABELS)}
    torch.manual_seed(seed)
    class_name = class_name or entry.classes.get(task, "")
    if class_name:
        model = getattr(transformers, class_name)(config)
    else:
        model = getattr(transformers, AUTO_CLASSES[task]).from_config(config)
    _widen(model)
    return model.eval()


def save(name: str, task: str, folder: Path, *, class_name: str = "", seed: int = 0, **settings: Any) -> Path:
    """Write a complete model folder; see :func:`build`."""
    model = build(name, task, class_name=class_name, seed=seed, **settings)
    model.save_pretrained(folder)
    companion(ARCHITECTURES[name].companion).save_pretrained(folder)
    return folder


def _widen(model: Any) -> None:
    """Weights of the size that keeps activations around 1: the libraries' own (0.02) give near-constant answers."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "parametrizations" in name or ("position" in name and weight.dim() > 2):
                continue
            if weight.dim() == 2:
                wide = 0.5 if "embed" in name.lower() else weight.shape[1] ** -0.5
                torch.nn.init.normal_(weight, std=wide)
            elif weight.dim() > 2 and weight[0].numel() > 1 and "token" not in name:
                torch.nn.init.normal_(weight, std=(2.0 / weight[0].numel()) ** 0.5)
            elif weight.dim() == 1 and "bias" in name:
                torch.nn.init.normal_(weight, std=0.1)


@functools.cache
def companion(kind: str) -> Any:
    """A tokenizer trained on the benchmarks' own sentences, or a processor for the small sizes above."""
    import transformers

    match kind.split("-")[0]:
        case "image":
            side = 64 if kind.endswith("64") else 32
            return transformers.ViTImageProcessor(size={"height": side, "width": side})
        case "audio":
            return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=kind.endswith("mask"))
        case "mel":
            # 128 frames of 160 samples are what the encoder's 64 positions take.
            return transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1.28)
        case "wordpiece":
            return _tokenizer("wordpiece", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]")
        case "bpe":
            return _tokenizer("bpe", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>")
        case _:
            if kind.endswith("t5"):
                return _tokenizer("unigram", ("<pad>", "</s>", "<unk>"), "", "</s>")
            return _tokenizer("unigram", ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s>", "</s>")


def _tokenizer(sort: str, special: tuple[str, ...], begin: str, end: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    unknown = next(s for s in special if "unk" in s.lower())
    size = {"vocab_size": VOCAB, "special_tokens": list(special), "show_progress": False}
    trainer: Any
    if sort == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**size)
    elif sort == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**size, unk_token=unknown)
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end) if token]
    first = f"{begin}:0 " if begin else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A:0 {end}:0", pair=f"{first}$A:0 {end}:0 $B:1 {end}:1", special_tokens=ids
    )
    named = {"pad_token": next(s for s in special if "pad" in s.lower()), "unk_token": unknown, "sep_token": end}
    if begin:
        named |= {"cls_token": begin, "mask_token": special[-1]}
    if sort != "wordpiece":
        named |= {"eos_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **named)
