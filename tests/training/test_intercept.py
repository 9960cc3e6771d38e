"""What is rounded in a forward pass: which weights, which activations, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import two_layers

from optimizer.errors import BadInput
from optimizer.training.intercept import Phase
from optimizer.training.quantized import QuantizedModel
from optimizer.training.quantizers import round_blocks, round_weight, weight_scale
from optimizer.training.scheme import SCHEMES, Scheme

SAMPLE = {
    "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
EVERY = replace(SCHEMES["w8a8"], every=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_layers(tmp_path_factory.mktemp("bert") / "model")


def bert(folder: Path, head: str = "BertModel") -> Any:
    import transformers

    torch.manual_seed(1)
    return getattr(transformers, head).from_pretrained(folder, attn_implementation="eager").eval()


def calibrated(module: Any, scheme: Scheme) -> QuantizedModel:
    model = QuantizedModel(module, scheme, SAMPLE)
    model.calibrate([SAMPLE], lambda done: None)
    return model


def test_projections_of_one_tensor_share_its_range(folder: Path) -> None:
    model = calibrated(bert(folder), SCHEMES["w8a8"])
    # Of each layer: what query, key and value read, then the inputs of three products; and the pooler's.
    assert len(model.sites) == 2 * 4 + 1
    assert [site.rpartition(".")[0].rpartition(".")[2] for site in model.sites][:4] == [
        "query",
        "dense",
        "dense",
        "dense",
    ]
    assert len(model.rounded) == 2 * 6 + 1 + 3
    assert model.tables == {name for name in model.rounded if "embeddings" in name}
    assert model.float_weights() == {}


def test_products_get_numbers_on_their_levels(folder: Path) -> None:
    model = calibrated(bert(folder), SCHEMES["w8a8"])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = torch.nn.functional.linear

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is plain:
                seen.append((args[0], args[1]))
            return func(*args, **(kwargs or {}))

    with Spy(), torch.no_grad():
        model(**SAMPLE)
    weights = dict(model.module.named_parameters())
    query = "encoder.layer.0.attention.self.query.weight"
    x, weight = seen[0]
    scale, zero = model.quantizer(0).scale.detach(), int(model.quantizer(0).zero_point)
    levels = x / scale + zero
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 255
    assert torch.equal(weight, round_weight(weights[query], 0))
    assert len(seen) == 13


def test_the_head_stays_float_unless_asked(folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    module = transformers.BertForSequenceClassification(transformers.BertConfig.from_pretrained(folder)).eval()
    assert "classifier.weight" in calibrated(module, SCHEMES["w8a8"]).float_weights()
    assert "classifier.weight" in calibrated(module, replace(SCHEMES["w8a8"], head=True)).rounded


def test_four_bits_leave_activations_alone_and_give_tables_eight_by_row(folder: Path) -> None:
    model = calibrated(bert(folder), SCHEMES["w4a16"])
    assert model.sites == {}
    assert len(model.tables) == 3
    assert len(model.rounded) == 13 + 3
    assert {model.rounded[name] for name in model.tables} == {0}
    words = dict(model.module.named_parameters())["embeddings.word_embeddings.weight"]
    seen: list[torch.Tensor] = []
    model.module.embeddings.word_embeddings.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        model(**SAMPLE)
    assert torch.equal(seen[0], round_weight(words, 0)[SAMPLE["input_ids"]])
    assert not torch.equal(seen[0], words[SAMPLE["input_ids"]])


@pytest.mark.parametrize("table_first", [True, False])
def test_a_weight_that_is_table_and_product_is_rounded_for_one_of_them_in_four_bits(table_first: bool) -> None:
    """Blocks of a product and rows of a table are two forms: the other use keeps the weight as it is."""

    class Tied(torch.nn.Module):
        base_model_prefix = ""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.other = torch.nn.Embedding(40, 32), torch.nn.Linear(32, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            rows = self.table(ids) if table_first else torch.ones(2, 3, 32)
            answer = torch.nn.functional.linear(self.other(rows), self.table.weight)
            return answer if table_first else answer.sum() * 0 + self.table(ids)

    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3], [4, 5, 39]])
    model = QuantizedModel(Tied(), SCHEMES["w4a16"], {"ids": ids})
    model.calibrate([{"ids": ids}], lambda done: None)
    assert model.tables == ({"table.weight"} if table_first else set())
    table, other = model.module.table.weight, model.module.other
    with torch.no_grad():
        answer = model(ids=ids)
        if table_first:
            hidden = torch.nn.functional.linear(round_weight(table, 0)[ids], round_blocks(other.weight, 32), other.bias)
            assert torch.allclose(answer, torch.nn.functional.linear(hidden, table), atol=1e-6)
        else:
            assert torch.equal(answer, table[ids])


def test_masks_are_never_rounded(folder: Path) -> None:
    """A mask reaches the lowest float: among 256 levels of that range every score would be the same."""
    model = calibrated(bert(folder), EVERY)
    assert len(model.sites) > 30
    off = [site for site, number in model.sites.items() if number in model.off]
    assert any(site.startswith("add") for site in off)
    assert any(site.startswith("softmax") for site in off)
    assert all(model.quantizer(number).scale < 1 for number in model.sites.values() if number not in model.off)
    plain = bert(folder)
    with torch.no_grad():
        ours, theirs = model(**SAMPLE).last_hidden_state, plain(**SAMPLE).last_hidden_state
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99


def test_batches_without_padding_take_the_way_that_the_graph_has(folder: Path) -> None:
    """transformers leaves the mask out where nothing is padded; the graph never does."""
    model = calibrated(bert(folder), EVERY)
    row = {name: values[:1] for name, values in SAMPLE.items()}
    with torch.no_grad():
        alone, together = model(**row).last_hidden_state[0], model(**SAMPLE).last_hidden_state[0]
    assert torch.allclose(alone, together, atol=1e-4)


def test_rounding_is_off_while_ranges_are_found_and_training_never_drops_out(folder: Path) -> None:
    module, plain = bert(folder), bert(folder)
    model = QuantizedModel(module, SCHEMES["w8a8"], SAMPLE)
    assert model.phase is Phase.OBSERVE
    with torch.no_grad():
        assert torch.equal(model(**SAMPLE).last_hidden_state, plain(**SAMPLE).last_hidden_state)
        model.calibrate([SAMPLE], lambda done: None)
        model.train()
        first = model(**SAMPLE).last_hidden_state
        assert not torch.equal(first, plain(**SAMPLE).last_hidden_state)
        assert torch.equal(first, model(**SAMPLE).last_hidden_state)


def test_every_weight_and_every_range_has_a_gradient(folder: Path) -> None:
    model = calibrated(bert(folder), SCHEMES["w8a8-sym"])
    model(**SAMPLE).last_hidden_state.square().sum().backward()
    pooler = list(model.sites.values())[-1]  # the hidden states do not pass through it
    for number, quantizer in enumerate(model.quantizers):
        assert (quantizer.log_scale.grad is None) == (number == pooler)
    layers = [w for n, w in model.module.named_parameters() if n.startswith("encoder") and n in model.rounded]
    assert all(weight.grad is not None and float(weight.grad.abs().max()) > 0 for weight in layers)


def test_a_model_without_weights_to_round_is_refused() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with pytest.raises(BadInput, match="nothing of Sum can be quantized"):
        QuantizedModel(Sum(), SCHEMES["w8a8"], {"x": torch.ones(2, 3)})


def test_what_is_not_finite_is_refused(folder: Path) -> None:
    module = bert(folder)
    with torch.no_grad():
        module.encoder.layer[0].attention.output.LayerNorm.weight.fill_(float("nan"))
    model = QuantizedModel(module, SCHEMES["w8a8"], SAMPLE)
    with pytest.raises(BadInput, match=r"intermediate.*is not finite on the training data"):
        model.calibrate([SAMPLE], lambda done: None)


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3)
        self.second = torch.nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.second(torch.nn.functional.relu(self.first(x))), 1)


def test_convolutions_answer_in_eight_bits_behind_their_relu() -> None:
    """Int8 kernels of convolutions take and give 8 bits; what is rounded is what comes out of the relu, which
    the next one reads.
    """
    torch.manual_seed(0)
    images = {"x": torch.randn(2, 1, 8, 8)}
    model = QuantizedModel(Convolutions(), SCHEMES["w8a8"], images)
    assert list(model.sites) == ["conv2d of first.weight", "answer of first.weight", "answer of second.weight"]
    model.calibrate([images], lambda done: None)
    assert int(model.quantizer(model.sites["answer of first.weight"]).zero_point) == 0


class Graph(torch.nn.Module):
    """A few products by hand, as ``transformers`` models name their parts."""

    base_model_prefix = ""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self._how = how

    def forward(self, x: torch.Tensor) -> Any:
        return self._how(self, x)


def answered(how: Any, x: torch.Tensor) -> tuple[Any, QuantizedModel]:
    torch.manual_seed(3)
    model = QuantizedModel(Graph(how), SCHEMES["w8a8"], {"x": x})
    model.calibrate([{"x": x}], lambda done: None)
    with torch.no_grad():
        return model(x=x), model


def test_a_tensor_that_was_changed_in_place_is_rounded_anew() -> None:
    def how(module: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        first = module.first(x)
        x.mul_(100.0)
        return first.sum() * 0 + module.second(x)

    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    answer, model = answered(how, x)
    wanted = model.module.second(100 * x).detach()
    assert len(model.sites) == 2
    assert float((answer - wanted).norm() / wanted.norm()) < 0.05


def test_every_reader_of_a_convolution_gets_the_rounded_answer() -> None:
    seen: list[torch.Tensor] = []

    def how(module: Any, x: torch.Tensor) -> torch.Tensor:
        made = module.conv(x)
        once, again = made * 1.0, made * 1.0
        both = torch.cat([made, made], dim=1)
        seen[:] = [once, again, both[:, :4]]
        return both

    _, model = answered(how, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)))
    assert list(model.sites) == ["conv2d of conv.weight", "answer of conv.weight"]
    scale = float(model.quantizer(1).scale.detach())
    for each in seen:
        assert torch.equal(each, seen[0])
        assert torch.allclose(each / scale, (each / scale).round(), atol=1e-3)


def test_weights_that_are_kept_between_passes_follow_their_changes(folder: Path) -> None:
    model = calibrated(bert(folder), SCHEMES["w8a8"])
    with torch.inference_mode():
        before = model(**SAMPLE).last_hidden_state
        assert torch.equal(model(**SAMPLE).last_hidden_state, before)
    with torch.no_grad():
        for _, weight in model.module.named_parameters():
            weight.add_(0.05)
    with torch.inference_mode():
        kept = model(**SAMPLE).last_hidden_state
    model._kept.clear()
    with torch.inference_mode():
        assert torch.equal(model(**SAMPLE).last_hidden_state, kept)
    assert not torch.equal(kept, before)
    model(**SAMPLE)  # a pass that may be learned from keeps nothing
    assert not model._kept


def test_the_scale_of_a_table_is_found_once_and_again_when_the_table_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table does not change in training, and looking at all of it in every step costs more than its rows."""
    model = calibrated(bert(folder), SCHEMES["w8a8"])
    looked: list[tuple[int, ...]] = []

    def counted(weight: torch.Tensor, *given: Any) -> torch.Tensor:
        looked.append(tuple(weight.shape))
        return weight_scale(weight, *given)

    monkeypatch.setattr("optimizer.training.quantized.weight_scale", counted)
    for _ in range(3):
        model(**SAMPLE)
    assert len(looked) == 3
    words = dict(model.module.named_parameters())["embeddings.word_embeddings.weight"]
    seen: list[torch.Tensor] = []
    model.module.embeddings.word_embeddings.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        words.mul_(3.0)
    model(**SAMPLE)
    assert len(looked) == 4
    assert torch.equal(seen[0], round_weight(words, None)[SAMPLE["input_ids"]])


def test_answers_of_softmax_have_scales_that_its_kernel_takes_as_they_are(folder: Path) -> None:
    model = calibrated(bert(folder), EVERY)
    found = {site: model.quantizer(number) for site, number in model.sites.items()}
    shares = {site: quantizer for site, quantizer in found.items() if quantizer.of_softmax}
    assert len(shares) == 2
    assert all("matmul" in site and site.endswith("operand 0") for site in shares)
    for quantizer in shares.values():
        inverse = float(1 / quantizer.scale.detach())
        assert 0 < inverse - round(inverse) < 1e-3
        assert abs(inverse - float(1 / quantizer.log_scale.detach().exp())) < 0.51
        quantizer(torch.rand(3, 5, requires_grad=True)).sum().backward()
        assert quantizer.log_scale.grad is not None
        assert quantizer.log_scale.grad.abs() > 0
    other = next(quantizer for quantizer in found.values() if not quantizer.of_softmax)
    assert torch.equal(other.scale, other.log_scale.exp())
