"""Decoders whose attention is their own become generators whose cache grows, and write what transformers writes."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from generators import drawn_prompts as prompts
from generators import exports_of, folders_of, steps_on_leave

import optimizer
from optimizer.errors import BadInput, GateFailed
from optimizer.exporting.genai_golden import Golden, parity
from optimizer.exporting.growing_decoder import growing_parity
from optimizer.generator import Finish, Generator, GeneratorOptions, Sampling, open_generator
from optimizer.hf import load_model
from optimizer.runtimes import _decode_loop
from optimizer.runtimes._ort_growing import GrowingDecoder
from optimizer.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS, CONTEXT = 512, 128
SIZES = {
    "vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
#: What each has of its own: distances from the mask; positions in the rotation; a window; keys that heads share.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {}),
    "gptj": ("gptj", {"rotary_dim": 8}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 6}),
    "falcon": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-multi": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-alibi": ("falcon", {"new_decoder_architecture": False, "multi_query": False, "alibi": True}),
}
NAMES = [pytest.param(name, marks=pytest.mark.thorough if name == "falcon-alibi" else ()) for name in MODELS]


def build(name: str) -> Any:
    """Two small layers with weights so large that what they do shows."""
    import torch
    import transformers

    sort, own = MODELS[name]
    config = transformers.AutoConfig.for_model(sort, **{**SIZES, **own})
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for place, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, 0.0, 1.0 if "wte" in place or "embeddings" in place else 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return folders_of(build, tmp_path_factory.mktemp("growing"))


@pytest.fixture(scope="module")
def exported(folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exports_of(folders, Store(tmp_path_factory.mktemp("growing-store") / "models"), {"bloom": CONTEXT})


@functools.cache
def original(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def greedy(folder: Path, prompt: list[int], new: int, **settings: Any) -> list[int]:
    """What ``transformers.generate`` writes with some settings, without the token that ends it."""
    import torch

    with torch.inference_mode():
        (row,) = original(folder).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=1,
            **settings,
        )
    return [token for token in row.tolist()[len(prompt) :] if token != 1]


def tokens(text: Any) -> list[int]:
    return [token for piece in text for token in piece.tokens]


def opened(exported: Any, name: str, slots: int = 0) -> Generator:
    return open_generator(exported(name).path, GeneratorOptions(threads=1, slots=slots or None))


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_as_transformers_alone_and_beside_others(name: str, folders: Any, exported: Any) -> None:
    """Prompts of all lengths and texts that end at different times, in fewer rows than there are texts."""
    artifact = exported(name)
    assert artifact.manifest.facts["parity"]["max_abs"] <= 1e-3
    assert artifact.manifest.facts["decoder"]["grows"]
    asked = [(prompt, 20 + 7 * place % 23) for place, prompt in enumerate(prompts())]
    wanted = [greedy(folders(name), prompt, new) for prompt, new in asked]
    generator = opened(exported, name, slots=5)
    try:
        assert [tokens(generator.submit(prompt, Sampling(max_tokens=new))) for prompt, new in asked] == wanted
        begun = [generator.submit(prompt, Sampling(max_tokens=new)) for prompt, new in asked]
        assert [tokens(text) for text in begun] == wanted
    finally:
        generator.close()
    assert len({tuple(text) for text in wanted}) == len(wanted)


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_reads_goes_on_and_steps_with_padding_at_either_end(name: str, folders: Any, exported: Any) -> None:
    import onnxruntime
    import torch

    path = exported(name).path / "model.onnx"
    graph = onnx.load(str(path)).graph
    assert not [node.name for node in graph.node if node.op_type == "If"]
    told = {value.name for value in graph.input}
    assert ("position_ids" in told) == (name != "bloom")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    past = [name for name in told if name.startswith("past_key_values")]
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    long, short = prompts(12)[6][:17], prompts(12)[4][:11]

    def run(rows: Sequence[Sequence[int]], mask: Any, cache: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = np.array(rows, np.int64)
        places = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places, **cache}
        logits, *grown = session.run(outputs, {key: value for key, value in feeds.items() if key in told})
        return logits, dict(zip(past, grown, strict=True))

    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
    empty = {each: np.zeros((2, shapes[each][1], 0, shapes[each][3]), np.float32) for each in past}
    with torch.inference_mode():
        want_long, want_short = (
            original(folders(name))(input_ids=torch.tensor([row])).logits[0].numpy() for row in (long, short)
        )
    fill = [7] * (len(long) - len(short))
    ones = np.ones((2, len(long)), np.int64)
    right = ones.copy()
    right[1, len(short) :] = 0
    got, _ = run([long, short + fill], right, empty)
    np.testing.assert_allclose(got[0], want_long, atol=1e-3)
    np.testing.assert_allclose(got[1, : len(short)], want_short, atol=1e-3)
    left = ones.copy()
    left[1, : len(fill)] = 0
    cache, found, begin = empty, [], 0
    for size in (9, 5, 1, 2):  # a prompt, more of it behind a cache, and tokens
        rows = [long[begin : begin + size], (fill + short)[begin : begin + size]]
        begin += size
        logits, cache = run(rows, left[:, :begin], cache)
        found.append(logits)
    got = np.concatenate(found, 1)
    np.testing.assert_allclose(got[0], want_long, atol=1e-3)
    np.testing.assert_allclose(got[1, len(fill) :], want_short, atol=1e-3)


def test_prompts_are_read_in_parts_beside_others(folders: Any, exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of six tokens, parts of four: what is read later minds what was read before."""
    monkeypatch.setattr(_decode_loop, "_READ_AT_ONCE", 4)
    monkeypatch.setattr(GrowingDecoder, "part", 4)
    generator = opened(exported, "gpt_neo", slots=3)
    try:
        begun = [generator.submit(prompt, Sampling(max_tokens=24)) for prompt in prompts()]
        assert [tokens(text) for text in begun] == [greedy(folders("gpt_neo"), prompt, 24) for prompt in prompts()]
    finally:
        generator.close()


