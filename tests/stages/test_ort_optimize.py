import numpy as np
import pytest
from quantizing import graphs

import optimizer
from benchmarks.architectures import save
from optimizer.errors import BadInput, GateFailed
from optimizer.graph import fuse
from optimizer.graph.fuse import attention_like
from optimizer.graph.io import load
from optimizer.stages import ort_optimize as stage
from optimizer.store import Store

LAYERS = 2


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A store, and small models exported into it when they are first asked for."""
    root = tmp_path_factory.mktemp("fuse")
    store = Store(root / "models")

    def export(name, task="feature-extraction"):
        folder = root / name
        if not folder.exists():
            save(name, task, folder)
            optimizer.export_onnx(str(folder), name=name, store=store)
        return store, f"{name}:fp32"

    return export


#: Architecture → what must be fused in it for a GPU; on a processor all but attention is slower fused.
FUSED = {
    "bert": {"mha2": 2, "skip_layer_normalization": 4, "bias_gelu": 2},
    "clip-text": {"mha2": 2, "skip_layer_normalization": 4},
    "vit": {"mha2": 2, "skip_layer_normalization": 4, "bias_gelu": 2},
    "wav2vec2-layer": {"mha2": 2, "skip_layer_normalization": 5, "bias_gelu": 2},
}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.thorough] * n.startswith("wav")) for n in FUSED])
def test_attention_is_fused_and_the_answers_stay(shop, name, target):
    store, ref = shop(name)
    made = optimizer.ort_optimize(ref, target=target, store=store).artifact
    facts = made.manifest.facts
    assert made.variant == ("fp32-ort" if target == "cpu" else "fp32-ort-cuda")
    if target == "cuda":
        assert FUSED[name].items() <= facts["fused"].items()
    else:
        assert facts["fused"]["mha2"] == LAYERS
        assert (
            facts["ops"].keys().isdisjoint(f"com.microsoft.{slow}" for slow in ("SkipLayerNormalization", "BiasGelu"))
        )
    assert facts["fused"].get("attention", 0) == (LAYERS if target == "cuda" else 0)
    assert (facts["attention_found"], facts["attention"], facts["attention_left"]) == (LAYERS, LAYERS, 0)
    operator = "com.microsoft.Attention" if target == "cuda" else "com.microsoft.MultiHeadAttention"
    assert facts["ops"][operator] == LAYERS
    assert facts["nodes"] < 0.75 * facts["nodes_before"]
    before = store.get(ref).manifest.facts
    assert (facts["inputs"], facts["outputs"]) == (before["inputs"], before["outputs"])
    report = optimizer.verify(made.ref, store=store, threads=1)
    assert report.exit_code == 0, report.failures
    if name in ("bert", "wav2vec2-layer"):
        assert sum("padded" in case.name for case in report.cases) >= 2


def test_the_two_ways_to_fuse_differ_in_what_is_slower_on_a_processor_alone(shop):
    """For the processor the steps of onnxscript's own function are spelled out, without some: no drifting apart."""
    store, ref = shop("bert")
    apart, packed = load(store.get(ref).model_file), load(store.get(ref).model_file)
    ours = fuse.fuse_for_onnxruntime(apart, pack_attention=False)
    theirs = fuse.fuse_for_onnxruntime(packed, pack_attention=True)
    assert theirs == {**ours, "attention": LAYERS, "skip_layer_normalization": 2 * LAYERS, "bias_gelu": LAYERS}


@pytest.mark.parametrize(
    "name", ["deberta-v2", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("mpnet", "t5-encoder"))]
)
def test_attention_that_no_fusion_matches_is_refused(shop, name):
    store, ref = shop(name)
    found = attention_like(load(store.get(ref).model_file))
    assert found == LAYERS
    try:
        made = optimizer.ort_optimize(ref, store=store).artifact
    except GateFailed as error:
        assert "2 attentions and none of them" in error.message
        assert "--allow-unfused" in error.hint
        assert store.refs().count(f"{name}@1:fp32-ort") == 0
        made = optimizer.ort_optimize(ref, allow_unfused=True, store=store).artifact
        assert made.manifest.facts["attention_left"] == LAYERS
    else:
        assert made.manifest.facts["attention"] == LAYERS
    assert optimizer.verify(made.ref, store=store, threads=1).exit_code == 0


