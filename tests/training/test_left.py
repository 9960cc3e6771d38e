"""What stays in float is named: module, class and reason, like ones together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from qat_cases import QUICK, case

import optimizer
from optimizer.store import Store
from optimizer.training.left import left_in_float, said_of
from optimizer.training.quantized import QuantizedModel
from optimizer.training.scheme import SCHEMES


class Recurrent(torch.nn.Module):
    """A layer of two: one that is recurrent, and one that is quantized."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(width, width, batch_first=True)
        self.after = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.after(self.gru(x)[0])
        return answer


class Odd(torch.nn.Module):
    """One of each kind that is not quantized."""

    base_model_prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.layers = torch.nn.ModuleList(Recurrent(8) for _ in range(3))
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.wider = torch.nn.ConvTranspose1d(8, 8, 3)
        self.never = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.place
        for layer in self.layers:
            x = layer(x)
        x = self.attention(x, x, x, need_weights=False)[0]
        answer: torch.Tensor = self.wider(x.transpose(1, 2)).flatten(1)
        return answer


def quantized(module: torch.nn.Module, scheme: str = "w8a8", **changes: Any) -> QuantizedModel:
    torch.manual_seed(0)
    return QuantizedModel(module, replace(SCHEMES[scheme], **changes), {"x": torch.randn(2, 5, 8)})


def test_like_modules_are_one_line_with_their_class_and_the_reason() -> None:
    left = {each["modules"]: each for each in left_in_float(quantized(Odd()))}
    assert left["layers.*.gru"] == {
        "modules": "layers.*.gru",
        "class": "GRU",
        "count": 3,
        "weights": 3 * 2 * 24 * 8,
        "why": "recurrent layers are not quantized",
    }
    assert "torch's own attention" in left["attention.out_proj"]["why"]
    # The attention has a part of its own, so that what it holds beside that is named by itself.
    assert (left["attention.in_proj_weight"]["class"], left["attention.in_proj_weight"]["count"]) == (
        "of MultiheadAttention",
        1,
    )
    assert left["wider"]["why"] == "transposed convolutions are not quantized"
    assert (left["place"]["class"], left["place"]["why"]) == ("of Odd", "what reads it is add, which is not quantized")
    assert left["never"]["why"] == "nothing that is quantized reads it"
    assert next(iter(left)) == "layers.*.gru", "the largest first"
    assert not any("after" in name for name in left)


def test_lines_say_how_many_and_how_much_and_end_somewhere() -> None:
    model = quantized(Odd())
    total = sum(weight.numel() for weight in model.module.parameters())
    left = left_in_float(model)
    lines = said_of(left, total)
    share = 3 * 2 * 24 * 8 / total
    assert lines[0] == (
        f"layers.*.gru (3 × GRU) stay in float, {share:.1%} of the weights: recurrent layers are not quantized"
    )
    assert any(line.startswith("wider (ConvTranspose1d) stays in float, ") for line in lines)
    assert len(lines) == 6
    assert lines[5].startswith("and others stay in float (1), ")
    assert said_of([], total) == []


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("w8a8", "it is of the task's own head; --quantize-head takes it"),
        ("w4a16", "4 bits are for linear layers: convolutions have no blocks"),
    ],
)
def test_the_head_and_what_a_scheme_has_no_form_for_have_reasons_of_their_own(scheme: str, why: str) -> None:
    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first = torch.nn.Conv1d(5, 5, 1), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.first(self.conv(x))
            return answer

    class Model(torch.nn.Module):
        base_model_prefix = "base"

        def __init__(self) -> None:
            super().__init__()
            self.base, self.head = Base(), torch.nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.head(self.base(x))
            return answer

    left = {each["modules"]: each["why"] for each in left_in_float(quantized(Model(), scheme))}
    assert list(left) == (["head"] if scheme == "w8a8" else ["base.conv", "head"])
    assert why in left.values()


def test_a_training_names_them_in_its_warnings_and_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier whose first token passes a recurrent layer. (A GRU over all of them cannot be exported.)"""
    from transformers.models.bert import modeling_bert

    class Pooler(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.gru = torch.nn.GRUCell(config.hidden_size, config.hidden_size)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.gru(states[:, 0])
            return answer

    monkeypatch.setattr(modeling_bert, "BertPooler", Pooler)
    source, train, _ = case(tmp_path, "classifier")
    made = optimizer.quantize_qat(
        str(source), name="m", store=Store(tmp_path / "models"), train=train, **{**QUICK, "epochs": 1}
    )
    manifest = made.artifact.manifest
    (recurrent, head) = manifest.facts["training"]["float_modules"]
    assert (recurrent["modules"], recurrent["class"], recurrent["count"]) == ("bert.pooler.gru", "GRUCell", 1)
    assert head["modules"] == "classifier"
    said = [warning for warning in manifest.warnings if "in float" in warning]
    assert said[0].startswith("bert.pooler.gru (GRUCell) stays in float, ")
    assert said[0].endswith("of the weights: recurrent layers are not quantized")
    assert said[1].startswith("classifier (Linear) stays in float, ")
    assert manifest.facts["parity"]["agreement"] == 1
