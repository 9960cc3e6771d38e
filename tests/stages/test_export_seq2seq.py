"""Models that read with an encoder become generators that answer as PyTorch does."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generators import drawn_prompts as prompts
from generators import exports_of, folders_of

import optimizer
from optimizer.data.continuations import load_continuations
from optimizer.data.documents import Document
from optimizer.errors import BadInput, MlOptError
from optimizer.evaluate.generation import Sliding, score_documents
from optimizer.evaluate.judged import read_judged
from optimizer.generator import Finish, Generator, GeneratorOptions, Sampling, open_generator
from optimizer.search.texts.candidates import plan_texts
from optimizer.store import Store


def kin(*names: str) -> list[Any]:
    """T5 and BART, and beside them what is the same again with other settings."""
    return ["t5", "bart", *(pytest.param(name, marks=pytest.mark.thorough) for name in names)]


#: Of the tokenizer that all of them have.
BEGIN, END, PAD, WORDS = 0, 1, 2, 512
SIZES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 96,
}  # fmt: skip
#: T5 reads more than its n_positions, where that is asked for.
LENGTHS = {"t5": 200}
OF_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "n_positions": 96,
}  # fmt: skip


def build(name: str) -> Any:
    """A model that is decided, and answers what it reads; all but T5's kin with other layers in their encoder."""
    import torch
    import transformers

    sizes, begins = (OF_T5, PAD) if "t5" in name else (SIZES, END)
    if name == "marian":
        begins = PAD
    classes = transformers.models.auto.modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(
        name, **sizes, vocab_size=WORDS, eos_token_id=END, pad_token_id=PAD, bos_token_id=BEGIN,
        decoder_start_token_id=begins,
    )  # fmt: skip
    model = getattr(transformers, classes[name])(config)
    if name == "bart":  # behind the start token comes one that is forced, as in BART's own settings
        model.generation_config.forced_bos_token_id = BEGIN
        model.generation_config.bad_words_ids = [[206], [509]]  # which it would write
    if name == "marian":  # it begins with its padding, and must never write it
        model.generation_config.bad_words_ids = [[PAD]]
    for place, weight in model.named_parameters():
        if weight.dim() > 1:
            # What is read counts for more than what was written: else all answers are one.
            # And where a token stands counts: else texts are equally likely that say the same in another order.
            apart = "shared" in place or "embed_positions" in place
            spread = 1.0 if apart else 2.4 if "encoder_attn" in place or "EncDec" in place else 0.3
            torch.nn.init.normal_(weight, 0.0, spread)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return folders_of(build, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def exported(folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exports_of(folders, Store(tmp_path_factory.mktemp("seq2seq") / "models"), LENGTHS)


@functools.cache
def original(folder: Path) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def greedy(folder: Path, prompt: list[int], new: int, **settings: Any) -> list[int]:
    """What ``transformers.generate`` answers with some settings, without what every answer begins with and ends in."""
    import torch

    model = original(folder)
    forced = model.generation_config.forced_bos_token_id is not None
    with torch.inference_mode():
        # Where an answer is cut off, BART's settings end it with a token of their own.
        (row,) = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new + forced,
            do_sample=False,
            forced_eos_token_id=None,
            **{"num_beams": 1, **settings},
        )
    return [token for token in row.tolist()[1 + forced :] if token != END]


def written(generator: Generator, asked: list[list[int]], new: int, **sampling: Any) -> list[list[int]]:
    begun = [generator.submit(prompt, Sampling(max_tokens=new, **sampling)) for prompt in asked]
    return [[token for piece in text for token in piece.tokens] for text in begun]


@pytest.mark.parametrize(
    "name", kin("marian", "pegasus", "mbart", "plbart", "m2m_100", "blenderbot", "blenderbot-small", "mt5", "umt5")
)
def test_it_answers_as_pytorch_whoever_writes_beside_it(name: str, folders: Any, exported: Any) -> None:
    artifact = exported(name)
    generator = open_generator(artifact.path)
    asked = prompts()
    wanted = [greedy(folders(name), prompt, 24) for prompt in asked]
    assert len({tuple(each) for each in wanted}) > len(asked) / 2  # they answer what they read
    try:
        assert written(generator, asked, 24) == wanted
        # What was read is none of the text: it may be said again.
        for bent in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}):
            asked_so = [greedy(folders(name), prompt, 24, **bent) for prompt in asked]
            assert written(generator, asked, 24, **bent) == asked_so != wanted
        # Texts that begin while others are under way are of other lengths: each keeps what it reads.
        one = generator.submit(asked[0], Sampling(max_tokens=24))
        pieces = iter(one)
        first = next(pieces)
        assert written(generator, asked[1:4], 24) == wanted[1:4]
        assert [*first.tokens, *(token for piece in pieces for token in piece.tokens)] == wanted[0]
    finally:
        generator.close()
    facts = artifact.manifest.facts
    assert facts["parity"]["top1"] == 1
    assert facts["parity"]["kl"] < 1e-6
    assert facts["decoder"]["layers"] == 3
    assert facts["encoder"]["context"] == LENGTHS.get(name, 96)
    kept = load_continuations(artifact.path)
    assert [list(each.tokens) for each in kept if END not in each.tokens] == [
        greedy(folders(name), list(each.prompt), 32) for each in kept if END not in each.tokens
    ]


