"""generate: the command and the function, what they say and what they refuse."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from generators import greedy, reference

import optimizer
from optimizer.checks.generate import GenerateReport
from optimizer.cli.main import run
from optimizer.errors import BadInput
from optimizer.store import Store

PROMPT = "class Queue:\n    def __init__(self"


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is piped in."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)


def wanted(new: int) -> str:
    tokenizer = reference()[1]
    return str(tokenizer.decode(greedy(tokenizer(PROMPT)["input_ids"], new)))


def test_the_function_gives_the_text(llama_generator: Path) -> None:
    report = optimizer.generate(str(llama_generator), PROMPT, max_tokens=30, threads=1)
    assert isinstance(report, GenerateReport)
    assert report.text == wanted(30)
    assert report.exit_code == 0
    assert optimizer.generate(str(llama_generator), prompt=PROMPT, max_tokens=30).to_json()["text"] == report.text


def test_the_function_takes_one_reference_and_one_prompt(llama_generator: Path) -> None:
    with pytest.raises(TypeError):
        optimizer.generate(str(llama_generator), "a", "b")
    with pytest.raises(TypeError, match="prompt twice"):
        optimizer.generate(str(llama_generator), "a", prompt="b")
    with pytest.raises(BadInput, match="no prompt"):
        optimizer.generate(str(llama_generator))


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--runtime", "genai"], ["--quiet"]])
def test_the_text_alone_is_on_stdout(llama_generator: Path, capfd: pytest.CaptureFixture[str], how: list[str]) -> None:
    assert run(["generate", str(llama_generator), PROMPT, "--max-tokens", "25", *how]) == 0
    assert capfd.readouterr().out == wanted(25) + "\n"


@pytest.mark.parametrize("words", [["-"], []])
def test_a_pipe_is_read(
    llama_generator: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((PROMPT + "\n").encode())))
    assert run(["generate", str(llama_generator), *words, "--max-tokens", "9"]) == 0
    assert capfd.readouterr().out == wanted(9) + "\n"


def test_a_pipe_that_is_no_text_is_refused(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert run(["generate", str(llama_generator)]) == 2


@pytest.mark.usefixtures("at_a_terminal")
def test_json_is_one_object(llama_generator: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(llama_generator), PROMPT, "--max-tokens", "12", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    tokenizer = reference()[1]
    assert found["text"] == wanted(12)
    assert found["tokens"] == greedy(tokenizer(PROMPT)["input_ids"], 12)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (len(tokenizer(PROMPT)["input_ids"]), 12)
    assert found["finish"] == "length"
    assert 0 < found["first_token_seconds"] < found["seconds"]
    assert found["tokens_per_second"] > 0


@pytest.mark.usefixtures("at_a_terminal")
def test_json_says_how_likely_each_token_was(llama_generator: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the forward pass of transformers over what was written; a text that was drawn has unlikely ones too."""
    import torch

    words = ["generate", str(llama_generator), PROMPT, "--max-tokens", "12", "--temperature", "2", "--seed", "3"]
    assert run([*words, "--logprobs", "--top-logprobs", "3", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    model, tokenizer = reference()
    prompt = tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + found["tokens"]])).logits[0, len(prompt) - 1 : -1]
    scores = logits.log_softmax(-1)
    wanted = scores[range(len(found["tokens"])), found["tokens"]].tolist()
    assert found["logprobs"] == pytest.approx(wanted, abs=1e-3)
    assert min(wanted) < -1
    best = scores.topk(3)
    for place, told in enumerate(found["top_logprobs"]):
        assert [each["token"] for each in told] == best.indices[place].tolist()
        assert [each["logprob"] for each in told] == pytest.approx(best.values[place].tolist(), abs=1e-3)
    took = [each["text"] for place, told in zip(found["tokens"], found["top_logprobs"], strict=True)
            for each in told if each["token"] == place]  # fmt: skip
    assert took
    assert all(text in found["text"] for text in took)
    assert run([*words, "--json"]) == 0
    silent = json.loads(capfd.readouterr().out)
    assert (silent["logprobs"], silent["top_logprobs"], silent["text"]) == ([], [], found["text"])
    assert run([*words, "--logprobs"]) == 0
    assert "add --json" in capfd.readouterr().err
    report = optimizer.generate(str(llama_generator), PROMPT, max_tokens=5, logprobs=True, threads=1)
    assert isinstance(report, GenerateReport)
    assert len(report.answer.logprobs) == 5


