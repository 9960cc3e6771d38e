"""AWQ: what is scaled is found by trying, answers stay, and what matters is rounded less."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting.test_genai_builder import random_model

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.hf import load_model
from optimizer.quantizing import awq

torch = pytest.importorskip("torch")

#: Tokens, as no text is needed.
PIECES = [tuple(int(each) for each in np.random.default_rng(place).integers(3, 500, 60)) for place in range(40)]


def quiet(*words: object, **_: object) -> None:
    """Progress that nobody reads."""


def answers(module: Any) -> Any:
    with torch.inference_mode():
        return module(input_ids=torch.tensor([PIECES[-1]]), use_cache=False).logits


def model(name: str, folder: Path) -> Any:
    found = decoder("gpt2", size="tiny") if name == "gpt2" else random_model(name, folder)
    return load_model(found, "text-generation").module


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("LlamaForCausalLM", {"input_layernorm q_proj k_proj v_proj", "post_attention_layernorm gate_proj up_proj",
                              "up_proj down_proj"}),
        # Its normalizations multiply by one and their weight.
        ("GemmaForCausalLM", {"input_layernorm q_proj k_proj v_proj 1", "post_attention_layernorm gate_proj up_proj 1",
                              "up_proj down_proj"}),
        # Conv1D; what GELU makes cannot be divided before it.
        ("gpt2", {"ln_1 c_attn", "ln_2 c_fc"}),
        # Both read the same residual, through normalizations of their own; query, key and value are one product.
        ("GPTNeoXForCausalLM", {"input_layernorm query_key_value", "post_attention_layernorm dense_h_to_4h"}),
        # A normalization after the sum is read by the next sum too; ReLU and attention hand a positive scale on.
        ("OPTForCausalLM", {"v_proj out_proj", "fc1 fc2"}),
    ],
)  # fmt: skip
def test_what_may_be_scaled_is_found_by_trying(name: str, kinds: set[str], tmp_path: Path) -> None:
    if name == "OPTForCausalLM":
        from transformers import OPTConfig, OPTForCausalLM

        torch.manual_seed(0)
        module = OPTForCausalLM(
            OPTConfig(vocab_size=512, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
                      word_embed_proj_dim=64, max_position_embeddings=128, do_layer_norm_before=False, dropout=0.0,
                      init_std=0.2)
        ).eval()  # fmt: skip
    else:
        module = model(name, tmp_path)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    sites = awq.find_sites(module, PIECES[0])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items()), (
        "what was planted is gone"
    )

    def last(names: tuple[str, ...]) -> list[str]:
        return [name.rpartition(".")[2] for name in names]

    inside = [site for site in sites if any(part.isdigit() for part in site.readers[0].split("."))]
    found = [" ".join([*last((site.maker, *site.readers)), *"1" * site.from_one]) for site in inside]
    assert {each: found.count(each) for each in found} == dict.fromkeys(kinds, 2), "of both layers"
    said = answers(module)
    facts = awq.scale(module, PIECES, 32, quiet)
    assert facts["products"] == sum(len(site.readers) for site in sites)
    changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) >= facts["products"]
    assert float((answers(module) - said).abs().max()) <= 1e-5 * float(said.abs().max())
    assert facts["noise"]["after"] <= facts["noise"]["before"]


def rounded(weights: np.ndarray, size: int) -> np.ndarray:
    """One block after the other, as the definition has it."""
    made = np.empty_like(weights)
    for row, line in enumerate(weights):
        for start in range(0, len(line), size):
            block = line[start : start + size]
            low, high = min(block.min(), 0), max(block.max(), 0)
            step = (high - low) / 15
            zero = np.rint(-low / step)
            made[row, start : start + size] = (np.clip(np.rint(block / step) + zero, 0, 15) - zero) * step
    return made


def test_the_scale_that_rounds_answers_least_is_taken(tmp_path: Path) -> None:
    """Of mean|x|^α for every α by hand, for the products behind one normalization; 80 numbers are no whole blocks."""
    module = random_model_of(80, tmp_path)
    reads: list[np.ndarray] = []
    product = module.get_submodule("model.layers.0.mlp.gate_proj")
    beside = module.get_submodule("model.layers.0.mlp.up_proj")
    hook = product.register_forward_pre_hook(lambda _, given: reads.append(given[0][0].numpy().astype(np.float64)))
    with torch.inference_mode():
        for piece in PIECES:
            module(input_ids=torch.tensor([piece]), use_cache=False)
    hook.remove()
    weights = torch.cat([product.weight, beside.weight]).detach().numpy().astype(np.float64)
    norm = module.get_submodule("model.layers.0.post_attention_layernorm")
    old = norm.weight.detach().numpy().copy()
    assert awq.scale(module, PIECES, 32, quiet)["alpha"] > 0
    scales = old / norm.weight.detach().numpy()
    rows = np.concatenate(reads)
    mean = np.abs(rows).mean(0)
    errors = []
    for alpha in np.arange(20) / 20:
        raised = mean**alpha
        raised /= np.sqrt(raised.max() * raised.min())
        error = rows @ (rounded(weights * raised, 32) / raised - weights).T
        errors.append((float(np.square(error).sum()), raised))
    place = min(range(20), key=lambda each: float(np.abs(errors[each][1] - scales).max()))
    np.testing.assert_allclose(scales, errors[place][1], rtol=1e-3)
    # It is chosen on a part of the rows, so that another may be better by a little on all of them.
    assert errors[place][0] <= 1.03 * min(error for error, _ in errors)
    assert errors[place][0] < errors[0][0]


def random_model_of(width: int, folder: Path) -> Any:
    """A Llama whose channels differ in size, as those of trained ones do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=512, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
                    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128)
    ).eval()  # fmt: skip
    for name, weight in module.named_parameters():
        if name.endswith("layernorm.weight"):
            weight.data.copy_(torch.exp(torch.randn(width)))
    return module


