from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantizing import planted

import optimizer
from optimizer.checks.sensitivity import Sensitivity
from optimizer.cli.main import run
from optimizer.errors import UnknownName
from optimizer.store import Store


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("planted")
    model, rows = planted.write(folder)
    store = Store(folder / "models")
    optimizer.export_onnx(str(model), name="outlier", store=store)
    return store, rows


def test_the_command_prints_saves_and_writes(
    stocked: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, rows = stocked
    words = ["sensitivity", "outlier:fp32", "--calib", str(rows), "--store", str(store.root)]
    assert run([*words, "--report", str(tmp_path / "new" / "ranking.json")]) == 0
    page = capsys.readouterr().out
    assert page.index("first") < page.index("second")
    assert "2 nodes, each in int8 by itself, on 64 rows" in page
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["report"], document["schema"], document["ref"]) == ("sensitivity", 1, "outlier@1:fp32")
    assert [each["node"] for each in document["nodes"]] == ["first", "second"]
    kept = sorted(store.reports_folder("outlier", 1).glob("sensitivity-*.json"))
    assert len(kept) == 2
    for path in (kept[0], tmp_path / "new" / "ranking.json"):
        assert json.loads(path.read_text())["nodes"] == document["nodes"]


def test_what_is_quantized_already_is_refused(stocked: tuple[Store, Path], capsys: pytest.CaptureFixture[str]) -> None:
    store, rows = stocked
    optimizer.quantize_static("outlier:fp32", calib=rows, store=store)
    assert run(["sensitivity", "outlier:int8-static", "--calib", str(rows), "--store", str(store.root)]) == 2
    assert "is quantized already" in capsys.readouterr().err


def test_a_report_is_json() -> None:
    with pytest.raises(UnknownName, match="report format"):
        Sensitivity(calib=Path("rows.npz"), report=Path("ranking.html"))
