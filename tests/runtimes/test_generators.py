"""Every runtime that writes text: the tokens of transformers, alone and beside others; what it refuses; cancelling."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generators import greedy, prompts, reference, steps_on_leave
from scipy import stats

from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.generating.guide import Guide
from optimizer.generating.stream import Stream
from optimizer.generator import (
    Finish,
    Generation,
    Generator,
    GeneratorOptions,
    Piece,
    Sampling,
    discover,
    open_generator,
)
from optimizer.runtimes import genai

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["def", "class"]}},
        "required": ["count", "kind"],
        "additionalProperties": False,
    }
)

#: Those that open what export-genai makes; PyTorch opens what it is made from.
OURS = [name for name, runtime in discover().items() if "cpu" in runtime.providers]

#: Each of them, and the provider that it takes by itself.
WRITERS = [("onnxruntime", "cpu"), ("genai", "cpu"), ("openvino", "openvino-native")]


def tokens(generation: Generation) -> list[int]:
    return [token for piece in generation for token in piece.tokens]


@pytest.fixture(scope="module", params=WRITERS)
def generator(request: pytest.FixtureRequest, llama_generator: Path) -> Iterator[Generator]:
    runtime, provider = request.param
    opened = open_generator(llama_generator, GeneratorOptions(runtime=runtime, provider=provider, threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["cpu", "openvino-native"])
def own(request: pytest.FixtureRequest, llama_generator: Path) -> Iterator[Generator]:
    """Those with the loop of our own, which are taken where no runtime is named, with few rows."""
    opened = open_generator(llama_generator, GeneratorOptions(provider=request.param, threads=1, slots=3))
    yield opened
    opened.close()


def test_facts_are_what_was_got(generator: Generator) -> None:
    assert generator.facts["threads"] == 1
    known = {"onnxruntime": ("cpu", 16), "genai": ("cpu", 4), "openvino": ("openvino-native", 16)}
    assert (generator.facts["provider"], generator.facts["slots"]) == known[generator.facts["runtime"]]
    assert (generator.context, generator.vocabulary, generator.end_tokens) == (128, 512, (1,))


def test_greedy_tokens_are_those_of_transformers(generator: Generator) -> None:
    """To the end of the context."""
    for prompt in prompts(20):
        assert tokens(generator.submit(prompt, Sampling(max_tokens=128))) == greedy(prompt, 128 - len(prompt))


@pytest.mark.parametrize(("runtime", "provider"), WRITERS)
def test_greedy_tokens_of_a_traced_model_are_those_of_transformers(
    gpt2_generator: Path, runtime: str, provider: str
) -> None:
    """GPT-2 adds its positions to its tokens, which the graph is fed; alone, and all at once, to the context's end."""
    opened = open_generator(gpt2_generator, GeneratorOptions(runtime=runtime, provider=provider, threads=1))
    asked = prompts(20, family="gpt2")
    wanted = [greedy(prompt, 128 - len(prompt), "gpt2") for prompt in asked]
    try:
        assert [tokens(opened.submit(prompt, Sampling(max_tokens=128))) for prompt in asked] == wanted
        begun = [opened.submit(prompt, Sampling(max_tokens=128)) for prompt in asked]
        assert [tokens(text) for text in begun] == wanted
    finally:
        opened.close()
    assert len({tuple(text) for text in wanted}) > 10


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}])
def test_what_bends_the_choice_is_that_of_transformers(generator: Generator, asked: dict[str, Any]) -> None:
    """Of texts beside each other: each minds what it has said itself."""
    begun = [generator.submit(prompt, Sampling(max_tokens=60, **asked)) for prompt in prompts(12)]
    assert [tokens(text) for text in begun] == [greedy(prompt, 60, **asked) for prompt in prompts(12)]
    assert tokens(generator.submit(prompts(1)[0], Sampling(max_tokens=60))) != greedy(prompts(1)[0], 60, **asked)


