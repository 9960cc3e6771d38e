"""ml-opt's side of peers that write text: what is made for each, whether it answers right, and how it takes part."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.arrange import ENVIRONMENTS, ROOT
from benchmarks.peers.gguf_llama import end_tokens
from benchmarks.peers.writers import tokens_of
from optimizer.benching.candidates import Entrant
from optimizer.benching.decoding import Traffic
from optimizer.benching.process import worker_environment
from optimizer.digest import digest_file, digest_json
from optimizer.errors import BadInput
from optimizer.runtime import Candidate, Provider

__all__ = ["GENERATORS", "Arranged", "Variant", "Writer", "agreeing", "arranged"]

#: Tokens of what is asked before anything is timed: prompts of these lengths, and so many new ones of each.
_PROMPTS = (3, 16, 40, 64)
_NEW = 24
#: Least share of tokens that must be transformers' own in fp32. The order of additions, and keys and values that are
#: kept in fewer bits, decide between tokens that are equally likely; a wrong conversion agrees in nothing.
_ALIKE = 0.5


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        weights: as the peer's ``prepare`` calls them.
        name: in the table.
        precision: what it is told to compute in; empty for its own choice.
        exact: it is in fp32, so that it must write what transformers writes; the others are made from the same file.
    """

    weights: str
    name: str
    precision: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Writer:
    """One peer.

    Attributes:
        name: of its environment and its rows.
        module: what is run there.
        variants: its rows.
        path: of a variant's model, below the folder that ``prepare`` wrote.
        traffic: what a step reads, of a variant's path, the variant, and the source's config.json.
    """

    name: str
    module: str
    variants: tuple[Variant, ...]
    path: Callable[[Path, str], Path]
    traffic: Callable[[Path, Variant, Mapping[str, Any]], Traffic]

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.name / "bin" / "python"

    def command(self, *words: str) -> list[str]:
        return [str(self.python), "-m", self.module, *words]


def _openvino_traffic(path: Path, variant: Variant, config: Mapping[str, Any]) -> Traffic:
    """Keys and values are kept in 8 bits by default. A table of tokens that is no product's matrix is counted too."""
    stored = (path / "openvino_model.bin").stat().st_size
    # What runs in bf16 is converted when it is opened.
    return Traffic(stored // 2 if variant.precision == "bf16" else stored, _cached(config))


def _gguf_traffic(path: Path, variant: Variant, config: Mapping[str, Any]) -> Traffic:
    del variant, config
    made = json.loads((path.parent / "made.json").read_text(encoding="utf-8"))
    return Traffic(made["weights"][path.stem], made["cache"])


def _cached(config: Mapping[str, Any]) -> int:
    """Numbers that a token leaves behind in all layers."""
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return int(2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head)


GENERATORS: Mapping[str, Writer] = {
    writer.name: writer
    for writer in (
        Writer(
            "openvino-genai", "benchmarks.peers.openvino_genai",
            (
                Variant("fp32", "fp32", "f32", exact=True), Variant("fp32", "bf16", "bf16"),
                Variant("int8", "int8"), Variant("int4", "int4"),
            ),
            lambda folder, weights: folder / weights,
            _openvino_traffic,
        ),
        Writer(
            "llama-cpp", "benchmarks.peers.llama_cpp",
            (
                Variant("f32", "F32", exact=True), Variant("bf16", "BF16"),
                Variant("q8_0", "Q8_0"), Variant("q4_0", "Q4_0"),
            ),
            lambda folder, weights: folder / f"{weights}.gguf",
            _gguf_traffic,
        ),
    )
}  # fmt: skip


@dataclass
class Arranged:
    """Peers that take part.

    Attributes:
        entrants: one a row.
        traffic: by label, what a step of it reads.
        alike: by label, the share of tokens before the first that transformers does not write, of a few texts.
        not_run: by label, why a row is left out.
    """

    entrants: list[Entrant] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    alike: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def arranged(writers: Sequence[Writer], source: Path, cache: Path, threads: int) -> Arranged:
    """Make every peer's models, see that they write what transformers writes, and hand them over.

    Args:
        writers: see :data:`GENERATORS`; one whose environment is missing is left out, and says so.
        source: a model folder of transformers.
        cache: where models are kept.
        threads: of everything.
    """
    found = Arranged()
    asked = _asked(source)
    truth: list[list[int]] = []
    for writer in writers:
        if not writer.python.exists():
            found.not_run[writer.name] = f"{writer.python.relative_to(ROOT)} is not there; run: make bench-peers"
            continue
        if not truth:
            ours = [sys.executable, "-m", "benchmarks.peers.writers"]
            truth = _written([*ours, "write", str(source), "torch", str(threads)], asked, threads)
        config = json.loads((source / "config.json").read_bytes())
        for variant in writer.variants:
            label = f"{writer.name} {variant.name}"
            try:
                path = _made(writer, variant.weights, source, cache, threads)
                said = _written(writer.command("write", str(path), variant.precision, str(threads)), asked, threads)
                found.alike[label] = agreeing(truth, said)
                if variant.exact and found.alike[label] < _ALIKE:
                    raise BadInput(f"{found.alike[label]:.0%} of its tokens are those of transformers: not timed")
            except (subprocess.CalledProcessError, BadInput, OSError) as error:
                found.not_run[label] = _why(error)
                continue
            provider = Provider(f"{writer.name}-peer", variant.precision)
            found.entrants.append(Entrant(Candidate(label, path, provider, command=tuple(writer.command()))))
            found.traffic[label] = writer.traffic(path, variant, config)
    return found


def agreeing(truth: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> float:
    """Share of tokens that stand before the first that differs, of all texts."""
    same = sum(_prefix(one, other) for one, other in zip(truth, said, strict=True))
    return same / sum(len(text) for text in truth)


def _prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=True)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), len(one))


