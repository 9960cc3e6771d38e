"""Which class, which task, which weights."""

import shutil

import pytest
import torch
import transformers
from exporting.fixtures import arch, edit
from safetensors.torch import load_file, save_file

from benchmarks.architectures import build
from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.hf import flat_outputs, generator_class, infer_task, load_model, read_config

__all__ = ["arch"]

IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def bert(arch, tmp_path):
    """A BERT of one's own to spoil."""
    return shutil.copytree(arch("bert", "feature-extraction"), tmp_path / "bert")


@pytest.fixture
def classifier(arch, tmp_path):
    return shutil.copytree(arch("bert", "text-classification"), tmp_path / "classifier")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForPreTraining", "feature-extraction"),
        ("T5EncoderModel", "feature-extraction"),
        ("CLIPTextModelWithProjection", "feature-extraction"),
        ("BertForSequenceClassification", "text-classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "fill-mask"),
        ("ViTForImageClassification", "image-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("ASTForAudioClassification", "audio-classification"),
    ],
)
def test_the_class_says_the_task(name, task):
    assert infer_task({"architectures": [name]}) == task


def test_classifiers_of_sound_are_called_like_those_of_text():
    assert infer_task({"architectures": ["HubertForSequenceClassification"], "conv_dim": [1]}) == "audio-classification"


@pytest.mark.parametrize("architectures", [None, [], "BertModel"])
def test_no_class_means_features(architectures):
    assert infer_task({"architectures": architectures}) == "feature-extraction"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPT2DoubleHeadsModel"])
def test_generators_are_told_what_this_is_for(name):
    with pytest.raises(BadInput, match=f"{name} generates text; export-onnx is for encoders and classifiers"):
        infer_task({"architectures": [name]})


def test_generators_are_told_where_they_belong():
    with pytest.raises(BadInput, match="ml-opt export-genai exports it with its cache") as caught:
        infer_task({"architectures": ["LlamaForCausalLM"]})
    assert "--task feature-extraction exports its hidden states" in caught.value.hint
    assert generator_class({"architectures": ["LlamaForCausalLM"]}) == "LlamaForCausalLM"
    for name, sort in (("T5ForConditionalGeneration", "t5"), ("MarianMTModel", "marian")):
        assert generator_class({"architectures": [name], "model_type": sort, "is_encoder_decoder": True}) == name
    for name, sort in (("WhisperForConditionalGeneration", "whisper"), ("T5Model", "t5"), ("LEDModel", "led")):
        with pytest.raises(BadInput, match="reads with an encoder"):
            generator_class({"architectures": [name], "model_type": sort, "is_encoder_decoder": True})
    with pytest.raises(BadInput, match="BertModel does not write text") as caught:
        generator_class({"architectures": ["BertModel"]})
    assert "export-onnx exports it for feature-extraction" in caught.value.hint


def test_encoder_decoders_are_told_about_their_encoder():
    with pytest.raises(BadInput, match="feature-extraction exports its encoder alone"):
        infer_task({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True})
    with pytest.raises(BadInput) as caught:
        infer_task(
            {"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "is_encoder_decoder": True}
        )
    assert "export-genai exports encoder and decoder" in caught.value.hint
    with pytest.raises(BadInput, match="Wav2Vec2ForCTC does none of the tasks"):
        infer_task({"architectures": ["Wav2Vec2ForCTC"]})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"bert"', '{"a": 1}', '{"model_type": 3}'])
def test_a_configuration_that_is_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json (cannot be read|has no model_type)"):
        read_config(tmp_path)


def test_a_folder_without_architectures_is_its_base_model(bert):
    assert load_model(edit(bert, architectures=None), "feature-extraction").class_name == "BertModel"


def test_the_body_of_a_classifier_is_the_one_it_was_saved_with(classifier):
    whole = load_model(classifier, "text-classification").module
    body = load_model(classifier, "feature-extraction")
    assert (body.class_name, body.dropped) == ("BertModel", ())
    with torch.inference_mode():
        assert torch.equal(body.module(IDS).pooler_output, whole.bert(IDS).pooler_output)


def test_a_random_pooler_is_left_out_of_features(arch, tmp_path):
    build("bert", "fill-mask").save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "feature-extraction")
    assert (loaded.class_name, loaded.dropped) == ("BertModel", ("pooler_output",))
    assert "random" in loaded.warnings[0]


def test_a_random_pooler_under_a_classifier_is_refused(classifier):
    path = classifier / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"no weights for bert\.pooler\.dense\.bias.*random"):
        load_model(classifier, "text-classification")


def test_a_random_head_is_refused(bert):
    with pytest.raises(
        BadInput, match=r"no weights for classifier\.bias, classifier\.weight.*\n.*--task feature-extraction"
    ):
        load_model(bert, "text-classification")


def test_tied_weights_are_not_missing(tmp_path):
    model = build("bert", "fill-mask")
    model.save_pretrained(tmp_path)
    assert not any("decoder.weight" in key for key in load_file(tmp_path / "model.safetensors"))
    loaded = load_model(tmp_path, "fill-mask")
    with torch.inference_mode():
        assert torch.equal(loaded.module(IDS).logits, model(IDS).logits)


