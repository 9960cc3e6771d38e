import shutil

import numpy as np
import onnx
import pytest
from processor import EXACT, SATURATES
from quantizing import graphs

import optimizer
from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.graph import io
from optimizer.stages import quantize_static as stage

QDQ = ("QuantizeLinear", "DequantizeLinear")


def made(ref, store, calib, **options):
    return optimizer.quantize_static(ref, calib=str(calib), store=store, **options).artifact


@pytest.fixture(scope="module")
def sentiment(sentiment_store):
    """A store with the classifier in fp32."""
    return sentiment_store


@pytest.fixture(scope="module")
def static(sentiment, train_sentences):
    return made("sentiment:fp32", sentiment, train_sentences)


def test_the_classifier_keeps_its_decisions(static, sentiment, sentences):
    """200 of the 600 test sentences; benchmarks/accuracy.py has them all (agreement .98, accuracy within a point)."""
    report = optimizer.verify(static.ref, data=sentences, samples=200, sweep=False, threads=1, store=sentiment)
    assert report.exit_code == 0, report.failures
    decisions = [t for case in report.cases if case.inputs == "data" for t in case.agreement["top1"]]
    assert len(decisions) == 200
    assert np.mean(decisions) >= 0.96


def test_every_operator_per_tensor_is_what_loses_them(sentiment, train_sentences, sentences):
    """The contrast that the default operators were chosen by: it must show, or the test above shows nothing."""
    worse = made("sentiment:fp32", sentiment, train_sentences, op_types=("all",), per_channel=False)
    assert worse.variant == "int8-static-per-tensor-all"
    assert worse.manifest.facts["quantized"]["qdq"] > 38
    report = optimizer.verify(worse.ref, data=sentences, samples=200, sweep=False, threads=1, store=sentiment)
    assert report.exit_code == 1
    assert any("top-1 agreement over 200 rows" in failure for failure in report.failures)


def test_the_classifier_is_quantized_whole(static, sentiment):
    before, facts = sentiment.get("sentiment:fp32"), static.manifest.facts
    assert facts["quantized"] == {"qdq": 38, "stored": 3, "total": 41}
    assert facts["chosen"] == {"MatMul": 36, "Gather": 3, "Gemm": 2}
    assert graphs.model_bytes(static) < 0.30 * graphs.model_bytes(before)
    assert (facts["inputs"], facts["outputs"]) == (before.manifest.facts["inputs"], before.manifest.facts["outputs"])
    assert facts["opset"] == {"": 20}
    assert static.manifest.warnings == SATURATES


def test_calibration_is_described_and_is_part_of_the_name(static, sentiment, train_sentences, tmp_path):
    described = static.manifest.facts["calibration"]
    assert (described["rows"], described["rows_used"], described["file"]) == (2379, 200, train_sentences.name)
    assert len(described["sha256"]) == 64
    assert described["lengths"]["max"] > described["lengths"]["min"]
    assert sum(described["labels"].values()) == 200
    elsewhere = shutil.copy(train_sentences, tmp_path / "moved.jsonl")
    again = optimizer.quantize_static("sentiment:fp32", calib=str(elsewhere), store=sentiment)
    assert again.cached
    assert again.artifact.ref == static.ref


@pytest.fixture
def small(store, tmp_path):
    """A small product in the store, and data for it."""
    ref = graphs.put(store, tmp_path, graphs.linear())
    return ref, graphs.npz(tmp_path, x=graphs.rows(40, graphs.WIDTH))


def answers_alike(store, ref, artifact, feeds, least=0.999):
    return graphs.cosine(graphs.run(store.get(ref).model_file, feeds), graphs.run(artifact.model_file, feeds)) > least


def test_other_data_other_seed_other_rows_are_other_artifacts(store, tmp_path, small):
    ref, calib = small
    first = made(ref, store, calib, samples=20)
    changed = graphs.npz(tmp_path, "other.npz", x=3 * graphs.rows(40, graphs.WIDTH))
    others = [
        made(ref, store, changed, samples=20),
        made(ref, store, calib, samples=20, seed=1),
        made(ref, store, calib, samples=10),
    ]
    assert len({found.path for found in [first, *others]}) == 4
    scales = {float(graphs.initializers(found.model_file)["x_scale"]) for found in [first, *others]}
    assert len(scales) >= 3
    assert all(found.variant.startswith("int8-static") for found in others)


