import numpy as np
import pytest
from processor import EXACT, SATURATES
from quantizing import graphs

import optimizer
from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.graph import io


def quantized(store, tmp_path, proto, **options):
    """The small graph, before and after."""
    ref = graphs.put(store, tmp_path, proto)
    return store.get(ref).model_file, optimizer.quantize_dynamic(ref, store=store, **options).artifact


@pytest.fixture(scope="module")
def minilm(minilm_store):
    return optimizer.quantize_dynamic("minilm:fp32", store=minilm_store).artifact


def test_minilm_keeps_its_answers_at_a_quarter_of_the_size(minilm, minilm_store, sentences):
    report = optimizer.verify(
        minilm.ref, data=sentences, samples=32, batch=1, threads=1, sweep=False, store=minilm_store
    )
    cosines = [c for case in report.cases for c in case.agreement["cosine"]]
    # Measured: worst .968, mean .992 of 64 sentences.
    assert min(cosines) > 0.955
    assert np.mean(cosines) > 0.987
    assert report.exit_code == 0
    assert graphs.model_bytes(minilm) < 0.30 * graphs.model_bytes(minilm_store.get("minilm:fp32"))


def test_minilm_is_quantized_whole(minilm, minilm_store):
    facts, before = minilm.manifest.facts, minilm_store.get("minilm:fp32").manifest.facts
    assert facts["quantized"] == {"dynamic": 37, "stored": 3, "total": 40}
    assert sum(facts["chosen"].values()) == 40
    assert sum(facts["float_weights"].values()) < 0.01 * sum(before["weights"].values())
    assert (facts["inputs"], facts["outputs"]) == (before["inputs"], before["outputs"])
    assert minilm.manifest.warnings == SATURATES
    assert facts["opset"] == {"": 20}


def test_the_fused_graph_is_quantized_as_well_as_the_export(minilm, minilm_store):
    fused = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    made = optimizer.quantize_dynamic(fused.ref, store=minilm_store).artifact
    assert made.variant == "int8-dynamic-ort"
    assert made.manifest.facts["quantized"] == minilm.manifest.facts["quantized"]
    assert made.manifest.facts["attention"] == 6


def test_packed_projections_are_refused_for_the_parent(minilm_store):
    packed = optimizer.ort_optimize("minilm:fp32", target="cuda", store=minilm_store).artifact
    with pytest.raises(BadInput, match="6 Attention nodes") as caught:
        optimizer.quantize_dynamic(packed.ref, store=minilm_store)
    assert "minilm@1:fp32" in caught.value.hint
    # Asked for by name, the rest is quantized, and what stays is said.
    made = optimizer.quantize_dynamic(packed.ref, op_types=("Gather",), store=minilm_store).artifact
    assert "of the weights stay in float" in made.manifest.warnings[-1]


def test_quantizing_twice_is_refused(minilm, minilm_store):
    with pytest.raises(BadInput, match="quantized already") as caught:
        optimizer.quantize_dynamic(minilm.ref, store=minilm_store)
    assert "minilm@1:fp32" in caught.value.hint


def test_per_channel_has_a_scale_a_column_and_per_tensor_one(store, tmp_path):
    _, channels = quantized(store, tmp_path, graphs.linear())
    whole = optimizer.quantize_dynamic("small:fp32", per_channel=False, store=store).artifact
    assert whole.variant == "int8-dynamic-per-tensor"
    assert graphs.initializers(channels.model_file)["w_scale"].shape == (graphs.WIDTH,)
    assert graphs.initializers(whole.model_file)["w_scale"].shape == ()


def test_unsigned_and_seven_bit_weights(store, tmp_path):
    _, unsigned = quantized(store, tmp_path, graphs.linear(), weight_type="uint8")
    assert unsigned.variant == "uint8-dynamic"
    assert graphs.initializers(unsigned.model_file)["w_quantized"].dtype == np.uint8
    seven = optimizer.quantize_dynamic("small:fp32", reduce_range=True, store=store).artifact
    assert seven.variant == "int8-dynamic-7bit"
    assert np.abs(graphs.initializers(seven.model_file)["w_quantized"].astype(int)).max() == 64


@pytest.mark.parametrize(
    ("proto", "count"),
    [
        (graphs.linear(), 1),
        (graphs.behind("Identity"), 1),
        (graphs.behind("Transpose", perm=[1, 0]), 1),
        (graphs.shared(), 2),
        (graphs.gemm(), 1),
    ],
    ids=["plain", "identity", "transpose", "shared", "gemm"],
)
def test_weights_wherever_they_stand(store, tmp_path, proto, count):
    before, made = quantized(store, tmp_path, proto)
    assert made.manifest.facts["quantized"]["dynamic"] == count
    assert made.manifest.facts["weights"]["int8"] >= graphs.WIDTH**2
    assert "float32" not in made.manifest.facts["weights"] or made.manifest.facts["weights"]["float32"] < 2000
    x = graphs.rows(5, graphs.WIDTH)
    assert graphs.cosine(graphs.run(before, {"x": x}), graphs.run(made.model_file, {"x": x})) > 0.999


@pytest.mark.parametrize("flag", [True, False])
def test_branches_of_an_if(store, tmp_path, flag):
    before, made = quantized(store, tmp_path, graphs.branches())
    assert made.manifest.facts["quantized"]["dynamic"] == 2
    feeds = {"x": graphs.rows(3, graphs.WIDTH), "flag": np.array(flag)}
    assert graphs.cosine(graphs.run(before, feeds), graphs.run(made.model_file, feeds)) > 0.999


def test_lstm(store, tmp_path):
    before, made = quantized(store, tmp_path, graphs.lstm(), **EXACT)
    assert graphs.ops(made.model_file).count("DynamicQuantizeLSTM") == 1
    x = graphs.rows(7, 2, graphs.WIDTH)
    assert graphs.cosine(graphs.run(before, {"x": x}), graphs.run(made.model_file, {"x": x})) > 0.995