def _asked(source: Path) -> dict[str, Any]:
    """The longest prompts that the context has room for, without end tokens; the same ones each time."""
    config = json.loads((source / "config.json").read_bytes())
    drawn, ends = random.Random(0), end_tokens(source)
    known = [token for token in range(config["vocab_size"]) if token not in ends]
    room = int(config["max_position_embeddings"]) - _NEW
    return {"prompts": [drawn.choices(known, k=min(length, room)) for length in _PROMPTS], "new": _NEW}


def _written(command: Sequence[str], asked: Mapping[str, Any], threads: int) -> list[list[int]]:
    done = _run(command, threads, json.dumps(asked))
    return tokens_of(done, len(asked["prompts"]), asked["new"])


def _made(writer: Writer, weights: str, source: Path, cache: Path, threads: int) -> Path:
    """The model of one sort of weights; made once."""
    folder = cache / f"{writer.name}-{source.name}-{_content(source)}"
    path, stamp = writer.path(folder, weights), folder / f"{weights}.made"
    if not stamp.is_file():
        out = path if path.suffix == "" else path.parent
        if path.suffix == "":
            shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _run(writer.command("prepare", str(source), str(out), weights), threads)
        stamp.touch()
    return path


def _content(source: Path) -> str:
    """A model that was trained anew under the same name is another one."""
    return digest_json([digest_file(path) for path in sorted(source.glob("*.safetensors"))])[:12]


def _run(command: Sequence[str], threads: int, said: str = "") -> str:
    environment = worker_environment(threads)
    return subprocess.run(
        command, check=True, capture_output=True, text=True, input=said, env=environment, cwd=ROOT
    ).stdout  # fmt: skip


def _why(error: Exception) -> str:
    """One line; of a process the last one that it wrote."""
    lines: Iterator[str] = iter(())
    if isinstance(error, subprocess.CalledProcessError):
        lines = reversed((error.stderr or "").strip().splitlines())
    elif isinstance(error, BadInput):
        return error.message
    return next(lines, str(error))
