"""A folder that is not what its manifest says is found out, whatever was done to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.artifact import Artifact, SourceModel, variant_words
from optimizer.digest import digest_file
from optimizer.errors import Damaged
from optimizer.manifest import Manifest
from optimizer.store import file_entries
from optimizer.types import Kind


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "store" / "toy" / "1" / "int8-static"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "sub" / "manifest.json").write_text("a file of this name that is not the manifest")
    Manifest(
        kind=Kind.ONNX, key="k", stage={"name": "s", "version": 1}, source={}, model={"task": "t"}, options={},
        facts={}, files=file_entries(folder, digest_file), environment={}, command="ml-opt make it", seconds=1.0,
        created="now",
    ).write(folder)  # fmt: skip
    return Artifact.open(folder, "toy@1:int8-static")


def test_what_an_artifact_says_of_itself(artifact: Artifact) -> None:
    assert artifact.kind is Kind.ONNX
    assert artifact.variant == "int8-static"
    assert artifact.model_file.read_bytes() == b"model"
    assert artifact.model_info == {"inputs": [], "outputs": [], "task": "t"}
    assert artifact.digest == artifact.manifest.digest
    assert set(artifact.manifest.files) == {"model.onnx", "sub/manifest.json"}
    artifact.check()


TAMPERING: dict[str, tuple[Callable[[Path], object], str]] = {
    "content, same size": (lambda p: (p / "model.onnx").write_bytes(b"MODEL"), "the content of model.onnx"),
    "size": (lambda p: (p / "model.onnx").write_bytes(b"mod"), "model.onnx has 3 bytes, its manifest says 5"),
    "missing": (lambda p: (p / "model.onnx").unlink(), "model.onnx is missing"),
    "missing in a subfolder": (lambda p: (p / "sub" / "manifest.json").unlink(), "sub/manifest.json is missing"),
    "extra": (lambda p: (p / "sub" / "evil.py").write_text("x"), "sub/evil.py is not in its manifest"),
    "extra link": (lambda p: (p / "evil").symlink_to(p / "model.onnx"), "evil is not in its manifest"),
    "extra link to a folder": (lambda p: (p / "evil").symlink_to("/"), "evil is not in its manifest"),
    "extra dangling link": (lambda p: (p / "evil").symlink_to("nowhere"), "evil is not in its manifest"),
    "extra pipe": (lambda p: os.mkfifo(p / "evil"), "evil is not in its manifest"),
    "folder for a file": (lambda p: ((p / "model.onnx").unlink(), (p / "model.onnx").mkdir()), "model.onnx is missing"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found(artifact: Artifact, how: str) -> None:
    tamper, says = TAMPERING[how]
    tamper(artifact.path)
    with pytest.raises(Damaged) as caught:
        artifact.check()
    assert says in caught.value.message
    assert "toy@1:int8-static is damaged" in caught.value.message
    assert "ml-opt rm toy@1:int8-static" in caught.value.hint
    assert "ml-opt make it" in caught.value.hint
    assert caught.value.exit_code == 5


def test_a_link_to_the_same_content_is_damage(artifact: Artifact, tmp_path: Path) -> None:
    (artifact.path / "model.onnx").rename(tmp_path / "elsewhere")
    (artifact.path / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match=r"model.onnx is a link"):
        artifact.check()


def test_a_file_that_cannot_be_read_is_damage(artifact: Artifact) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error")

    with pytest.raises(Damaged, match="cannot be read: Input/output error"):
        artifact.check(broken)


def test_variant_words(artifact: Artifact) -> None:
    assert variant_words(artifact) == ("int8", ["static"])
    assert variant_words(SourceModel("m", Path("m"), "d", "folder")) == ("fp32", [])


def test_outside_a_store_the_folder_names_it(artifact: Artifact) -> None:
    loose = Artifact.open(artifact.path)
    assert loose.variant == "int8-static"
    (loose.path / "model.onnx").unlink()
    with pytest.raises(Damaged, match=str(loose.path)):
        loose.check()


def test_a_source_says_where_it_is_from() -> None:
    source = SourceModel("org/name", Path("/cache"), "d1", "hub", "abc")
    assert source.kind is Kind.SOURCE
    assert source.to_json() == {"type": "hub", "spec": "org/name", "path": "/cache", "digest": "d1", "revision": "abc"}
