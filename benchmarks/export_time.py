"""How long it takes to export a decoder of 45 million parameters and round it to int4, and how much memory.

    python -m benchmarks.export_time [--rounds 3]

A Llama, which onnxruntime-genai's builder has a graph for, and a GPT-2, which is traced, both with random weights. Each
round is the whole command in a process of its own, from the start of the interpreter to the artifact in the store, both
families in turns. Replaces benchmarks/results/export_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.decoders import decoder
from optimizer.benching.formats.markdown import md_table
from optimizer.environment import describe
from optimizer.files import write_report

__all__ = ["to_markdown"]

RESULT = Path(__file__).resolve().parent / "results" / "export_time.json"
_VOCABULARY = 8192
FAMILIES = {"llama": "built", "gpt2": "traced"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as work:
        found = {family: {"parameters": _write(family, Path(work, family)), "runs": []} for family in FAMILIES}
        for number in range(rounds):
            for family in FAMILIES:
                found[family]["runs"].append(_exported(Path(work, family), Path(work, f"store-{family}-{number}")))
    document = {"environment": describe(), "families": found}
    write_report(RESULT, document)
    print(to_markdown(document))


def _write(family: str, folder: Path) -> int:
    """A model folder with random weights and a tokenizer that knows fewer tokens than it; how many parameters."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=_VOCABULARY, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
                num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=_VOCABULARY, n_embd=576, n_layer=10, n_head=9, bos_token_id=0, eos_token_id=0)
        )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(decoder(family, size="tiny") / name, folder / name)
    return sum(each.numel() for each in model.parameters())


def _exported(folder: Path, store: Path) -> dict[str, Any]:
    """One run: seconds, and the most bytes of memory that it had at once."""
    command = [sys.executable, "-m", "optimizer", "export-genai", str(folder), "--precision", "int4"]
    began = time.perf_counter()
    running = subprocess.Popen([*command, "--name", "m", "--store", str(store), "--json"], stdout=subprocess.PIPE)
    assert running.stdout is not None
    said = running.stdout.read()
    _, status, used = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"the export ended with {os.waitstatus_to_exitcode(status)}: {said.decode()}")
    shutil.rmtree(store)
    return {"seconds": seconds, "peak_bytes": used.ru_maxrss * 1024, "made_seconds": json.loads(said)["seconds"]}


def to_markdown(document: Mapping[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    rows = []
    for family, found in document["families"].items():
        seconds = [run["seconds"] for run in found["runs"]]
        rows.append(
            [
                f"`{family}`, {FAMILIES[family]}",
                f"{found['parameters'] / 1e6:.1f} M",
                f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})",
                f"{median(run['peak_bytes'] for run in found['runs']) / 2**20:,.0f} MiB",
            ]
        )
    cpu = document["environment"]["cpu"]
    head = ["family", "parameters", "export and int4, the whole command", "peak memory"]
    return "\n".join(["", f"{cpu['model']}, {cpu['cores']} cores.", "", *md_table(head, rows), ""])


if __name__ == "__main__":
    main()
