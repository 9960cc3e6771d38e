"""Peers that write text: a Llama as llama.cpp wants it, what a peer answers, who takes part, and the table of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import generation_table
from benchmarks.decoders import decoder
from benchmarks.peers import generators
from benchmarks.peers.generators import GENERATORS, agreeing, arranged
from benchmarks.peers.gguf_llama import architecture, end_tokens, permuted, renamed, tensors
from benchmarks.peers.writers import SteppedGenerator, tokens_of
from optimizer.errors import BadInput
from optimizer.generator import Finish, Sampling


@pytest.fixture(scope="module")
def llama() -> Path:
    return decoder("llama", size="tiny")


@pytest.fixture
def altered(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny Llama with other words in its configuration."""

    def made(**words: Any) -> Path:
        folder = Path(shutil.copytree(llama, tmp_path / "altered"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **words}))
        return folder

    return made


def test_every_weight_has_the_name_and_shape_of_gguf(llama: Path) -> None:
    found = {name: weight.shape for name, weight in tensors(llama)}
    config = json.loads((llama / "config.json").read_text())
    width, keys = config["hidden_size"], config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "attn_norm": (width,), "attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width),
        "attn_output": (width, width), "ffn_norm": (width,), "ffn_gate": (config["intermediate_size"], width),
        "ffn_up": (config["intermediate_size"], width), "ffn_down": (width, config["intermediate_size"]),
    }  # fmt: skip
    expected = {
        f"blk.{number}.{name}.weight": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    expected |= {"token_embd.weight": (config["vocab_size"], width), "output_norm.weight": (width,)}
    assert found == expected, "and no head, as it is the table of tokens"
    assert {weight.dtype for _, weight in tensors(llama)} == {np.dtype("float32")}


def test_turning_neighbours_gives_the_scores_of_turning_halves(llama: Path) -> None:
    """transformers turns halves of a head; llama.cpp, after the permutation, neighbours. Scores must be the same."""
    from safetensors.numpy import load_file

    theirs, ours = load_file(llama / "model.safetensors"), dict(tensors(llama))
    config = json.loads((llama / "config.json").read_text())
    head, queries, keys = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    assert queries != keys, "heads that share keys are the case to get wrong"
    words = np.random.default_rng(0).normal(size=(5, config["hidden_size"]))
    angles = np.arange(5)[:, None, None] * config["rope_parameters"]["rope_theta"] ** (-np.arange(0, head, 2) / head)

    def turned(weight: np.ndarray, heads: int, *, halves: bool) -> np.ndarray:
        rows = (words @ weight.T.astype(float)).reshape(5, heads, head)
        one, other = (
            (rows[..., : head // 2], rows[..., head // 2 :]) if halves else (rows[..., 0::2], rows[..., 1::2])
        )  # fmt: skip
        pair = (one * np.cos(angles) - other * np.sin(angles), one * np.sin(angles) + other * np.cos(angles))
        # The order of numbers within a head does not matter to a score, as long as both sides have the same.
        return np.concatenate(pair, axis=-1)

    def scores(query: np.ndarray, key: np.ndarray, *, halves: bool) -> np.ndarray:
        shared = np.repeat(turned(key, keys, halves=halves), queries // keys, axis=1)
        return np.einsum("thd,shd->hts", turned(query, queries, halves=halves), shared)

    for layer in range(config["num_hidden_layers"]):
        of = f"model.layers.{layer}.self_attn"
        expected = scores(theirs[f"{of}.q_proj.weight"], theirs[f"{of}.k_proj.weight"], halves=True)
        found = scores(ours[f"blk.{layer}.attn_q.weight"], ours[f"blk.{layer}.attn_k.weight"], halves=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ours[f"blk.{layer}.attn_v.weight"], theirs[f"{of}.v_proj.weight"])


def test_halves_of_each_head_become_neighbours() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert permuted(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_only_a_plain_llama_is_made_into_gguf(altered: Callable[..., Path]) -> None:
    for name in ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "lm_head.bias"):
        with pytest.raises(BadInput, match="is no weight of a plain Llama"):
            renamed(name)
    assert renamed("lm_head.weight") == "output.weight"
    folder = altered(rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0})
    with pytest.raises(BadInput, match="scaled rotary positions"):
        architecture(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BadInput, match="is a gpt2"):
        next(tensors(folder))


def test_a_head_of_its_own_is_kept_and_a_tied_one_is_not(altered: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = altered(tie_word_embeddings=False)
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] + 1
    save_file(stored, folder / "model.safetensors")
    assert {"output.weight", "token_embd.weight"} <= {name for name, _ in tensors(folder)}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "output.weight" not in {name for name, _ in tensors(folder)}


def test_end_tokens_are_those_of_the_settings_for_writing(altered: Callable[..., Path]) -> None:
    folder = altered(eos_token_id=5)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert end_tokens(folder) == (1, 7)
    (folder / "generation_config.json").unlink()
    assert end_tokens(folder) == (5,)


def test_an_answer_is_the_last_line_and_has_what_was_asked() -> None:
    assert tokens_of('loading {…}\n{"tokens": [[1, 2], [3, 4]]}\n', 2, 2) == [[1, 2], [3, 4]]
    for said in ("", "Segmentation fault", '{"tokens": 3}\nand more', "[1]"):
        with pytest.raises(BadInput, match="answered no tokens"):
            tokens_of(said, 2, 2)
    for said in ('{"tokens": [[1, 2]]}', '{"tokens": [[1, 2], [3]]}'):
        with pytest.raises(BadInput, match="and not 2 times 2"):
            tokens_of(said, 2, 2)


def test_what_comes_after_the_first_difference_does_not_count() -> None:
    assert agreeing([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 9, 4], [5, 6, 7, 8]]) == pytest.approx(6 / 8)
    assert agreeing([[1, 2]], [[2, 1]]) == 0


class Counting:
    """An engine that counts on from each prompt's last token."""

    context, vocabulary, end_tokens = 64, 100, (1,)

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"runtime": "counting"}
        self.most = 0
        self.texts: dict[int, list[int]] = {}

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> int:
        if not prompt:
            raise ValueError("nothing to go on from")
        self.texts[len(self.texts)] = [prompt[-1], sampling.max_tokens]
        return len(self.texts) - 1

    def step(self, texts: Sequence[int]) -> list[tuple[tuple[int, ...], bool]]:
        self.most = max(self.most, len(texts))
        found: list[tuple[tuple[int, ...], bool]] = []
        for number in texts:
            text = self.texts[number]
            text[0], text[1] = text[0] + 1, text[1] - 1
            if text[0] == 50:
                raise RuntimeError("no more memory")
            found.append(((text[0],), text[1] == 0))
        return found


def test_texts_are_written_together_and_an_error_reaches_whoever_reads() -> None:
    engine = Counting()
    generator = SteppedGenerator(engine)
    texts = [generator.submit([10 * number], Sampling(max_tokens=number + 1)) for number in range(3)]
    pieces = [list(text) for text in texts]
    assert [[token for piece in text for token in piece.tokens] for text in pieces] == [[1], [11, 12], [21, 22, 23]]
    assert all(text[-1].finish is Finish.LENGTH for text in pieces)
    with pytest.raises(ValueError, match="nothing to go on from"):
        list(generator.submit([], Sampling(max_tokens=1)))
    assert [piece.tokens for piece in generator.submit([3], Sampling(max_tokens=1))] == [(4,), ()]
    with pytest.raises(RuntimeError, match="no more memory"):
        list(generator.submit([48], Sampling(max_tokens=8)))


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No environment of a peer but llama.cpp's, and nothing in that one."""
    monkeypatch.setattr(generators, "ROOT", tmp_path)
    monkeypatch.setattr(generators, "ENVIRONMENTS", tmp_path / ".venv-peers")
    python = tmp_path / ".venv-peers" / "llama-cpp" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path


@pytest.mark.parametrize("wrong", [("bf16.gguf", "q8_0.gguf"), ("f32.gguf",)])
def test_a_peer_takes_part_once_it_writes_what_transformers_writes(
    llama: Path, environments: Path, monkeypatch: pytest.MonkeyPatch, wrong: tuple[str, ...]
) -> None:
    """Its processes are stood in for by what they print: some write something else, Q4_0 cannot be made."""
    prepared: list[str] = []

    def run(command: Sequence[str], threads: int, said: str = "") -> str:
        del threads
        if "prepare" in command:
            out, weights = Path(command[-2]), command[-1]
            if weights == "q4_0":
                raise subprocess.CalledProcessError(1, list(command), stderr="Traceback\nRuntimeError: no such type\n")
            prepared.append(weights)
            (out / "made.json").write_text(json.dumps({"weights": {"f32": 4, "bf16": 2, "q8_0": 1}, "cache": 2}))
            return ""
        asked = json.loads(said)
        assert all(1 not in prompt for prompt in asked["prompts"]), "an end token stands in no prompt"
        first = 9 if Path(command[command.index("write") + 1]).name in wrong else 3
        return "loading\n" + json.dumps({"tokens": [[first] * asked["new"]] * len(asked["prompts"])})

    monkeypatch.setattr(generators, "_run", run)
    for _ in range(2):
        found = arranged(list(GENERATORS.values()), llama, environments / "cache", 2)
        lacking = {
            "openvino-genai": ".venv-peers/openvino-genai/bin/python is not there; run: make bench-peers",
            "llama-cpp Q4_0": "RuntimeError: no such type",
        }
        rounded = ["llama-cpp BF16", "llama-cpp Q8_0"]
        if "f32.gguf" in wrong:
            assert [each.label for each in found.entrants] == rounded
            lacking["llama-cpp F32"] = "0% of its tokens are those of transformers: not timed"
        else:
            assert [each.label for each in found.entrants] == ["llama-cpp F32", *rounded]
            assert found.alike == {"llama-cpp F32": 1.0, "llama-cpp BF16": 0.0, "llama-cpp Q8_0": 0.0}
        assert found.not_run == lacking
    assert prepared == ["f32", "bf16", "q8_0"], "made once"
    candidate = found.entrants[-1].candidate
    assert candidate.path.name == "q8_0.gguf"
    assert candidate.command == (str(GENERATORS["llama-cpp"].python), "-m", "benchmarks.peers.llama_cpp")
    assert (found.traffic["llama-cpp Q8_0"].weights, found.traffic["llama-cpp Q8_0"].cache) == (1, 2)


def measured(label: str, provider: str, whole_ms: float, prefill_ms: float, error: str = "") -> dict[str, Any]:
    """A row of one size: one text of 16 tokens, 64 new ones, four rounds."""
    wobble = (1.0, 1.01, 0.99, 1.0)
    cell = {
        "batch": 1, "prompt": 16, "new": 64, "tokens_per_s": 64e3 / whole_ms, "prefill_per_s": 16e3 / prefill_ms,
        "rounds_ns": [[round(whole_ms * 1e6 * factor)] for factor in wobble],
        "parts": [[{"prefill_ns": round(prefill_ms * 1e6 * factor)}] for factor in wobble],
    }  # fmt: skip
    return {"label": label, "provider": provider, "bytes": 4e7, "error": error, "cells": [] if error else [cell]}


def test_the_best_of_each_column_is_bold_and_what_is_ahead_of_ours_is_said() -> None:
    rows = [
        measured("transformers fp32", "torch", 800, 10),
        measured("decoder@1:int4", "cpu", 100, 8),
        measured("llama-cpp Q4_0", "llama-cpp-peer", 101, 4),
        measured("openvino-genai int4", "openvino-genai-peer:bf16", 1, 1, error="it died"),
    ]
    document = {
        "model": "llama-40m", "not_run": {"llama-cpp BF16": "why"}, "alike": {"llama-cpp Q4_0": 0.75},
        "bench": {
            "rows": rows, "created": "2026-11-26T12:00:00+00:00", "settings": {"threads": 2, "rounds": 4},
            "environment": {"cpu": {"model": "Some CPU", "cores": 2, "features": ["avx2"]}},
        },
    }  # fmt: skip
    said = generation_table.to_markdown(document)
    assert "Some CPU, 2 cores (avx2), 2 threads, 4 rounds, 2026-11-26; model llama-40m" in said
    assert "| **decoder@1:int4** | **640** | 2,000 | 40 |  |" in said
    assert "| llama-cpp Q4_0 | 634 | **4,000** | 40 | 75% |" in said
    assert "Not run:\n\n- llama-cpp BF16: why\n- openvino-genai int4: it died\n" in said
    lost = list(generation_table.behind(rows[:3], generation_table.columns(rows[:3])))
    assert lost == ["prefill/s, 1 text, 16: llama-cpp Q4_0 takes 0.50 (0.50 to 0.50) of the time of decoder@1:int4"]
    level = {**document, "bench": {**document["bench"], "rows": rows[:2]}}
    assert "Level or ahead in every column." in generation_table.to_markdown(level)
