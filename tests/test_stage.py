"""A new file is all that a new stage needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import check, stage
from optimizer.errors import UnknownName


def test_stages_and_checks_are_found_by_their_files(toys: dict[str, stage.Stage]) -> None:
    assert {"toy-make", "toy-derive", "export-onnx"} <= set(stage.discover())
    assert "toy-judge" in check.discover()


def test_without_the_file_it_is_gone() -> None:
    assert "toy-make" not in stage.discover()


def test_words_and_function(toys: dict[str, stage.Stage]) -> None:
    assert toys["toy-make"].words == ("toy", "make")
    assert toys["toy-derive"].words == ("toy-derive",)
    assert toys["toy-derive"].function == "toy_derive"


def test_an_unknown_name_offers_the_nearest(toys: dict[str, stage.Stage]) -> None:
    assert stage.get_stage("export_onnx").name == "export-onnx"
    with pytest.raises(UnknownName, match="did you mean export-onnx"):
        stage.get_stage("export-onx")
    assert check.get_check("toy-judge").function == "toy_judge"
    with pytest.raises(UnknownName, match="unknown check: 'verifi'; did you mean verify"):
        check.get_check("verifi")


def test_files_that_begin_with_an_underscore_are_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optimizer.stages

    (tmp_path / "_helper.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "no_stage.py").write_text("x = 1")
    monkeypatch.setattr(optimizer.stages, "__path__", [*optimizer.stages.__path__, str(tmp_path)])
    stage.discover.cache_clear()
    try:
        assert "export-onnx" in stage.discover()
        assert not [name for name in stage.discover() if "helper" in name or name[:2] == "no"]
    finally:
        stage.discover.cache_clear()


def test_nobody_need_look_at_progress() -> None:
    assert stage.silent("working", 1, 2) is None
