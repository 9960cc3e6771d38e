"""Channels of activations that hand their size over to weights before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import two_layers

from benchmarks.sentiment import minilm_folder
from optimizer.training.checkpoint import load_quantized, save_quantized, weights_of
from optimizer.training.quantized import QuantizedModel
from optimizer.training.scheme import SCHEMES, Scheme
from optimizer.training.smooth import KeptRows, find_multiplier

SMOOTH = replace(SCHEMES["w8a8-sym"], smooth=True)
EVERY = replace(SCHEMES["w8a8"], every=True)


def kept(rows: torch.Tensor) -> KeptRows:
    made = KeptRows()
    made.add(rows)
    return made


def test_a_channel_that_is_far_larger_than_the_rest_is_made_smaller() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(200, 32), torch.randn(16, 32)
    rows[:, 5] *= 100
    multiplier = find_multiplier(kept(rows), [weight], SMOOTH)
    assert multiplier is not None
    assert int(multiplier.argmin()) == 5
    assert float(multiplier[5]) < 0.2 * float(multiplier[6])
    assert float(multiplier.log().mean()) == pytest.approx(0, abs=1e-5)


def test_what_is_not_worth_a_multiplication_stays_as_it_is() -> None:
    torch.manual_seed(0)
    assert find_multiplier(kept(torch.randn(200, 32)), [torch.randn(16, 32)], SMOOTH) is None
    assert find_multiplier(kept(torch.zeros(20, 32)), [torch.randn(16, 32)], SMOOTH) is None
    assert find_multiplier(kept(torch.full((20, 32), float("nan"))), [torch.randn(16, 32)], SMOOTH) is None


def test_channels_that_nothing_is_known_of_keep_their_size() -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(200, 32), torch.randn(16, 32)
    rows[:, 5] *= 100
    rows[:, 7] = 0
    weight[:, 9] = 0
    multiplier = find_multiplier(kept(rows), [weight], SMOOTH)
    assert multiplier is not None
    assert multiplier[[7, 9]].tolist() == [1, 1]


def test_kept_rows_are_few_and_their_peaks_are_those_of_all() -> None:
    made = KeptRows()
    for number in range(200):
        batch = torch.full((2, 50, 4), float(number))
        batch[1, 49, 2] = -1000.0 - number
        made.add(batch)
    assert made.peaks.tolist() == [199, 199, 1199, 199]
    assert 256 < len(made.rows) <= 1024
    assert float(made.rows[:, 0].median()) == pytest.approx(100, abs=20), "rows of every batch stay"


class Block(torch.nn.Module):
    """A sum and two products that read one tensor, one of whose channels is far larger than the others."""

    base_model_prefix = ""

    def __init__(self, how: Any = None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
        self.turned = torch.nn.Parameter(torch.randn(32, 16))
        self.conv, self.after = torch.nn.Conv1d(32, 32, 1), torch.nn.Linear(64, 16)
        self._how = how

    def forward(self, x: torch.Tensor) -> Any:
        return self._how(self, x)


def spiked(rows: int = 64) -> torch.Tensor:
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(1))
    x[:, 5] *= 100
    return x


def calibrated(how: Any, scheme: Scheme, x: torch.Tensor) -> QuantizedModel:
    model = QuantizedModel(Block(how), scheme, {"x": x})
    model.calibrate([{"x": x}], lambda done: None)
    model.clip_weights()
    return model


def error(model: QuantizedModel, x: torch.Tensor, plain: Any) -> float:
    with torch.no_grad():
        wanted = plain(x)
        return float((model(x=x) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: m.first(x) + m.second(x),
        lambda m, x: x @ m.turned,
        lambda m, x: torch.addmm(torch.zeros(16), x, m.turned),
    ],
    ids=["one tensor for two products", "inputs first", "addmm"],
)
def test_products_are_closer_to_those_in_float(how: Any) -> None:
    x, plain = spiked(), Block(how)
    smooth, rough = (calibrated(how, each, x) for each in (SMOOTH, SCHEMES["w8a8-sym"]))
    assert len(smooth.smoothed_sites()) == 1
    assert error(smooth, x, plain) < 0.5 * error(rough, x, plain)


def test_a_sum_reads_what_products_do_not() -> None:
    """With every operator in 8 bits, the sum beside a smoothed product has a range of its own."""
    x = spiked()
    model = calibrated(lambda m, x: m.first(x).sum() * 0 + (x + x), replace(SMOOTH, every=True), x)
    (smoothed,) = model.smoothed_sites()
    assert smoothed == "linear of first.weight"
    with torch.no_grad():
        levels = model(x=x) / 2 / model.quantizer(model.sites["add 1 behind first.weight, operand 0"]).scale
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(levels.abs().max()) == pytest.approx(127, abs=1.01)


def test_what_is_normalized_and_what_was_added_up_to_it_is_smoothed() -> None:
    """Each channel keeps its levels, and no other operator's operands are touched."""

    def how(m: Block, x: torch.Tensor) -> torch.Tensor:
        m.first(x)  # a model without a product is refused
        return torch.nn.functional.layer_norm(x.flip(0) + x, (32,))

    x = spiked()
    smooth, rough = (calibrated(how, replace(EVERY, smooth=each), x) for each in (True, False))
    behind = "1 behind first.weight, operand"
    assert smooth.smoothed_sites()[1:] == [f"add {behind} 0", f"add {behind} 1", f"layer_norm {behind} 0"]
    assert rough.smoothed_sites() == []
    with torch.no_grad():
        wanted = how(Block(), x)
        far = [(model(x=x) - wanted)[:, 6:].norm() / wanted[:, 6:].norm() for model in (smooth, rough)]
    assert float(far[0]) < 0.2 * float(far[1])