@pytest.mark.parametrize("provider", ["cpu", "openvino-native"])
def test_beams_are_those_of_transformers(llama_generator: Path, provider: str) -> None:
    """Of searches of unequal size and length that wait for rows, beside texts that are not searched."""
    opened = open_generator(llama_generator, GeneratorOptions(provider=provider, threads=1, slots=6))
    asked: list[tuple[list[int], int, dict[str, Any]]] = [
        (prompt, 12 + 9 * number % 40, {"num_beams": 1 + number % 5, "early_stopping": bool(number % 2)})
        for number, prompt in enumerate(prompts(14))
    ]
    try:
        begun = [opened.submit(prompt, Sampling(max_tokens=new, **how)) for prompt, new, how in asked]
        begun[9].cancel()
        found = [tokens(text) for text in begun]
        assert [found[n] for n in range(14) if n != 9] == [
            greedy(prompt, new, **how) for number, (prompt, new, how) in enumerate(asked) if number != 9
        ]
        assert found != [greedy(prompt, new) for prompt, new, _ in asked]
        last = list(opened.submit(asked[1][0], Sampling(max_tokens=9, num_beams=2)))[-1]
        assert (len(last.tokens), last.finish) == (9, Finish.LENGTH)
        with pytest.raises(BadInput, match="7 beams were asked for, and 6 texts"):
            opened.submit([5], Sampling(num_beams=7))
    finally:
        opened.close()