def test_a_model_without_attention_passes(shop):
    store, ref = shop("resnet")
    facts = optimizer.ort_optimize(ref, store=store).artifact.manifest.facts
    assert (facts["attention_found"], facts["attention"]) == (0, 0)


def test_a_quantized_graph_without_int8_products_between_qdq_is_refused(shop):
    store, ref = shop("bert")
    small = optimizer.quantize_dynamic(ref, store=store).artifact
    with pytest.raises(BadInput, match="has no int8 product between Q/DQ nodes with a bias behind it"):
        optimizer.ort_optimize(small.ref, store=store)
    made = optimizer.ort_optimize(small.ref, allow_unfused=True, store=store).artifact
    assert (made.variant, made.manifest.facts["fused"]) == ("int8-dynamic-ort", {})


def spelled(between, after=()):
    """Scores, what stands between them and their Softmax, and what between that and the values."""
    nodes = [
        graphs.node("MatMul", "q k", "s0"),
        *(graphs.node(op, f"s{i} {more}".strip(), f"s{i + 1}", **extra) for i, (op, more, extra) in enumerate(between)),
        graphs.node("Softmax", f"s{len(between)}", "p0", axis=-1),
        *(graphs.node(op, f"p{i} {more}".strip(), f"p{i + 1}", **extra) for i, (op, more, extra) in enumerate(after)),
        graphs.node("MatMul", f"p{len(after)} v", "y"),
    ]
    inputs = [graphs.value(name, [4, 4]) for name in "qkvm"]
    return graphs.graph(nodes, inputs, [graphs.value("y", [4, 4])], [graphs.weight("c", 1), graphs.weight("w", 4, 4)])


def count(tmp_path, proto):
    graphs.onnx.save(proto, str(tmp_path / "m.onnx"))
    return attention_like(load(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("between", "after"),
    [
        ([], []),
        ([("Div", "c", {}), ("Add", "m", {})], []),
        ([("Div", "c", {}), ("Tanh", "", {}), ("Mul", "c", {}), ("Add", "m", {})], []),  # soft caps
        ([("Div", "c", {}), ("Add", "m", {}), ("Add", "m", {}), ("Cast", "", {"to": 1})], [("Cast", "", {"to": 1})]),
        ([("Sub", "m", {}), ("Identity", "", {})], [("Mul", "m", {})]),  # a head mask
    ],
)
def test_attention_is_seen_behind_what_stands_between(tmp_path, between, after):
    assert count(tmp_path, spelled(between, after)) == 1


def test_a_classifier_is_no_attention(tmp_path):
    proto = spelled([("Add", "m", {})])
    proto.graph.node[0].input[1] = "w"
    assert count(tmp_path, proto) == 0
    alone = spelled([])
    alone.graph.node[-1].CopyFrom(graphs.node("Relu", "p0", "y"))
    assert count(tmp_path, alone) == 0


def test_partly_fused_is_said():
    class Found:
        ref, variant = "m@1:fp32", "fp32"

    facts = {"attention_found": 3, "quantized": {"total": 0}}
    stage._verify(stage.OrtOptimize(), {**facts, "attention": 1}, Found())
    with pytest.raises(GateFailed):
        stage._verify(stage.OrtOptimize(), {**facts, "attention": 0}, Found())


def test_a_fused_graph_without_kernels_is_refused(store, tmp_path, monkeypatch):
    """GroupNorm, which a fusion makes, runs on CUDA alone."""
    ref = graphs.put(store, tmp_path, graphs.linear())

    def onto_cuda(model, *, pack_attention):
        next(node for node in model.graph if node.op_type == "MatMul").domain = "only.on.cuda"
        model.opset_imports["only.on.cuda"] = 1
        return {}

    monkeypatch.setattr(fuse, "fuse_for_onnxruntime", onto_cuda)
    with pytest.raises(GateFailed, match="the fused graph does not run on ONNX Runtime"):
        optimizer.ort_optimize(ref, store=store)
    assert store.refs() == ["small@1:fp32"]


def test_minilm_keeps_its_answers_on_ragged_rows(minilm_store, sentences):
    made = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    assert made.manifest.facts["attention"] == 6
    report = optimizer.verify(
        made.ref, data=sentences, samples=24, sweep=False, against="minilm:fp32", store=minilm_store, threads=1
    )
    assert report.exit_code == 0, report.failures
    assert np.min(report.agreement("cosine")) > 0.999999
