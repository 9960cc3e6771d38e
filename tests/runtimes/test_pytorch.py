"""PyTorch on a small random-weight BERT, against the module itself."""

import numpy as np
import pytest

from optimizer.errors import BadInput
from optimizer.runtime import Provider, SessionOptions, get_runtime

IDS = np.array([[1, 5, 9, 2], [1, 7, 3, 2]])
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=3,
    )
    path = tmp_path_factory.mktemp("bert")
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def opened(folder, provider="torch", **model):
    parsed = Provider.parse(provider)
    return get_runtime(parsed).open(folder, SessionOptions(parsed, 1), model=model)


def test_it_answers_what_the_module_answers(folder):
    import torch
    from transformers import BertForSequenceClassification

    module = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = module(**{name: torch.from_numpy(array) for name, array in FEEDS.items()}).logits.numpy()
    session = opened(folder, task="text-classification")
    got = session.run(FEEDS)
    assert list(got) == ["logits"]
    assert np.allclose(got["logits"], wanted, atol=1e-6)
    assert session.facts["class"] == "BertForSequenceClassification"
    assert session.facts["precision"] == "fp32"
    session.bind(FEEDS)()


def test_without_a_task_the_folder_says_what_it_is(folder):
    session = opened(folder)
    assert session.facts["class"] == "BertForSequenceClassification"
    assert [spec.name for spec in session.inputs] == ["input_ids", "attention_mask"]


def test_bf16_is_bf16_inside_and_float32_outside(folder):
    exact = opened(folder).run(FEEDS)["logits"]
    low = opened(folder, "torch:bf16").run(FEEDS)["logits"]
    assert low.dtype == np.float32
    assert 0 < np.abs(low - exact).max() < 0.05


def test_outputs_come_as_the_manifest_names_them(folder):
    wanted = [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]
    assert list(opened(folder, outputs=wanted).run(FEEDS)) == ["logits"]
    with pytest.raises(BadInput, match="no output 'hidden'; it has logits"):
        opened(folder, outputs=[{**wanted[0], "name": "hidden"}]).run(FEEDS)


@pytest.mark.parametrize("ids", [np.full((1, 4), 99), np.ones((1, 99), np.int64)])
def test_ids_and_lengths_beyond_the_model_are_bad_input(folder, ids):
    with pytest.raises(BadInput, match="PyTorch cannot run these inputs"):
        opened(folder).run({"input_ids": ids, "attention_mask": np.ones_like(ids)})


def test_weights_that_the_task_lacks_are_not_made_up(folder):
    with pytest.raises(BadInput, match="random"):
        opened(folder, task="question-answering")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"config\.json"):
        opened(tmp_path)
