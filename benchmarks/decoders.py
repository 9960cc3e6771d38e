"""Train small decoders on Python's own library: the models that text generation is measured on.

    python -m benchmarks.decoders FAMILY [FOLDER]

makes a Hugging Face model folder of the family ``llama`` or ``gpt2`` (default: .cache/decoder-FAMILY in the
repository), and beside it ``heldout.jsonl``, modules that it never saw, and ``train-sample.jsonl``, rows for
calibration. A folder that was made by the same script from the same library is left as it is, so that everyone can
call this first.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.stdlib import Corpus, corpus
from benchmarks.trained import STAMP, schedule, trained
from optimizer.environment import cpu_facts, has_bf16

ROOT = Path(__file__).resolve().parent.parent

Family = Literal["llama", "gpt2"]

#: Raised when the recipe below changes: a folder of another version is trained anew.
VERSION = 1
SEED = 0
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
WARMUP = 0.1
#: The learning rate ends at this share of its peak.
FLOOR = 0.05
#: Rows of ``train-sample.jsonl``.
SAMPLES = 256
#: Characters in them for each token that the context has room for: few tokens have more.
SAMPLE_CHARACTERS = 5
#: What cross entropy leaves out.
IGNORED = -100
#: Begin, end and padding of a text; GPT-2 has one token for all three, and its tokenizer adds none.
SPECIAL = {"llama": ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"), "gpt2": ("<|endoftext|>",) * 3}
#: What the trained model goes on from in ``made.json``.
PROMPT = "class Queue:\n    def __init__(self"


@dataclass(frozen=True)
class Recipe:
    """How large a model is and how long it is trained."""

    vocabulary: int
    width: int
    layers: dict[str, int]
    heads: int
    #: Heads of keys and values, of a Llama.
    kv_heads: int
    #: Positions: the longest window that is trained on, and the most that GPT-2 knows.
    context: int
    #: Windows in a batch.
    batch: int
    steps: int
    learning_rate: float
    #: Standard deviation of the first weights.
    spread: float
    #: Whether products are made in bf16 where the processor has instructions for it: half the time, or less.
    bf16: bool
    #: Characters of the corpus, at most.
    characters: int | None = None
    #: Where more than one gain nothing, one: the result is then the same whatever number a machine has.
    threads: int | None = None


SIZES = {
    # 11 M parameters, and three fifths of the library's tokens, each once.
    "small": Recipe(
        vocabulary=4096, width=384, layers={"llama": 6, "gpt2": 5}, heads=6, kv_heads=2, context=512, batch=4,
        steps=600, learning_rate=1.5e-3, spread=0.04, bf16=True,
    ),
    # Seconds, for tests.
    "tiny": Recipe(
        vocabulary=512, width=64, layers={"llama": 2, "gpt2": 2}, heads=4, kv_heads=2, context=128, batch=8,
        steps=300, learning_rate=6e-3, spread=0.06, bf16=False, characters=600_000, threads=1,
    ),
}  # fmt: skip


def place(family: Family, size: Literal["small", "tiny"] = "small") -> Path:
    """Where a model lies unless another folder is named."""
    return ROOT / ".cache" / f"decoder-{family}{'' if size == 'small' else f'-{size}'}"


def decoder(family: Family, folder: Path | None = None, size: Literal["small", "tiny"] = "small") -> Path:
    """The model's folder, trained into it unless it is there (about five minutes on two idle cores; tiny: seconds).

    Args:
        family: the architecture: ``llama`` has rotary positions and grouped heads, ``gpt2`` a table of positions.
        folder: where to; what a training that was cut short left there is replaced.
        size: ``tiny`` is for tests.

    Returns:
        the folder: config.json, generation_config.json, model.safetensors, the tokenizer, heldout.jsonl (rows of
        ``text``, each a module that was held out), train-sample.jsonl (rows of ``text``, as long as the context),
        and made.json, which says how well the model knows what was held out.
    """
    recipe = SIZES[size]
    texts = corpus(SEED, recipe.characters)
    stamp = {"version": VERSION, "seed": SEED, "family": family, "recipe": asdict(recipe), "corpus": texts.digest}
    folder = folder or place(family, size)
    return trained(folder, stamp, lambda out: _make(out, family, recipe, texts))


def _make(out: Path, family: Family, recipe: Recipe, texts: Corpus) -> dict[str, Any]:
    """As ``_made``, with as many threads as the recipe says, and without the libraries' talk."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or threads)
    try:
        return _made(out, family, recipe, texts)
    finally:
        torch.set_num_threads(threads)


