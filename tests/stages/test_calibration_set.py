"""A calibration set is chosen once, stands by itself, and is the same calibration as the rows that it holds."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.test_readers import write as write_rows_as
from quantizing import planted

import optimizer
from optimizer import upkeep
from optimizer.cli.main import run
from optimizer.data.readers import read_rows
from optimizer.errors import BadInput, Damaged
from optimizer.store import Store
from optimizer.types import Kind


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Labelled texts, all different, of 1 to 24 words; a quarter is good."""
    drawn = random.Random(seed)
    rows = []
    for place in range(count):
        words = drawn.choices(("good", "bad", "film", "plot", "a", "the"), k=drawn.randint(0, 23))
        rows.append({"text": " ".join([f"n{seed}{place}", *words]), "label": int(place % 4 == 0), "secret": place})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(arch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the classifier `tiny:fp32`, and 120 texts of which 20 are there twice."""
    folder = tmp_path_factory.mktemp("home")
    optimizer.export_onnx(str(arch("bert", "text-classification")), name="tiny", store=folder / "models")
    rows = texts(100, 1)
    write(folder / "train.jsonl", [*rows, *rows[:20]])
    return folder


@pytest.fixture(scope="module")
def made(home: Path) -> Any:
    return optimizer.calibration_set("tiny:fp32", data=home / "train.jsonl", samples=40, store=home / "models").artifact


def test_it_covers_what_it_was_chosen_from(made: Any, home: Path) -> None:
    facts, summary = made.manifest.facts, made.manifest.facts["calibration"]
    offered = {row["text"]: row for row in texts(100, 1)}
    kept = [row.values for row in read_rows(made.path)]
    assert (made.kind, made.variant, made.manifest.warnings) == (Kind.CALIBRATION, "calib-40", [])
    assert (facts["rows"], summary["rows_used"], summary["rows"], summary["duplicates"]) == (40, 40, 120, 20)
    # Real rows, each once, in the model's own words: nothing that the model is not given, and the label.
    assert len({row["text"] for row in kept}) == 40
    assert all(row == {name: offered[row["text"]][name] for name in ("text", "label")} for row in kept)
    assert Counter(row["label"] for row in kept) == {0: 30, 1: 10}
    assert facts["coverage"]["labels"] == {"0": {"offered": 75, "used": 30}, "1": {"offered": 25, "used": 10}}
    # The strata are counted again here, by the lengths that the model sees.
    from optimizer.data.preprocess import Preprocessor
    from optimizer.data.readers import Row

    source = Store(home / "models").get("tiny:fp32")
    pre = Preprocessor.open(source.path, source.model_info)
    strata = facts["coverage"]["strata"]
    for which, rows in (("offered", list(offered.values())), ("used", kept)):
        lengths = pre.lengths([Row(home / "x", 1, row) for row in rows])
        assert lengths is not None
        for each in strata:
            assert each[which] == sum(each["from"] <= length <= each["to"] for length in lengths)
        assert sum(each[which] for each in strata) == len(rows)
    assert len(strata) >= 6
    assert all(abs(each["used"] / 40 - each["offered"] / 100) < 0.1 for each in strata)
    assert facts["coverage"]["missed"] == []


def test_what_is_missed_is_said(home: Path) -> None:
    few = optimizer.calibration_set("tiny:fp32", data=home / "train.jsonl", samples=2, store=home / "models").artifact
    assert any("no row of lengths" in warning for warning in few.manifest.warnings)
    all_of_it = optimizer.calibration_set(
        "tiny:fp32", data=home / "train.jsonl", samples=500, store=home / "models"
    ).artifact
    assert all_of_it.manifest.warnings == ["100 rows, all different ones that train.jsonl has; 500 were asked for"]


def test_the_same_rows_are_the_same_calibration_by_either_door(made: Any, home: Path, tmp_path: Path) -> None:
    store = Store(home / "models")
    file = optimizer.quantize_static("tiny:fp32", calib=home / "train.jsonl", samples=40, store=store)
    assert not file.cached
    # Moved, renamed, and read from where it lies now.
    moved = shutil.copytree(made.path, tmp_path / "elsewhere")
    # The chosen rows alone, as a file of another format.
    import pyarrow
    from pyarrow import parquet

    rows = [dict(row.values) for row in read_rows(made.path)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for calib in (made.ref, "tiny:calib-40", moved, tmp_path / "rows.parquet"):
        other = optimizer.quantize_static("tiny:fp32", calib=calib, store=store)
        assert (other.cached, other.artifact.ref) == (True, file.artifact.ref), calib
    # Others are another one, and so are fewer.
    for options in ({"samples": 39}, {"samples": 40, "seed": 1}):
        key = optimizer.quantize_static("tiny:fp32", calib=home / "train.jsonl", store=store, **options)
        assert key.artifact.manifest.key != file.artifact.manifest.key
    fewer = optimizer.quantize_static("tiny:fp32", calib=made.ref, samples=10, store=store).artifact
    assert fewer.manifest.facts["calibration"]["rows_used"] == 10
    # Made from the set alone, where nothing is cached, it is the same graph.
    fresh = Store(tmp_path / "models")
    shutil.copytree(store.root / "tiny" / "1" / "fp32", fresh.root / "tiny" / "1" / "fp32")
    shutil.copyfile(store.root / "tiny" / "1" / "version.json", fresh.root / "tiny" / "1" / "version.json")
    again = optimizer.quantize_static("tiny:fp32", calib=moved, store=fresh).artifact
    assert again.manifest.files["model.onnx"] == file.artifact.manifest.files["model.onnx"]
    assert again.manifest.key == file.artifact.manifest.key
    assert again.manifest.facts["calibration"]["set"]["file"] == "train.jsonl"
    ranked = [
        optimizer.sensitivity("tiny:fp32", calib=calib, samples=40, store=store).artifact.manifest.key
        for calib in (home / "train.jsonl", made.ref)
    ]
    assert ranked[0] == ranked[1]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json", "a.txt", "dataset"])
def test_every_format_of_text_is_quantized_with(home: Path, tmp_path: Path, name: str) -> None:
    """Made from this file alone, the graph is the one that the same rows of a jsonl file make."""
    store = Store(home / "models")
    rows = texts(16, 7)
    write(tmp_path / "a.jsonl", rows)
    if name == "a.txt":
        (tmp_path / name).write_text("".join(row["text"] + "\n" for row in rows))
    else:
        write_rows_as(tmp_path / name, rows)
    # Of texts without labels others are chosen: all of them are taken here.
    wanted = optimizer.quantize_static("tiny:fp32", calib=tmp_path / "a.jsonl", samples=16, store=store).artifact
    found = optimizer.quantize_static("tiny:fp32", calib=tmp_path / name, samples=16, store=store)
    assert found.artifact.manifest.key == wanted.manifest.key
    upkeep.remove(store, wanted.ref)
    anew = optimizer.quantize_static("tiny:fp32", calib=tmp_path / name, samples=16, store=store).artifact
    assert anew.manifest.files["model.onnx"] == wanted.manifest.files["model.onnx"]
    assert anew.manifest.facts["calibration"]["format"] == name.rpartition(".")[2]
    upkeep.remove(store, anew.ref)


def test_a_tampered_set_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(home / "models")
    made = optimizer.calibration_set("tiny:fp32", data=home / "train.jsonl", samples=12, store=store).artifact
    words = ["quantize", "static", "tiny:fp32", "--store", str(store.root), "--calib"]
    assert run([*words, made.ref]) == 0
    capsys.readouterr()
    copy = shutil.copytree(made.path, tmp_path / "copy")
    for path in (made.path, copy):
        rows = (path / "rows.jsonl").read_text()
        (path / "rows.jsonl").write_text(rows.replace("good", "evil"))
    for calib in (made.ref, str(copy)):
        assert run([*words, calib]) == 5, calib
        assert "the content of rows.jsonl is not what its manifest says" in capsys.readouterr().err
        assert run(["sensitivity", "tiny:fp32", "--calib", calib, "--store", str(store.root)]) == 5
        ask = ["optimize", "tiny:fp32", "--min-cosine", "0.9", "--store", str(store.root), "--calib", calib]
        assert run([*ask, "--eval", str(home / "train.jsonl")]) == 5
    (copy / "manifest.json").write_text("{")
    with pytest.raises(Damaged):
        read_rows(copy)
    upkeep.remove(store, made.ref)


def test_what_was_made_with_a_set_stands_without_it(home: Path) -> None:
    """As with any other parent: removing it leaves what was made from it, which is still found by its content."""
    store = Store(home / "models")
    made = optimizer.calibration_set("tiny:fp32", data=home / "train.jsonl", samples=20, store=store).artifact
    static = optimizer.quantize_static("tiny:fp32", calib=made.ref, store=store).artifact
    assert upkeep.remove(store, made.ref) == [made.ref]
    assert upkeep.check(store, static.ref) == {static.ref: ""}
    assert upkeep.gc(store).broken == []
    again = optimizer.quantize_static("tiny:fp32", calib=home / "train.jsonl", samples=20, store=store)
    assert (again.cached, again.artifact.ref) == (True, static.ref)
    with pytest.raises(BadInput, match="unknown variant"):
        optimizer.quantize_static("tiny:fp32", calib=made.ref, store=store)
    # The line that makes the set again is in its place: made anew, it is the same.
    assert (
        optimizer.calibration_set(
            "tiny:fp32", data=home / "train.jsonl", samples=20, store=store
        ).artifact.manifest.files
        == made.manifest.files
    )


def test_people_see_what_it_is(made: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(home / "models")]
    assert run(["calibration-set", "tiny:fp32", "--data", str(home / "train.jsonl"), "--samples", "40", *store]) == 0
    page = capsys.readouterr().out
    assert "40 of 120 rows of train.jsonl, 20 duplicates dropped" in page
    assert [line.split() for line in page.splitlines() if line.split()[:1] == ["label"]] == [
        ["label", "0", "75", "30"], ["label", "1", "25", "10"],
    ]  # fmt: skip
    assert run(["show", made.ref, *store]) == 0
    assert "tiny@1:calib-40  calibration-set" in capsys.readouterr().out
    assert run(["ls", *store]) == 0
    assert any(line.split()[:2] == [made.ref, "calibration-set"] for line in capsys.readouterr().out.splitlines())
    for words in (["quantize", "dynamic", made.ref], ["bench", made.ref], ["verify", made.ref],
                  ["optimize", made.ref, "--eval", str(home / "train.jsonl"), "--min-cosine", "0.9"]):  # fmt: skip
        assert run([*words, *store]) == 2
        assert "is a calibration set" in capsys.readouterr().err
    words = ["quantize", "static", "tiny:fp32", *store, "--calib"]
    assert run([*words, "tiny:fp32"]) == 2
    assert "tiny@1:fp32 is an ONNX model, and a calibration set is wanted" in capsys.readouterr().err
    assert run([*words, str(home / "models" / "tiny" / "1" / "fp32")]) == 2
    assert "is an ONNX model, and a calibration set is wanted" in capsys.readouterr().err
    assert run([*words, str(home / "gone.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_pictures_come_along(arch: Any, tmp_path: Path) -> None:
    """A folder of images, from its files to a quantized ViT, and the same from the set once the folder is gone."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    for place in range(12):
        path = tmp_path / "photos" / ("cat" if place % 3 else "dog") / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    shutil.copyfile(tmp_path / "photos" / "cat" / "1.png", tmp_path / "photos" / "cat" / "again.png")
    store = Store(tmp_path / "models")
    optimizer.export_onnx(str(arch("vit", "image-classification")), name="vit", store=store)
    file = optimizer.quantize_static("vit:fp32", calib=tmp_path / "photos", samples=9, store=store).artifact
    summary = file.manifest.facts["calibration"]
    assert (summary["format"], summary["rows"], summary["rows_used"]) == ("images", 13, 9)
    assert summary["labels"] == {"cat": 6, "dog": 3}
    assert file.manifest.facts["quantized"]["qdq"] > 0
    made = optimizer.calibration_set("vit:fp32", data=tmp_path / "photos", samples=9, store=store).artifact
    assert made.manifest.facts["calibration"]["duplicates"] == 1
    assert made.manifest.facts["coverage"]["strata"] is None
    assert sum(name.startswith("files/") and name.endswith(".png") for name in made.manifest.files) == 9
    shutil.rmtree(tmp_path / "photos")
    again = optimizer.quantize_static("vit:fp32", calib=made.ref, store=store)
    assert (again.cached, again.artifact.ref) == (True, file.ref)
    upkeep.remove(store, file.ref)
    anew = optimizer.quantize_static("vit:fp32", calib=made.ref, store=store).artifact
    assert anew.manifest.files["model.onnx"] == file.manifest.files["model.onnx"]


def test_arrays_keep_their_type(tmp_path: Path) -> None:
    model, rows = planted.write(tmp_path)
    store = Store(tmp_path / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    made = optimizer.calibration_set("outlier:fp32", data=rows, samples=10, store=store).artifact
    assert set(made.manifest.files) == {"rows.npz"}
    kept = np.load(made.path / "rows.npz")["x"]
    assert kept.dtype == np.float32
    assert {row.tobytes() for row in kept} < {row.tobytes() for row in np.load(rows)["x"]}
    one = optimizer.quantize_static("outlier:fp32", calib=rows, samples=10, store=store).artifact
    assert optimizer.quantize_static("outlier:fp32", calib=made.ref, store=store).artifact.ref == one.ref
