"""A chain in TOML is checked whole before it runs, and runs step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toys as toybox

from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.recipe import read_recipe, run_recipe
from optimizer.store import Store

pytestmark = pytest.mark.usefixtures("toys")

HEAD = '[recipe]\nmodel = "source"\nname = "toy"\n'
CHAIN = f"""{HEAD}
[[step]]
run = "toy-make"
id = "fp32"
notes = "notes.txt"
[[step]]
run = "toy_derive"
[[step]]
run = "toy-judge"
of = ["fp32", "toy-derive", "toy@1:fp32"]
shape = ["1x16"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toybox.make_source(tmp_path / "source")
    (tmp_path / "notes.txt").write_text("notes")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "chain.toml"
    path.write_text(text)
    return path


def test_a_chain_runs_and_then_is_cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, CHAIN)
    monkeypatch.chdir("/")  # paths in a recipe start at its own folder
    store = Store(folder / "models")
    seen: list[tuple[str, Any]] = []
    report = run_recipe(str(path), store=store.root, seen=lambda step, outcome: seen.append((step.id, outcome)))
    assert report.exit_code == 0
    assert store.refs() == ["toy@1:fp32", "toy@1:int8"]
    assert [s["id"] for s in report.steps] == ["fp32", "toy-derive", "toy-judge"] == [step for step, _ in seen]
    assert [s.get("cached") for s in report.steps] == [False, False, None]
    assert report.steps[2]["refs"] == ["toy@1:fp32", "toy@1:int8", "toy@1:fp32"]
    assert report.to_json()["report"] == "recipe"
    again = run_recipe(read_recipe(path), store=store)
    assert [s.get("cached") for s in again.steps] == [True, True, None]


def test_a_step_starts_from_the_one_before(folder: Path) -> None:
    derive = '[[step]]\nrun = "toy-derive"\n'
    text = f'{HEAD}[[step]]\nrun = "toy-make"\n{derive}variant = "a"\n{derive}id = "b"\n'
    recipe = read_recipe(write(folder, text))
    assert [s.sources for s in recipe.steps] == [(str(folder / "source"),), ("toy-make",), ("toy-derive",)]
    assert recipe.steps[1].variant == "a"


def test_a_recipe_may_start_in_the_store(folder: Path) -> None:
    store = Store(folder / "models")
    run_recipe(write(folder, f'{HEAD}[[step]]\nrun = "toy-make"\n'), store=store)
    for start in ("toy", "toy@1:fp32"):
        text = f'[recipe]\nmodel = "unused"\n[[step]]\nrun = "toy-derive"\nfrom = "{start}"\n'
        assert run_recipe(write(folder, text), store=store).steps[0]["ref"] == "toy@1:int8"


def test_a_failed_check_is_remembered_and_the_rest_runs(folder: Path) -> None:
    text = (
        f'{HEAD}[[step]]\nrun = "toy-make"\n[[step]]\nrun = "toy-judge"\nverdict = 3\n'
        '[[step]]\nrun = "toy-judge"\nid = "j2"\nverdict = 1\n[[step]]\nrun = "toy-derive"\n'
    )
    report = run_recipe(write(folder, text), store=folder / "models")
    assert report.exit_code == 3
    assert [s["id"] for s in report.steps] == ["toy-make", "toy-judge", "j2", "toy-derive"]


def test_an_error_names_its_step_and_keeps_what_was_made(folder: Path) -> None:
    text = f'{HEAD}[[step]]\nrun = "toy-make"\n[[step]]\nrun = "toy-make"\nid = "second"\nseed = 1\ntrouble = "gate"\n'
    with pytest.raises(GateFailed, match=r"step 2 \(second\): asked for one thing"):
        run_recipe(write(folder, text), store=folder / "models")
    assert Store(folder / "models").refs() == ["toy@1:fp32"]


