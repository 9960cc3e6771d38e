"""Every error has its exit code, and says what to type next."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from optimizer import errors
from optimizer.errors import MlOptError, UnknownName, missing_package

CODES = {
    "GateFailed": 1, "BadInput": 2, "TooLarge": 2, "UnknownName": 2, "Inconclusive": 3, "MissingPiece": 4, "Damaged": 5,
}  # fmt: skip


def test_exit_codes_are_those_of_the_drawing() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d)", str(errors.__doc__)))
    assert {name: int(code) for name, code in drawn.items()} == CODES
    for name, code in CODES.items():
        assert getattr(errors, name)("x", "y", ["z"]).exit_code == code if name == "UnknownName" else True
        assert getattr(errors, name).exit_code == code


def test_no_error_class_is_left_out_of_the_drawing() -> None:
    classes = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, MlOptError)}
    assert classes - {"MlOptError"} == set(CODES)


def test_words_of_an_error() -> None:
    assert str(MlOptError("it broke")) == "it broke"
    assert str(MlOptError("it broke", "mend it")) == "it broke\nmend it"


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("quantise", ["quantize", "verify"], "unknown stage: 'quantise'; did you mean quantize?"),
        ("zzz", ["quantize", "verify"], "unknown stage: 'zzz'; known: quantize, verify"),
        ("zzz", [], "unknown stage: 'zzz'"),
        ("zzz", [f"n{i:02}" for i in range(20)], "n11, …"),
    ],
)
def test_unknown_name_offers_what_is_near(name: str, known: list[str], says: str) -> None:
    assert says in str(UnknownName("stage", name, known))


ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_missing_package_names_the_pip_line() -> None:
    error = missing_package("onnxruntime.capi", "bench")
    assert "onnxruntime" in error.message
    assert 'pip install "ml-opt[cpu]"' in error.hint
    assert "ml-opt[gpu]" in error.hint
    assert missing_package("fancylib", "x").hint == "run: pip install fancylib"


def test_beside_the_build_for_gpus_no_other_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_has_gpu_build", lambda: True)
    for module, extra in (("onnxruntime_genai", "genai-gpu"), ("uvicorn", "serve-gpu"), ("onnx", "gpu")):
        assert missing_package(module, "x").hint == f'run: pip install "ml-opt[{extra}]"'
    assert missing_package("torch", "x").hint == 'run: pip install "ml-opt[build]"'
    monkeypatch.undo()
    assert missing_package("onnxruntime_genai", "x").hint == 'run: pip install "ml-opt[genai]"'


def brought(extras: list[str]) -> set[str]:
    """Packages that extras bring, those of other extras among them."""
    known, found = PROJECT["optional-dependencies"], set()
    for line in (line for extra in extras for line in known[extra]):
        name, _, rest = line.partition("[")
        if name == "ml-opt":
            found |= brought(rest.rstrip("]").split(","))
        else:
            found.add(re.split(r"[\[<>=~!]", line)[0])
    return found


def test_no_extra_brings_both_builds_of_onnx_runtime() -> None:
    """They are the same module, and the one that is installed last overwrites the other."""
    for extra in PROJECT["optional-dependencies"]:
        assert not {"onnxruntime", "onnxruntime-gpu"} <= brought([extra]), extra
    assert "onnxruntime" in brought(["serve"]) & brought(["genai"])
    assert "onnxruntime-gpu" in brought(["serve-gpu"]) & brought(["genai-gpu"])
    (line,) = re.findall(
        r"\.venv-gpu/bin/python -m pip install -q -e \"\.\[(.*?)\]\" --group", (ROOT / "Makefile").read_text()
    )
    assert not {"onnxruntime", "onnxruntime-genai"} & brought(line.split(","))
    assert "onnxruntime-gpu" in brought(line.split(","))


def test_every_extra_that_an_error_names_exists() -> None:
    project = PROJECT
    assert {*errors._EXTRA_OF.values(), *errors._ON_GPU.values()} <= set(project["optional-dependencies"])
    assert importlib.metadata.version("ml-opt") == project["version"]