def test_texts_beside_others_are_those_written_alone(generator: Generator) -> None:
    """More than there are rows, of different lengths, asked from several threads."""
    asked = [(prompt, 5 + 7 * number % 60) for number, prompt in enumerate(prompts(24))]
    alone = [tokens(generator.submit(prompt, Sampling(max_tokens=new))) for prompt, new in asked]
    got: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        prompt, new = asked[number]
        got[number] = tokens(generator.submit(prompt, Sampling(max_tokens=new)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(len(asked))] == alone


def test_scores_are_those_of_transformers(generator: Generator) -> None:
    import torch

    rows = np.array([prompt[:12] for prompt in prompts(20) if len(prompt) >= 12][:3])
    with torch.inference_mode():
        wanted = reference()[0](torch.tensor(rows)).logits.numpy()
    np.testing.assert_allclose(generator.score(rows), wanted, atol=2e-4)


def test_the_last_piece_says_why(generator: Generator) -> None:
    prompt = prompts(1)[0]
    *rest, last = generator.submit(prompt, Sampling(max_tokens=5))
    assert last.finish is Finish.LENGTH
    assert all(piece.finish is None for piece in rest)
    written = tokens(generator.submit(prompt, Sampling(max_tokens=20)))
    stop = written[6]
    pieces = list(generator.submit(prompt, Sampling(max_tokens=20, stop_tokens=(stop,))))
    assert [t for piece in pieces for t in piece.tokens] == written[: written.index(stop)]
    assert pieces[-1].finish is Finish.STOP


def test_more_cancelled_than_rows_and_then_another_one(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompts(1)[0]
    wanted = tokens(generator.submit(prompt, Sampling(max_tokens=10)))
    put, go_on = Stream.put, threading.Event()

    def put_and_wait(stream: Stream, piece: Piece) -> None:
        put(stream, piece)
        go_on.wait(60)  # so that none is over before it is cancelled, however busy the machine

    monkeypatch.setattr(Stream, "put", put_and_wait)
    begun = [generator.submit(prompt, Sampling(max_tokens=120)) for _ in range(2 * generator.facts["slots"] + 1)]
    next(iter(begun[0]))
    for generation in begun:
        generation.cancel()
        generation.cancel()
    go_on.set()
    assert tokens(generator.submit(prompt, Sampling(max_tokens=10))) == wanted
    for generation in begun:
        pieces = list(generation)
        assert pieces[-1].finish is Finish.CANCELLED
        assert list(generation) == []  # it is over
    begun[0].cancel()


@pytest.mark.parametrize("how", [{"json_schema": SCHEMA}, {"regex": "[0-9]{3}-(foo|bar)"}])
def test_guided_texts_fit(generator: Generator, how: dict[str, str]) -> None:
    tokenizer = reference()[1]
    pieces = list(generator.submit(prompts(1)[0], Sampling(max_tokens=60, **how)))
    text = tokenizer.decode([t for piece in pieces for t in piece.tokens])
    assert pieces[-1].finish is Finish.STOP
    if "regex" in how:
        assert text[:3].isdigit()
        assert text[3:] in ("-foo", "-bar")
    else:
        assert 0 <= json.loads(text)["count"] <= 99
        assert json.loads(text)["kind"] in ("def", "class")


@pytest.mark.parametrize(
    ("prompt", "sampling", "why"),
    [
        ([], {}, "prompt is empty"),
        ([5] * 128, {}, "128 tokens, and prompt and answer together may have 128"),
        ([512], {}, "token outside"),
        ([-1], {}, "token outside"),
        ([5], {"max_tokens": 0}, "at least 1, not 0"),
        ([5], {"max_tokens": -3}, "at least 1, not -3"),
        ([5], {"max_tokens": 129}, "max tokens is 129"),
        ([5], {"temperature": -0.1}, "temperature"),
        ([5], {"temperature": float("nan")}, "temperature"),
        ([5], {"temperature": float("inf")}, "temperature"),
        ([5], {"top_p": 0.0}, "top-p"),
        ([5], {"top_p": 1.1}, "top-p"),
        ([5], {"top_p": float("nan")}, "top-p"),
        ([5], {"top_k": -1}, "top-k"),
        ([5], {"seed": -1}, "seed"),
        ([5], {"json_schema": "{", "regex": ""}, "is not JSON"),
        ([5], {"json_schema": "[]"}, "is not a JSON schema"),
        ([5], {"json_schema": "{}", "regex": "a"}, "not both"),
        ([5], {"min_p": 1.5}, "min-p"),
        ([5], {"min_tokens": -1}, "min tokens"),
        ([5], {"repetition_penalty": 0.0}, "repetition penalty"),
        ([5], {"repetition_penalty": float("inf")}, "repetition penalty"),
        ([5], {"presence_penalty": float("nan")}, "presence penalty"),
        ([5], {"frequency_penalty": float("inf")}, "frequency penalty"),
        ([5], {"no_repeat_ngram_size": -1}, "n-gram size"),
        ([5], {"no_repeat_ngram_size": 2, "regex": "a"}, "held to a grammar"),
        ([5], {"logit_bias": ((512, 1.0),)}, "token 512"),
        ([5], {"logit_bias": ((5, float("nan")),)}, "token 5"),
        ([5], {"num_beams": 0}, "number of beams"),
        ([5], {"num_beams": 2, "temperature": 1.0}, "a temperature draws"),
        ([5], {"num_beams": 2, "regex": "a"}, "held to a grammar"),
        ([5], {"num_beams": 2, "logprobs": True}, "how likely"),
        ([5], {"num_beams": 2, "length_penalty": float("nan")}, "length penalty"),
    ],
)
def test_what_cannot_be_is_refused(generator: Generator, prompt: list[int], sampling: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        generator.submit(prompt, Sampling(**sampling))


def test_a_grammar_that_is_none_is_refused(generator: Generator) -> None:
    with pytest.raises(BadInput):
        list(generator.submit([5], Sampling(regex="(")))
    assert tokens(generator.submit([5], Sampling(max_tokens=3))) == greedy([5], 3)


def test_a_grammar_that_is_given_up_fails_its_own_text_alone(own: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the middle of its text, which is not over."""
    allow, steps = Guide.allow, iter(range(4))

    def spoil(guide: Guide, logits: Any) -> Any:
        if next(steps, None) is None:
            guide._matcher.consume_token(own.end_tokens[0])  # a text of digits does not end here
        return allow(guide, logits)

    monkeypatch.setattr(Guide, "allow", spoil)
    guided = own.submit(prompts(1)[0], Sampling(max_tokens=60, regex="[0-9]{30}"))
    other = own.submit(prompts(2)[1], Sampling(max_tokens=30))
    with pytest.raises(BadInput, match="cannot be held to its grammar any further"):
        tokens(guided)
    assert tokens(other) == greedy(prompts(2)[1], 30)
    assert tokens(own.submit([5], Sampling(max_tokens=3))) == greedy([5], 3)


def test_a_closed_one_ends_its_texts_and_takes_no_more(llama_generator: Path) -> None:
    for runtime in OURS:
        opened = open_generator(llama_generator, GeneratorOptions(runtime=runtime, threads=1))
        begun = [opened.submit([5], Sampling(max_tokens=127)) for _ in range(40)]
        opened.close()
        assert {list(generation)[-1].finish for generation in begun} <= {Finish.CANCELLED, Finish.LENGTH, Finish.STOP}
        with pytest.raises(BadInput, match="closed"):
            opened.submit([5], Sampling())


# Of our own loop alone: onnxruntime-genai takes no seed for one text on a processor, and keeps chances to itself.


def test_a_seed_repeats_alone_and_beside_others(own: Generator) -> None:
    sampling = Sampling(max_tokens=40, temperature=1.0, top_k=40, top_p=0.95, seed=11)
    prompt = prompts(1)[0]
    alone = tokens(own.submit(prompt, sampling))
    others = [own.submit(p, Sampling(max_tokens=50, temperature=1.0)) for p in prompts(5)]
    assert tokens(own.submit(prompt, sampling)) == alone
    assert tokens(own.submit(prompt, Sampling(max_tokens=40, temperature=1.0, seed=12))) != alone
    for generation in others:
        generation.cancel()


def test_first_tokens_are_distributed_as_the_model_says(own: Generator) -> None:
    prompt = prompts(3)[2]
    logits = own.score(np.array([prompt]))[0, -1].astype(np.float64)
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    draws = 3000
    begun = [own.submit(prompt, Sampling(max_tokens=1, temperature=1.0, seed=seed)) for seed in range(draws)]
    counts = np.bincount([(tokens(g) or [1])[0] for g in begun], minlength=chances.size)
    often = chances * draws >= 5
    observed = [*counts[often], counts[~often].sum()]
    expected = [*(chances[often] * draws), chances[~often].sum() * draws]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"regex": "a{12}"},
        {"temperature": 3.0, "seed": 5},
        {"temperature": 1.0, "top_k": 2, "seed": 5},
        {"logit_bias": ((77, 50.0),)},
        {"min_tokens": 12, "stop_tokens": (77, 78, 79)},
    ],
)
def test_logprobs_are_the_scores_of_the_tokens(own: Generator, asked: dict[str, Any]) -> None:
    """The model's own, whatever else is asked: a token that a grammar leaves no choice of was not certain to it."""
    prompt = prompts(2)[1]
    pieces = list(own.submit(prompt, Sampling(max_tokens=12, logprobs=True, top_logprobs=3, **asked)))
    written = [t for piece in pieces for t in piece.tokens]
    scores = own.score(np.array([prompt + written]))[0].astype(np.float64)[len(prompt) - 1 : -1]
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    wanted = scores[np.arange(len(written)), written]
    assert [chance for piece in pieces for chance in piece.logprobs] == pytest.approx(wanted.tolist(), abs=1e-3)
    assert wanted.max() < 0
    top = [chance for piece in pieces for place in piece.top for _, chance in place]
    assert top == pytest.approx(np.sort(scores, axis=1)[:, :-4:-1].ravel().tolist(), abs=1e-3)


def test_what_was_written_and_what_is_leaned_to_count_in_the_choice(own: Generator) -> None:
    """Each token is the likeliest by the scores of the text, bent by the formulas; logprobs are the model's own."""
    prompt, bias = prompts(3)[2], ((40, 2.0), (41, -100.0))
    sampling = Sampling(
        max_tokens=50, presence_penalty=1.0, frequency_penalty=0.7, logit_bias=bias, min_tokens=50, logprobs=True
    )
    pieces = list(own.submit(prompt, sampling))
    written = [t for piece in pieces for t in piece.tokens]
    scores = own.score(np.array([prompt + written]))[0].astype(np.float64)[len(prompt) - 1 : -1]
    bent = scores.copy()
    for token, value in bias:
        bent[:, token] += value
    bent[:, list(own.end_tokens)] = -np.inf
    for place in range(len(written)):
        times = np.bincount(written[:place], minlength=own.vocabulary)
        bent[place] -= 1.0 * (times > 0) + 0.7 * times
    assert written == bent.argmax(1).tolist() != scores.argmax(1).tolist()
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    wanted = scores[np.arange(len(written)), written]
    assert [chance for piece in pieces for chance in piece.logprobs] == pytest.approx(wanted.tolist(), abs=1e-3)


def test_a_cancelled_text_frees_its_row_within_a_step(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are taken by long texts, and one waits: it begins after the step in which one of them is cancelled."""
    from optimizer.runtimes._ort_decoder import Decoder

    steps = steps_on_leave(monkeypatch, Decoder)
    opened = open_generator(llama_generator, GeneratorOptions(threads=1, slots=3))
    prompt = prompts(1)[0]
    begun = [opened.submit(prompt, Sampling(max_tokens=100)) for _ in range(3)]
    for generation in begun[:1]:
        next(iter(generation))
    waiting = opened.submit(prompt, Sampling(max_tokens=2))
    begun[1].cancel()
    steps.release(2)  # the one under way, and the one that the waiting text is in
    assert tokens(waiting) == greedy(prompt, 2)
    steps.release(200)
    assert [list(generation)[-1].finish for generation in begun] == [Finish.LENGTH, Finish.CANCELLED, Finish.LENGTH]
    opened.close()


def test_rows_outgrow_their_buffers(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capacity and rows are doubled while texts are under way."""
    monkeypatch.setattr("optimizer.runtimes._ort_decoder._CAPACITY", 8)
    opened = open_generator(llama_generator, GeneratorOptions(threads=1))
    try:
        asked = prompts(9)
        begun = [opened.submit(prompt, Sampling(max_tokens=70)) for prompt in asked]
        assert [tokens(generation) for generation in begun] == [greedy(prompt, 70) for prompt in asked]
    finally:
        opened.close()


def test_genai_on_a_gpu_has_its_libraries_loaded_first(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds CUDA's libraries where the system has them, and not where pip puts them."""
    with pytest.raises(MissingPiece, match="was built without CUDAExecutionProvider") as caught:
        open_generator(llama_generator, GeneratorOptions(runtime="genai", provider="cuda"))
    assert "onnxruntime-gpu" in caught.value.hint or "ml-opt[gpu]" in caught.value.hint
    loaded: list[str] = []
    monkeypatch.setattr(genai, "devices_of", lambda module, name, row, precision: loaded.append(row.ep))
    with pytest.raises((MissingPiece, BadInput)):
        open_generator(llama_generator, GeneratorOptions(runtime="genai", provider="cuda"))
    assert loaded == ["CUDAExecutionProvider"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "Cuda interface not available: Failed to load library: libcublasLt.so.13: cannot open shared object file",
            r"the provider cuda did not load: libcublasLt\.so\.13 is missing",
        ),
        (
            "Cuda interface not available: CUDA error in Create at cuda_common.h:80 - CUDA driver version is "
            "insufficient for CUDA runtime version",
            "finds no NVIDIA GPU that it can use: CUDA driver version is insufficient for CUDA runtime version",
        ),
    ],
)
def test_what_genai_says_without_a_gpu(said: str, message: str, tmp_path: Path) -> None:
    """The sentences are those of onnxruntime-genai-cuda 0.18 on a machine without a driver."""
    found = genai._translated(RuntimeError(said), tmp_path, "cuda")
    assert isinstance(found, MissingPiece)
    assert re.search(message, found.message)
    assert found.hint


def test_genai_says_what_it_cannot(llama_generator: Path) -> None:
    opened = open_generator(llama_generator, GeneratorOptions(runtime="genai"))
    try:
        with pytest.raises(BadInput, match="no seed for one text"):
            opened.submit([5], Sampling(temperature=1.0, seed=1))
        with pytest.raises(BadInput, match="how likely"):
            opened.submit([5], Sampling(logprobs=True))
        with pytest.raises(BadInput, match="no beams"):
            opened.submit([5], Sampling(num_beams=2))
        for unknown in ({"min_p": 0.1}, {"presence_penalty": 1.0}, {"logit_bias": ((5, 1.0),)}):
            with pytest.raises(BadInput, match=next(iter(unknown)).replace("_", " ")):
                opened.submit([5], Sampling(**unknown))
    finally:
        opened.close()
    with pytest.raises(BadInput, match="at most 4 texts"):
        open_generator(llama_generator, GeneratorOptions(runtime="genai", slots=8))


def test_its_files_stay_as_they_are(llama_generator: Path) -> None:
    before = {path.name: path.read_bytes() for path in llama_generator.iterdir()}
    for runtime in OURS:
        open_generator(llama_generator, GeneratorOptions(runtime=runtime, threads=1)).close()
    assert {path.name: path.read_bytes() for path in llama_generator.iterdir()} == before


def test_names_that_are_none(llama_generator: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="runtime of generators"):
        open_generator(llama_generator, GeneratorOptions(runtime="genia"))
    with pytest.raises(BadInput, match="provider tpu"):
        open_generator(llama_generator, GeneratorOptions(provider="tpu"))
    with pytest.raises(BadInput, match="no text generator"):
        open_generator(tmp_path)


def test_without_the_package_the_extra_is_named(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer import environment

    real = environment.has_module
    monkeypatch.setattr(environment, "has_module", lambda name: name != "onnxruntime_genai" and real(name))
    with pytest.raises(MissingPiece, match=r"ml-opt\[genai\]"):
        open_generator(llama_generator, GeneratorOptions(runtime="genai"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocab_size": None}, "describes no decoder"),
        ({"decoder": {}}, "describes no decoder"),
        ("not JSON", "cannot be read"),
    ],
)
def test_a_broken_configuration_is_refused(llama_generator: Path, tmp_path: Path, change: Any, why: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(llama_generator, folder)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps({**config, "model": config["model"] | change}))
    for runtime in OURS:
        with pytest.raises(BadInput, match=why):
            open_generator(folder, GeneratorOptions(runtime=runtime))


def test_a_piece_knows_when_it_was_made(own: Generator) -> None:
    before = time.perf_counter()
    pieces: list[Piece] = list(own.submit([5], Sampling(max_tokens=4)))
    assert before < pieces[0].at < pieces[-1].at < time.perf_counter()


@pytest.mark.parametrize(("extra", "why"), [((), "in place"), (("token_type_ids",), "has the input token_type_ids")])
def test_a_graph_that_no_decoder_here_runs_is_refused(tmp_path: Path, extra: tuple[str, ...], why: str) -> None:
    """One whose cache grows by Concat, as attention that is not GroupQueryAttention has it."""
    from onnx import TensorProto, checker, helper, save

    def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    names = ("past_key_values.0.key", "past_key_values.0.value")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "ends"], ["new"]),
        helper.make_node("Unsqueeze", ["floats", "last"], ["logits"]),
        *(helper.make_node("Concat", [n, "new"], [n.replace("past_key_values", "present")], axis=2) for n in names),
    ]
    inputs = [value("input_ids", ["b", "s"], TensorProto.INT64), value("attention_mask", ["b", "t"], TensorProto.INT64)]
    inputs += [value(name, ["b", 1, "p", 1]) for name in names]
    inputs += [value(name, ["b", "s"], TensorProto.INT64) for name in extra]
    outputs = [
        value("logits", ["b", "s", 1]),
        *(value(n.replace("past_key_values", "present"), ["b", 1, "q", 1]) for n in names),
    ]
    weights = [
        helper.make_tensor("ends", TensorProto.INT64, [2], [1, 3]),
        helper.make_tensor("last", TensorProto.INT64, [1], [2]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    save(model, tmp_path / "model.onnx")
    decoder = {"filename": "model.onnx", "num_hidden_layers": 1, "num_key_value_heads": 1, "head_size": 1}
    described = {"type": "x", "context_length": 9, "vocab_size": 1, "decoder": {**decoder, "inputs": {}, "outputs": {}}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": described}))
    with pytest.raises(BadInput, match=why):
        open_generator(tmp_path)


@pytest.mark.parametrize(("runtime", "provider"), WRITERS)
def test_no_end_token_comes_before_the_fewest_tokens(
    llama_generator: Path, tmp_path: Path, runtime: str, provider: str
) -> None:
    """The token that the model would write third is made its end."""
    (prompt,) = prompts(1)
    third = greedy(prompt, 8)[2]
    folder = shutil.copytree(llama_generator, tmp_path / "ends")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = third
    (folder / "genai_config.json").write_text(json.dumps(config))
    opened = open_generator(folder, GeneratorOptions(runtime=runtime, provider=provider, threads=1))
    assert len(tokens(opened.submit(prompt, Sampling(max_tokens=8)))) <= 2
    written = tokens(opened.submit(prompt, Sampling(max_tokens=8, min_tokens=8)))
    opened.close()
    assert len(written) == 8
    assert third not in written
