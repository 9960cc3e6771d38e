"""A model is traced once in a run of the tests, and everything that decides its graph makes it another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import numpy as np
import onnx_ir
import pytest
import torch
from transformers import BertConfig

from optimizer.exporting.samples import Sample
from optimizer.hf import LoadedModel


def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(torch.nn.Linear(3, 2), BertConfig(), "Linear")


def sample() -> Sample:
    return Sample("text", {"x": np.ones((2, 3), np.float32)}, {"x": {0: "batch"}})


def traced(log: list[str]) -> Any:
    def trace(loaded: LoadedModel, sample: Sample, opset: int) -> onnx_ir.Model:
        log.append(loaded.class_name)
        x = onnx_ir.val("x", onnx_ir.DataType.FLOAT, ["batch", 3])
        node = onnx_ir.node("Relu", [x])
        node.outputs[0].name = "y"
        graph = onnx_ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": opset}, name="g")
        return onnx_ir.Model(graph, ir_version=10)

    return trace


def test_it_is_traced_once_until_something_that_decides_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    export = exports.remembered(traced(log), tmp_path / "kept")
    first, again = export(loaded(), sample(), 20), export(loaded(), sample(), 20)
    assert len(log) == 1
    assert first is not again, "whoever changes what he was given changes nobody else's"
    assert [node.op_type for node in again.graph] == ["Relu"]
    assert again.opset_imports[""] == 20
    # Another process finds it in the same folder.
    exports.remembered(traced(log), tmp_path / "kept")(loaded(), sample(), 20)
    assert len(log) == 1
    trained = loaded()
    with torch.no_grad():
        trained.module.bias[0] += 1
    others = [
        (trained, sample(), 20),
        (loaded(), sample(), 21),
        (loaded(), replace(sample(), arrays={"x": np.zeros((2, 3), np.float32)}), 20),
        (loaded(), replace(sample(), axes={}), 20),
        (replace(loaded(), dropped=("y",)), sample(), 20),
        (replace(loaded(), config=BertConfig(num_labels=5)), sample(), 20),
    ]
    for number, other in enumerate(others, 2):
        export(*other)
        assert len(log) == number
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "tests/exporting/test_samples.py::test_it (call)")
    export(loaded(), sample(), 20)
    assert len(log) == len(others) + 2, "tests of exporting trace every time"
