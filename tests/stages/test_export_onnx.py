"""Every architecture becomes a graph that answers as PyTorch does; every bad folder is refused and leaves no trace."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from exporting.byo import untouched
from exporting.fixtures import edit

import optimizer
from benchmarks.architectures import build, companion
from optimizer.data.golden import Golden
from optimizer.errors import BadInput, MissingPiece, MlOptError, UnknownName

TEXT = ["input_ids", "attention_mask"]
#: Every architecture once, every task at least once; `python -m benchmarks.models_table` runs them all.
MATRIX = [
    ("bert", "question-answering", [*TEXT, "token_type_ids"], ["start_logits", "end_logits"]),
    ("distilbert", "text-classification", TEXT, ["logits"]),
    ("roberta", "token-classification", TEXT, ["logits"]),
    ("electra", "feature-extraction", [*TEXT, "token_type_ids"], ["last_hidden_state"]),
    ("deberta-v2", "text-classification", TEXT, ["logits"]),
    ("mpnet", "feature-extraction", TEXT, ["last_hidden_state", "pooler_output"]),
    ("xlm-r", "token-classification", TEXT, ["logits"]),
    ("t5-encoder", "feature-extraction", TEXT, ["last_hidden_state"]),
    ("clip-text", "feature-extraction", TEXT, ["last_hidden_state", "pooler_output"]),
    ("vit", "image-classification", ["pixel_values"], ["logits"]),
    ("deit", "feature-extraction", ["pixel_values"], ["last_hidden_state", "pooler_output"]),
    ("clip-vision", "feature-extraction", ["pixel_values"], ["last_hidden_state", "pooler_output"]),
    ("resnet", "image-classification", ["pixel_values"], ["logits"]),
    ("convnext", "feature-extraction", ["pixel_values"], ["last_hidden_state", "pooler_output"]),
    ("mobilenet-v2", "image-classification", ["pixel_values"], ["logits"]),
    ("wav2vec2", "audio-classification", ["input_values"], ["logits"]),
    (
        "wav2vec2-layer",
        "feature-extraction",
        ["input_values", "attention_mask"],
        ["last_hidden_state", "extract_features"],
    ),
    ("hubert", "feature-extraction", ["input_values"], ["last_hidden_state"]),
    ("whisper-encoder", "feature-extraction", ["input_features"], ["last_hidden_state"]),
]
#: Of families that have another member here, and tasks that another row has.
MORE = ("electra", "mpnet", "xlm-r", "deit", "clip-vision", "hubert", "mobilenet-v2")
LIMITS = {"clip-text": 77, "t5-encoder": None}


def proven(folder, store, **options):
    """Export a folder and hold it to PyTorch's answers over the sweep; the artifact."""
    artifact = optimizer.export_onnx(str(folder), name="m", store=store, **options).artifact
    report = optimizer.verify(artifact.ref, store=store, threads=2)
    assert report.failures == ()
    assert len(report.cases) >= 4
    for output in report.worst()["outputs"].values():
        assert output["max_abs"] <= 2e-4
    return artifact


def refused(folder, store, match, error=BadInput, **options):
    with pytest.raises(error, match=match) as caught:
        optimizer.export_onnx(str(folder), store=store, **options)
    assert caught.value.exit_code == (4 if error is MissingPiece else 2)
    assert untouched(store)


@pytest.mark.parametrize(
    ("name", "task", "inputs", "outputs"),
    [pytest.param(*row, marks=[pytest.mark.thorough] * (row[0] in MORE), id=row[0]) for row in MATRIX],
)
def test_an_architecture_answers_as_in_pytorch(name, task, inputs, outputs, arch, store):
    artifact = proven(arch(name, task), store)
    info, facts = artifact.model_info, artifact.manifest.facts
    assert info["task"] == task
    assert [i["name"] for i in facts["inputs"]] == inputs
    assert [o["name"] for o in facts["outputs"]] == outputs
    assert all(spec["shape"][0] == "batch" for spec in (*facts["inputs"], *facts["outputs"]))
    assert facts["opset"][""] == 20
    assert artifact.manifest.warnings == []
    assert (artifact.path / "labels.json").exists() == task.endswith("classification")
    if info["modality"] == "text":
        assert info["max_length"] == LIMITS.get(name, 128)
        assert info["limits"]["input_ids"] == [0, 999]
        assert (artifact.path / "tokenizer.json").is_file()
        assert Golden.load(artifact.path).inputs["attention_mask"].min() == 0  # padding is part of the golden answers
    else:
        assert (artifact.path / "preprocessor_config.json").is_file()


