"""PyTorch on a small random-weight BERT, against the module itself."""

import numpy as np
import pytest
import torch

from optimizer.environment import gpu_facts
from optimizer.errors import BadInput, MissingPiece
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


def sized(rows, steps):
    ids = np.arange(rows * steps).reshape(rows, steps) % 40
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def compilations():
    """How many graphs PyTorch has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def test_compiled_answers_what_eager_does_with_code_for_each_shape(folder):
    eager, compiled = opened(folder), opened(folder, "torch:compiled")
    assert (compiled.facts["precision"], compiled.facts["compiled"]) == ("fp32", True)
    assert not eager.facts["compiled"]
    # Four shapes are compiled for, two more share code for any shape, and what is timed has code of its own again.
    made = []
    for feeds in map(sized, (2, 3, 2, 3, 4, 5), (8, 8, 12, 12, 9, 10)):
        before = compilations()
        assert np.allclose(compiled.run(feeds)["logits"], eager.run(feeds)["logits"], atol=1e-5)
        made.append(compilations() - before)
    assert made == [1, 1, 1, 1, 1, 0]
    before = compilations()
    call = compiled.bind(sized(5, 10))
    assert compilations() == before + 1
    call()
    compiled.run(sized(5, 10))
    assert compilations() == before + 1, "once a shape"


def test_compiled_bf16_is_bf16(folder):
    exact, low = opened(folder).run(FEEDS)["logits"], opened(folder, "torch:compiled-bf16").run(FEEDS)["logits"]
    assert low.dtype == np.float32
    assert 0 < np.abs(low - exact).max() < 0.05


def test_compiling_without_a_compiler_says_what_to_install(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingPiece, match="no-such-compiler is not here") as caught:
        opened(folder, "torch:compiled")
    assert "apt-get install g++" in caught.value.hint
    opened(folder, "torch:bf16")


def test_a_compiler_that_fails_is_no_fault_of_the_inputs(folder, monkeypatch, tmp_path):
    from torch._inductor import config, cpp_builder

    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    # PyTorch reads the variable when it is imported, and keeps what it found.
    monkeypatch.setattr(config.cpp, "cxx", (None, str(broken)))
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        with pytest.raises(MissingPiece, match="cannot compile this model here") as caught:
            opened(folder, "torch:compiled").run(sized(4, 15))
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert "leave `compiled` out" in caught.value.hint


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


def test_a_gpu_that_pytorch_does_not_have_is_named(folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(MissingPiece, match=r"PyTorch .* was built for processors"):
        opened(folder, "torch:cuda-fp16")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingPiece, match="PyTorch finds no NVIDIA GPU"):
        opened(folder, "torch:cuda-compiled")


def test_a_bound_call_ends_when_the_gpu_is_done(folder, monkeypatch):
    """A double for the device: only its name is a GPU's, and what is waited for is counted."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    session = opened(folder)
    session._device = "cuda"
    monkeypatch.setattr(session, "_tensors", lambda feeds: {name: torch.from_numpy(a) for name, a in feeds.items()})
    call = session.bind(FEEDS)
    call()
    call()
    assert len(waited) == 2
    opened(folder).bind(FEEDS)()
    assert len(waited) == 2, "a processor is not waited for"


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_facts(), reason="no NVIDIA GPU here")
def test_a_gpu_answers_what_the_processor_does(folder):
    exact = opened(folder).run(FEEDS)["logits"]
    for way, tolerance in (("cuda", 1e-3), ("cuda-fp16", 3e-2), ("cuda-bf16", 2e-1), ("cuda-compiled-fp16", 3e-2)):
        session = opened(folder, f"torch:{way}")
        assert np.abs(session.run(FEEDS)["logits"] - exact).max() < tolerance
        assert session.facts["device"] == "cuda"
        session.bind(FEEDS)()
