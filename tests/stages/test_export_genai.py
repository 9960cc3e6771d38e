"""A decoder of either family becomes a generator that answers as PyTorch does, in the precision that was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantizing.test_awq import planted

import optimizer
from benchmarks.decoders import decoder
from optimizer.artifact import Artifact
from optimizer.data.continuations import load_continuations
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, MlOptError, UnknownName
from optimizer.exporting import genai_golden
from optimizer.exporting.genai_builder import build as genai_build
from optimizer.hf import LoadedModel, load_model
from optimizer.quantizing import awq
from optimizer.quantizing.gptq import refine
from optimizer.stages._lessons import pieces_of
from optimizer.stages.export_genai import STAGE, ExportGenai
from optimizer.store import Store
from optimizer.types import Kind, Precision

pytest.importorskip("onnxruntime_genai")

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("llama", "gpt2")
TEXT = [1, 5, 9, 44, 77, 100, 200, 3, 17, 18, 60, 61]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the tests of this file export, each thing once."""
    return Store(tmp_path_factory.mktemp("genai") / "models")


def exported(family: str, store: Store, **options: Any) -> Artifact:
    folder = decoder(family, size="tiny")
    return optimizer.export_genai(str(folder), name=family, store=store, **options).artifact


def reference(family: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(decoder(family, size="tiny")).eval()


class Loop:
    """The plainest decode loop on ONNX Runtime, by the names in the graph alone."""

    def __init__(self, folder: Path, rows: int = 1) -> None:
        import onnxruntime

        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.names = {each.name for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]
        empty = np.zeros((rows, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
        self.past = {name: empty for name in self.names if name.startswith("past")}
        self.done = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        rows, new = tokens.shape
        self.done += new
        places = np.tile(np.arange(self.done - new, self.done), (rows, 1))
        feeds = {"input_ids": tokens, "attention_mask": np.ones((rows, self.done), np.int64), "position_ids": places}
        answers = dict(
            zip(
                self.outputs,
                self.session.run(None, {k: v for k, v in (feeds | self.past).items() if k in self.names}),
                strict=True,
            )
        )
        self.past = {name: answers[name.replace("past_key_values", "present")] for name in self.past}
        return answers["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_its_logits_are_pytorchs_at_once_and_step_by_step(family: str, shared: Store) -> None:
    import torch

    artifact = exported(family, shared)
    rows = np.array([TEXT, TEXT[::-1]])
    with torch.inference_mode():
        want = reference(family)(torch.tensor(rows)).logits.numpy()
    assert np.abs(Loop(artifact.path, 2).step(rows) - want).max() <= 1e-3
    loop, got = Loop(artifact.path, 2), []
    for first, last in ((0, 7), *((place, place + 1) for place in range(7, len(TEXT)))):
        got.append(loop.step(rows[:, first:last]))
    assert np.abs(np.concatenate(got, axis=1) - want).max() <= 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_genai_itself_writes_what_pytorch_wrote(family: str, shared: Store) -> None:
    """The names, the type and the cache are those that onnxruntime-genai runs, without a word in between."""
    import onnxruntime_genai as og

    artifact = exported(family, shared)
    model = og.Model(str(artifact.path))
    golden = load_continuations(artifact.path)
    assert len(golden) == 4
    for each in golden:
        assert len(each.tokens) == len(each.margins)
        assert len(each.tokens) == 32 or each.tokens[-1] in artifact.model_info["end_tokens"]
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(each.prompt) + len(each.tokens), do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(list(each.prompt))
        while not generator.is_done():
            generator.generate_next_token()
        assert list(generator.get_sequence(0))[len(each.prompt) :] == list(each.tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_manifest_says_what_it_is(family: str, shared: Store) -> None:
    artifact = exported(family, shared)
    info, facts = artifact.model_info, artifact.manifest.facts
    assert artifact.kind is Kind.GENERATOR
    assert artifact.precision is Precision.FP32
    assert artifact.variant == "fp32-genai"
    assert info["task"] == "text-generation"
    assert info["model_type"] == family
    assert (info["max_length"], info["vocabulary"], info["chat_template"]) == (128, 512, False)
    assert info["end_tokens"] == [reference(family).config.eos_token_id]
    kv_heads = 2 if family == "llama" else 4
    assert facts["attention"] == 2
    assert facts["decoder"] == {
        "type": "llama" if family == "llama" else "decoder",
        "layers": 2,
        "heads": 4,
        "kv_heads": kv_heads,
        "head_size": 16,
        "context": 128,
        "vocabulary": 512,
        "cache_bytes_per_token": 2 * 2 * kv_heads * 16 * 4,
        "last_logits": True,
        "grows": False,
    }
    assert facts["parity"]["max_abs"] <= 1e-3
    assert facts["parity"]["top1"] == 1.0
    assert artifact.manifest.warnings == []
    source = decoder(family, size="tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert (artifact.path / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("family", "options", "by_bits"),
    [
        ("llama", {"precision": "int4"}, {"4": 11}),
        ("llama", {"precision": "int8"}, {"8": 11}),
        ("llama", {"precision": "int4", "algorithm": "rtn_last", "block_size": 64}, {"4": 10, "8": 1}),
        ("llama", {"precision": "int4", "algorithm": "k_quant_mixed"}, {"4": 8, "8": 3}),
        ("llama", {"precision": "int4", "float_head": True}, {"4": 10}),
        ("gpt2", {"precision": "int4"}, {"4": 9}),
        ("gpt2", {"precision": "int8"}, {"8": 9}),
        ("gpt2", {"precision": "int4", "algorithm": "k_quant_mixed"}, {"4": 6, "8": 3}),
    ],
)
def test_weights_are_stored_as_asked(
    family: str, options: dict[str, Any], by_bits: dict[str, int], shared: Store
) -> None:
    artifact = exported(family, shared, **options)
    facts = artifact.manifest.facts
    assert artifact.precision == options["precision"]
    assert facts["blocks"]["by_bits"] == by_bits
    assert facts["blocks"]["products"] == sum(by_bits.values())
    assert facts["blocks"]["block_size"] == [options.get("block_size", 32)]
    assert facts["float_products"] == ["/lm_head/MatMul"] * options.get("float_head", False)
    assert facts["attention"] == 2
    assert artifact.manifest.bytes < 0.75 * exported(family, shared).manifest.bytes
    assert facts["parity"]["kl"] < (0.001 if options["precision"] == "int8" else 0.03)


def test_more_bits_are_nearer(shared: Store) -> None:
    for family in FAMILIES:
        plain, mixed, eight = (
            exported(family, shared, **options).manifest.facts["parity"]["kl"]
            for options in (
                {"precision": "int4"},
                {"precision": "int4", "algorithm": "k_quant_mixed"},
                {"precision": "int8"},
            )
        )
        assert plain > mixed > eight


def test_the_table_may_stay_in_float(shared: Store) -> None:
    shared_table = exported("llama", shared, precision="int4").manifest.facts
    own_table = exported("llama", shared, precision="int4", share_embeddings=False).manifest.facts
    assert (shared_table["blocks"]["tables"], own_table["blocks"]["tables"]) == (1, 0)
    assert own_table["weights"]["float32"] - shared_table["weights"]["float32"] >= 512 * 64 * 4 * 0.9


def learned(family: str, store: Store, algorithm: str = "gptq_last", **options: Any) -> Artifact:
    calib = decoder(family, size="tiny") / "train-sample.jsonl"
    return exported(family, store, precision="int4", algorithm=algorithm, calib=calib, samples=64, **options)


def weights(artifact: Artifact) -> dict[str, np.ndarray]:
    model = onnx.load(str(artifact.path / "model.onnx"))
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.mark.parametrize("family", FAMILIES)
def test_gptq_is_nearer_with_the_same_scales(family: str, shared: Store) -> None:
    """On a text that it did not learn from: the one that PyTorch wrote."""
    made = learned(family, shared)
    plain = exported(family, shared, precision="int4", algorithm="k_quant_last")
    facts = made.manifest.facts
    assert made.variant == "int4-genai-gptq_last"
    assert facts["blocks"] == plain.manifest.facts["blocks"]
    assert (facts["gptq"]["products"], facts["gptq"]["left"]) == (facts["blocks"]["by_bits"]["4"], [])
    data = facts["gptq"]["data"]
    assert (data["file"], data["texts"], data["pieces"]) == ("train-sample.jsonl", 256, 64)
    assert facts["gptq"]["noise"]["after"] < 0.6 * facts["gptq"]["noise"]["before"]
    assert facts["parity"]["kl"] < 0.8 * plain.manifest.facts["parity"]["kl"]
    before, after = weights(plain), weights(made)
    changed = [name for name, array in before.items() if not np.array_equal(array, after[name])]
    assert len(changed) == facts["gptq"]["products"]
    assert {before[name].dtype for name in changed} == {np.dtype(np.uint8)}, "levels, and no scale"
    listed = {each.name for each in made.path.iterdir()}
    assert listed == {each.name for each in plain.path.iterdir()}, "what it learned from is gone"


def test_gptq_leaves_a_head_alone_that_is_the_table_too(shared: Store) -> None:
    made, plain = learned("llama", shared, "gptq"), exported("llama", shared, precision="int4", algorithm="k_quant")
    facts = made.manifest.facts["gptq"]
    assert (facts["products"], facts["left"]) == (10, ["/lm_head/MatMul_Q4"])
    head = "lm_head.MatMul.weight_Q4G32"
    assert np.array_equal(weights(made)[head], weights(plain)[head])


def test_gptq_takes_blocks_that_k_quant_cannot_pack(shared: Store, store: Store) -> None:
    """192 numbers are three blocks of 64: around zero, as rtn has them."""
    made = learned("llama", shared, "gptq_last", block_size=64)
    facts = made.manifest.facts
    assert (facts["gptq"]["products"], facts["blocks"]["block_size"]) == (10, [64])
    plain = exported("llama", shared, precision="int4", algorithm="rtn_last", block_size=64)
    assert facts["parity"]["kl"] < 0.8 * plain.manifest.facts["parity"]["kl"]
    folder = decoder("llama", size="tiny")
    calib = folder / "train-sample.jsonl"
    error = refused(folder, store, precision="int4", algorithm="gptq_mixed", block_size=64, calib=calib)
    assert "write --block-size 32" in str(error.hint)


def test_gptq_learns_on_the_processor_for_a_gpu(shared: Store) -> None:
    """What is built for a GPU is in 16 bits, and is traced a second time for it."""
    made = learned("gpt2", shared, "gptq", provider="cuda")
    assert (made.manifest.facts["gptq"]["products"], made.manifest.facts["gptq"]["left"]) == (9, [])
    assert made.manifest.facts["gptq"]["noise"]["after"] < 0.6 * made.manifest.facts["gptq"]["noise"]["before"]
    assert {array.dtype for name, array in weights(made).items() if name.endswith("_scale")} == {np.dtype(np.float16)}


@pytest.mark.parametrize(("family", "sites"), [("llama", 6), ("gpt2", 4)])
def test_awq_scales_before_it_rounds(family: str, sites: int, shared: Store) -> None:
    """Built from a folder of its own, and traced; the grid of blocks, the names and the files are those of k_quant."""
    made = learned(family, shared, "awq_last")
    plain = exported(family, shared, precision="int4", algorithm="k_quant_last")
    facts = made.manifest.facts
    assert made.variant == "int4-genai-awq_last"
    assert facts["awq"]["sites"] == sites
    assert facts["awq"]["data"]["pieces"] == 64
    assert facts["awq"]["noise"]["after"] < facts["awq"]["noise"]["before"]
    assert facts["blocks"] == plain.manifest.facts["blocks"]
    assert "gptq" not in facts
    assert facts["parity"]["kl"] < 1.5 * plain.manifest.facts["parity"]["kl"]
    assert weights(made).keys() == weights(plain).keys()
    assert {each.name for each in made.path.iterdir()} == {each.name for each in plain.path.iterdir()}
    for name in ("tokenizer.json", "generation_config.json", "config.json"):
        assert (made.path / name).read_bytes() == (plain.path / name).read_bytes(), "not the scaled one's"
    assert optimizer.generate(made.ref, "def main", max_tokens=4, store=shared).text


def test_awq_finds_what_rounding_to_the_nearest_loses(tmp_path: Path, store: Store) -> None:
    """Channels that are read 30 times as large as others, with weights as much smaller."""
    folder = planted(tmp_path / "planted")
    found = {}
    for algorithm in ("k_quant_last", "awq_last"):
        given = {"calib": folder / "train-sample.jsonl"} if algorithm == "awq_last" else {}
        made = optimizer.export_genai(str(folder), store=store, precision="int4", algorithm=algorithm, **given)
        found[algorithm] = made.artifact.manifest.facts["parity"]["kl"]
    assert found["awq_last"] < 0.5 * found["k_quant_last"]


def test_weights_are_not_held_while_the_builder_reads_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is as much memory again as the builder takes; what is traced is held until it is written."""
    held: list[LoadedModel] = []

    def remembered(*words: Any, **named: Any) -> LoadedModel:
        held.append(load_model(*words, **named))
        return held[-1]

    def devices() -> set[str]:
        return {weight.device.type for weight in held[-1].module.parameters()}

    def built(*words: Any) -> None:
        assert devices() == {"meta"}
        genai_build(*words)

    def learned(*words: Any, **named: Any) -> Any:
        assert devices() == {"meta"}
        return refine(*words, **named)

    monkeypatch.setattr("optimizer.hf.load_model", remembered)
    monkeypatch.setattr("optimizer.exporting.genai_builder.build", built)
    monkeypatch.setattr("optimizer.quantizing.gptq.refine", learned)
    for family in FAMILIES:
        folder = decoder(family, size="tiny")
        made = optimizer.export_genai(
            str(folder), store=store, precision="int4", algorithm="gptq_last", calib=folder / "train-sample.jsonl"
        ).artifact
        assert made.manifest.facts["gptq"]["products"] > 0
    assert len(held) == 2


def test_awq_scales_for_a_gpu_too(shared: Store) -> None:
    made = learned("llama", shared, "awq", provider="cuda")
    assert made.manifest.facts["awq"]["sites"] == 6
    assert made.manifest.facts["blocks"]["by_bits"]["4"] == 11


def test_a_model_that_cannot_be_scaled_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "find_sites", lambda *a: ())
    folder = decoder("gpt2", size="tiny")
    error = refused(folder, store, precision="int4", algorithm="awq_mixed", calib=folder / "train-sample.jsonl")
    assert "--algorithm awq_mixed finds nothing to scale in GPT2LMHeadModel" in error.message
    assert error.hint == "write --algorithm gptq_mixed"


@pytest.mark.parametrize(
    ("row", "said"),
    [("not json", "not JSON"), ('{"body": "x"}', "no column for text"), ('{"text": ""}', "has two tokens")],
)
def test_text_that_cannot_be_learned_from_is_refused_before_any_work(
    row: str, said: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(genai_golden, "write_on", lambda *a: pytest.fail("PyTorch was asked"))
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    error = refused(
        decoder("llama", size="tiny"), store, precision="int4", algorithm="gptq", calib=tmp_path / "rows.jsonl"
    )
    assert said in error.message


def test_pieces_are_of_the_text_and_not_of_its_order(tmp_path: Path) -> None:
    folder = decoder("llama", size="tiny")
    rows = (folder / "heldout.jsonl").read_text().splitlines(keepends=True)
    found = []
    for name, lines in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        (tmp_path / name).write_text("".join(lines))
        pieces, told = pieces_of(tmp_path / name, folder, {}, 100, 40, 512)
        assert (told["pieces"], told["tokens"]) == (40, sum(map(len, pieces)))
        found.append(pieces)
    assert found[0] == found[1]
    assert {len(each) for each in found[0]} >= {100}, "no longer than the context"
    assert max(len(each) for each in found[0]) == 100
    with pytest.raises(BadInput, match="the model 50 tokens"):
        pieces_of(tmp_path / "a.jsonl", folder, {}, 100, 40, 50)


def test_the_same_again_is_found_and_other_options_are_not(shared: Store) -> None:
    folder = str(decoder("llama", size="tiny"))
    exported("llama", shared)
    assert optimizer.export_genai(folder, name="llama", store=shared).cached
    shorter = optimizer.export_genai(folder, name="llama", store=shared, max_length=64)
    assert not shorter.cached
    assert shorter.artifact.variant == "fp32-genai-len64"
    config = json.loads((shorter.artifact.path / "genai_config.json").read_text())
    assert config["model"]["context_length"] == config["search"]["max_length"] == 64
    assert shorter.artifact.model_info["max_length"] == shorter.artifact.manifest.facts["decoder"]["context"] == 64


@pytest.mark.parametrize(
    ("family", "precision", "dtype"),
    [("llama", "fp16", "float16"), ("llama", "bf16", "bfloat16"), ("gpt2", "bf16", "bfloat16")],
)
def test_half_precision_is_for_a_gpu(family: str, precision: str, dtype: str, shared: Store) -> None:
    artifact = exported(family, shared, precision=precision, provider="cuda")
    assert artifact.precision == precision
    assert artifact.manifest.facts["inputs"][-1]["dtype"] == dtype
    assert artifact.manifest.facts["decoder"]["cache_bytes_per_token"] == 2 * 2 * (2 if family == "llama" else 4) * 32
    config = json.loads((artifact.path / "genai_config.json").read_text())
    assert [*config["model"]["decoder"]["session_options"]["provider_options"][0]] == ["cuda"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"precision": "fp8"}, "no decoder is built in fp8", "fp32, fp16"),
        ({"precision": "fp16"}, "lacks the kernels of a decoder in fp16", "--provider cuda"),
        ({"precision": "bf16"}, "lacks the kernels of a decoder in bf16", "int8 or int4"),
        ({"precision": "bf16"}, "on a processor", "fp32, and --provider openvino-native:bf16 where it is run"),
        ({"precision": "fp16"}, "on a processor", "fp32, and --provider openvino-native:fp16 where it is run"),
        ({"provider": "cuda"}, "16 bits", "--precision fp16"),
        ({"precision": "int4", "block_size": 48}, "48 is no power of two", "16, 32"),
        ({"block_size": 64}, "fp32 rounds no weights", "--precision int4"),
        ({"algorithm": "rtn"}, "fp32 rounds no weights", "--precision int4"),
        ({"float_head": True}, "--float-head is for int4 and int8", "--precision int4"),
        ({"precision": "int8", "algorithm": "k_quant_last"}, "in int8 all is", "--algorithm k_quant"),
        ({"precision": "int4", "algorithm": "rtn_last", "float_head": True}, "puts it into 8 bits", "--algorithm rtn"),
        ({"precision": "int4", "algorithm": "gptq"}, "learns from text, and none was given", "--calib text.jsonl"),
        ({"precision": "int8", "algorithm": "gptq", "calib": Path("t.jsonl")}, "8 bits lose nothing", "int4"),
        ({"precision": "int4", "algorithm": "awq_last"}, "learns from text, and none was given", "--calib text.jsonl"),
        ({"precision": "int4", "calib": Path("t.jsonl")}, "--calib is for GPTQ", "--algorithm gptq"),
        ({"precision": "int4", "algorithm": "rtn", "samples": 9}, "--samples is for GPTQ", "--algorithm gptq"),
        ({"column": ("text",)}, "names no column", "ROLE=COLUMN"),
    ],
)
def test_what_cannot_be_asked_for_together(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        ExportGenai(**options)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("size", [8, 512])
def test_blocks_have_a_size_that_kernels_have(size: int) -> None:
    with pytest.raises(BadInput, match="--block-size is out of range"):
        ExportGenai(precision=Precision.INT4, block_size=size)
    with pytest.raises(UnknownName, match="hqq"):
        ExportGenai(precision=Precision.INT4, algorithm="hqq")


def refused(folder: Path | str, store: Store, error: type[MlOptError] = BadInput, **options: Any) -> MlOptError:
    with pytest.raises(error) as caught:
        optimizer.export_genai(str(folder), store=store, **options)
    assert not [*store.root.glob("*/*/*/manifest.json")]
    return caught.value


def copy(family: str, folder: Path, **changes: Any) -> Path:
    """The tiny decoder with another config.json."""
    shutil.copytree(decoder(family, size="tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_longer_than_its_positions(family: str, store: Store) -> None:
    said = refused(decoder(family, size="tiny"), store, max_length=129)
    assert "--max-length 129 is beyond the model: it has positions for 128 tokens" in said.message
    assert "--max-length 128" in said.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_k_quant_cannot_pack(family: str, store: Store) -> None:
    """Its zero points lie two in a byte: a row of 64 numbers has one block of 64."""
    said = refused(decoder(family, size="tiny"), store, precision="int4", algorithm="k_quant", block_size=64)
    assert "an even number of blocks" in said.message
    assert said.hint == "write --block-size 32"


def test_models_that_do_something_else(tmp_path: Path, store: Store) -> None:
    said = refused(copy("gpt2", tmp_path / "b", architectures=["BertForMaskedLM"]), store)
    assert "BertForMaskedLM does not write text" in said.message
    assert "export-onnx exports it for fill-mask" in said.hint
    said = refused(
        copy("gpt2", tmp_path / "t", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True), store
    )
    assert "reads with an encoder" in said.message
    said = refused(copy("gpt2", tmp_path / "n", architectures=None), store)
    assert "names no class" in said.message
    said = refused(copy("gpt2", tmp_path / "q", quantization_config={"quant_method": "gptq"}), store)
    assert "quantized already (gptq)" in said.message
    said = refused(copy("gpt2", tmp_path / "u", model_type="brandnew"), store)
    assert "'brandnew'" in said.message


def test_a_folder_without_a_tokenizer(tmp_path: Path, store: Store) -> None:
    folder = copy("llama", tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    said = refused(folder, store)
    assert "the tokenizer of" in said.message
    assert "tokenizer.json" in said.hint


def test_an_onnx_file_is_no_source(shared: Store, store: Store) -> None:
    said = refused(exported("gpt2", shared).path / "model.onnx", store)
    assert "is an .onnx file, and export-genai starts from a model folder" in said.message


def test_without_its_package_it_names_the_extra(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    said = refused(decoder("llama", size="tiny"), store, MissingPiece)
    assert said.exit_code == 4
    assert "ml-opt[genai]" in said.hint


def test_int4_that_is_none_is_refused(shared: Store) -> None:
    """The gate looks at what was read back, whatever the builder said."""
    facts = exported("llama", shared).manifest.facts
    source = STAGE  # the gate does not look at the source
    STAGE.verify(ExportGenai(), facts, source)
    with pytest.raises(GateFailed, match="no product of the file has weights of 4 bits"):
        STAGE.verify(ExportGenai(precision=Precision.INT4), facts, source)
    four = exported("llama", shared, precision="int4").manifest.facts
    asked = ExportGenai(precision=Precision.INT4)
    STAGE.verify(asked, four, source)
    with pytest.raises(GateFailed, match="12 nodes are rounded"):
        STAGE.verify(ExportGenai(), four, source)
    with pytest.raises(GateFailed, match="blocks of 64 were asked for"):
        STAGE.verify(ExportGenai(precision=Precision.INT4, block_size=64), four, source)
    with pytest.raises(GateFailed, match="the head was to stay in float"):
        STAGE.verify(ExportGenai(precision=Precision.INT4, float_head=True), four, source)
    with pytest.raises(GateFailed, match="1 products stayed in float: /x"):
        STAGE.verify(asked, {**four, "float_products": ["/x"]}, source)
    with pytest.raises(GateFailed, match="1 attentions of 2 layers"):
        STAGE.verify(asked, {**four, "attention": 1}, source)


def test_an_fp32_graph_that_is_another_model_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.exporting import genai_golden

    monkeypatch.setattr(genai_golden, "parity", lambda out, golden: {"max_abs": 0.5, "top1": 0.9, "kl": 0.1})
    said = refused(decoder("llama", size="tiny"), store, GateFailed)
    assert "its logits differ by 0.5" in said.message


def test_other_commands_say_what_a_generator_is_for(shared: Store) -> None:
    ref = exported("llama", shared).ref
    with pytest.raises(BadInput, match="a text generator"):
        optimizer.quantize_weights(ref, store=shared)
    report = optimizer.inspect(ref, store=shared)
    assert report.to_json()["kind"] == "generator"
    assert report.network["attention"] == 2


def test_a_damaged_golden_file_says_so(tmp_path: Path) -> None:
    assert load_continuations(tmp_path) == ()
    for text in ("{", "{}", '{"schema": 99, "continuations": []}'):
        (tmp_path / "golden_generation.json").write_text(text)
        with pytest.raises(Damaged, match=r"golden_generation\.json cannot be read"):
            load_continuations(tmp_path)
