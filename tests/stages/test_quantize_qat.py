"""Training for int8, from a model folder to a graph that answers like what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from processor import EXACT
from qat_cases import QUICK, case, texts, with_an_outlier
from tiny import write

import optimizer
from optimizer.errors import BadInput, GateFailed
from optimizer.store import Store
from optimizer.training import probe
from optimizer.training.scheme import SCHEMES
from optimizer.types import Precision


@pytest.mark.parametrize(
    ("name", "options", "metric"),
    [
        ("classifier", {}, "accuracy"),
        ("classifier", {"distill": False, "quantize_head": True}, "accuracy"),
        ("classifier", {"all_ops": True, "per_channel": False, "smooth": True}, "accuracy"),
        ("classifier", {"all_ops": True, "per_channel": False}, "accuracy"),
        ("tagger", {"target": "tensorrt"}, "f1"),
        pytest.param("tagger", {"distill": False}, "f1", marks=pytest.mark.thorough),
        ("embedder", {"scheme": "w8a8-sym"}, "cosine"),
        pytest.param("embedder", {"scheme": "w4a16"}, "cosine", marks=pytest.mark.thorough),
        pytest.param("vit", {}, "accuracy", marks=pytest.mark.thorough),
        ("vit", {"scheme": "w4a16"}, "accuracy"),
        ("resnet", {"target": "tensorrt"}, "accuracy"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else value,
)
def test_the_graph_answers_like_the_model_that_was_trained(
    tmp_path: Path, name: str, options: dict[str, Any], metric: str
) -> None:
    source, train, judged = case(tmp_path, name)
    if options.get("smooth"):
        with_an_outlier(source)
    store = Store(tmp_path / "models")
    if options.get("scheme") != "w4a16":
        options = {**options, **EXACT}
    made = optimizer.quantize_qat(str(source), name="m", store=store, train=train, eval=judged, **QUICK, **options)
    facts = made.artifact.manifest.facts
    parity = facts["parity"]
    assert parity["rows"] == (30 if judged.suffix == ".npz" else 40)
    # The kernel of 4-bit weights rounds activations to 8 bits by blocks, which training leaves in float.
    assert parity["median"] < (0.1 if options.get("scheme") == "w4a16" else 2e-3)
    assert parity["agreement"] is None or parity["agreement"] > 0.95
    training = facts["training"]
    assert list(training["scores"]) == ["float", "calibrated", "trained"]
    assert metric in training["scores"]["trained"]
    assert training["scores"]["float"]["cosine"] == pytest.approx(1.0)
    assert any(site.startswith("layer_norm") for site in training["smoothed"]) == bool(options.get("smooth"))
    assert training["data"]["rows"] == 48
    assert training["steps"] == 12
    judgements = [line for line in training["curve"] if "cosine" in line]
    assert [line["step"] for line in judgements] == [6, 12]
    assert judgements[-1]["cosine"] == training["scores"]["trained"]["cosine"]
    if options.get("scheme") == "w4a16":
        assert facts["blocks"]["bits"] == [4]
        assert made.artifact.variant == "int4-qat"
    else:
        assert facts["quantized"]["total"] >= 6
    kept = store.get(f"m:checkpoint-{made.artifact.variant.partition('-')[2]}" + ("-w4a16" * ("blocks" in facts)))
    assert made.artifact.manifest.source["ref"] == kept.ref
    assert kept.manifest.source["digest"] == store.version_source("m", 1)["digest"]
    assert not {"model.safetensors", "ranges.json", "probe.npz"} & set(made.artifact.manifest.files)
    assert "golden.npz" in made.artifact.manifest.files
    again = optimizer.quantize_qat(str(source), name="m", store=store, train=train, eval=judged, **QUICK, **options)
    assert again.cached
    assert not list((tmp_path / "models" / ".ml-opt").glob("training/*"))


@pytest.mark.parametrize("every", [{}, {"all_ops": True, "per_channel": False}], ids=["default", "every operator"])
def test_the_symmetric_graph_is_one_that_tensorrt_builds(tmp_path: Path, every: dict[str, Any]) -> None:
    source, train, _ = case(tmp_path, "classifier")
    store = Store(tmp_path / "models")
    with_an_outlier(source)
    given = {"target": "tensorrt", "epochs": 1, **every, **EXACT}
    made = optimizer.quantize_qat(str(source), name="m", store=store, train=train, **given)
    assert made.artifact.manifest.facts["training"]["smoothed"]
    engine = optimizer.build_trt_engine(made.artifact.ref, store=store, flavor="rtx")
    assert engine.artifact.precision is Precision.INT8
    assert engine.artifact.manifest.facts["layers"]["products"].get("int8", 0) >= 5


def test_tables_beside_four_bits_are_looked_up_in_eight_on_every_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import openvino

    source, train, _ = case(tmp_path, "embedder")
    store = Store(tmp_path / "models")
    # TensorRT's blocks have 64 weights at least.
    monkeypatch.setitem(SCHEMES, "w4a16", replace(SCHEMES["w4a16"], block=64))
    given: dict[str, Any] = {"name": "m", "store": store, "train": train, "scheme": "w4a16", "epochs": 1}
    made = {
        target: optimizer.quantize_qat(str(source), target=target, variant=target, **given).artifact
        for target in ("ort", "tensorrt")
    }
    facts = made["ort"].manifest.facts
    assert facts["tables_int8"] == 3
    assert facts["quantized"]["stored"] == 3
    assert facts["parity"]["median"] < 0.02
    assert facts["training"]["float_modules"] == []
    tables = [
        onnx.numpy_helper.to_array(each).dtype
        for each in onnx.load(str(made["ort"].model_file)).graph.initializer
        if "embeddings" in each.name and each.name.endswith("_quantized")
    ]
    assert tables == [np.uint8] * 3
    # ONNX Runtime looks levels up, and brings back the rows that were asked for.
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(made["ort"].model_file), options)
    graph = onnx.load(str(tmp_path / "optimized.onnx")).graph
    levels = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.UINT8}
    assert sum(node.op_type == "Gather" and node.input[0] in levels for node in graph.node) == 3
    assert not any(node.op_type == "DequantizeLinear" and node.input[0] in levels for node in graph.node)
    feeds = {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    wanted = session.run(["last_hidden_state"], feeds)[0]
    core = openvino.Core()
    model = core.compile_model(str(made["ort"].model_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.allclose(model(feeds)["last_hidden_state"], wanted, atol=0.05)
    engine = optimizer.build_trt_engine(made["tensorrt"].ref, store=store, flavor="rtx")
    assert engine.artifact.precision is Precision.INT4


def test_products_have_weights_of_seven_bits_where_the_range_is_reduced(tmp_path: Path) -> None:
    """Tables keep their 8 bits: their rows are looked up, and multiplied by nothing."""
    import onnx

    source, train, _ = case(tmp_path, "embedder")
    store = Store(tmp_path / "models")
    made = optimizer.quantize_qat(str(source), name="m", store=store, train=train, epochs=1, reduce_range=True)
    assert made.artifact.variant == "int8-qat-7bit"
    assert made.artifact.manifest.facts["parity"]["median"] < 2e-3
    graph = onnx.load(str(made.artifact.model_file)).graph
    levels = [onnx.numpy_helper.to_array(each) for each in graph.initializer]
    products = [int(abs(each.astype(int)).max()) for each in levels if each.dtype == np.int8 and each.ndim == 2]
    tables = [int(abs(each.astype(int) - 128).max()) for each in levels if each.dtype == np.uint8 and each.ndim == 2]
    assert len(products) >= 12
    assert set(products) == {63}
    assert tables == [127] * 3


@pytest.mark.parametrize(("here", "said"), [(0.5, "50.0% of 40 rows; for this"), (1.0, "sums may saturate")])
def test_a_graph_that_saturates_here_is_held_to_what_it_answers_elsewhere(
    here: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, train, _ = case(tmp_path, "classifier")
    monkeypatch.setattr("optimizer.quantizing.promise.has_vnni", lambda features: False)
    compared: list[Any] = []

    def compare(*given: Any) -> Any:
        compared.append(real(*given))
        return compared[0] if len(compared) == 1 else {"rows": 40, "agreement": here, "worst_cosine": 1.0}

    real = probe.compare
    monkeypatch.setattr(probe, "compare", compare)
    made = optimizer.quantize_qat(str(source), name="m", store=Store(tmp_path / "models"), train=train, epochs=1)
    facts = made.artifact.manifest.facts
    assert facts["parity"]["agreement"] == 1
    # In float on int8's levels, as PyTorch did: no integer kernel, of whatever processor, is as near.
    assert facts["parity"]["median"] < 1e-4
    assert facts["parity_saturated"]["agreement"] == here
    assert said in made.artifact.manifest.warnings[-1]
    assert "--reduce-range" in made.artifact.manifest.warnings[-1]


def test_a_graph_that_is_another_model_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, train, _ = case(tmp_path, "classifier")
    half = {"rows": 40, "agreement": 0.5, "worst_cosine": 1.0}
    monkeypatch.setattr(probe, "compare", lambda *_: half)
    with pytest.raises(GateFailed, match=r"decides as the trained model does in only 50\.0% of 40 rows"):
        optimizer.quantize_qat(str(source), name="m", store=Store(tmp_path / "models"), train=train, epochs=1)


def test_one_training_serves_every_target(tmp_path: Path) -> None:
    """The same numbers, signed for TensorRT, unsigned for ONNX Runtime, which leaves signed products in float."""
    import onnx

    source, train, _ = case(tmp_path, "embedder")
    store = Store(tmp_path / "models")
    with_an_outlier(source)
    made = {
        target: optimizer.quantize_qat(
            str(source),
            name="m",
            store=store,
            train=train,
            scheme="w8a8-sym",
            target=target,
            epochs=1,
            variant=target,
            **EXACT,
        )
        for target in ("ort", "tensorrt")
    }
    (trained,) = {each.artifact.manifest.source["ref"] for each in made.values()}
    assert trained == "m@1:checkpoint-qat-sym" + "-7bit" * bool(EXACT)
    smoothed = made["ort"].artifact.manifest.facts["training"]["smoothed"]
    assert "linear of encoder.layer.0.attention.self.query.weight" in smoothed
    for each in made.values():
        assert each.artifact.manifest.facts["parity"]["median"] < 2e-3
    feeds = {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    answers, kernels, rounded = [], [], []
    for each in made.values():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(each.artifact.model_file), options)
        answers.append(session.run(["last_hidden_state"], feeds)[0])
        nodes = onnx.load(str(tmp_path / "optimized.onnx")).graph.node
        kernels.append(sum(node.op_type == "MatMulIntegerToFloat" for node in nodes))
        rounded.append(sum(node.op_type == "QuantizeLinear" for node in nodes))
    assert np.allclose(*answers, atol=1e-4)
    assert kernels[0] == 12 > kernels[1]
    # Rows of the three tables are looked up in 8 bits, and only those are brought back.
    assert rounded == [9, 9 + 3]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("nothing to learn from", {"distill": False, "train": "plain"}, "has no label to learn from", "leave --no-distill"),
    ("unknown label", {"distill": False, "train": "odd"}, "the model knows no label 'maybe'", ""),
    ("unknown label to judge by", {"eval": "odd"}, "the model knows no label 'maybe'", ""),
    ("judged on what was learned", {"eval": "train"}, "48 rows of the evaluation data are in the training", "overlap"),
    ("judged on some of that", {"eval": "some"}, "7 rows of the evaluation data are in the training", "overlap"),
    ("unsigned for TensorRT", {"target": "tensorrt", "scheme": "w8a8"}, "TensorRT does not take", "w8a8-sym"),
    ("four bits everywhere", {"scheme": "w4a16", "all_ops": True}, "--all-ops is about 8-bit numbers", ""),
    ("smooth 4 bits", {"scheme": "w4a16", "smooth": True}, "--smooth is about 8-bit numbers", "leave it out"),
    ("not its task", {"task": "question-answering"}, "question-answering cannot be trained", "quantize static"),
    ("nothing there", {"train": "absent"}, "absent", ""),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    case(folder, "classifier")
    texts(folder / "plain.jsonl", 20, 3)
    learned, other = ((folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "eval"))
    (folder / "some.jsonl").write_text("\n".join([*other[:20], *learned[5:12], *other[20:]]) + "\n")
    write(folder / "odd.jsonl", [{"text": "a b", "label": "no"}, {"text": "b c", "label": "maybe"}])
    return folder


@pytest.mark.parametrize(("options", "message", "hint"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_bad_input(classifier: Path, tmp_path: Path, options: dict[str, Any], message: str, hint: str) -> None:
    files = {k: classifier / f"{v}.jsonl" for k, v in {"train": "train", **options}.items() if k in ("train", "eval")}
    store = Store(tmp_path / "models")
    with pytest.raises(BadInput, match=message) as refused:
        optimizer.quantize_qat(str(classifier / "classifier"), name="m", store=store, **{**options, **files})
    assert hint in refused.value.hint
    assert store.refs() == []


def test_one_row_that_is_judged_and_learned_is_named_whatever_its_label(classifier: Path, tmp_path: Path) -> None:
    learned = [json.loads(line) for line in (classifier / "train.jsonl").read_text().splitlines()]
    other = [json.loads(line) for line in (classifier / "eval.jsonl").read_text().splitlines()]
    said = {"text": learned[9]["text"], "label": "no" if learned[9]["label"] != "no" else "yes"}
    write(tmp_path / "some.jsonl", [*other[:3], said, *other[3:]])
    given: dict[str, Any] = {"train": classifier / "train.jsonl", "eval": tmp_path / "some.jsonl"}
    with pytest.raises(BadInput, match="1 rows of the evaluation data are in the training data too") as refused:
        optimizer.quantize_qat(str(classifier / "classifier"), name="m", store=Store(tmp_path / "models"), **given)
    assert refused.value.message.endswith(f"the first is {tmp_path / 'some.jsonl'}, row 4")
    assert refused.value.exit_code == BadInput.exit_code == 2


def test_an_onnx_file_cannot_be_trained(classifier: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    graph = optimizer.export_onnx(str(classifier / "classifier"), name="m", store=store).artifact.model_file
    with pytest.raises(BadInput, match=r"is an \.onnx file, which cannot be trained"):
        optimizer.quantize_qat(str(graph), name="n", store=store, train=classifier / "train.jsonl")
