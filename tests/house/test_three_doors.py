"""One parameter, one spelling: typed, written in a recipe or passed to a function, a value makes the same options."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from optimizer import api, check, pipeline, recipe, stage
from optimizer.artifact import Artifact, SourceModel
from optimizer.cli.main import run
from optimizer.errors import BadInput, MlOptError
from optimizer.manifest import Manifest
from optimizer.options import OptionField, Options
from optimizer.types import Kind

DECLARATIONS: dict[str, Any] = {**stage.discover(), **check.discover()}
#: Words that the doors themselves use: a parameter of this name could not be said at one of them.
TAKEN = {"source", "refs", "store", "json", "quiet", "verbose", "name", "variant", "progress", "help",
         "run", "id", "from", "of"}  # fmt: skip

#: Values for options that take strings of a form of their own, tried where a plain word is refused.
FORMS = (
    "word",
    "1:8:32",
    "2:4:8",
    "2GiB",
    "8.6",
    "8.9",
    "1x16",
    "cpu",
    "MatMul",
    "0.9",
    "onnxruntime",
    "text-classification",
    "fp32",
    "report.json",
    "report.md",
    "10m",
    "5%",
    "ort",
    "sorted:8",
    "text=review",
    "50ms",
    "0.5pt",
    "1,8",
)


class Captured(Exception):
    """Carries what reached the work."""


def candidates(field: OptionField, folder: Path) -> list[Any]:
    """Values of an option that are not its default, the likely ones first."""
    if field.opt.choices:
        values: list[Any] = list(field.opt.choices)
    elif is_enum(field):
        values = [m.value for m in field.element]
    elif field.element is bool:
        values = [True, False]
    elif field.element is Path:
        values = [folder / "rows.jsonl", folder / "report.json", folder / "report.md"]
    elif field.element in (int, float):
        low = field.opt.ge if field.opt.ge is not None else 1
        high = field.opt.le if field.opt.le is not None else low + 100
        whole = [low, low + 1, high, high - 1, 128, 32, 2]
        values = [field.element(v) for v in whole if low <= v <= high]
        if field.element is float:
            values.insert(0, (low + high) / 2)
    else:
        values = list(FORMS)
    values = [v for v in values if v != field.default and v != getattr(field.default, "value", object())]
    return [(v, values[-1]) if field.many else v for v in values] + ([(v,) for v in values] if field.many else [])


def is_enum(field: OptionField) -> bool:
    return isinstance(field.element, type) and issubclass(field.element, enum.Enum)


def needed(options: type[Options], folder: Path) -> dict[str, Any]:
    """A value for every option that must be given."""
    return {f.name: candidates(f, folder)[0] for f in options.fields() if f.required}


def accepted(options: type[Options], field: OptionField, folder: Path) -> dict[str, Any] | None:
    """Options with this one not at its default; None when it needs others beside it."""
    base = needed(options, folder)
    # Some options are allowed only beside others: --alpha beside --smooth, --streams beside --scenario and --qps,
    # --samples beside --precision int4, --algorithm gptq and --calib.
    others = [f for f in options.fields() if (f.element is not str or f.opt.choices) and f.name != field.name]
    each = [
        {f.name: value} for f in others for value in candidates(f, folder)[: 9 if issubclass(f.element, str) else 1]
    ]
    for count, value in itertools.product(range(4), candidates(field, folder)):
        for beside in itertools.combinations(each, count):
            values = {**base, **{name: given for one in beside for name, given in one.items()}, field.name: value}
            try:
                options.from_mapping(values)
            except MlOptError:
                continue
            return values
    return None


def words_of(options: type[Options], values: dict[str, Any]) -> list[str]:
    """What a person types, written here anew and not with `to_flags`."""
    words: list[str] = []
    for field in options.fields():
        if field.name not in values:
            continue
        value = values[field.name]
        flag = "--" + field.name.replace("_", "-")
        if field.opt.positional:
            words.append(value)
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag, str(one)]
    return words


def toml_of(values: dict[str, Any], dashed: bool) -> str:
    def one(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return "[" + ", ".join(map(one, value)) + "]"
        return str(value) if isinstance(value, (int, float)) else json.dumps(str(value))

    return "\n".join(f"{k.replace('_', '-') if dashed else k} = {one(v)}" for k, v in values.items())


CASES = [(name, field.name) for name, does in DECLARATIONS.items() for field in does.options.fields()]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_three_doors_are_equal(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    does = DECLARATIONS[name]
    # One line that is a row of data, and a ranking of no nodes.
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "report": "sensitivity", "nodes": []}\n')
    (field,) = [f for f in does.options.fields() if f.name == option]
    values = accepted(does.options, field, tmp_path)
    assert values is not None, f"no value for {name}'s {field.flag} was accepted: teach FORMS one"
    # The command line asks a person, or reads a pipe, for what stands behind the reference.
    values = {f.name: "word" for f in does.options.fields() if f.opt.positional} | values
    seen: list[tuple[Any, Any, Any]] = []

    def capture_stage(stage: Any, source: Any, options: Any, store: Any, **rest: Any) -> Any:
        seen.append((stage, source, options))
        raise BadInput("captured")

    def capture_check(refs: Any, options: Any, store: Any, progress: Any) -> Any:
        seen.append((does, refs, options))
        raise BadInput("captured")

    monkeypatch.setattr(api, "apply", capture_stage)
    monkeypatch.setattr(recipe, "apply", capture_stage)
    monkeypatch.setattr(recipe, "_find_sources", lambda *a: None)
    is_stage = isinstance(does, stage.Stage)
    if not is_stage:
        watched = dataclasses.replace(does, run=capture_check)
        fakes = {**check.discover(), name: watched}
        monkeypatch.setattr(check, "discover", lambda: fakes)
        api.functions.cache_clear()
        from optimizer.cli.app import build_app

        build_app.cache_clear()
    try:
        # The command line.
        command = list(does.words)
        store = ["--store", str(tmp_path / "models")]
        assert run([*command, "toy", *words_of(does.options, values), *store]) == 2
        assert "captured" in capsys.readouterr().err
        # The Python function.
        function = api.functions()[does.function]
        with pytest.raises(BadInput, match="captured"):
            function("toy", **values, store=tmp_path / "models")
        # The recipe, with either spelling of a key.
        for dashed in (False, True):
            text = f'[recipe]\nmodel = "toy"\n[[step]]\nrun = "{name}"\n{toml_of(values, dashed)}\n'
            if not (is_stage and Kind.SOURCE in does.accepts):
                text = text.replace("[[step]]\n", f'[[step]]\n{"from" if is_stage else "of"} = "toy"\n')
            (tmp_path / "recipe.toml").write_text(text)
            with pytest.raises(BadInput, match="captured"):
                recipe.run_recipe(tmp_path / "recipe.toml", store=tmp_path / "models")
    finally:
        if not is_stage:
            api.functions.cache_clear()
            build_app.cache_clear()
    assert len(seen) == 4
    first = seen[0][2]
    assert getattr(first, option) != field.default or field.required
    assert all(options == first for _, _, options in seen)
    assert all(source in ("toy", ("toy",)) for _, source, _ in seen)
    if is_stage:
        from optimizer.store import Store

        source = SourceModel("toy", tmp_path, "digest", "folder")
        if Kind.SOURCE not in does.accepts:
            facts = {"inputs": []}
            manifest = Manifest(Kind.ONNX, "k", {"name": "s", "version": 1}, {}, {}, {}, facts, {}, {}, "", 0.0, "")
            source = Artifact(tmp_path, manifest, "toy@1:fp32")  # type: ignore[assignment]
        keys = {pipeline.stage_key(does, source, options, Store(tmp_path / "models")) for _, _, options in seen}
        assert len(keys) == 1


@pytest.mark.parametrize("name", DECLARATIONS)
def test_no_parameter_has_a_word_that_a_door_uses(name: str) -> None:
    does = DECLARATIONS[name]
    # A check that takes a model names it like an export does, and has no `name` of its own at any door.
    taken = TAKEN - {"name"} if getattr(does, "model", False) else TAKEN
    assert {f.name for f in does.options.fields()} & taken == set()


@pytest.mark.parametrize("name", DECLARATIONS)
def test_every_default_is_a_value_that_would_be_allowed(name: str, tmp_path: Path) -> None:
    options = DECLARATIONS[name].options
    base = options.from_mapping(needed(options, tmp_path))
    for field in options.fields():
        if not field.required:
            assert getattr(base, field.name) == field.default
            assert type(getattr(base, field.name)) is type(field.default)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_an_unknown_option_is_refused_at_every_door(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    does = DECLARATIONS[name]
    command = list(does.words)
    assert run([*command, "toy", "--no-such-option", "1"]) == 2
    assert "--no-such-option" in capsys.readouterr().err
    with pytest.raises(BadInput, match=f"unknown option of {name}: 'no_such_option'"):
        api.functions()[does.function]("toy", no_such_option=1, store=tmp_path)
    (tmp_path / "r.toml").write_text(
        f'[recipe]\nmodel = "m"\n[[step]]\nrun = "{name}"\nfrom = "x"\nno_such_option = 1\n'
    )
    if not isinstance(does, stage.Stage):
        (tmp_path / "r.toml").write_text(
            f'[recipe]\nmodel = "m"\n[[step]]\nrun = "{name}"\nof = "x"\nno_such_option = 1\n'
        )
    with pytest.raises(BadInput, match=r"step 1 .*'no_such_option'"):
        recipe.read_recipe(tmp_path / "r.toml")
