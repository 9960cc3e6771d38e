"""A ranking is an artifact: made once, kept by content, and followed whichever door it comes in by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from quantizing import planted

import optimizer
from optimizer.cli.main import run
from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.recipe import run_recipe
from optimizer.stages.sensitivity import STAGE, Sensitivity
from optimizer.store import Store
from optimizer.types import Kind


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("planted")
    model, rows = planted.write(folder)
    store = Store(folder / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    return store, rows


def test_the_command_prints_and_keeps_the_ranking(
    stocked: tuple[Store, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, rows = stocked
    words = ["sensitivity", "outlier:fp32", "--calib", str(rows), "--store", str(store.root)]
    assert run(words) == 0
    page = capsys.readouterr().out
    assert page.index("first") < page.index("second")
    assert "2 nodes, each in int8 by itself, on 64 rows" in page
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ref"], document["cached"]) == ("outlier@1:ranking", True)
    assert [each["node"] for each in document["facts"]["ranking"]] == ["first", "second"]
    kept = json.loads((store.get("outlier:ranking").path / "ranking.json").read_text())
    assert (kept["report"], kept["schema"]) == ("sensitivity", 1)
    assert kept["of"] == store.get("outlier:fp32").manifest.key
    assert kept["nodes"] == document["facts"]["ranking"]
    assert run(["show", "outlier:ranking", "--store", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert "outlier@1:ranking  ranking" in shown
    assert shown.index("first") < shown.index("second")


def test_it_holds_nothing_but_the_ranking(stocked: tuple[Store, Path]) -> None:
    store, rows = stocked
    made = optimizer.sensitivity("outlier:fp32", calib=rows, store=store).artifact
    assert made.kind is Kind.RANKING
    assert set(made.manifest.files) == {"ranking.json"}
    other = optimizer.sensitivity("outlier:fp32", calib=rows, symmetric=True, per_channel=False, store=store).artifact
    assert other.variant == "ranking-sym-per-tensor"


def test_a_file_and_a_reference_are_the_same_ranking(stocked: tuple[Store, Path], tmp_path: Path) -> None:
    store, rows = stocked
    ranking = optimizer.sensitivity("outlier:fp32", calib=rows, store=store).artifact
    copy = tmp_path / "copy.json"
    shutil.copyfile(ranking.path / "ranking.json", copy)
    doors = (ranking.ref, "outlier:ranking", copy, ranking.path)
    found = [
        optimizer.quantize_static("outlier:fp32", calib=rows, exclude_worst=1, sensitivity=door, store=store)
        for door in doors
    ]
    assert len({each.artifact.manifest.key for each in found}) == 1
    assert [each.cached for each in found] == [False, True, True, True]
    # What is recorded is the full reference, so that it means the same when there is another version.
    assert found[0].artifact.manifest.options["sensitivity"] == "outlier@1:ranking"
    assert "--sensitivity outlier@1:ranking" in found[0].artifact.manifest.command
    # Another order of the nodes is another ranking.
    document = json.loads(copy.read_text())
    document["nodes"][1]["noise"] = 9.0
    copy.write_text(json.dumps(document))
    other = optimizer.quantize_static("outlier:fp32", calib=rows, exclude_worst=1, sensitivity=copy, store=store)
    assert other.artifact.manifest.facts["left_out"][0]["node"] == "second"


def test_a_tampered_ranking_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rows = planted.write(tmp_path)
    store = Store(tmp_path / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    ranking = optimizer.sensitivity("outlier", calib=rows, store=store).artifact
    file = ranking.path / "ranking.json"
    file.write_text(file.read_text().replace("second", "secend"))
    for door in (ranking.ref, str(ranking.path)):
        words = ["quantize", "static", "outlier", "--calib", str(rows), "--exclude-worst", "1", "--sensitivity", door]
        assert run([*words, "--store", str(store.root)]) == 5
        said = capsys.readouterr().err
        assert f"{door} is damaged: the content of ranking.json is not what its manifest says" in said


def test_a_recipe_can_make_the_ranking_it_uses(stocked: tuple[Store, Path], tmp_path: Path) -> None:
    _, rows = stocked
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[recipe]\nmodel = "{rows.parent / "outlier.onnx"}"\nname = "outlier"\n'
        '[[step]]\nrun = "export-onnx"\n'
        f'[[step]]\nrun = "sensitivity"\nid = "worst"\ncalib = "{rows}"\n'
        # Without `from`, a stage starts from the last model, and not from the ranking.
        f'[[step]]\nrun = "quantize-static"\ncalib = "{rows}"\nexclude-worst = 1\nsensitivity = "worst"\n'
    )
    store = Store(tmp_path / "models")
    report = run_recipe(recipe, store=store)
    assert [step["ref"] for step in report.steps] == [
        "outlier@1:fp32", "outlier@1:ranking", "outlier@1:int8-static-x1",
    ]  # fmt: skip
    made = store.get("outlier:int8-static-x1").manifest
    assert made.options["sensitivity"] == "outlier@1:ranking"
    assert made.facts["left_out"][0]["node"] == "first"
    recipe.write_text(recipe.read_text().replace('sensitivity = "worst"', 'sensitivity = "other:ranking"'))
    with pytest.raises(UnknownName, match=r"artifact in --sensitivity \(step 3, quantize-static\): 'other'"):
        run_recipe(recipe, store=store)


def test_what_is_no_model_is_refused_where_one_is_wanted(
    stocked: tuple[Store, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store, rows = stocked
    ranking = optimizer.sensitivity("outlier:fp32", calib=rows, store=store).artifact
    for words in (
        ["quantize", "dynamic", ranking.ref],
        ["cast", ranking.ref, "--to", "fp16"],
        ["bench", ranking.ref],
        ["verify", ranking.ref],
        ["verify", "outlier:fp32", "--against", ranking.ref],
        ["optimize", ranking.ref, "--eval", str(rows), "--min-cosine", "0.9"],
        ["sensitivity", ranking.ref, "--calib", str(rows)],
    ):
        assert run([*words, "--store", str(store.root)]) == 2, words
        assert "is a ranking of nodes" in capsys.readouterr().err, words
    assert run(["sensitivity", "outlier:fp32", "--calib", ranking.ref, "--store", str(store.root)]) == 2
    assert "is a ranking of nodes, and a calibration set is wanted" in capsys.readouterr().err


def test_a_bare_name_is_the_only_model(tmp_path: Path) -> None:
    model, rows = planted.write(tmp_path)
    store = Store(tmp_path / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    optimizer.sensitivity("outlier", calib=rows, store=store)
    assert store.variants("outlier", 1) == ["fp32", "ranking"]
    assert store.get("outlier").variant == "fp32"
    optimizer.quantize_dynamic("outlier", store=store)
    with pytest.raises(BadInput, match="has 2 variants"):
        store.get("outlier")


def test_what_is_quantized_already_is_refused(stocked: tuple[Store, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, rows = stocked
    optimizer.quantize_static("outlier:fp32", calib=rows, store=store)
    assert run(["sensitivity", "outlier:int8-static", "--calib", str(rows), "--store", str(store.root)]) == 2
    assert "is quantized already" in capsys.readouterr().err


def test_a_ranking_that_is_out_of_order_is_refused(stocked: tuple[Store, Path]) -> None:
    store, rows = stocked
    facts = optimizer.sensitivity("outlier:fp32", calib=rows, store=store).artifact.manifest.facts
    with pytest.raises(GateFailed, match="not in order"):
        STAGE.verify(Sensitivity(calib=rows), {"ranking": facts["ranking"][::-1]}, store.get("outlier:fp32"))