STEP = '[[step]]\nrun = "toy-make"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[recipe", "is not a recipe"),
        ("", r"\[recipe\] needs a model"),
        ("recipe = 3", "is a table"),
        ('[recipe]\nmodel = "source"\n', r"has no \[\[step\]\]"),
        (f'[recipe]\nmodel = ""\n{STEP}', "needs a model"),
        (f'[recipe]\nmodel = "source"\nname = 5\n{STEP}', "name takes a string, not 5"),
        (f'[recipe]\nmodel = "source"\nname = "a b"\n{STEP}', "cannot name a model"),
        (f'[recipe]\nmodel = "source"\nnmae = "x"\n{STEP}', r"'nmae'; did you mean name"),
        (f"[recipes]\n{HEAD}{STEP}", "'recipes'; did you mean recipe"),
        (HEAD + 'step = "x"', "'step'"),
        (HEAD + "[[step]]\nid = 'x'\n", 'step 1 needs run = "STAGE"'),
        (HEAD + "[[step]]\nrun = 3\n", 'step 1 needs run = "STAGE"'),
        (HEAD + "[[step]]\nrun = 'toy-mkae'\n", r"step 1 .*'toy-mkae'; did you mean toy-make"),
        (HEAD + STEP + STEP, "step 2: the id 'toy-make' is taken"),
        (HEAD + STEP + "id = 7\n", "id takes a string, not 7"),
        (HEAD + STEP + "variant = 7\n", "variant takes a string, not 7"),
        (HEAD + STEP + 'variant = "a b"\n', "cannot name a variant"),
        (HEAD + STEP + "from = 7\n", "from takes a string, not 7"),
        (HEAD + STEP + "sead = 7\n", r"step 1 \(toy-make\): 'sead'; did you mean seed"),
        (HEAD + STEP + 'seed = "7"\n', "--seed takes a whole number"),
        (HEAD + STEP + "seed = 2026-11-24\n", "--seed takes a whole number"),
        (HEAD + STEP + "size = -1\n", "--size is out of range"),
        (HEAD + STEP + "log = ''\n", "--log may not be empty"),
        (HEAD + "[[step]]\nrun = 'toy-derive'\n", "step 1 has nothing to start from"),
        (HEAD + "[[step]]\nrun = 'toy-judge'\n", "step 1 has nothing to start from"),
        (HEAD + STEP + "[[step]]\nrun = 'toy-judge'\nof = [3]\n", "step 2 has nothing to start from"),
        (HEAD + STEP + "[[step]]\nrun = 'toy-judge'\nvariant = 'x'\n", "'variant'"),
        (HEAD + STEP + "[[step]]\nrun = 'toy-judge'\nfrom = 'x'\n", "'from'"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(folder: Path, text: str, says: str) -> None:
    path = write(folder, text)
    with pytest.raises(BadInput, match=says):
        run_recipe(path, store=folder / "models")
    assert not (folder / "models").exists()


def test_a_step_that_is_not_there_is_noticed_before_the_work(folder: Path) -> None:
    for later in ("fp23", "toy-derive"):
        text = f'{HEAD}{STEP}id = "fp32"\n[[step]]\nrun = "toy-derive"\nid = "one"\nfrom = "{later}"\n'
        with pytest.raises(UnknownName, match=rf"unknown step or artifact \(step 2, one\): '{later}'"):
            run_recipe(write(folder, text), store=folder / "models")
    assert not (folder / "models").exists()


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(BadInput, match="is not a recipe"):
        read_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not a recipe"):
        read_recipe(tmp_path / "binary.toml")


def test_an_option_that_names_an_artifact_takes_a_step_id(toys: None, tmp_path: Path, store: Store) -> None:
    from optimizer.checks.bench import Bench
    from optimizer.recipe import _with_refs

    refs = {"fp32": "m@1:fp32"}
    assert _with_refs(Bench(against="fp32"), refs) == Bench(against="m@1:fp32")
    assert _with_refs(Bench(against="fp32+openvino:bf16"), refs).against == "m@1:fp32+openvino:bf16"  # type: ignore[attr-defined]
    assert _with_refs(Bench(against="source"), refs) == Bench(against="source")
    assert _with_refs(Bench(shape=("1x16",)), refs).shape == ("1x16",)  # type: ignore[attr-defined]


def test_a_check_that_takes_a_model_starts_from_the_recipes_own(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    text = '[recipe]\nmodel = "m"\nname = "mine"\n[[step]]\nrun = "optimize"\nmin-cosine = 0.9\n'
    (tmp_path / "r.toml").write_text(text)
    (step,) = read_recipe(tmp_path / "r.toml").steps
    assert step.sources == (str(tmp_path / "m"),)
    assert step.options.name == "mine"