def test_weights_that_only_training_reads_may_be_missing(tmp_path):
    build("wav2vec2", "feature-extraction", mask_time_prob=0.0).save_pretrained(tmp_path)
    loaded = load_model(edit(tmp_path, mask_time_prob=0.05), "feature-extraction")
    assert (loaded.class_name, loaded.dropped) == ("Wav2Vec2Model", ())


def test_bf16_checkpoints_become_fp32(tmp_path):
    build("distilbert", "feature-extraction").to(torch.bfloat16).save_pretrained(tmp_path)
    assert read_config(tmp_path)["dtype"] == "bfloat16"
    module = load_model(tmp_path, "feature-extraction").module
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path, "feature-extraction", dtype="bf16").module.parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("name", "whole", "encoder"),
    [
        ("t5-encoder", "T5ForConditionalGeneration", "T5EncoderModel"),
        ("t5-encoder", "T5Model", "T5Model.encoder"),
        ("whisper-encoder", "WhisperForConditionalGeneration", "WhisperModel.encoder"),
    ],
)
def test_the_encoder_of_an_encoder_decoder(name, whole, encoder, tmp_path):
    build(name, "feature-extraction", class_name=whole).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "feature-extraction")
    assert loaded.class_name == encoder
    again = load_model(tmp_path, "feature-extraction", class_name=encoder)
    assert type(again.module) is type(loaded.module)


def test_answers_are_named_and_hold_nothing_between_layers(bert):
    edit(bert, return_dict=False, output_hidden_states=True, output_attentions=True)
    module = load_model(bert, "feature-extraction", attention="eager").module
    with torch.inference_mode():
        assert list(flat_outputs(module(IDS))) == ["last_hidden_state", "pooler_output"]


def test_flat_outputs_name_nested_tensors_by_their_path():
    one = torch.zeros(1)
    assert list(flat_outputs({"a": one, "b": (one, None, {"c": one})})) == ["a", "b.0", "b.2.c"]


def test_a_task_that_does_not_exist_and_one_that_it_cannot_do(bert):
    with pytest.raises(UnknownName, match="did you mean text-classification"):
        load_model(bert, "text-clasification")
    with pytest.raises(BadInput, match="a bert model cannot do image-classification"):
        load_model(bert, "image-classification")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "zzz", "architectures": ["Z"]}, "transformers does not know the architecture 'zzz'"),
        ({"hidden_size": 64}, r"do not match its config\.json: .* is stored as \[128\], .* makes it \[64\]"),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"num_attention_heads": "x"}, r"config\.json cannot be used: .*num_attention_heads"),
        ({"hidden_act": "zz"}, "cannot be loaded for feature-extraction: KeyError: 'zz'"),
        ({"vocab_size": 7}, r"word_embeddings.weight is stored as \[1000, 128\]"),
        ({"model_type": "own", "auto_map": {"AutoModel": "m.M"}}, "Python code of its own"),
    ],
)
def test_a_configuration_that_does_not_fit(changes, match, bert):
    with pytest.raises(BadInput, match=match):
        load_model(edit(bert, **changes), "feature-extraction")


@pytest.mark.parametrize("spoil", [lambda b: b[:100], lambda b: b[:-999], lambda b: b"", lambda b: b"junk" * 999])
def test_damaged_safetensors(spoil, bert):
    path = bert / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadInput, match=r"the weights of .* are damaged or cut short"):
        load_model(bert, "feature-extraction")


def test_a_missing_shard(bert):
    transformers.BertModel.from_pretrained(bert).save_pretrained(bert / "s", max_shard_size="400KB")
    sorted((bert / "s").glob("*.safetensors"))[0].unlink()
    with pytest.raises(BadInput, match="model-00001-of"):
        load_model(bert / "s", "feature-extraction")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_damaged_and_evil_pickles(content, bert):
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadInput, match=r"the weights of .* are (damaged|a pickle)"):
        load_model(bert, "feature-extraction")


def test_a_pickle_beside_safetensors_is_never_read(bert):
    (bert / "pytorch_model.bin").write_bytes(b"junk")
    assert load_model(bert, "feature-extraction").class_name == "BertModel"


def test_code_of_the_folder_runs_only_when_trusted(bert, monkeypatch, tmp_path):
    (bert / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import BertConfig, BertModel\n"
        "Path(__file__).parent.joinpath('ran').touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    edit(bert, model_type="own", architectures=["OwnModel"], auto_map=auto)
    with pytest.raises(BadInput, match=r"code of its own.*\n.*--trust-remote-code"):
        load_model(bert, "feature-extraction")
    loaded = load_model(bert, "feature-extraction", trust_remote_code=True)
    assert loaded.class_name == "OwnModel"
    again = load_model(bert, "feature-extraction", class_name="OwnModel", trust_remote_code=True)
    assert type(again.module).__name__ == "OwnModel"


def test_a_package_that_is_not_installed_is_named(bert, monkeypatch):
    def lacking(*args, **kwargs):
        raise ImportError("BertModel requires the timm library", name="timm")

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", lacking)
    with pytest.raises(MissingPiece, match="timm"):
        load_model(bert, "feature-extraction")
