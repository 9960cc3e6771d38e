"""The public functions are made from the same declarations as the commands."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import optimizer
from optimizer import api
from optimizer.errors import BadInput, UnknownName
from optimizer.store import Store

pytestmark = pytest.mark.usefixtures("toys")


def test_a_function_does_what_its_command_does(toy_source: Path, tmp_path: Path) -> None:
    made = api.functions()["toy_make"](str(toy_source), name="toy", seed=3, store=tmp_path / "models")
    assert (made.artifact.ref, made.cached) == ("toy@1:fp32", False)
    assert api.functions()["toy_make"](str(toy_source), name="toy", seed=3, store=str(tmp_path / "models")).cached
    store = Store(tmp_path / "models")
    derived = api.functions()["toy_derive"](made.artifact.ref, variant="mine", store=store)
    assert derived.artifact.ref == "toy@1:mine"
    report = api.functions()["toy_judge"](made.artifact.ref, derived.artifact.ref, verdict=1, store=store)
    assert report.exit_code == 1
    assert report.refs == ("toy@1:fp32", "toy@1:mine")


def test_the_default_store_is_the_commands_one(
    toy_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_OPT_STORE", str(tmp_path / "elsewhere"))
    made = api.functions()["toy_make"](str(toy_source))
    assert made.artifact.path.is_relative_to(tmp_path / "elsewhere")


def test_progress_is_told(toy_source: Path, tmp_path: Path) -> None:
    told: list[str] = []
    api.functions()["toy_make"](
        str(toy_source), store=tmp_path / "m", progress=lambda doing, done=None, total=None: told.append(doing)
    )
    assert told == ["writing bytes", "reading the result back"]


def test_signatures_are_those_of_functions_written_by_hand() -> None:
    function = api.functions()["toy_make"]
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:3] == ["source", "size", "seed"]
    assert {"name", "variant", "store", "progress"} <= set(parameters)
    assert parameters["size"].default == 2000
    assert parameters["size"].annotation is int
    assert function.__name__ == "toy_make"
    assert "Bytes of the model." in (function.__doc__ or "")
    assert "name" not in inspect.signature(api.functions()["toy_derive"]).parameters


def test_mistakes(toy_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown option of toy-make: 'sead'; did you mean seed"):
        api.functions()["toy_make"](str(toy_source), sead=3, store=tmp_path)
    with pytest.raises(BadInput, match="--seed takes a whole number"):
        api.functions()["toy_make"](str(toy_source), seed="3", store=tmp_path)
    with pytest.raises(TypeError, match="at least one reference"):
        api.functions()["toy_judge"](store=tmp_path)
    with pytest.raises(UnknownName, match="artifact"):
        api.functions()["toy_judge"]("nothing", store=tmp_path / "m")


def test_the_package_hands_them_out() -> None:
    assert callable(optimizer.export_onnx)
    assert optimizer.export_onnx is api.functions()["export_onnx"]
    with pytest.raises(AttributeError, match="no attribute 'exprot_onnx'"):
        optimizer.exprot_onnx  # noqa: B018