def _made(out: Path, family: Family, recipe: Recipe, texts: Corpus) -> dict[str, Any]:
    """Trains tokenizer and model; saves them, the rows held out, and rows for calibration."""
    import torch

    torch.manual_seed(SEED)
    tokenizer = _tokenizer(family, recipe, texts)
    train = _tokens(tokenizer, texts.train)
    heldout = _tokens(tokenizer, texts.heldout)
    model = _model(family, recipe, tokenizer)
    started = time.perf_counter()
    loss = _train(model, recipe, torch.tensor([token for row in train for token in row]))
    seconds = time.perf_counter() - started
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _write_rows(out / "heldout.jsonl", list(texts.heldout.values()))
    _write_rows(out / "train-sample.jsonl", _sample(texts, recipe))
    return {
        "seconds": round(seconds, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "train_modules": len(train),
        "train_tokens": sum(map(len, train)),
        "seen_tokens": recipe.steps * recipe.batch * recipe.context,
        "loss": round(loss, 4),
        "heldout": _judged(model, recipe, train, heldout, texts),
        "greedy": _goes_on(model, tokenizer),
    }


def _tokenizer(family: Family, recipe: Recipe, texts: Corpus) -> Any:
    """Byte-level BPE, learned from what is trained on; a Llama's puts its begin before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin, end, pad = SPECIAL[family]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=list(dict.fromkeys(SPECIAL[family])), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts.train.values(), trainer)
    if family == "llama":
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, bpe.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=begin, eos_token=end, pad_token=pad, padding_side="left",
        model_max_length=recipe.context, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _model(family: Family, recipe: Recipe, tokenizer: Any) -> Any:
    """Random weights; embeddings in and out are one matrix."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "initializer_range": recipe.spread,
    }
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                **special, n_embd=recipe.width, n_layer=recipe.layers[family], n_head=recipe.heads,
                n_positions=recipe.context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            **special, hidden_size=recipe.width, num_hidden_layers=recipe.layers[family],
            num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads,
            intermediate_size=-(-recipe.width * 8 // 192) * 64, max_position_embeddings=recipe.context,
        )
    )  # fmt: skip


def _tokens(tokenizer: Any, texts: dict[str, str]) -> list[list[int]]:
    """Every text between begin and end."""
    rows = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False).input_ids
    return [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in rows]


def _train(model: Any, recipe: Recipe, stream: Any) -> float:
    """AdamW with a linear warm-up and a cosine decay over windows of all texts in a row; answers the last loss."""
    import torch

    seeded = torch.Generator().manual_seed(SEED)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)
    rates = schedule(optimizer, recipe.steps, max(1, round(WARMUP * recipe.steps)), FLOOR)
    windows = stream[: len(stream) // recipe.context * recipe.context].view(-1, recipe.context)
    passes = -(-recipe.steps * recipe.batch // len(windows))
    order = torch.cat([torch.randperm(len(windows), generator=seeded) for _ in range(passes)])
    halves = recipe.bf16 and has_bf16(cpu_facts()["features"])
    model.train()
    for places in order[: recipe.steps * recipe.batch].split(recipe.batch):
        batch = windows[places]
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return float(loss.item())


def _judged(
    model: Any, recipe: Recipe, train: Sequence[list[int]], heldout: Sequence[list[int]], texts: Corpus
) -> dict[str, Any]:
    """How well the model knows the modules held out, beside one that knows only how frequent each token is.

    Every token after a module's first is predicted once, from what of its window of ``context`` tokens comes before
    it; a window begins with the last token of the one before. Perplexity is exp of the mean negative log-likelihood
    a token; bits per byte is the same likelihood's base-2 logarithm over the bytes of the text in UTF-8, which
    models with other tokenizers can be compared by. The unigram model counts what was trained on, and one of each.
    """
    import torch

    counts = torch.bincount(torch.tensor([token for row in train for token in row]), minlength=model.config.vocab_size)
    frequent = ((counts + 1) / (counts + 1).sum()).log()
    unigram = -sum(frequent[torch.tensor(row[1:])].sum().item() for row in heldout)
    stride = recipe.context - 1
    windows = [torch.tensor(row[at : at + stride + 1]) for row in heldout for at in range(0, len(row) - 1, stride)]
    nats = 0.0
    with torch.inference_mode():
        for first in range(0, len(windows), recipe.batch):
            # Padding comes after what is predicted, so that no token sees it.
            batch = torch.nn.utils.rnn.pad_sequence(windows[first : first + recipe.batch], True, IGNORED)
            logits = model(input_ids=batch.clamp(min=0), use_cache=False).logits[:, :-1]
            nats += torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="sum").item()
    predicted = sum(len(window) - 1 for window in windows)
    size = sum(len(text.encode()) for text in texts.heldout.values())
    return {
        "modules": len(heldout),
        "tokens": predicted,
        "bytes": size,
        "perplexity": round(math.exp(nats / predicted), 3),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
        "unigram_perplexity": round(math.exp(unigram / predicted), 3),
        "unigram_bits_per_byte": round(unigram / math.log(2) / size, 4),
    }


def _sample(texts: Corpus, recipe: Recipe) -> list[str]:
    """Runs of lines from modules that were trained on, long enough to fill the context."""
    drawn = random.Random(SEED)
    wanted = SAMPLE_CHARACTERS * recipe.context
    modules = [text.splitlines(keepends=True) for text in texts.train.values() if len(text) > 2 * wanted]
    rows: list[str] = []
    while len(rows) < SAMPLES:
        lines = drawn.choice(modules)
        at, row = drawn.randrange(len(lines)), ""
        while at < len(lines) and len(row) < wanted:
            row += lines[at]
            at += 1
        if len(row) >= wanted:  # not the end of a module, which may be one line
            rows.append(row)
    return rows


def _goes_on(model: Any, tokenizer: Any) -> str:
    """What the model writes after ``PROMPT``, the likeliest token each time."""
    import torch

    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        (written,) = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    text: str = tokenizer.decode(written, skip_special_tokens=True)
    return text


def _write_rows(path: Path, texts: list[str]) -> None:
    """Rows of ``text``."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=get_args(Family))
    parser.add_argument("folder", nargs="?", type=Path, help="[default: decoder-FAMILY in .cache]")
    asked = parser.parse_args()
    place = decoder(asked.family, asked.folder)
    print(place, (place / STAMP).read_text())