def test_rows_outgrow_their_memory_and_a_context_ends(
    folders: Any, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New memory holds what is no number: none of it is read, where a shorter text has nothing either."""
    monkeypatch.setattr("optimizer.runtimes._ort_growing._CAPACITY", 4)
    memory = GrowingDecoder._memory

    def strange(rows: GrowingDecoder, *size: int) -> Any:
        made = memory(rows, *size)
        for each in made:
            each.fill(np.nan)
        return made

    monkeypatch.setattr(GrowingDecoder, "_memory", strange)
    generator = opened(exported, "gpt_neo")
    asked = prompts(4)
    try:
        begun = [generator.submit(prompt, Sampling(max_tokens=CONTEXT)) for prompt in asked]
        assert [tokens(text) for text in begun] == [
            greedy(folders("gpt_neo"), prompt, CONTEXT - len(prompt)) for prompt in asked
        ]
        with pytest.raises(BadInput, match="129 tokens to score"):
            generator.score(np.ones((1, CONTEXT + 1), np.int64))
    finally:
        generator.close()


def test_beams_are_those_of_transformers(folders: Any, exported: Any) -> None:
    generator = opened(exported, "gptj", slots=6)
    asked = [(prompt, {"num_beams": 1 + place % 4}) for place, prompt in enumerate(prompts(8))]
    try:
        begun = [generator.submit(prompt, Sampling(max_tokens=16, **how)) for prompt, how in asked]
        assert [tokens(text) for text in begun] == [greedy(folders("gptj"), prompt, 16, **how) for prompt, how in asked]
    finally:
        generator.close()


def test_what_is_asked_of_any_text_is_done(folders: Any, exported: Any) -> None:
    """Scores, log probabilities, a seed, a grammar, penalties, and texts that stop at a token, beside each other."""
    import torch

    generator = opened(exported, "bloom", slots=4)
    first, second = prompts()[4], prompts()[7]
    try:
        rows = np.array([first[:5], second[:5]])
        with torch.inference_mode():
            wanted = original(folders("bloom"))(input_ids=torch.tensor(rows)).logits.numpy()
        np.testing.assert_allclose(generator.score(rows), wanted, atol=1e-3)
        drawn = {"temperature": 2.0, "top_k": 50, "seed": 5, "max_tokens": 20}
        alone = tokens(generator.submit(first, Sampling(**drawn)))
        likeliest = greedy(folders("bloom"), second, 20)
        begun = [
            generator.submit(first, Sampling(**drawn)),
            generator.submit(second, Sampling(max_tokens=20, logprobs=True)),
            generator.submit(first, Sampling(max_tokens=12, regex="(ab)+")),
            generator.submit(second, Sampling(max_tokens=20, stop_tokens=(likeliest[8],))),
            generator.submit(first, Sampling(max_tokens=20, repetition_penalty=1.5)),
        ]
        same, likely, guided, stopped, bent = ([*text] for text in begun)
        assert tokens(same) == alone != greedy(folders("bloom"), first, 20)
        chances = [chance for piece in likely for chance in piece.logprobs]
        scores = generator.score(np.array([second + likeliest]))[0, len(second) - 1 : -1].astype(np.float64)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        assert chances == pytest.approx(scores[np.arange(len(likeliest)), likeliest].tolist(), abs=1e-3)
        from tokenizers import Tokenizer

        said = Tokenizer.from_file(str(exported("bloom").path / "tokenizer.json")).decode(tokens(guided))
        assert set(said) == {"a", "b"}
        assert tokens(stopped) == likeliest[: likeliest.index(likeliest[8])]
        assert stopped[-1].finish is Finish.STOP
        assert tokens(bent) == greedy(folders("bloom"), first, 20, repetition_penalty=1.5)
    finally:
        generator.close()


def test_a_cancelled_text_frees_its_row_within_a_step(
    folders: Any, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are taken by long texts, and one waits: it begins after the step in which one of them is cancelled."""
    steps = steps_on_leave(monkeypatch, GrowingDecoder)
    generator = opened(exported, "gptj", slots=3)
    asked = prompts(6)[2:]
    try:
        begun = [generator.submit(prompt, Sampling(max_tokens=60)) for prompt in asked[:3]]
        next(iter(begun[0]))
        waiting = generator.submit(asked[3], Sampling(max_tokens=2))
        begun[1].cancel()
        steps.release(2)  # the one under way, and the one that the waiting text is in
        assert tokens(waiting) == greedy(folders("gptj"), asked[3], 2)
        steps.release(200)
        ends = [list(text) for text in begun]
        assert [end[-1].finish for end in ends] == [Finish.LENGTH, Finish.CANCELLED, Finish.LENGTH]
        assert tokens(ends[2]) == greedy(folders("gptj"), asked[2], 60)
    finally:
        steps.release(1000)
        generator.close()


#: Products of a layer: of queries, keys and values (one, or three), what ends attention, and two that follow.
ROUNDED = [
    ("bloom", {"precision": "int8"}, {"8": 2 * 4 + 1}, 0.05),
    ("falcon", {"precision": "int4", "algorithm": "k_quant_last", "block_size": 16}, {"4": 2 * 4, "8": 1}, 2),
    ("gptj", {"precision": "int4", "algorithm": "gptq_last", "block_size": 16}, {"4": 2 * 6, "8": 1}, 2),
]


@pytest.mark.parametrize(("name", "options", "by_bits", "kl"), ROUNDED, ids=lambda value: str(value)[:12])
def test_its_weights_are_rounded_and_it_writes(
    name: str, options: dict[str, Any], by_bits: dict[str, int], kl: float, exported: Any, tmp_path: Path
) -> None:
    if options.get("algorithm") == "gptq_last":
        rows = tmp_path / "rows.txt"
        rows.write_text("".join(f"def read_{n}(path): return open(path).read({n})\n" for n in range(40)))
        options = {**options, "calib": rows}
    artifact = exported(name, **options)
    facts = artifact.manifest.facts
    assert facts["blocks"]["by_bits"] == by_bits
    assert facts["float_products"] == []
    assert 0 < facts["parity"]["kl"] < kl
    generator = open_generator(artifact.path, GeneratorOptions(threads=1))
    try:
        alone = [tokens(generator.submit(prompt, Sampling(max_tokens=20))) for prompt in prompts(5)]
        begun = [generator.submit(prompt, Sampling(max_tokens=20)) for prompt in prompts(5)]
        assert [tokens(text)[:6] for text in begun] == [text[:6] for text in alone]
    finally:
        generator.close()


def test_it_is_verified_and_used_like_any_generator(
    exported: Any, folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.cli.main import run

    store, ref = str(exported.store.root), exported("gptj").ref
    assert run(["verify", ref, "--against", "golden", "--store", store]) == 0
    assert run(["export-genai", str(folders("gptj")), "--name", "gptj", "--store", store]) == 0
    assert "attention of its own, with a cache that grows" in capsys.readouterr().out
    assert run(["generate", ref, "def main", "--max-tokens", "5", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 5


@pytest.mark.thorough
def test_it_is_timed_beside_pytorch(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from optimizer.cli.main import run

    size = ["--prompt-lengths", "8", "--new-tokens", "4", "--batch", "2", "--duration", "0.05", "--rounds", "2"]
    assert run(["bench", exported("gptj").ref, "source", *size, "--store", str(exported.store.root), "--json"]) == 0
    assert [row["error"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["", ""]


def test_what_runs_fused_attention_alone_says_what_to_use(exported: Any) -> None:
    for options in (GeneratorOptions("genai"), GeneratorOptions("openvino", "openvino-native")):
        with pytest.raises(BadInput, match="attention of its own, with a cache that grows") as refused:
            open_generator(exported("gptj").path, options)
        assert "provider cpu" in refused.value.hint


def refused(folder: Path, tmp_path: Path, **options: Any) -> BadInput:
    with pytest.raises(BadInput) as error:
        optimizer.export_genai(str(folder), name="m", store=Store(tmp_path / "models"), **options)
    return error.value


def changed(folder: Path, out: Path, **settings: Any) -> Path:
    """The same model with other settings."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **settings}))
    return out


def test_what_is_not_exported_says_so(folders: Any, tmp_path: Path) -> None:
    said = refused(folders("gptj"), tmp_path, precision="int4", provider="cuda")
    assert "GPTJForCausalLM has attention of its own, which is exported for processors alone" in said.message
    assert said.hint == "leave --provider out"
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    said = refused(changed(folders("falcon"), tmp_path / "f", rope_parameters=rope), tmp_path)
    assert "FalconForCausalLM cannot be exported with its cache: its rotation (dynamic) changes" in said.message
    assert "feature-extraction" in said.hint


def test_a_model_that_counts_distances_is_as_long_as_it_learned(folders: Any, tmp_path: Path) -> None:
    from optimizer.stages.export_genai import _context

    endless = changed(folders("bloom"), tmp_path / "a", max_position_embeddings=None)
    said = refused(endless, tmp_path)
    assert "BloomForCausalLM does not say how long a text may be" in said.message
    assert said.hint == "say it: --max-length 2048"
    loaded = load_model(changed(endless, tmp_path / "b", seq_length=96), "text-generation")
    assert _context(loaded, None) == 96
    assert _context(loaded, 200) == 200


def test_a_graph_that_does_not_mind_its_mask_is_not_the_model(exported: Any, tmp_path: Path) -> None:
    """Alone and at once it answers as PyTorch does; as it is run, beside a longer text, it does not."""
    folder = tmp_path / "bloom"
    shutil.copytree(exported("bloom").path, folder)
    path = folder / "model.onnx"
    text = np.array([[*prompts(8)[7]]])
    generator = open_generator(folder, GeneratorOptions(threads=1))
    golden = Golden((), text, generator.score(text))
    generator.close()
    assert growing_parity(folder, golden)["max_abs"] < 1e-3
    model = onnx.load(str(path))
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[place] = "all_ones"
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    made = [
        onnx.helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        onnx.helper.make_node("ConstantOfShape", ["mask_shape"], ["all_ones"], value=one),
    ]
    for node in reversed(made):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))
    assert parity(folder, golden)["max_abs"] < 1e-3
    assert growing_parity(folder, golden)["max_abs"] > 0.1
    path.write_bytes(b"")
    with pytest.raises(GateFailed, match="ONNX Runtime does not run what was exported"):
        growing_parity(folder, golden)


def test_a_cache_that_is_said_to_grow_and_does_not_is_refused(llama_generator: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_generator, tmp_path / "llama")
    path = tmp_path / "llama" / "genai_config.json"
    config = json.loads(path.read_text())
    config["search"]["past_present_share_buffer"] = False
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="writes its cache in place") as error:
        open_generator(tmp_path / "llama")
    assert "past_present_share_buffer" in error.value.hint