BEAMS: tuple[dict[str, Any], ...] = (
    {"num_beams": 2},
    {"num_beams": 5, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 3.0},
    {"num_beams": 4, "length_penalty": -2.0, "early_stopping": True},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    {"num_beams": 3, "min_tokens": 6},
    # Texts that end all the time: when the search does, and which of them is the best.
    {"num_beams": 3, "logit_bias": ((END, 4.0),), "length_penalty": 2.0},
    {"num_beams": 3, "logit_bias": ((END, 4.0),), "length_penalty": 2.0, "early_stopping": True},
)


@pytest.mark.parametrize("name", kin("marian", "m2m_100", "umt5"))
def test_beams_find_what_transformers_finds(name: str, folders: Any, exported: Any) -> None:
    """Several searches beside each other, and beside texts that are not searched."""
    generator = open_generator(exported(name).path)
    # A prompt of one token makes whole texts equally likely that have the same tokens in another order.
    asked, forced = prompts(7)[1:], name == "bart"
    try:
        plain = [generator.submit(prompt, Sampling(max_tokens=24)) for prompt in asked]
        for sampling in BEAMS:
            settings = dict(sampling)
            if "min_tokens" in settings:
                settings["min_new_tokens"] = settings.pop("min_tokens") + forced
            if "logit_bias" in settings:
                settings["sequence_bias"] = {(token,): bias for token, bias in settings.pop("logit_bias")}
            wanted = [greedy(folders(name), prompt, 24, **settings) for prompt in asked]
            assert written(generator, asked, 24, **sampling) == wanted, sampling
        likeliest = [[token for piece in text for token in piece.tokens] for text in plain]
        assert likeliest == [greedy(folders(name), prompt, 24) for prompt in asked]
        assert written(generator, asked, 24, num_beams=4) != likeliest
    finally:
        generator.close()


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_pytorch_itself_answers_the_same_as_a_generator(name: str, folders: Any) -> None:
    """It is what others are compared with, several texts in one call."""
    generator = open_generator(folders(name), GeneratorOptions("torch", "torch"))
    asked = prompts(4)
    try:
        assert written(generator, asked, 12) == [greedy(folders(name), prompt, 12) for prompt in asked]
        with pytest.raises(BadInput, match="cannot be scored"):
            generator.score(np.ones((1, 2), np.int64))
    finally:
        generator.close()


