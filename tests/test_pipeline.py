"""Key → cached | scratch → run → read back → record → move; and nothing of it when something goes wrong."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toys as toybox

from optimizer import pipeline, upkeep
from optimizer.artifact import Artifact
from optimizer.digest import digest_file
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, UnknownName
from optimizer.pipeline import apply, stage_key
from optimizer.source import resolve_source
from optimizer.stage import Redirected, Stage
from optimizer.store import Store
from optimizer.types import Kind

Toys = dict[str, Stage]


def make(toys: Toys, source: Path | str, store: Store, name: str | None = "toy", **options: Any) -> Any:
    variant = options.pop("variant", None)
    stage = toys["toy-make"]
    return apply(stage, str(source), stage.options(**options), store, name=name, variant=variant)


def derive(toys: Toys, ref: Any, store: Store, **options: Any) -> Any:
    stage = toys["toy-derive"]
    return apply(stage, ref, stage.options(**options), store)


def scratch_is_empty(store: Store) -> bool:
    return not [p for part in ("scratch", "trash") for p in (store.root / ".ml-opt" / part).glob("*")]


# ---------------------------------------------------------------- what comes out


def test_an_artifact_and_its_record(toys: Toys, toy_source: Path, store: Store) -> None:
    result = make(toys, toy_source, store, size=3000, label="x")
    manifest = result.artifact.manifest
    assert (result.artifact.ref, result.cached) == ("toy@1:fp32", False)
    assert manifest.kind is Kind.ONNX
    assert manifest.stage == {"name": "toy-make", "version": 1}
    assert manifest.options["size"] == 3000
    assert manifest.facts["seed"] == 0  # what the stage counted
    assert manifest.facts["opset"] == {"": 20}  # what was read back
    assert manifest.model == {"task": "toy", "label": "x"}
    assert manifest.warnings == ["made of nothing"]
    assert manifest.source["digest"] == resolve_source(str(toy_source)).digest
    assert manifest.files["model.onnx"]["sha256"] == digest_file(result.artifact.model_file)
    assert set(manifest.files) == {"model.onnx", "tokenizer/manifest.json"}
    assert manifest.environment["python"]
    result.artifact.check()
    assert Artifact.open(result.artifact.path).manifest == manifest
    assert scratch_is_empty(store)


def test_the_object_that_json_promises(toys: Toys, toy_source: Path, store: Store) -> None:
    document = make(toys, toy_source, store).to_json()
    assert {"ref", "path", "cached", "facts", "seconds"} <= set(document)
    assert json.loads(json.dumps(document)) == document
    assert (Path(document["path"]) / "manifest.json").is_file()


def test_the_command_makes_it_again(toys: Toys, toy_source: Path, store: Store, tmp_path: Path) -> None:
    notes = tmp_path / "it's a file"
    notes.write_text("x")
    result = make(toys, toy_source, store, seed=7, safe=False, tags=("a b", "c"), notes=notes, variant="mine")
    words = shlex.split(result.artifact.manifest.command)
    assert words[:4] == ["ml-opt", "toy", "make", str(toy_source)]
    again = toybox.run(*words[1:], "--store", store.root, "--json")
    assert json.loads(again.stdout)["cached"] is True
    elsewhere = toybox.run(*words[1:], "--store", tmp_path / "elsewhere", "--json")
    fresh = json.loads(elsewhere.stdout)
    assert (fresh["cached"], fresh["key"], fresh["ref"]) == (False, result.artifact.manifest.key, "toy@1:mine")
    derived = derive(toys, "toy", store, seed=3)
    words = shlex.split(derived.artifact.manifest.command)
    assert json.loads(toybox.run(*words[1:], "--store", store.root, "--json").stdout)["ref"] == derived.artifact.ref


def test_what_serving_needs_is_handed_down(toys: Toys, toy_source: Path, store: Store) -> None:
    first = make(toys, toy_source, store, label="x")
    second = derive(toys, "toy", store)
    manifest = second.artifact.manifest
    assert second.artifact.ref == "toy@1:int8"
    assert (second.artifact.path / "tokenizer" / "manifest.json").read_text() == "seed 0\n"
    assert manifest.model == {"task": "toy", "label": "x"}
    assert manifest.source["ref"] == first.artifact.ref
    assert manifest.source["digest"] == first.artifact.digest
    assert (second.artifact.path / "model.onnx").read_bytes() != (first.artifact.path / "model.onnx").read_bytes()


# ---------------------------------------------------------------- the key


def test_the_same_again_is_cached(toys: Toys, toy_source: Path, store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = make(toys, toy_source, store, log=log)
    again = make(toys, toy_source, Store(store.root), log=log)
    assert (first.cached, again.cached) == (False, True)
    assert again.artifact == first.artifact
    assert len(log.read_text().splitlines()) == 1


def test_what_decides_the_key_and_what_does_not(toys: Toys, toy_source: Path, store: Store, tmp_path: Path) -> None:
    one, two, same = tmp_path / "one", tmp_path / "two", tmp_path / "same"
    one.write_text("1")
    two.write_text("2")
    same.write_text("1")
    stage = toys["toy-make"]
    source = resolve_source(str(toy_source))

    def key(stage: Stage = stage, source: Any = source, **options: Any) -> str:
        return stage_key(stage, source, stage.options(**options), store)

    assert key() == key(pause=1.0) == key(log=one)
    assert key(notes=one) == key(notes=same)
    assert key(replace(stage, device_bound=lambda asked: asked.seed == 1)) == key()
    different = [
        key(),
        key(seed=1),
        key(notes=one),
        key(notes=two),
        key(tags=("a",)),
        key(precision="bf16"),
        key(replace(stage, version=2)),
        key(replace(stage, name="other")),
        key(replace(stage, needs=("pytest",))),
        key(replace(stage, device_bound=lambda asked: asked.seed == 0)),
        key(source=replace(source, digest="x")),
    ]
    assert len(set(different)) == len(different)


def test_a_data_folder_counts_by_its_content(toys: Toys, toy_source: Path, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    assert make(toys, toy_source, store, notes=folder).cached is False
    assert make(toys, toy_source, store, notes=shutil.copytree(folder, tmp_path / "copy")).cached is True
    (folder / "b.png").write_bytes(b"2")
    assert make(toys, toy_source, store, notes=folder).cached is False


def test_another_version_of_a_library_is_another_key(
    toys: Toys, toy_source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(toys["toy-make"], needs=("onnx",))
    source = resolve_source(str(toy_source))
    before = stage_key(stage, source, stage.options(), store)
    monkeypatch.setattr(pipeline, "version_of", lambda name: "99.0")
    assert stage_key(stage, source, stage.options(), store) != before


def test_what_an_export_knew_is_handed_down_to_the_right_child(toys: Toys, toy_source: Path, store: Store) -> None:
    """Two exports with the same files and another --label: a child is not taken for the other one's."""
    one, two = make(toys, toy_source, store, label="one"), make(toys, toy_source, store, label="two")
    assert one.artifact.digest == two.artifact.digest
    children = [derive(toys, parent.artifact.ref, store).artifact for parent in (one, two)]
    assert [c.manifest.model["label"] for c in children] == ["one", "two"]
    assert children[0].ref != children[1].ref