def test_too_few_rows_are_said(store, small):
    ref, calib = small
    found = made(ref, store, calib)
    few = "calibrated on 40 rows, all that calib.npz has; 200 were asked for"
    assert found.manifest.warnings == [few, *SATURATES]
    assert made(ref, store, calib, samples=39).manifest.warnings == SATURATES
    assert made(ref, store, calib, samples=40).ref == found.ref, "the same rows are the same artifact"


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_methods_on_rows_of_different_lengths(store, tmp_path, method, symmetric):
    """int32 ids, four to fourteen of them a batch."""
    ref = graphs.put(store, tmp_path, graphs.table())
    # Batches of one row: what is fed differs in length from call to call.
    texts = [[(7 * i + k) % 100 for k in range(4 + i % 11)] for i in range(66)]
    calib = tmp_path / "ids.jsonl"
    calib.write_text("".join(f'{{"ids": {row}}}\n' for row in texts if len(row) in (4, 14)))
    found = made(ref, store, calib, method=method, symmetric=symmetric, samples=6, batch=1)
    assert found.manifest.facts["quantized"] == {"qdq": 1, "stored": 1, "total": 2}
    assert answers_alike(store, ref, found, {"ids": np.array([[1, 5, 99], [0, 2, 50]], np.int32)}, 0.99)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_symmetric_is_what_tensorrt_takes(sentiment, train_sentences, method):
    found = made("sentiment:fp32", sentiment, train_sentences, symmetric=True, method=method, samples=16)
    graph = onnx.load(str(found.model_file)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    between = [node for node in graph.node if node.op_type in QDQ]
    assert len(between) > 80
    for node in between:
        assert arrays[node.input[2]].dtype == np.int8
        assert not arrays[node.input[2]].any()
    assert not any(a.dtype in (np.uint8, np.int32) for a in arrays.values())


def test_asymmetric_graphs_do_not_pass_as_symmetric(static):
    from optimizer.quantizing.promise import check_symmetric

    with pytest.raises(GateFailed, match="uint8"):
        check_symmetric(io.load(static.model_file))


def test_a_convolution(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.convolution())
    calib = graphs.npz(tmp_path, x=graphs.rows(32, 3, 16, 16))
    found = made(ref, store, calib, samples=32)
    assert found.manifest.facts["quantized"]["qdq"] == 2
    assert graphs.initializers(found.model_file)["k_scale"].shape == (32,)
    whole = made(ref, store, calib, samples=32, per_channel=False)
    assert graphs.initializers(whole.model_file)["k_scale"].shape == ()
    assert answers_alike(store, ref, found, {"x": graphs.rows(2, 3, 16, 16, seed=9)})


def test_seven_bit_weights(store, small):
    ref, calib = small
    found = made(ref, store, calib, reduce_range=True, samples=40)
    assert np.abs(graphs.initializers(found.model_file)["w_quantized"].astype(int)).max() == 64


def test_attention_scores_stay_in_float_unless_asked_for(minilm_store, train_sentences):
    usual = made("minilm:fp32", minilm_store, train_sentences, samples=8)
    asked = made("minilm:fp32", minilm_store, train_sentences, samples=8, activation_products=True)
    assert usual.manifest.facts["quantized"]["qdq"] == 37
    assert asked.manifest.facts["quantized"]["qdq"] == 37 + 12


def test_patterns_and_types(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.convolution())
    calib = graphs.npz(tmp_path, x=graphs.rows(8, 3, 16, 16))
    found = made(ref, store, calib, samples=8, exclude=("conv",))
    assert found.manifest.facts["quantized"]["qdq"] == 1
    with pytest.raises(UnknownName, match="'cov'; did you mean conv"):
        made(ref, store, calib, include=("cov",))
    with pytest.raises(UnknownName, match=r"'Convolution'; did you mean Conv"):
        made(ref, store, calib, op_types=("Convolution",))
    with pytest.raises(BadInput, match="no MatMul to quantize"):
        made(ref, store, calib, op_types=("MatMul",))
    with pytest.raises(BadInput, match="stands alone"):
        made(ref, store, calib, op_types=("all", "MatMul"))


def test_a_weight_on_the_left(store, tmp_path):
    """``w · x``: static quantization takes it, dynamic has no kernel for it and says so."""
    proto = graphs.graph(
        [graphs.node("MatMul", "w x", "y")],
        [graphs.value("x", [graphs.WIDTH, "batch"])],
        [graphs.value("y", [graphs.WIDTH, "batch"])],
        [graphs.weight("w", graphs.WIDTH, graphs.WIDTH)],
    )
    ref = graphs.put(store, tmp_path, proto)
    with pytest.raises(BadInput, match="can be quantized"):
        optimizer.quantize_dynamic(ref, store=store)


def test_branches_cannot_be_calibrated(store, tmp_path):
    ref = graphs.put(store, tmp_path, graphs.branches())
    calib = graphs.npz(tmp_path, x=graphs.rows(4, graphs.WIDTH), flag=np.ones(4, bool))
    with pytest.raises(BadInput) as caught:
        made(ref, store, calib)
    assert "If" in caught.value.message or "flag" in caught.value.message


def test_packed_attention_is_refused_for_its_parent(minilm_store, train_sentences):
    packed = optimizer.ort_optimize("minilm:fp32", target="cuda", store=minilm_store).artifact
    with pytest.raises(BadInput, match="6 Attention nodes") as caught:
        made(packed.ref, minilm_store, train_sentences)
    assert "minilm@1:fp32" in caught.value.hint


def test_the_fused_graph_is_quantized_whole(minilm_store, train_sentences):
    fused = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    found = made(fused.ref, minilm_store, train_sentences, samples=16)
    assert found.variant == "int8-static-ort"
    assert found.manifest.facts["quantized"] == {"qdq": 37, "stored": 3, "total": 40}
    assert found.manifest.facts["attention"] == 6


def test_a_batch_written_into_the_model(store, tmp_path):
    proto = graphs.linear()
    for end in (*proto.graph.input, *proto.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    ref = graphs.put(store, tmp_path, proto)
    found = made(ref, store, graphs.npz(tmp_path, x=graphs.rows(12, graphs.WIDTH)), samples=12)
    assert found.manifest.facts["calibration"]["rows_used"] == 12


def nan_where_negative(store, tmp_path):
    """The square root of what may be below zero."""
    proto = graphs.linear()
    proto.graph.node[1].output[0] = "s"
    proto.graph.node.append(graphs.node("Sqrt", "s", "y"))
    return graphs.put(store, tmp_path, proto)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_model_that_answers_nan_is_refused(store, tmp_path, method):
    ref = nan_where_negative(store, tmp_path)
    calib = graphs.npz(tmp_path, x=graphs.rows(8, graphs.WIDTH))
    with pytest.raises(BadInput, match="not finite on the calibration data") as caught:
        made(ref, store, calib, method=method)
    assert "ml-opt verify" in caught.value.hint
    assert store.refs() == ["small@1:fp32"]


def test_calibration_data_is_never_made_up(small, store):
    with pytest.raises(BadInput, match="--calib"):
        optimizer.quantize_static(small[0], store=store)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        ('{"label": 1}\n', "no column for text: wanted text or sentence"),
        ('{"text": "fine"}\n{"text": \n{"text": "fine"}\nnot json\n', "row 2: not JSON .*; 2 of 4 rows are bad"),
        ('{"text": "fine"}\n{"text": 3}\n', "row 2"),
    ],
    ids=["empty", "columns", "unreadable", "types"],
)
def test_bad_data_is_named(minilm_store, tmp_path, content, message):
    calib = tmp_path / "calib.jsonl"
    calib.write_text(content)
    before = minilm_store.refs()
    with pytest.raises(BadInput, match=message):
        made("minilm:fp32", minilm_store, calib)
    with pytest.raises(BadInput, match="no such file"):
        made("minilm:fp32", minilm_store, tmp_path / "nowhere.jsonl")
    assert minilm_store.refs() == before