@pytest.mark.usefixtures("at_a_terminal")
def test_a_stop_string_that_tokens_cut_ends_the_text(llama_generator: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every piece of the text, cut anywhere: the text ends before it, and the model does not go on."""
    text = wanted(60)
    for begin in range(10, 40, 7):
        stop = text[begin : begin + 4]
        assert run(["generate", str(llama_generator), PROMPT, "--max-tokens", "60", "--stop", stop, "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["text"] == text[: text.index(stop)]
        assert found["finish"] == "stop"
        assert found["completion_tokens"] < 60


@pytest.mark.usefixtures("at_a_terminal")
def test_a_seed_gives_the_same_text(llama_generator: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def text(seed: str) -> str:
        words = ["--temperature", "1", "--top-p", "0.95", "--top-k", "60", "--seed", seed, "--max-tokens", "40"]
        assert run(["generate", str(llama_generator), PROMPT, *words]) == 0
        return capfd.readouterr().out

    assert text("3") == text("3") != text("4")


@pytest.mark.usefixtures("at_a_terminal")
def test_options_bend_the_choice_as_those_of_transformers(
    llama_generator: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The penalty and the size by what transformers writes; each of the others makes another text."""
    tokenizer = reference()[1]

    def text(*words: str) -> str:
        assert run(["generate", str(llama_generator), PROMPT, "--max-tokens", "40", *words]) == 0
        return capfd.readouterr().out[:-1]

    for option, value in (("repetition_penalty", 1.6), ("no_repeat_ngram_size", 2), ("num_beams", 4)):
        asked = greedy(tokenizer(PROMPT)["input_ids"], 40, **{option: value})
        assert text(f"--{option.replace('_', '-')}", str(value)) == tokenizer.decode(asked)
    assert len({text(), text("--presence-penalty", "1"), text("--frequency-penalty", "2")}) == 3
    drawn = ("--temperature", "2", "--seed", "1")
    assert text(*drawn, "--min-p", "1") == text() != text(*drawn)


@pytest.mark.usefixtures("at_a_terminal")
def test_json_by_a_schema(llama_generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    assert run(["generate", str(llama_generator), PROMPT, "--json-schema", str(tmp_path / "schema.json")]) == 0
    assert json.loads(capfd.readouterr().out)["n"] in (1, 2)
    assert run(["generate", str(llama_generator), PROMPT, "--regex", "(yes|no)!"]) == 0
    assert capfd.readouterr().out in ("yes!\n", "no!\n")


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([""], "prompt is empty"),
        (["word " * 300], "prompt and answer together"),
        (["x", "--max-tokens", "0"], "--max-tokens"),
        (["x", "--max-tokens", "-5"], "--max-tokens"),
        (["x", "--max-tokens", "1000"], "context has 128 tokens"),
        (["x", "--temperature", "-1"], "--temperature"),
        (["x", "--temperature", "nan"], "--temperature"),
        (["x", "--top-p", "0"], "--top-p"),
        (["x", "--top-p", "1.5"], "--top-p"),
        (["x", "--top-k", "-1"], "--top-k"),
        (["x", "--min-p", "2"], "--min-p"),
        (["x", "--repetition-penalty", "0"], "--repetition-penalty must be above 0"),
        (["x", "--repetition-penalty", "nan"], "--repetition-penalty"),
        (["x", "--presence-penalty", "nan"], "--presence-penalty"),
        (["x", "--no-repeat-ngram-size", "-1"], "--no-repeat-ngram-size"),
        (["x", "--no-repeat-ngram-size", "2", "--regex", "a"], "leave one of them out"),
        (["x", "--min-tokens", "9", "--max-tokens", "8"], "--min-tokens is 9, and --max-tokens 8"),
        (["x", "--num-beams", "0"], "--num-beams"),
        (["x", "--num-beams", "2", "--temperature", "1"], "--num-beams searches, and --temperature draws"),
        (["x", "--num-beams", "2", "--regex", "a"], "--num-beams searches no text"),
        (["x", "--num-beams", "17"], "17 beams were asked for, and 16 texts"),
        (["x", "--num-beams", "2", "--runtime", "genai"], "follows no beams"),
        (["x", "--num-beams", "2", "--logprobs"], "--logprobs are not told"),
        (["x", "--top-logprobs", "2"], "add --logprobs"),
        (["x", "--top-logprobs", "-1", "--logprobs"], "--top-logprobs"),
        (["x", "--top-logprobs", "513", "--logprobs"], "top logprobs must be from 0 to 512"),
        (["x", "--logprobs", "--runtime", "genai"], "does not tell how likely"),
        (["--logprobs"], "--logprobs is not for conversations"),
        (["x", "--stop", ""], "--stop"),
        (["x", "--regex", "("], "regular expression"),
        (["x", "--json-schema", "missing.json"], "cannot be read"),
        (["x", "--json-schema", "broken.json"], r"broken.json is not JSON"),
        (["x", "--json-schema", "list.json"], "is not a JSON schema"),
        (["x", "--json-schema", "list.json", "--regex", "a"], "not both"),
        (["x", "--chat"], "no chat template"),
        (["x", "--runtime", "tgi"], "runtime of generators"),
        (["x", "--provider", "tpu"], "provider tpu"),
    ],
)
def test_bad_input_is_refused(
    llama_generator: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"type": ')
    (tmp_path / "list.json").write_text("[1]")
    assert run(["generate", str(llama_generator), *words]) == 2
    said = capfd.readouterr()
    assert why in said.err
    assert said.out == ""


@pytest.mark.usefixtures("at_a_terminal")
def test_a_broken_chat_template_is_refused(
    llama_generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama_generator, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{% for message in messages %}")
    assert run(["generate", str(tmp_path / "m"), "hi", "--chat"]) == 2
    assert "chat template" in capfd.readouterr().err
    (tmp_path / "m" / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert run(["generate", str(tmp_path / "m"), "hi", "--chat"]) == 2
    assert "chat_template.jinja is broken: it cannot be read" in capfd.readouterr().err
    assert run(["generate", str(tmp_path / "m"), PROMPT, "--max-tokens", "3"]) == 0
    assert capfd.readouterr().out == wanted(3) + "\n"
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert run(["generate", str(tmp_path / "m"), PROMPT, "--chat", "--max-tokens", "3"]) == 0
    tokenizer = reference()[1]
    ids = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    assert capfd.readouterr().out == tokenizer.decode(greedy(ids, 3)) + "\n"


@pytest.mark.usefixtures("at_a_terminal")
def test_what_is_no_generator_is_refused(stocked: Store, capfd: pytest.CaptureFixture[str]) -> None:
    ref = next(iter(stocked.complete("")))
    assert run(["generate", ref, "x", "--store", str(stocked.root)]) == 2
    assert "a text generator is wanted" in capfd.readouterr().err
    assert run(["generate", "nothing", "x", "--store", str(stocked.root)]) == 2


@pytest.mark.usefixtures("at_a_terminal")
def test_without_its_packages_the_extra_is_named(
    llama_generator: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from optimizer import environment

    real = environment.has_module
    monkeypatch.setattr(environment, "has_module", lambda name: name != "onnxruntime_genai" and real(name))
    assert run(["generate", str(llama_generator), "x", "--runtime", "genai"]) == 4
    assert "ml-opt[genai]" in capfd.readouterr().err


def test_a_model_with_little_room_writes_what_it_can_unless_told_how_much(
    llama_generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = Path(shutil.copytree(llama_generator, tmp_path / "small"))
    config = json.loads((small / "genai_config.json").read_text())
    config["model"]["context_length"] = config["search"]["max_length"] = 60
    (small / "genai_config.json").write_text(json.dumps(config))
    tokens = len(reference()[1](PROMPT)["input_ids"])
    report = optimizer.generate(str(small), PROMPT, threads=1)
    assert isinstance(report, GenerateReport)
    assert report.text == wanted(60 - tokens)
    assert run(["generate", str(small), PROMPT, "--max-tokens", "128"]) == 2
    assert f"ask for at most {60 - tokens}" in capfd.readouterr().err
