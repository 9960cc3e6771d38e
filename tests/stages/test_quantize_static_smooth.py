"""What quantize-static does about outliers: smoothing, and leaving the worst nodes in float."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantizing import planted
from stages.tiny_bert import bert

import optimizer
from optimizer.cli.main import run
from optimizer.errors import BadInput, UnknownName
from optimizer.stages.quantize_static import QuantizeStatic
from optimizer.store import Store

__all__ = ["bert"]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store with `outlier:fp32` of :mod:`planted`, and calibration rows."""
    folder = tmp_path_factory.mktemp("planted")
    model, rows = planted.write(folder)
    store = Store(folder / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    return store, rows


def made(stocked: tuple[Store, Path], **options: Any) -> tuple[dict[str, Any], float, onnx.ModelProto]:
    """Facts, worst cosine to the float model on unseen rows, and the graph."""
    store, rows = stocked
    artifact = optimizer.quantize_static("outlier:fp32", calib=rows, samples=64, store=store, **options).artifact
    unseen = planted.outlier_rows(100, seed=9)
    exact = planted.answers(planted.outlier_model().SerializeToString(), unseen)
    cosine = planted.worst_cosine(exact, planted.answers(artifact.model_file, unseen))
    return artifact.manifest.facts, cosine, onnx.load(artifact.model_file)


def test_smoothing_recovers_what_an_outlier_destroys(stocked: tuple[Store, Path]) -> None:
    _, plain, _ = made(stocked)
    facts, smooth, _ = made(stocked, smooth=True)
    assert plain < 0.9
    assert smooth > 0.99
    found = facts["smooth"]
    assert found["insert"] == 2
    assert found["largest_difference"] <= 1e-4
    means = {float(alpha): entry["mean"] for alpha, entry in found["tried"].items()}
    assert len(means) == 5
    assert found["alpha"] == max(means, key=means.__getitem__)
    assert facts["quantized"] == {"qdq": 2, "total": 2}


def test_a_given_alpha_is_not_searched(stocked: tuple[Store, Path]) -> None:
    facts, cosine, _ = made(stocked, smooth=True, alpha=0.5)
    assert facts["smooth"]["alpha"] == 0.5
    assert "tried" not in facts["smooth"]
    assert cosine > 0.99


@pytest.mark.parametrize("store_as", ["float", "int8"])
def test_the_worst_node_is_left_in_float(stocked: tuple[Store, Path], store_as: str) -> None:
    facts, cosine, graph = made(stocked, exclude_worst=1, exclude_store=store_as)
    (left,) = facts["left_out"]
    assert (left["node"], left["stored"]) == ("first", store_as)
    assert left["noise"] > 0.1
    assert cosine > {"float": 0.998, "int8": 0.9}[store_as]
    bytes_of = {"float": 4, "int8": 1}
    sizes = sorted(tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    assert len(sizes) == 2
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in graph.graph.initializer if len(tensor.dims) == 2)
    assert weights == planted.WIDE**2 * (1 + bytes_of[store_as])
    assert facts["quantized"] == {
        "qdq": 1,
        **({"stored": 1} if store_as == "int8" else {}),
        "total": 2 - (store_as == "float"),
    }


def test_a_saved_ranking_decides(stocked: tuple[Store, Path], tmp_path: Path) -> None:
    store, rows = stocked
    file = tmp_path / "mine.json"
    ranking = optimizer.sensitivity("outlier:fp32", calib=rows, store=store).artifact
    document = json.loads((ranking.path / "ranking.json").read_text())
    document["nodes"][1]["noise"] = 9.0  # the other one, against the truth
    file.write_text(json.dumps(document))
    facts, _, _ = made(stocked, exclude_worst=1, sensitivity=file)
    assert [each["node"] for each in facts["left_out"]] == ["second"]
    document["nodes"][0]["node"] = "thrid"
    file.write_text(json.dumps(document))
    with pytest.raises(UnknownName, match="unknown node in --sensitivity: 'thrid'"):
        made(stocked, exclude_worst=1, sensitivity=file)


def test_variants_say_what_was_done(stocked: tuple[Store, Path]) -> None:
    store, _ = stocked
    made(stocked, smooth=True, alpha=0.7, exclude_worst=1)
    assert "int8-static-smooth-x1" in store.variants("outlier", 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"smooth": True, "alpha": 1.5}, "--alpha is out of range"),
        ({"smooth": True, "alpha": -0.1}, "--alpha is out of range"),
        ({"alpha": 0.5}, "--smooth, which is not given"),
        ({"sensitivity": Path("r.json")}, "--sensitivity says how to leave nodes out"),
        ({"exclude_store": "int8"}, "--exclude-store says how to leave nodes out"),
        ({"exclude_worst": -1}, "--exclude-worst is out of range"),
    ],
)
def test_contradictions(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        QuantizeStatic(calib=Path("rows.npz"), **values)


def test_what_cannot_be_done_is_said(
    stocked: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, rows = stocked
    few = tmp_path / "few.npz"
    np.savez(few, x=planted.outlier_rows(4))
    words = ["quantize", "static", "outlier:fp32", "--store", str(store.root), "--calib"]
    assert run([*words, str(few), "--smooth"]) == 2
    assert "4 rows are too few to search for alpha" in capsys.readouterr().err
    assert run([*words, str(rows), "--exclude-worst", "2"]) == 2
    assert "leaves nothing to quantize" in capsys.readouterr().err
    assert run([*words, str(rows), "--smooth", "--alpha", "2"]) == 2
    assert "--alpha is out of range" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["fp32", "fp32-ort"])
def test_a_transformer_is_smoothed_exactly(bert: tuple[Store, Path], variant: str) -> None:
    store, texts = bert
    result = optimizer.quantize_static(f"tiny:{variant}", calib=texts, smooth=True, alpha=0.6, samples=12, store=store)
    found = result.artifact.manifest.facts["smooth"]
    # Two attention outputs fold into the values' projections; before query, key and value, before both halves of
    # each feed-forward, and before the pooler something else reads the activation, or GELU lies between.
    assert (found["linear"], found["insert"]) == (2, 7)
    assert found["largest_difference"] < 1e-5


def test_only_products_read_what_was_rounded(bert: tuple[Store, Path]) -> None:
    store, texts = bert
    artifact = optimizer.quantize_static("tiny:fp32", calib=texts, samples=12, store=store).artifact
    graph = onnx.load(artifact.model_file).graph
    makers = {name: node for node in graph.node for name in node.output}
    rounding = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    # What is looked up in an int8 table is as it was: ONNX Runtime gathers the int8 rows themselves.
    levels = {node.output[0] for node in rounding if makers[node.input[0]].op_type != "Gather"}
    rounded = {node.output[0] for node in graph.node if node.input and node.input[0] in levels}
    assert rounded
    readers = {node.op_type for node in graph.node if set(node.input) & rounded}
    assert readers <= {"MatMul", "Gemm"}
    products = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.output}
    assert not any(node.input[0] in products for node in rounding)


def test_tables_left_out_are_stored_by_the_row(bert: tuple[Store, Path]) -> None:
    store, texts = bert
    artifact = optimizer.quantize_static(
        "tiny:fp32",
        calib=texts,
        samples=12,
        op_types=("Gather",),
        exclude_worst=2,
        exclude_store="int8",
        variant="tables",
        store=store,
    ).artifact
    facts = artifact.manifest.facts
    assert [each["stored"] for each in facts["left_out"]] == ["int8", "int8"]
    plain = optimizer.quantize_static(
        "tiny:fp32", calib=texts, samples=12, op_types=("Gather",), variant="plain", store=store
    ).artifact
    close = optimizer.verify(artifact.ref, sweep=False, data=texts, against="tiny:fp32", store=store)
    far = optimizer.verify(plain.ref, sweep=False, data=texts, against="tiny:fp32", store=store)
    assert min(close.agreement("cosine")) > min(far.agreement("cosine"))  # type: ignore[attr-defined]
    assert min(close.agreement("cosine")) > 0.999  # type: ignore[attr-defined]