def test_quantizing_twice_is_refused(static, sentiment, train_sentences):
    with pytest.raises(BadInput, match="quantized already") as caught:
        made(static.ref, sentiment, train_sentences)
    assert "sentiment@1:fp32" in caught.value.hint


def test_nothing_is_left_behind(store, small):
    ref, calib = small
    found = made(ref, store, calib)
    assert sorted(p.name for p in found.path.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]


def test_weights_that_do_not_fit_into_one_message(store, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "EMBED_LIMIT", 2048)
    ref = graphs.put(store, tmp_path, graphs.shared())
    calib = graphs.npz(tmp_path, x=graphs.rows(20, graphs.WIDTH))
    for method in ("minmax", "percentile"):
        found = made(ref, store, calib, samples=20, method=method, **EXACT)
        assert (found.path / io.DATA_NAME).is_file()
        assert answers_alike(store, ref, found, {"x": graphs.rows(5, graphs.WIDTH, seed=3)})


def test_every_choice_is_in_the_variants_name():
    options = stage.QuantizeStatic(calib="x", symmetric=True, method="entropy", per_channel=False, op_types=("all",))
    source = type("Source", (), {"variant": "fp32-ort"})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "Artifact", type(source))
        patch.setattr(stage, "modifiers", lambda _: ["ort"])
        assert stage._variant(options, source) == "int8-static-ort-sym-entropy-per-tensor-all"