@pytest.fixture
def bert(arch, tmp_path):
    return shutil.copytree(arch("bert", "feature-extraction"), tmp_path / "bert")


@pytest.mark.parametrize("opset", [17, 24])
def test_the_ends_of_the_opset_range(opset, arch, store):
    artifact = proven(arch("bert", "feature-extraction"), store, opset=opset)
    assert artifact.manifest.facts["opset"][""] == opset
    assert artifact.variant == f"fp32-opset{opset}"


@pytest.mark.parametrize("opset", [16, 25])
def test_an_opset_out_of_range(opset, bert, store):
    refused(bert, store, f"opset.*{opset}", opset=opset)


def test_a_masked_lm_checkpoint_in_bf16_without_a_tokenizer(tmp_path, store):
    build("bert", "fill-mask").to(torch.bfloat16).save_pretrained(tmp_path / "m")
    artifact = proven(tmp_path / "m", store, task="feature-extraction")
    assert [o["name"] for o in artifact.manifest.facts["outputs"]] == ["last_hidden_state"]
    assert "bfloat16" not in artifact.manifest.facts["weights"]
    pooler, tokenizer = artifact.manifest.warnings
    assert "no pooler" in pooler
    assert "no tokenizer" in tokenizer
    assert not (artifact.path / "tokenizer.json").exists()


def test_a_tied_masked_lm(tmp_path, store):
    build("distilbert", "fill-mask").save_pretrained(tmp_path / "m")
    artifact = proven(tmp_path / "m", store)
    assert artifact.model_info["task"] == "fill-mask"
    tied = 1000 * 128 * 4
    assert artifact.manifest.facts["weights"]["float32"] < 2 * tied + 4 * 4 * 200_000


def test_a_vocabulary_alone_is_a_tokenizer(bert, store):
    words = sorted(
        json.loads((bert / "tokenizer.json").read_text())["model"]["vocab"].items(), key=lambda item: item[1]
    )
    (bert / "vocab.txt").write_text("\n".join(word for word, _ in words) + "\n")
    (bert / "tokenizer.json").unlink()
    (bert / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    artifact = optimizer.export_onnx(str(bert), name="m", store=store).artifact
    assert artifact.manifest.warnings == []
    assert (artifact.path / "tokenizer.json").is_file()
    want = companion("wordpiece")("Great food and service")["input_ids"]
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(artifact.path / "tokenizer.json")).encode("Great food and service").ids == want


def test_a_tokenizer_beyond_the_embeddings_is_left_out(tmp_path, store):
    build("distilbert", "feature-extraction", vocab_size=500).save_pretrained(tmp_path / "m")
    companion("wordpiece").save_pretrained(tmp_path / "m")
    artifact = optimizer.export_onnx(str(tmp_path / "m"), name="m", store=store).artifact
    assert "1000 tokens and the model embeddings for 500" in artifact.manifest.warnings[0]
    assert not (artifact.path / "tokenizer.json").exists()


def test_max_length_and_max_batch_are_recorded_and_kept(arch, store):
    artifact = proven(arch("bert", "question-answering"), store, max_length=24, max_batch=4)
    assert (artifact.model_info["max_length"], artifact.model_info["max_batch"]) == (24, 4)
    assert Golden.load(artifact.path).inputs["input_ids"].shape[1] == 24
    assert artifact.variant == "fp32-len24"
    with pytest.raises(BadInput, match="--max-length 129 is beyond the model: it has positions for 128 tokens"):
        optimizer.export_onnx(str(arch("bert", "question-answering")), name="m", store=store, max_length=129)


@pytest.mark.parametrize(
    ("name", "task", "length", "match"),
    [
        ("roberta", "token-classification", 129, "positions for 128 tokens"),
        ("wav2vec2", "audio-classification", 60, "too short: Wav2Vec2ForSequenceClassification hears 40 samples"),
        ("vit", "image-classification", 60, "--max-length is for models with a sequence; ViT"),
    ],
)
def test_a_length_that_cannot_be(name, task, length, match, arch, store):
    refused(arch(name, task), store, match, max_length=length)


def test_the_golden_answers_are_pytorchs_own(arch, store):
    folder = arch("bert", "question-answering")
    artifact = optimizer.export_onnx(str(folder), name="m", store=store).artifact
    golden = Golden.load(artifact.path)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        want = model(**{name: torch.from_numpy(array) for name, array in golden.inputs.items()})
    for name, array in golden.outputs.items():
        assert np.array_equal(array, want[name].numpy())


def test_a_decoder_s_hidden_states(tmp_path, store):
    small = {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, max_position_embeddings=64))
    model.save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", store, "LlamaForCausalLM generates text; export-onnx is for encoders and classifiers")
    artifact = proven(tmp_path / "m", store, task="feature-extraction")
    assert [o["name"] for o in artifact.manifest.facts["outputs"]] == ["last_hidden_state"]  # and no cache