def test_ort_attention_keeps_its_mask(store, tmp_path):
    before, made = quantized(store, tmp_path, graphs.packed_attention(), **EXACT)
    assert graphs.ops(made.model_file).count("QAttention") == 1
    feeds = {"x": graphs.rows(2, 6, graphs.WIDTH), "mask": np.array([6, 2], np.int32)}
    want, got = graphs.run(before, feeds), graphs.run(made.model_file, feeds)
    assert graphs.cosine(want, got) > 0.999
    unmasked = graphs.run(made.model_file, {**feeds, "mask": np.array([6, 6], np.int32)})
    assert graphs.cosine(unmasked[1], got[1]) < 0.99


def test_attention_with_a_bias_of_its_scores_is_refused(store, tmp_path):
    """QAttention has no input for it, and ONNX Runtime's quantizer drops it without a word."""
    ref = graphs.put(store, tmp_path, graphs.packed_attention(bias=True))
    with pytest.raises(BadInput, match="Attention"):
        optimizer.quantize_dynamic(ref, store=store)


def test_no_product_at_all(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.graph([graphs.node("Relu", "x", "y")], [graphs.X], [graphs.Y], []))
    with pytest.raises(BadInput, match=r"the model has no MatMul or Gemm .* to quantize") as caught:
        optimizer.quantize_dynamic(ref, store=store)
    assert "--op-types" in caught.value.hint


def test_products_of_activations_only(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.attention_scores())
    with pytest.raises(BadInput, match="is computed"):
        optimizer.quantize_dynamic(ref, store=store)


def test_what_does_not_shrink_is_no_artifact(store, tmp_path):
    """A product beside a large bias: an eighth of a percent of the bytes is quantized."""
    nodes = [graphs.node("MatMul", "x w", "h"), graphs.node("Mul", "h big", "m"), graphs.node("ReduceSum", "m", "y")]
    proto = graphs.graph(
        nodes, [graphs.X], [graphs.value("y", [1, 1])], [graphs.weight("w", 64, 8), graphs.weight("big", 5000, 1, 8)]
    )
    ref = graphs.put(store, tmp_path, proto)
    with pytest.raises(GateFailed, match=r"still take 9\d% of their bytes"):
        optimizer.quantize_dynamic(ref, store=store)
    assert [found.variant for found in store.artifacts()] == ["fp32"]


def test_patterns_choose_nodes(minilm_store):
    kept = optimizer.quantize_dynamic("minilm:fp32", exclude=("node_MatMul_1*",), store=minilm_store).artifact
    only = optimizer.quantize_dynamic("minilm:fp32", include=("node_MatMul_1*",), store=minilm_store).artifact
    every = 40
    totals = [made.manifest.facts["quantized"]["total"] for made in (kept, only)]
    assert 0 < totals[1] < every
    assert sum(totals) == every
    assert "of the weights stay in float: " in only.manifest.warnings[-1]


def test_a_gemm_is_chosen_by_its_own_name_and_type(store, tmp_path):
    """ONNX Runtime turns it into a MatMul of another name before it looks at names and types."""
    gemm, product = graphs.gemm(), graphs.node("MatMul", "y v", "z", name="product")
    gemm.graph.initializer.append(graphs.weight("v", graphs.WIDTH, graphs.WIDTH))
    gemm.graph.node[0].name = "head"
    gemm.graph.node.append(product)
    gemm.graph.output[0].name = "z"
    before, _ = quantized(store, tmp_path, gemm)
    x = {"x": graphs.rows(5, graphs.WIDTH)}
    for options, left in (({"exclude": ("head",)}, "Add"), ({"op_types": ("Gemm",)}, "MatMul")):
        made = optimizer.quantize_dynamic("small:fp32", store=store, **options, **EXACT).artifact
        assert made.manifest.facts["quantized"]["dynamic"] == 1
        assert left in graphs.ops(made.model_file)
        assert graphs.cosine(graphs.run(before, x), graphs.run(made.model_file, x)) > 0.999


def test_a_gemm_that_is_more_than_a_product_is_not_counted(store, tmp_path):
    proto = graphs.gemm()
    proto.graph.node[0].attribute.append(graphs.helper.make_attribute("alpha", 0.5))
    ref = graphs.put(store, tmp_path, proto)
    with pytest.raises(BadInput, match="no MatMul or Gemm"):
        optimizer.quantize_dynamic(ref, store=store)


def test_an_unknown_pattern_offers_the_nearest_node(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.linear())
    for option in ("include", "exclude"):
        with pytest.raises(UnknownName, match=f"--{option}: 'projekt'; did you mean project"):
            optimizer.quantize_dynamic(ref, store=store, **{option: ("projekt",)})
    with pytest.raises(BadInput, match="nothing is left"):
        optimizer.quantize_dynamic(ref, exclude=("*",), store=store)
    with pytest.raises(UnknownName, match="--op-types"):
        optimizer.quantize_dynamic(ref, op_types=("Matmul",), store=store)


def test_weights_that_do_not_fit_into_one_message(store, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "EMBED_LIMIT", 4096)
    before, made = quantized(store, tmp_path, graphs.shared())
    assert (before.parent / io.DATA_NAME).is_file()
    x = graphs.rows(5, graphs.WIDTH)
    assert graphs.cosine(graphs.run(before, {"x": x}), graphs.run(made.model_file, {"x": x})) > 0.999
    assert made.manifest.facts["quantized"]["dynamic"] == 2
    assert sorted(made.manifest.files) == sorted(p.name for p in made.path.iterdir() if p.name != "manifest.json")