# ---------------------------------------------------------------- names


def test_a_changed_source_is_the_next_version(toys: Toys, tmp_path: Path, store: Store) -> None:
    one, two = toybox.make_source(tmp_path / "a", b"1"), toybox.make_source(tmp_path / "b", b"2")
    assert make(toys, one, store).artifact.ref == "toy@1:fp32"
    assert make(toys, two, store).artifact.ref == "toy@2:fp32"
    shutil.copytree(one, tmp_path / "c")
    assert make(toys, tmp_path / "c", store).artifact.ref == "toy@1:fp32"
    assert derive(toys, "toy@1:fp32", store).artifact.ref == "toy@1:int8"
    assert derive(toys, "toy@2", store).artifact.ref == "toy@2:int8"
    (one / "model.safetensors").write_bytes(b"3")
    assert make(toys, one, store).artifact.ref == "toy@3:fp32"


def test_a_model_is_called_what_its_source_is(
    toys: Toys, toy_source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(toys, toy_source, store, name=None).artifact.ref == "source@1:fp32"
    monkeypatch.chdir(toy_source)
    assert make(toys, ".", store, name=None).artifact.ref == "source@1:fp32"
    (toy_source / "sub").mkdir()
    monkeypatch.chdir(toy_source / "sub")
    assert make(toys, "..", store, name=None).artifact.ref == "source@1:fp32"


def test_two_option_sets_do_not_share_a_variant(toys: Toys, toy_source: Path, store: Store) -> None:
    refs = [make(toys, toy_source, store, seed=seed).artifact.ref for seed in (1, 2, 1, 2)]
    assert refs[0] == refs[2] == "toy@1:fp32"
    assert refs[1] == refs[3]
    assert refs[1].startswith("toy@1:fp32-")


def test_a_variant_that_was_asked_for_is_what_one_gets(toys: Toys, toy_source: Path, store: Store) -> None:
    assert make(toys, toy_source, store, variant="mine").artifact.ref == "toy@1:mine"
    assert make(toys, toy_source, store, variant="mine").cached
    assert make(toys, toy_source, store).artifact.ref == "toy@1:mine"
    with pytest.raises(BadInput, match=r"already, as toy@1:mine.*\n.*ml-opt alias toy@1:mine yours"):
        make(toys, toy_source, store, variant="yours")
    suffixed = make(toys, toy_source, store, seed=5, variant="mine")
    assert suffixed.artifact.ref.startswith("toy@1:mine-")
    assert make(toys, toy_source, store, seed=5, variant="mine").cached


@pytest.mark.parametrize("bad", ["a b", "", "../x", "a/b", "-x", "reports"])
def test_names_that_cannot_be_are_refused_before_any_work(toys: Toys, toy_source: Path, store: Store, bad: str) -> None:
    with pytest.raises(BadInput, match="cannot name a variant"):
        make(toys, toy_source, store, variant=bad)
    if bad != "reports":
        with pytest.raises(BadInput, match="cannot name a model"):
            make(toys, toy_source, store, name=bad)
    assert not store.root.exists()


def test_a_derived_artifact_keeps_its_models_name(toys: Toys, toy_source: Path, store: Store) -> None:
    make(toys, toy_source, store)
    with pytest.raises(BadInput, match="keeps its name"):
        apply(toys["toy-derive"], "toy", toys["toy-derive"].options(), store, name="other")


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        ("enospc", MissingPiece, "no room on the disk"),
        ("wrapped-enospc", MissingPiece, "no room on the disk"),
        ("bug", KeyError, "planted"),
        ("gate", GateFailed, "asked for one thing"),
        ("exit", SystemExit, "gives up"),
        ("nan", ValueError, "JSON"),
    ],
)
def test_a_stage_that_fails_leaves_the_store_as_it_was(
    toys: Toys, toy_source: Path, store: Store, trouble: str, error: type[BaseException], says: str
) -> None:
    make(toys, toy_source, store)
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    with pytest.raises(error, match=says):
        make(toys, toy_source, store, seed=1, trouble=trouble)
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before
    assert scratch_is_empty(store)
    assert list((store.root / ".ml-opt" / "locks").glob("key-*")) == []
    assert make(toys, toy_source, store, seed=1).cached is False


