"""A decoder that no builder knows is traced, with one fused attention a layer, and answers as PyTorch does."""

from __future__ import annotations

from pathlib import Path

import pytest
from exporting.test_genai_builder import random_model

from optimizer.errors import BadInput
from optimizer.exporting.genai_decoder import shape_of, trace, write_genai_config
from optimizer.exporting.genai_golden import load_tokenizer, parity, write_on
from optimizer.graph.io import save
from optimizer.hf import load_model


@pytest.mark.parametrize("name", ["GPTNeoXForCausalLM", "CohereForCausalLM"])
def test_it_answers_as_pytorch(name: str, tmp_path: Path) -> None:
    folder = random_model(name, tmp_path / "model")
    loaded = load_model(folder, "text-generation")
    golden = write_on(loaded, load_tokenizer(folder, False), 128)
    shape = shape_of(loaded)
    assert (shape.layers, shape.heads, shape.head_size, shape.vocabulary) == (2, 4, 16, 512)
    assert shape.kv_heads == (2 if name.startswith("Cohere") else 4), "read from a cache, and not from config.json"
    model = trace(loaded)
    assert [value.name for value in model.graph.inputs][:4] == [
        "input_ids", "attention_mask", "position_ids", "past_key_values.0.key",
    ]  # fmt: skip
    assert [value.name for value in model.graph.outputs][:2] == ["logits", "present.0.key"]
    assert str(model.graph.inputs[1].shape) == "[batch_size,total_sequence_length]"
    save(model, tmp_path)
    inputs = [value.name or "" for value in model.graph.inputs]
    write_genai_config(tmp_path, shape, {}, 128, "cpu", inputs, grows=False)
    assert parity(tmp_path, golden)["max_abs"] <= 1e-4


def test_states_are_no_keys_and_values(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)).save_pretrained(
        folder
    )
    with pytest.raises(BadInput, match="MambaForCausalLM cannot be exported with its cache: it has no cache of keys"):
        shape_of(load_model(folder, "text-generation"))


def test_a_rotation_that_changes_with_length_is_not_traced(tmp_path: Path) -> None:
    loaded = load_model(random_model("GPTNeoXForCausalLM", tmp_path), "text-generation")
    loaded.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(BadInput, match=r"its rotation \(dynamic\) changes with the length of the text"):
        trace(loaded)
