"""Text generation: ml-opt's artifacts beside transformers.generate, OpenVINO GenAI and llama.cpp, in the same rounds.

    python -m benchmarks.generation [--model FOLDER | --random] [--size small] [--peers NAMES] [--rounds 8] [--quick]

writes benchmarks/results/generation.json (with --quick into .cache, as those numbers mean nothing) and prints the
tables. Batch 1 and 8, prompts of 16 and (where the context has room) 448 or 512 tokens, 64 new tokens each. A row
that cannot run says why in ``not_run``; peers want their environments (`make bench-peers`) and are left out without
them. Before anything is timed each peer writes a few texts, and one that in fp32 does not write what transformers
writes is not timed; ``alike`` is the share of tokens that are the same. ``--random`` takes a Llama of 40 M
parameters that was never trained: times do not ask what a model knows. ``concurrent`` is tokens/s of 8 texts at once
over those of one after another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import optimizer
from benchmarks.decoders import ROOT, decoder
from benchmarks.generation_table import to_markdown
from benchmarks.peers.generators import GENERATORS, arranged
from optimizer.benching.candidates import Entrant, parse
from optimizer.benching.decoding import context_of
from optimizer.benching.formats.markdown import generation_to_markdown
from optimizer.benching.generation import bench_generation
from optimizer.benching.generation_report import GenerationBench
from optimizer.benching.measure import Plan
from optimizer.benching.workload import Writing
from optimizer.environment import cpu_threads
from optimizer.errors import MlOptError
from optimizer.generator import GeneratorOptions, open_generator
from optimizer.runtime import Candidate, Provider
from optimizer.store import Store

RESULT = ROOT / "benchmarks" / "results" / "generation.json"
CACHE = ROOT / ".cache" / "generation"
#: Precision of the weights, and where that artifact is run: each is made once, and run by ONNX Runtime and by OpenVINO,
#: there with what is between the products in float, and in bf16 where the processor has it.
OURS = (
    *itertools.product(("fp32", "int8", "int4"), ("", "openvino-native", "openvino-native:bf16")),
    # Keys and values in 8 bits, as OpenVINO's own pipelines have them.
    *itertools.product(("int8", "int4"), ("openvino-native:fp32-kv8", "openvino-native:bf16-kv8")),
)


def untrained() -> Path:
    """A Llama of 40 M parameters with random weights, and the tokenizer of the tiny trained one."""
    folder = CACHE / "llama-40m"
    if (folder / "config.json").is_file():
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    rest = {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads, **rest)).save_pretrained(folder)
    for path in decoder("llama", size="tiny").glob("*token*"):
        shutil.copy(path, folder)
    return folder


def ours(folder: Path, store: Store, not_run: dict[str, str]) -> list[Entrant]:
    """Artifacts of ml-opt."""
    found = []
    for precision, provider in OURS:
        label = f"ml-opt {precision} {provider}".strip()
        if not hasattr(optimizer, "export_genai"):
            not_run[label] = "this ml-opt has no stage export-genai"
            continue
        try:
            made = optimizer.export_genai(str(folder), name="decoder", precision=precision, store=store)
        except MlOptError as error:
            not_run[label] = error.message
            continue
        artifact = getattr(made, "artifact", made)
        try:
            entrant = parse(f"{artifact.ref}+{provider}" if provider else artifact.ref, store)
            if provider:  # a processor without bf16, or no OpenVINO
                open_generator(entrant.candidate.path, GeneratorOptions(provider=provider, threads=1)).close()
        except MlOptError as error:
            not_run[label] = error.message
            continue
        found.append(entrant)
    return found


def concurrent(report: GenerationBench) -> dict[str, dict[str, float]]:
    """Of each candidate, by the length of prompts: tokens/s of the largest batch over those of one text."""
    found: dict[str, dict[str, float]] = {}
    for row in report.rows:
        alone = {cell.load.prompt: cell.tokens_per_s for cell in row.cells if cell.load.batch == 1}
        for cell in row.cells:
            if cell.load.batch > 1 and cell.load.prompt in alone:
                name = f"{cell.load.batch} texts, prompts of {cell.load.prompt}"
                found.setdefault(row.label, {})[name] = cell.tokens_per_s / alone[cell.load.prompt]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a decoder's folder [the trained Llama]")
    parser.add_argument("--random", action="store_true", help="a Llama of 40 M parameters that was never trained")
    parser.add_argument("--size", choices=("small", "tiny"), default="small", help="of the trained one")
    parser.add_argument("--peers", default=",".join(GENERATORS), help="with commas between them; empty for none")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--quick", action="store_true", help="few tokens and rounds, to see that all works")
    options = parser.parse_args()
    names = [name for name in options.peers.split(",") if name]
    if unknown := [name for name in names if name not in GENERATORS]:
        parser.error(f"there is no peer {', '.join(unknown)}; there are: {', '.join(GENERATORS)}")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = options.model or (untrained() if options.random else decoder("llama", size=options.size))
    not_run: dict[str, str] = {}
    base = Entrant(Candidate("transformers fp32", folder, Provider("torch")))
    halves = Entrant(Candidate("transformers bf16", folder, Provider("torch", "bf16")))
    peers = arranged([GENERATORS[name] for name in names], folder, CACHE, options.threads)
    not_run.update(peers.not_run)
    taking_part = [base, halves, *ours(folder, Store(CACHE / "store"), not_run), *peers.entrants]
    new = 8 if options.quick else 64
    room = (context_of(folder) or 1024) - new
    prompts = tuple(dict.fromkeys((16, min(64 if options.quick else 512, room))))
    rounds = 3 if options.quick else options.rounds
    plan = Plan(
        tuple(Writing(batch, prompt, new) for batch in (1, 8) for prompt in prompts),
        options.threads, rounds, 0.0 if options.quick else 2.0, rounds,
        roofline=True, warm_limit_s=0.2 if options.quick else 3.0,
    )  # fmt: skip
    report = bench_generation(taking_part, base.label, plan, lambda *_: None, traffic=peers.traffic)
    bench = report.to_json()
    for row in bench["rows"]:
        row["path"] = Path(row["path"]).name  # where it lay says nothing to whoever reads it
    document: dict[str, Any] = {
        "model": folder.name, "not_run": not_run, "alike": peers.alike, "concurrent": concurrent(report),
        "bench": bench,
    }  # fmt: skip
    result = CACHE / "quick.json" if options.quick else RESULT
    result.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    print(generation_to_markdown(report))
    print(to_markdown(document))
    print(result)
    raise SystemExit(report.exit_code)


if __name__ == "__main__":
    main()
