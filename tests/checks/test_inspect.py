"""What an artifact is made of, told of graphs and of engines, on a machine that cannot open an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_bert

import optimizer
from optimizer.cli.main import run
from optimizer.errors import Damaged
from optimizer.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Store:
    home = tmp_path_factory.mktemp("inspect")
    store = Store(home / "models")
    optimizer.export_onnx(str(tiny_bert(home / "tiny", "BertModel")), name="tiny", store=store)
    optimizer.build_trt_engine(
        "tiny:fp32", precision="fp16", flavor="rtx", profile=["input_ids:1x2:2x8:4x16"], store=store
    )
    return store


def test_an_engine_is_told_from_its_own_layers(tiny: Store) -> None:
    report = optimizer.inspect("tiny:fp16-rtx", store=tiny)
    assert (report.kind, report.precision, report.exit_code) == ("engine", "fp16", 0)
    assert report.engine["attention"] == 1
    assert set(report.engine["products"]) == {"float16"}
    assert report.network["layers"] > report.engine["layers"] == len(report.layers)
    assert report.profiles[0]["input_ids"] == {"min": [1, 2], "opt": [2, 8], "max": [4, 16]}
    assert report.about["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"]
    assert report.memory["weights"] > 0
    fused = next(layer for layer in report.layers if "mha" in layer.name)
    assert len(fused.nodes) > 1
    document = json.loads(json.dumps(report.to_json()))
    assert (document["report"], document["schema"]) == ("inspect", 1)


def test_a_graph_is_told_node_by_node(tiny: Store) -> None:
    report = optimizer.inspect("tiny:fp32", store=tiny)
    assert (report.kind, report.precision) == ("onnx", "fp32")
    assert len(report.layers) == report.network["layers"] == tiny.get("tiny:fp32").manifest.facts["nodes"]
    assert set(report.network["products"]) == {"float32"}
    assert report.network["types"]["LayerNormalization"] == 3
    assert report.engine == {}


@pytest.mark.parametrize("ref", ["tiny:fp16-rtx", "tiny:fp32"])
def test_it_reads_well(ref: str, tiny: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", ref, "--store", str(tiny.root)]) == 0
    said = capsys.readouterr()
    assert f"tiny@1:{ref.partition(':')[2]}" in said.out
    assert "sort of layer" in said.out
    assert run(["inspect", ref, "--layers", "--no-engine", "--store", str(tiny.root)]) == 0
    listed = capsys.readouterr().out
    assert "does the work of" in listed
    if ref.endswith("rtx"):
        assert "the engine itself was not asked" in said.err
        assert "profile 0" in said.out
        assert "input_ids:1x2:2x8:4x16" in said.out
        assert "_gemm_mha" in listed


def test_a_damaged_engine_is_not_described(tiny: Store, tmp_path: Path) -> None:
    import shutil

    store = Store(tmp_path / "models")
    shutil.copytree(tiny.root, store.root)
    path = store.get("tiny:fp16-rtx").runnable
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged):
        optimizer.inspect("tiny:fp16-rtx", store=store)
    assert run(["inspect", "tiny:fp16-rtx", "--store", str(store.root)]) == 5


def test_an_engine_without_a_gpu_is_refused_with_exit_code_4(tiny: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "tiny:fp16-rtx", "--against", "golden", "--store", str(tiny.root)]) == 4
    said = capsys.readouterr().err
    assert "no CUDA device can be used" in said
    assert run(["verify", "tiny:fp16-rtx", "--against", "golden", "--provider", "cpu", "--store", str(tiny.root)]) == 2
    assert "cpu does not run engines" in capsys.readouterr().err
