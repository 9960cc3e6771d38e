"""Fusions that match, and how attention is counted."""

import functools

import numpy as np
import onnx_ir
import pytest

import optimizer
from optimizer.data.golden import Golden
from optimizer.graph.facts import graph_facts
from optimizer.graph.fuse import attention_like, fuse_for_onnxruntime
from optimizer.graph.io import load, save
from optimizer.store import Store


@pytest.fixture(scope="module")
def exported(arch, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("fuse") / "models")

    @functools.cache
    def export(name, task):
        return optimizer.export_onnx(str(arch(name, task)), name=name, store=store).artifact

    return export


@pytest.mark.parametrize(
    ("name", "pack", "attention", "operator"),
    [
        ("bert", False, 2, "com.microsoft.MultiHeadAttention"),
        ("bert", True, 2, "com.microsoft.Attention"),
        ("vit", False, 2, "com.microsoft.MultiHeadAttention"),
        ("t5-encoder", False, 0, None),
    ],
)
def test_attention_is_found_fused_and_answers_the_same(name, pack, attention, operator, exported, tmp_path):
    import onnxruntime

    artifact = exported(name, "feature-extraction")
    model = load(artifact.model_file)
    assert attention_like(model) == 2
    counts = fuse_for_onnxruntime(model, pack_attention=pack)
    assert counts
    assert min(counts.values()) > 0
    facts = graph_facts(model)
    assert facts["attention"] == attention
    assert attention_like(model) == 2 - attention
    if operator:
        assert facts["ops"][operator] == 2
    golden = Golden.load(artifact.path)
    session = onnxruntime.InferenceSession(str(save(model, tmp_path)), providers=["CPUExecutionProvider"])
    for spec, got in zip(session.get_outputs(), session.run(None, golden.inputs), strict=True):
        want = golden.outputs[spec.name]
        assert np.abs(got - want).max() < 1e-4 * max(1, np.abs(want).max())


def test_a_model_without_attention_has_none(exported):
    assert attention_like(load(exported("resnet", "feature-extraction").model_file)) == 0


def test_a_softmax_alone_is_no_attention():
    from exporting import byo
    from onnx import TensorProto, helper

    proto = byo.model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 3])],
        [byo.weight("w", 4, 3)],
    )
    assert attention_like(onnx_ir.from_proto(proto)) == 0
