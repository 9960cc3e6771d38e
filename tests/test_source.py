"""What somebody typed becomes files with a digest, or an error that says what to type instead."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toys as toybox

from optimizer.digest import DigestCache
from optimizer.errors import BadInput, MissingPiece
from optimizer.source import resolve_source
from optimizer.store import Store


def test_a_folder(tmp_path: Path) -> None:
    folder = toybox.make_source(tmp_path / "model")
    source = resolve_source(str(folder))
    assert (source.type, source.path, source.spec) == ("folder", folder, str(folder))
    assert source.files == ("model.safetensors", "config.json")


def test_what_counts_and_what_does_not(tmp_path: Path) -> None:
    folder = toybox.make_source(tmp_path / "model")
    digest = resolve_source(str(folder)).digest
    assert resolve_source(str(shutil.copytree(folder, tmp_path / "copy"))).digest == digest
    for ignored in ("README.md", "picture.png", "pytorch_model.bin", "model.onnx", ".gitattributes"):
        (folder / ignored).write_text("x")
    assert resolve_source(str(folder)).digest == digest
    seen = {digest}
    for counted in (
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "modeling.py",
        "chat_template.jinja",
        "1_Pooling/config.json",
    ):
        (folder / counted).parent.mkdir(exist_ok=True)
        (folder / counted).write_text("x")
        seen.add(resolve_source(str(folder)).digest)
    (folder / "model-00002.safetensors").write_bytes(b"shard")
    seen.add(resolve_source(str(folder)).digest)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    seen.add(resolve_source(str(folder)).digest)
    assert len(seen) == 9


def test_pickles_are_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = toybox.make_source(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"Python pickle \(pytorch_model.bin\).*\n.*--allow-pickle"):
        resolve_source(str(folder))
    assert "pytorch_model.bin" in resolve_source(str(folder), allow_pickle=True).files
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match=r"has no weights: no \*.safetensors"):
        resolve_source(str(folder), allow_pickle=True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "name is empty"),
        ("  ", "name is empty"),
        ("./nothing", "no such file or folder: ./nothing"),
        ("/nothing/at/all", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("nothing.onnx", "no such file or folder"),
        ("what is this?", "no such file or folder"),
        ("x" * 5000, "cannot be opened: File name too long"),
        ("~nobody-of-this-name/x", "cannot be opened"),
        ("a\0b", "no such file or folder"),
    ],
)
def test_nothing_of_that_name(spec: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        resolve_source(spec)


def test_folders_and_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"not a model folder: it has no config.json\n.*holds config.json"):
        resolve_source(str(tmp_path))
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(BadInput, match=r"did you mean .*net\.onnx"):
        resolve_source(str(tmp_path))
    with pytest.raises(BadInput, match="is empty"):
        resolve_source(str(tmp_path / "net.onnx"))
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"not an \.onnx file"):
        resolve_source(str(tmp_path / "weights.safetensors"))
    (tmp_path / "net.onnx").write_bytes(b"\x00garbage\xff" * 9)
    with pytest.raises(BadInput, match="is not an ONNX model"):
        resolve_source(str(tmp_path / "net.onnx"))
    with pytest.raises(BadInput, match="--revision is for hub ids"):
        resolve_source(str(toybox.make_source(tmp_path / "m")), revision="main")


# ---------------------------------------------------------------- .onnx files


def onnx_file(path: Path, external: str = "") -> Path:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [weight],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, str(path), save_as_external_data=bool(external), location=external or None, size_threshold=0)
    return path


def test_an_onnx_file_is_its_content(tmp_path: Path) -> None:
    one = onnx_file(tmp_path / "one.onnx")
    two = Path(shutil.copyfile(one, tmp_path / "two.onnx"))
    assert resolve_source(str(one)).digest == resolve_source(str(two)).digest
    assert resolve_source(str(one)).type == "file"
    assert resolve_source(str(one)).files == ("one.onnx",)


def test_external_weights_belong_to_the_file(tmp_path: Path) -> None:
    one = onnx_file(tmp_path / "one.onnx", "one.data")
    source = resolve_source(str(one))
    assert source.files == ("one.onnx", "one.data")
    one.rename(tmp_path / "renamed.onnx")
    assert resolve_source(str(tmp_path / "renamed.onnx")).digest == source.digest
    data = tmp_path / "one.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert resolve_source(str(tmp_path / "renamed.onnx")).digest != source.digest
    data.unlink()
    with pytest.raises(BadInput, match=r"one\.data is missing"):
        resolve_source(str(tmp_path / "renamed.onnx"))


def test_a_known_onnx_file_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached step must not import onnx_ir to find out which files it is about."""
    one = onnx_file(tmp_path / "one.onnx", "one.data")
    digests = Store(tmp_path / "models").digests
    source = resolve_source(str(one), digest=digests, recall=digests.recall)
    digests.save()

    from optimizer.graph import io

    def refuse(path: Path) -> Any:
        raise AssertionError("parsed again")

    monkeypatch.setattr(io, "load", refuse)
    cache = DigestCache(tmp_path / "models" / ".ml-opt" / "digests.json")
    assert resolve_source(str(one), digest=cache, recall=cache.recall) == source
    (tmp_path / "one.data").unlink()
    with pytest.raises(BadInput, match=r"one\.data is missing"):
        resolve_source(str(one), digest=cache, recall=cache.recall)


# ---------------------------------------------------------------- the hub


def test_offline_is_said_plainly() -> None:
    with pytest.raises(MissingPiece, match=r"no folder here, and the hub could not be reached.*\n.*local folder"):
        resolve_source("org/model-that-is-not-cached")
    with pytest.raises(MissingPiece, match="at revision v9"):
        resolve_source("org/model-that-is-not-cached", revision="v9")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import huggingface_hub

    return huggingface_hub


def test_a_hub_id_is_its_snapshot(tmp_path: Path, hub: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toybox.make_source(tmp_path / "snapshots" / "abc123")
    asked: dict[str, Any] = {}

    def download(spec: str, **how: Any) -> str:
        asked.update(how, spec=spec)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    source = resolve_source("org/name", revision="main")
    assert (source.type, source.spec, source.revision) == ("hub", "org/name", "abc123")
    assert source.digest == resolve_source(str(folder)).digest
    assert asked["revision"] == "main"
    assert not [p for p in asked["allow_patterns"] if p.endswith((".bin", ".pt", ".ckpt"))]
    resolve_source("org/name", allow_pickle=True)
    assert "pytorch_model*.bin" in asked["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "is gated on the hub"),
        ("RevisionNotFoundError", "has no revision main"),
        ("RepositoryNotFoundError", "no folder and no hub model is called org/name"),
    ],
)
def test_what_the_hub_refuses(hub: ModuleType, monkeypatch: pytest.MonkeyPatch, error: str, says: str) -> None:
    import huggingface_hub.errors as errors

    refusal = getattr(errors, error)

    def download(*args: Any, **kwargs: Any) -> str:
        raise refusal.__new__(refusal)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(BadInput, match=says):
        resolve_source("org/name", revision="main")


def test_without_its_client_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPiece, match=r'huggingface_hub.*\n.*pip install "ml-opt\[build\]"'):
        resolve_source("org/name")