def test_the_encoder_of_whisper_and_t5(tmp_path, store):
    for name, whole in (
        ("whisper-encoder", "WhisperForConditionalGeneration"),
        ("t5-encoder", "T5ForConditionalGeneration"),
    ):
        build(name, "feature-extraction", class_name=whole).save_pretrained(tmp_path / name)
        refused(tmp_path / name, store, f"{whole} generates text.*\n.*exports its encoder alone")
    proven(tmp_path / "whisper-encoder", store, task="feature-extraction")


def test_two_halves_in_one(tmp_path, store):
    text = {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config={**text, "image_size": 32, "patch_size": 8})
    transformers.CLIPModel(config).save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", store, "CLIPModel has a text and an image half\n.*CLIPTextModel")


def test_inputs_of_a_form_that_is_not_known(tmp_path, store):
    config = transformers.ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                                    max_length=64, num_mel_bins=16)  # fmt: skip
    transformers.ASTForAudioClassification(config).save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", store, "ASTForAudioClassification takes input_values in a form that is not known")


def test_a_classifier_of_texts_without_a_padding_token(tmp_path, store):
    config = transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "m")
    refused(tmp_path / "m", store, "does not take input_ids .*no padding token")


# --- bad folders


def test_a_head_without_weights(bert, store):
    refused(bert, store, "random", task="text-classification")


def test_a_task_that_is_wrong_or_none(bert, store):
    refused(bert, store, "a bert model cannot do image-classification", task="image-classification")
    refused(bert, store, "unknown task: 'nonsense'", UnknownName, task="nonsense")


def test_damaged_weights(bert, store):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refused(bert, store, "damaged or cut short")


def test_weights_of_another_shape(bert, store):
    refused(edit(bert, intermediate_size=99), store, "do not match its config.json")


def test_an_architecture_that_nobody_knows(bert, store):
    refused(edit(bert, model_type="zzz"), store, "does not know the architecture 'zzz'")


def test_a_broken_configuration(bert, store):
    (bert / "config.json").write_text('{"model_type": "bert"')
    refused(bert, store, r"config\.json cannot be read")


def test_code_of_its_own(bert, store):
    refused(
        edit(bert, model_type="own", auto_map={"AutoModel": "m.M"}), store, "code of its own.*\n.*--trust-remote-code"
    )


def test_pickles_are_refused_until_they_are_asked_for(bert, store):
    model = transformers.BertModel.from_pretrained(bert)
    torch.save(model.state_dict(), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    refused(bert, store, r"Python pickle \(pytorch_model\.bin\).*\n.*--allow-pickle")
    proven(bert, store, allow_pickle=True)


def test_a_broken_tokenizer(bert, store):
    (bert / "tokenizer.json").write_text("{}")
    refused(bert, store, "the tokenizer of .* cannot be loaded")


def test_a_broken_processor(arch, tmp_path, store):
    folder = shutil.copytree(arch("vit", "image-classification"), tmp_path / "m")
    (folder / "preprocessor_config.json").write_text("{")
    refused(folder, store, r"preprocessor_config\.json cannot be used")


def test_pictures_of_a_size_that_the_model_does_not_take(arch, tmp_path, store):
    folder = shutil.copytree(arch("vit", "image-classification"), tmp_path / "m")
    companion("image-64").save_pretrained(folder)
    refused(folder, store, r"does not take pixel_values \[2, 3, 64, 64\]: .*32")


def test_a_convolutional_model_takes_what_its_processor_makes(arch, tmp_path, store):
    folder = shutil.copytree(arch("resnet", "image-classification"), tmp_path / "m")
    transformers.ViTImageProcessor(size={"height": 48, "width": 40}).save_pretrained(folder)
    artifact = proven(folder, store)
    assert artifact.manifest.facts["inputs"][0]["shape"] == ["batch", 3, 48, 40]


def test_int8_is_no_dtype_to_export_in(bert, store):
    with pytest.raises(MlOptError, match="quantize dynamic"):
        optimizer.export_onnx(str(bert), store=store, dtype="int8")


def test_a_folder_and_a_place_that_are_not_there(tmp_path, store):
    refused(tmp_path / "gone", store, "no such file or folder: .*gone")
    refused(
        "no-org/no-such-model", store, "no-org/no-such-model is no folder here, and the hub could not be", MissingPiece
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", store, r"empty is not a model folder: it has no config\.json")
    refused(Path(__file__), store, r"is a file, but not an \.onnx file")