@pytest.mark.parametrize("name", kin("m2m_100", "marian"))
def test_texts_of_unequal_length_make_a_step_together(name: str, exported: Any) -> None:
    from optimizer.generating.config import read_config
    from optimizer.runtimes._ort_graph import open_session
    from optimizer.runtimes._ort_seq2seq import EncoderDecoder

    config = read_config(exported(name).path)
    assert config.encoder is not None
    encoder, decoder = (open_session(file, 1) for file in (config.encoder, config.file))

    class Counted:
        runs = 0

        def get_inputs(self) -> Any:
            return decoder.get_inputs()

        def run(self, *asked: Any) -> Any:
            self.runs += 1
            return decoder.run(*asked)

    def alone(prompt: list[int], tokens: list[int]) -> Any:
        rows = EncoderDecoder(encoder, decoder, config, 2)
        rows.read(0, [np.array(prompt)])
        return [rows.step([token], [0]) for token in (config.start[-1], *tokens)][-1][0]

    counted = Counted()
    rows = EncoderDecoder(encoder, counted, config, 3)
    first, second, third = prompts(8)[3], prompts(8)[7], prompts(8)[1]
    rows.read(0, [np.array(first)])
    for token in (config.start[-1], 40, 41, 42):
        rows.step([token], [0])
    rows.read(1, [np.array(second), np.array(third)])
    before = counted.runs
    # Their first step is one of the longest's, too.
    said = rows.step([43, config.start[-1], config.start[-1]], [0, 0, 0])
    assert counted.runs == before + 1
    wanted = alone(first, [40, 41, 42, 43]), alone(second, []), alone(third, [])
    np.testing.assert_allclose(said, wanted, atol=2e-3)
    said = rows.step([44, 50, 60], [0, 0, 0])
    wanted = alone(first, [40, 41, 42, 43, 44]), alone(second, [50]), alone(third, [60])
    np.testing.assert_allclose(said, wanted, atol=2e-3)
    # The longest leaves, and the last takes its place; no token of the longest stays with them.
    rows.move(2, 0, 0)
    said = rows.step([61, 51], [0, 0])
    np.testing.assert_allclose(said, (alone(third, [60, 61]), alone(second, [50, 51])), atol=2e-3)


def test_a_text_leaves_and_others_take_its_place(folders: Any, exported: Any) -> None:
    generator = open_generator(exported("t5").path, GeneratorOptions(slots=2))
    asked = prompts(6)
    try:
        gone = generator.submit(asked[0], Sampling(max_tokens=90))
        rest = [generator.submit(prompt, Sampling(max_tokens=16)) for prompt in asked[1:]]
        pieces = iter(gone)
        next(pieces)
        gone.cancel()
        assert [piece.finish for piece in pieces][-1] is Finish.CANCELLED
        got = [[token for piece in text for token in piece.tokens] for text in rest]
        assert got == [greedy(folders("t5"), prompt, 16) for prompt in asked[1:]]
    finally:
        generator.close()


@pytest.mark.parametrize(
    ("options", "by_bits", "left"),
    [
        ({"precision": "int4", "algorithm": "k_quant_last", "block_size": 16}, {"4": 48, "8": 1}, 0),
        pytest.param({"precision": "int8"}, {"8": 49}, 0, marks=pytest.mark.thorough),
        pytest.param(
            {"precision": "int4", "float_head": True, "block_size": 16}, {"4": 48}, 1, marks=pytest.mark.thorough
        ),
    ],
    ids=str,
)
def test_weights_of_both_graphs_are_rounded(options: Any, by_bits: Any, left: int, exported: Any) -> None:
    import onnx

    artifact = exported("t5", **options)
    assert artifact.manifest.facts["blocks"]["by_bits"] == by_bits
    assert len(artifact.manifest.facts["float_products"]) == left
    # Six products a layer of the encoder, and keys and values of each layer of the decoder, which has eight.
    for name, count in (("encoder.onnx", 3 * 6 + 3 * 2), ("model.onnx", 3 * 8 + 1 - left)):
        nodes = onnx.load(str(artifact.path / name)).graph.node
        assert sum(node.op_type == "MatMulNBits" for node in nodes) == count
    generator = open_generator(artifact.path)
    try:
        assert len(written(generator, prompts(2), 8)[0]) == 8
    finally:
        generator.close()
    assert artifact.manifest.facts["parity"]["kl"] < (0.2 if by_bits == {"8": 49} else 1)
    # Nobody is sent to what is for decoders alone.
    assert "k_quant_mixed" not in " ".join(artifact.manifest.warnings)


