"""Folders and files of models: what is taken, and what an error offers instead."""

import pytest
from exporting import byo

from optimizer.errors import BadInput
from optimizer.source import resolve_source


def folder(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(tmp_path)


def refused(spec, *words):
    with pytest.raises(BadInput) as caught:
        resolve_source(spec)
    for word in words:
        assert word in str(caught.value)


def test_a_folder_with_only_an_onnx_file_names_it(tmp_path):
    byo.write(byo.linear(), tmp_path / "net.onnx")
    refused(str(tmp_path), "has no config.json", f"did you mean {tmp_path / 'net.onnx'}?")
    folder(tmp_path, config_DOT_json="{}")
    refused(str(tmp_path), "has no weights", f"did you mean {tmp_path / 'net.onnx'}?")


def test_a_model_one_folder_deeper_is_named(tmp_path):
    folder(tmp_path, **{"0_Transformer__config_DOT_json": "{}"})
    refused(str(tmp_path), f"did you mean {tmp_path / '0_Transformer'}?")


def test_an_adapter_is_no_model(tmp_path):
    refused(folder(tmp_path, adapter_config_DOT_json="{}"), "adapter", "merge")


@pytest.mark.parametrize("name", ["model_DOT_pt", "model_DOT_gguf", "tf_model_DOT_h5", "flax_model_DOT_msgpack"])
def test_weights_of_other_libraries_are_named(name, tmp_path):
    spec = folder(tmp_path, config_DOT_json="{}", **{name: "x"})
    refused(spec, "no *.safetensors in it", f"{name.replace('_DOT_', '.')} cannot be read from a model folder")
    with pytest.raises(BadInput, match="no weights"):
        resolve_source(spec, allow_pickle=True)


def test_a_pickle_is_refused_and_then_allowed(tmp_path):
    spec = folder(tmp_path, config_DOT_json="{}", pytorch_model_DOT_bin="x")
    refused(spec, "Python pickle (pytorch_model.bin)", "--allow-pickle")
    assert "pytorch_model.bin" in resolve_source(spec, allow_pickle=True).files


def test_every_file_that_decides_is_in_the_digest(tmp_path):
    spec = folder(tmp_path, config_DOT_json="{}", model_DOT_safetensors="x", README_DOT_md="a")
    before = resolve_source(spec).digest
    folder(tmp_path, README_DOT_md="b")
    assert resolve_source(spec).digest == before
    for name in ("tokenizer_DOT_json", "1_Pooling__config_DOT_json", "spiece_DOT_model", "own_DOT_py"):
        folder(tmp_path, **{name: "{}"})
        after = resolve_source(spec).digest
        assert after != before, name
        before = after


def test_the_weights_of_a_file_are_in_its_digest_and_its_name_is_not(tmp_path):
    path = byo.external(tmp_path)
    before = resolve_source(str(path))
    assert before.files == ("m.onnx", "weights.bin")
    renamed = path.rename(tmp_path / "n.onnx")
    assert resolve_source(str(renamed)).digest == before.digest
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    assert resolve_source(str(renamed)).digest != before.digest


def test_behind_a_link_the_weights_are_looked_for_beside_the_link(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    byo.external(tmp_path).rename(blobs / "0123")
    (tmp_path / "m.onnx").symlink_to(blobs / "0123")
    found = resolve_source(str(tmp_path / "m.onnx"))
    assert found.path == tmp_path / "m.onnx"
    assert found.files == ("m.onnx", "weights.bin")
