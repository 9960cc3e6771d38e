"""What a manifest says survives writing and reading; what is no manifest is refused in words."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import BadInput, Damaged
from optimizer.manifest import MANIFEST_NAME, SCHEMA, Manifest
from optimizer.types import Kind, TensorSpec

GOLDEN = Path(__file__).parent / "golden"
SAMPLE: dict[str, Any] = json.loads((GOLDEN / "manifest-1.json").read_text())

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text(), JSONS, max_size=4)


def test_every_schema_number_has_a_golden_manifest_that_is_still_read() -> None:
    for number in range(1, SCHEMA + 1):
        data = json.loads((GOLDEN / f"manifest-{number}.json").read_text())
        manifest = Manifest.from_json(data, "golden")
        assert manifest.to_json() == {**data, "schema": number}


def test_the_golden_manifest_means_what_it_meant() -> None:
    manifest = Manifest.from_json(SAMPLE, "golden")
    assert manifest.kind is Kind.ONNX
    assert manifest.bytes == 22972370 + 466247
    assert manifest.inputs == (TensorSpec("input_ids", "int64", ("batch", "sequence")),)
    assert manifest.outputs == (TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 384)),)
    assert list(manifest.to_json()) == list(SAMPLE)


def test_the_files_alone_decide_the_digest() -> None:
    manifest = Manifest.from_json(SAMPLE, "x")
    other = Manifest.from_json(
        {**SAMPLE, "seconds": 9, "command": "", "files": dict(reversed(SAMPLE["files"].items()))}, "x"
    )
    assert manifest.digest == other.digest
    changed = copy.deepcopy(SAMPLE)
    changed["files"]["model.onnx"]["sha256"] = "0" * 64
    assert Manifest.from_json(changed, "x").digest != manifest.digest
    renamed = copy.deepcopy(SAMPLE)
    renamed["files"]["other.onnx"] = renamed["files"].pop("model.onnx")
    assert Manifest.from_json(renamed, "x").digest != manifest.digest


@given(
    key=st.text(),
    source=MAPPINGS,
    model=MAPPINGS,
    options=MAPPINGS,
    environment=MAPPINGS,
    command=st.text(),
    seconds=st.floats(0, 1e9),
    warnings=st.lists(st.text()),
    files=st.dictionaries(st.text(min_size=1), st.tuples(st.text(), st.integers(0, 2**50))),
)
def test_written_and_read_it_is_the_same(tmp_path_factory: Any, files: Any, **values: Any) -> None:
    entries = {name: {"sha256": sha, "bytes": size} for name, (sha, size) in files.items()}
    stage = {"name": "s", "version": 1}
    manifest = Manifest(kind=Kind.ONNX, stage=stage, facts={}, files=entries, created="now", **values)
    folder = tmp_path_factory.getbasetemp() / "round-trip"
    folder.mkdir(exist_ok=True)
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "x") == manifest


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in paths_of(v, (*path, k)))]


@given(where=st.sampled_from(paths_of(SAMPLE)), what=st.one_of(st.just("DELETE"), JSONS))
def test_a_manifest_with_anything_wrong_in_it_is_read_or_refused_and_never_crashes(where: Any, what: Any) -> None:
    data: Any = copy.deepcopy(SAMPLE)
    if where:
        place = data
        for step in where[:-1]:
            place = place[step]
        if what == "DELETE":
            del place[where[-1]]
        else:
            place[where[-1]] = what
    else:
        data = what
    try:
        manifest = Manifest.from_json(data, "here")
    except (Damaged, BadInput) as error:
        assert "here" in error.message
        return
    # What was taken can be used: by `ls`, `show`, and whoever opens the artifact.
    assert isinstance(manifest.bytes, int)
    assert isinstance(manifest.digest, str)
    assert isinstance(f"{manifest.stage['name']}{manifest.stage['version'] + 1}", str)
    assert all(isinstance(s, TensorSpec) for s in (*manifest.inputs, *manifest.outputs))
    assert manifest.command.strip() is not None
    json.dumps(manifest.to_json())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 0}, "no schema number"),
        ({"schema": True}, "no schema number"),
        ({"schema": "1"}, "no schema number"),
        ({"kind": "elf"}, "unknown kind 'elf'"),
        ({"seconds": "3"}, "seconds should be float, not str"),
        ({"files": []}, "files should be dict, not list"),
        ({"files": {"a": {"bytes": 1}}}, "files['a']"),
        ({"files": {"a": {"bytes": "1", "sha256": ""}}}, "files['a']"),
        ({"stage": {}}, "stage has no name"),
        ({"facts": {"inputs": [{"name": "x"}]}}, "facts.inputs"),
        ({"extra": 1}, "unknown ['extra']"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Damaged) as caught:
        Manifest.from_json({**SAMPLE, **change}, "m.json")
    assert says in str(caught.value)


def test_a_newer_schema_asks_for_a_newer_ml_opt() -> None:
    with pytest.raises(BadInput, match=r"schema 99.*\n.*pip install --upgrade ml-opt"):
        Manifest.from_json({**SAMPLE, "schema": 99}, "m.json")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b'"text"'])
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(Damaged, match=MANIFEST_NAME):
        Manifest.read(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=f"has no {MANIFEST_NAME}"):
        Manifest.read(tmp_path)
    (tmp_path / MANIFEST_NAME).mkdir()
    with pytest.raises(Damaged, match="cannot be read"):
        Manifest.read(tmp_path)


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Manifest.from_json({**SAMPLE, "facts": {"loss": float("nan")}}, "x").write(tmp_path)