def test_it_is_verified_and_used_like_any_generator(
    exported: Any, folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.cli.main import run

    store, ref = str(exported.store.root), exported("bart").ref
    assert run(["verify", ref, "--against", "golden", "--store", store]) == 0
    assert run(["export-genai", str(folders("bart")), "--name", "bart", "--store", store]) == 0
    said = capsys.readouterr().out
    assert "an encoder reads the prompt" in said
    assert "prompts of up to 96 tokens, answers of up to 95" in said
    assert run(["generate", ref, "def main", "--max-tokens", "5", "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completion_tokens"] == 5


@pytest.mark.thorough
def test_it_is_timed_beside_pytorch(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from optimizer.cli.main import run

    size = ["--prompt-lengths", "8", "--new-tokens", "4", "--batch", "2", "--duration", "0.05", "--rounds", "2"]
    refs = [exported("bart").ref, "source"]
    assert run(["bench", *refs, *size, "--store", str(exported.store.root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["error"] for row in rows] == ["", ""]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"provider": "cuda", "precision": "int4"}, "for processors alone", "leave --provider out"),
    ({"precision": "int4", "algorithm": "k_quant_mixed"}, "for decoders alone", "k_quant_last"),
    ({"precision": "int4", "algorithm": "gptq", "calib": "rows.txt"}, "for decoders alone", "k_quant_last"),
]


@pytest.mark.parametrize(("options", "message", "hint"), REFUSED, ids=lambda value: None)
def test_what_is_for_decoders_alone_is_refused(
    options: Any, message: str, hint: str, folders: Any, tmp_path: Path
) -> None:
    (tmp_path / "rows.txt").write_text("a text\n")
    given = {**options, **({"calib": tmp_path / "rows.txt"} if "calib" in options else {})}
    with pytest.raises(BadInput, match=message) as refused:
        optimizer.export_genai(str(folders("t5")), name="m", store=Store(tmp_path / "models"), **given)
    assert hint in refused.value.hint


def test_what_runs_decoders_alone_says_what_to_use(exported: Any, folders: Any) -> None:
    for options in (GeneratorOptions("genai"), GeneratorOptions("openvino", "openvino-native")):
        with pytest.raises(MlOptError, match="reads with an encoder") as refused:
            open_generator(exported("t5").path, options)
        assert "provider cpu" in refused.value.hint


@pytest.fixture(scope="module")
def pairs(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and what T5 answers to them."""
    from tokenizers import Tokenizer

    folder = exported("t5").path
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [f"def {name}(self):" for name in ("read", "write", "close", "open", "seek", "tell", "flush", "fileno")]
    generator = open_generator(folder)
    try:
        answers = written(generator, [tokenizer.encode(text).ids for text in texts], 12)
    finally:
        generator.close()
    rows = [{"asked": text, "target": tokenizer.decode(answer)} for text, answer in zip(texts, answers, strict=True)]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", kin("marian", "mbart", "m2m_100"))
def test_an_answer_is_as_likely_as_pytorch_says(name: str, folders: Any, exported: Any, pairs: Path) -> None:
    """All tokens are scored, the one that ends an answer too, but not what every answer begins with."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    artifact = exported(name)
    documents = read_judged(pairs, artifact, {"text": "asked"})
    model = AutoModelForSeq2SeqLM.from_pretrained(folders(name)).eval()
    forced = [token for token in [model.generation_config.forced_bos_token_id] if token is not None]
    for options in (GeneratorOptions(), GeneratorOptions("torch", "torch")):
        generator = open_generator(artifact.path if options.runtime == "auto" else folders(name), options)
        try:
            scores = list(score_documents(generator, documents, Sliding(8, 4)))
        finally:
            generator.close()
        for document, score in zip(documents, scores, strict=True):
            said = document.tokens[document.first :]
            assert said[-1] == END
            labels = torch.tensor([[*forced, *said]])
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([document.read]), labels=labels).logits[0, len(forced) :]
            wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(said), reduction="sum")
            assert score.tokens == len(said)
            assert score.nll == pytest.approx(float(wanted), rel=1e-4, abs=1e-3)


def test_an_answer_that_takes_every_place_is_scored(exported: Any) -> None:
    generator = open_generator(exported("bart").path)
    most = (END, BEGIN, *[5] * 94, END)
    try:
        (score,) = score_documents(generator, [Document("most", most, (7,) * 96, 2)], Sliding(8, 4))
        assert score.tokens == 95
        assert np.isfinite(score.nll)
        with pytest.raises(BadInput, match="97 tokens to score, and the context has 96"):
            list(score_documents(generator, [Document("more", (*most, END), (7,), 2)], Sliding(8, 4)))
        with pytest.raises(BadInput, match="97 tokens to score"):
            list(score_documents(generator, [Document("read", most, (7,) * 97, 2)], Sliding(8, 4)))
        with pytest.raises(BadInput, match="1 answers to score, and 2 prompts"):
            generator.score(np.ones((1, 2), np.int64), np.ones((2, 2), np.int64))
    finally:
        generator.close()


def test_pairs_decide_what_is_kept_of_it(
    exported: Any, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.cli.main import run
    from optimizer.search.texts import run as texts_run

    def fewer(*given: Any, **more: Any) -> Any:
        plan = plan_texts(*given, **more)
        return replace(plan, ideas=tuple(idea for idea in plan.ideas if idea.name in ("fp32", "int8")))

    monkeypatch.setattr(texts_run, "plan_texts", fewer)
    store, ref = str(exported.store.root), exported("t5").ref
    asked = ["--column", "text=asked", "--store", store]
    assert run(["verify", ref, "--against", "source", "--data", str(pairs), *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["compared"]
    assert found["perplexity"]["ratio"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["match"]["whole"] == 1
    # The weights were drawn and not learned, and the texts are eight: little can be promised.
    asked += ["--max-drop", "60%", "--shape", "2x6+4", "--duration", "0.05", "--rounds", "3"]
    assert run(["optimize", ref, "--eval", str(pairs), *asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["metric"]) == ("PASS", "perplexity")
    exact, rounded = report["candidates"]
    assert (exact["name"], rounded["name"]) == ("fp32", "int8")
    assert exact["kl"]["worst"] < 1e-6 < rounded["kl"]["mean"] < 0.2
    assert exact["gates"][0]["value"] == pytest.approx(0, abs=1e-4)
    assert sum(exact["rows"]["nll"]) == pytest.approx(sum(report["original"]["rows"]["nll"]), rel=1e-5)
    assert any("The longest prompt has" in note for note in report["notes"])


def test_what_cannot_be_asked_of_pairs(
    folders: Any, exported: Any, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.cli.main import run

    store = ["--store", str(exported.store.root)]
    assert run(["optimize", str(folders("t5")), "--dry-run", "--json", *store]) == 0
    plan = json.loads(capsys.readouterr().out)
    left = {each["name"]: each["reason"] for each in plan["left_out"]}
    assert "processor provider alone" in left["int4-openvino"]
    assert "known of decoders alone" in left["int4-k_quant_mixed"]
    assert {"int8", "int4-k_quant_last"} <= {each["name"] for each in plan["candidates"]}

    def refused(*words: str) -> str:
        assert run(["optimize", exported("t5").ref, *words, "--max-drop", "2%", *store]) == 2
        return capsys.readouterr().err

    named = ["--eval", str(pairs), "--column", "text=asked"]
    assert "its 4 bits learn from no text" in refused(*named, "--calib", str(pairs))
    assert "200 for a prompt and 200 for its answer" in refused(*named, "--shape", "1x8+201")
    assert "no column for target" in refused("--eval", str(pairs), "--column", "text=asked", "--column", "target=x")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"text": "a", "target": "word " * 300}) + "\n", encoding="utf-8")
    assert "row 1: its answer has" in refused("--eval", str(long))


def test_prompt_and_answer_have_limits_of_their_own(exported: Any) -> None:
    generator = open_generator(exported("bart").path)
    try:
        # Both places of what an answer begins with are taken, but for the last token's own.
        (whole,) = written(generator, [[5] * 96], 95)
        assert len(whole) == 95
        with pytest.raises(BadInput, match="has 97 tokens, and the model reads 96"):
            generator.submit([5] * 97, Sampling(max_tokens=9))
        with pytest.raises(BadInput, match="context has 95 tokens"):
            generator.submit([5], Sampling(max_tokens=96))
        with pytest.raises(BadInput, match="cannot be scored"):
            generator.score(np.ones((1, 2), np.int64))
    finally:
        generator.close()


def test_t5_reads_as_much_as_is_asked_for_and_bart_what_it_has_positions_for(
    folders: Any, exported: Any, tmp_path: Path
) -> None:
    generator = open_generator(exported("t5").path)
    try:
        asked = [3 + n % 400 for n in range(150)]
        assert written(generator, [asked], 20) == [greedy(folders("t5"), asked, 20)]
    finally:
        generator.close()
    with pytest.raises(BadInput, match="positions for 96 tokens"):
        optimizer.export_genai(str(folders("bart")), name="b", store=Store(tmp_path / "models"), max_length=97)


def test_a_golden_answer_is_no_longer_than_an_answer_may_be(folders: Any) -> None:
    from optimizer.exporting.genai_golden import load_tokenizer, write_on
    from optimizer.exporting.seq2seq import start_tokens
    from optimizer.hf import load_model

    loaded = load_model(folders("bart"), "text2text-generation")
    start = start_tokens(loaded)
    assert len(start) == 2
    golden = write_on(loaded, load_tokenizer(folders("bart"), False), 16, start)
    assert {len(each.tokens) for each in golden.continuations} == {15}