def planted(folder: Path) -> Path:
    """The trained tiny Llama, answering as before, with a few channels that are read 30 times as large.

    Their weights are as much smaller, and share blocks with others: to the nearest level, they are lost.
    """
    source = decoder("llama", size="tiny")
    module = load_model(source, "text-generation").module
    said = answers(module)
    for layer in module.model.layers:
        readers = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        for norm, products in (
            (layer.input_layernorm, readers),
            (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
        ):
            norm.weight.data[::16] *= 30
            for product in products:
                product.weight.data[:, ::16] /= 30
    assert float((answers(module) - said).abs().max()) <= 1e-4 * float(said.abs().max())
    module.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "train-sample.jsonl"):
        shutil.copy(source / name, folder / name)
    return folder


def test_channels_that_are_far_larger_are_found(tmp_path: Path) -> None:
    facts = awq.scale(load_model(planted(tmp_path), "text-generation").module, PIECES, 32, quiet)
    assert facts["sites"] == 6
    assert facts["alpha"] > 0.3
    assert facts["noise"]["after"] < 0.5 * facts["noise"]["before"]


def test_what_is_read_has_to_be_finite(tmp_path: Path) -> None:
    """A token that the first piece has not."""
    module = model("LlamaForCausalLM", tmp_path)
    module.model.embed_tokens.weight.data[501] = float("inf")
    with pytest.raises(BadInput, match=r"'model\.layers\.0\.self_attn\.q_proj' is not finite on the calibration data"):
        awq.scale(module, [PIECES[0], (*PIECES[1], 501)], 32, quiet)


def test_a_saved_model_keeps_its_way_to_generate(tmp_path: Path) -> None:
    """And is saved though what it says of that would be refused: sampling settings, and no sampling."""
    module = model("LlamaForCausalLM", tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "generation_config.json").write_text('{"temperature": 0.6}')
    module.generation_config.temperature = 0.6
    module.generation_config.do_sample = False
    kept = module.generation_config
    awq.save(module, tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"temperature": 0.6}'
    assert module.generation_config is kept
    again = load_model(tmp_path / "out", "text-generation").module
    assert torch.equal(answers(again), answers(module))