def test_what_was_not_asked_for_is_not_kept(toys: Toys, toy_source: Path, store: Store) -> None:
    with pytest.raises(GateFailed, match="seed 666"):
        make(toys, toy_source, store, seed=666)
    assert store.refs() == []
    assert scratch_is_empty(store)


def test_a_full_disk_is_noticed_before_the_work(
    toys: Toys, toy_source: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (toy_source / "model.safetensors").write_bytes(b"x" * 5000)
    usage = shutil.disk_usage(tmp_path)._replace(free=4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MissingPiece, match=f"no room on the disk of {store.root}") as caught:
        make(toys, toy_source, store, log=tmp_path / "log")
    assert "ml-opt gc" in caught.value.hint
    assert not (tmp_path / "log").exists()
    assert scratch_is_empty(store)
    assert store.refs() == []


def test_a_missing_package_is_named_with_its_pip_line(toys: Toys, toy_source: Path, store: Store) -> None:
    make(toys, toy_source, store)
    stage = replace(toys["toy-make"], modules=("onnxruntime_ep_openvino_of_mars", "json"))
    with pytest.raises(MissingPiece, match=r"toy-make needs the package onnxruntime_ep_openvino_of_mars"):
        apply(stage, str(toy_source), stage.options(seed=1), store, name="toy")
    assert apply(stage, str(toy_source), stage.options(), store, name="toy").cached, "what is there needs no package"


def test_a_tampered_source_or_result_is_damage(toys: Toys, toy_source: Path, store: Store) -> None:
    made = make(toys, toy_source, store).artifact
    made.model_file.write_bytes(b"tampered")
    for attempt in (lambda: make(toys, toy_source, store), lambda: derive(toys, "toy", store)):
        with pytest.raises(Damaged, match="toy@1:fp32 is damaged"):
            attempt()
    assert store.refs() == ["toy@1:fp32"]
    upkeep.remove(store, "toy@1:fp32")
    assert make(toys, toy_source, store).artifact.ref == "toy@1:fp32"


@pytest.mark.parametrize("other", ["", "toy-derive"])
def test_only_what_a_stage_really_starts_from_has_to_be_whole(
    other: str, toys: Toys, toy_source: Path, store: Store
) -> None:
    make(toys, toy_source, store)
    named = derive(toys, "toy", store).artifact
    plain = toys["toy-derive"]

    def to_parent(source: Artifact, options: Any, store: Store) -> Redirected:
        parent = source.manifest.source
        there = store.get(parent["ref"]) if parent["type"] == "artifact" else source
        return Redirected(there, plain.options(seed=5), "exchanged", other)

    stage = replace(plain, redirect=to_parent)
    named.model_file.write_bytes(b"tampered")
    result = apply(stage, named.ref, plain.options(), store).artifact
    assert (result.manifest.source["ref"], result.manifest.options["seed"]) == ("toy@1:fp32", 5)
    assert result.manifest.warnings == ([] if other else ["exchanged"])
    store.get("toy:fp32").model_file.write_bytes(b"tampered")
    for ref in (named.ref, "toy@1:fp32"):
        with pytest.raises(Damaged, match="toy@1:fp32 is damaged"):
            apply(stage, ref, plain.options(), store)


def test_the_wrong_kind_is_refused(toys: Toys, toy_source: Path, store: Store) -> None:
    made = make(toys, toy_source, store).artifact
    with pytest.raises(BadInput, match="toy-make takes a source model, and toy@1:fp32 is an ONNX model"):
        apply(toys["toy-make"], made, toys["toy-make"].options(), store)
    with pytest.raises(BadInput, match=r"toy-derive takes an ONNX model, and .*source is a source model"):
        derive(toys, resolve_source(str(toy_source)), store)
    with pytest.raises(UnknownName, match="did you mean toy"):
        derive(toys, "tooy", store)
    with pytest.raises(TypeError, match="toy-derive takes ToyDerive, not ToyMake"):
        apply(toys["toy-derive"], "toy", toys["toy-make"].options(), store)


def test_a_data_file_that_is_not_there(toys: Toys, toy_source: Path, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file.*nothing\.jsonl"):
        make(toys, toy_source, store, notes=tmp_path / "nothing.jsonl")
    assert not store.root.exists()


# ---------------------------------------------------------------- at the same time


def test_two_processes_with_the_same_work_run_it_once(toy_source: Path, store: Store, tmp_path: Path) -> None:
    words = ["toy", "make", toy_source, "--store", store.root, "--pause", 1, "--log", tmp_path / "log", "--json"]
    processes = [toybox.start(*words) for _ in range(3)]
    outcomes = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], outcomes
    documents = [json.loads(out) for out, _ in outcomes]
    assert sorted(d["cached"] for d in documents) == [False, True, True]
    assert {d["ref"] for d in documents} == {"source@1:fp32"}
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert any("waiting for another ml-opt" in err for _, err in outcomes)


def test_different_work_at_the_same_time_is_all_kept(toy_source: Path, store: Store) -> None:
    processes = [
        toybox.start("toy", "make", toy_source, "--seed", n, "--store", store.root, "--pause", 0.3, "--json")
        for n in range(4)
    ]
    outcomes = [p.communicate(timeout=60) for p in processes]
    assert [p.returncode for p in processes] == [0] * 4, outcomes
    assert len({json.loads(out)["ref"] for out, _ in outcomes}) == 4
    assert store.versions("source") == [1]
    assert set(upkeep.check(store).values()) == {""}


# ---------------------------------------------------------------- a cached step


def test_a_cached_step_reads_no_weights_again(
    toys: Toys, toy_source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(toys, toy_source, store)
    time.sleep(0.06)
    make(toys, toy_source, Store(store.root))
    from optimizer import digest

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(digest, "digest_file", refuse)
    assert make(toys, toy_source, Store(store.root)).cached