def test_what_a_mask_is_added_to_is_not() -> None:
    """Its last axis is as long as the texts are, and the next text is another."""

    def how(m: Block, x: torch.Tensor) -> torch.Tensor:
        m.first(x)
        return torch.softmax(x @ x.T + x[:, 5], -1)

    model = calibrated(how, replace(EVERY, smooth=True), spiked(20))
    assert model.smoothed_sites() == ["linear of first.weight"]
    assert not model.sums


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: m.first(x) + torch.nn.functional.linear(x * 2, m.first.weight),
        lambda m, x: m.first(x) + torch.nn.functional.embedding(torch.zeros(64).long(), m.first.weight)[:, :16],
    ],
    ids=["read at two places", "looked up as well"],
)  # fmt: skip
def test_a_weight_that_means_several_things_stays_as_it_is(how: Any) -> None:
    assert calibrated(how, SMOOTH, spiked()).smoothed_sites() == []


def test_what_a_convolution_answered_in_eight_bits_is_not_rounded_again() -> None:
    def how(m: Block, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = m.after(m.conv(x.T[None]))
        return answer

    model = calibrated(how, SMOOTH, spiked())
    assert list(model.sites) == ["conv1d of conv.weight", "answer of conv.weight"]
    assert model.smoothed_sites() == []
    weight = dict(model.module.named_parameters())["after.weight"]
    assert model.smoothed("after.weight", weight) is weight


def test_answers_and_levels_are_the_same_after_saving(tmp_path: Path) -> None:
    import transformers

    folder = two_layers(tmp_path / "model")
    sample = {
        "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    module = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():  # one channel that is larger than the others, as in models that were trained
        module.embeddings.LayerNorm.weight[3] = 60.0
    model = QuantizedModel(module, SMOOTH, sample)
    model.calibrate([sample], lambda done: None)
    assert "linear of encoder.layer.0.attention.self.query.weight" in model.smoothed_sites()
    save_quantized(model, tmp_path / "saved")
    again = transformers.BertModel.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    loaded = load_quantized(again, tmp_path / "saved", sample)
    assert loaded.smoothed_sites() == model.smoothed_sites()
    with torch.no_grad():
        assert torch.equal(loaded(**sample).last_hidden_state, model(**sample).last_hidden_state)
    ours, theirs = weights_of(model), weights_of(loaded)
    assert all((ours[name].levels == theirs[name].levels).all() for name in ours)


def test_minilm_needs_it_where_activations_are_signed() -> None:
    """Calibrated alone, on texts that it was not calibrated on; training goes on from there."""
    import transformers

    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if len(line) > 40][:24]
    batches = [
        dict(tokenizer(texts[start : start + 8], padding=True, truncation=True, max_length=64, return_tensors="pt"))
        for start in range(0, len(texts), 8)
    ]
    found = {}
    for smooth in (True, False):
        module = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            wanted = module(**batches[0]).last_hidden_state[:, 0]
        model = QuantizedModel(module, replace(SMOOTH, smooth=smooth), batches[1])
        model.calibrate(batches[1:], lambda done: None)
        with torch.no_grad():
            made = model(**batches[0]).last_hidden_state[:, 0]
        found[smooth] = 1 - float(torch.nn.functional.cosine_similarity(made, wanted, dim=-1).mean())
    assert found[True] < 0.6 * found[False], found
