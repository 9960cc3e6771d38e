import pytest

from optimizer.artifact import Artifact
from optimizer.errors import BadInput, GateFailed
from optimizer.manifest import Manifest
from optimizer.quantizing import promise


def artifact(tmp_path, **facts):
    fields = {
        "kind": "onnx", "key": "k", "stage": {"name": "export-onnx", "version": 1}, "model": {}, "options": {},
        "files": {}, "environment": {}, "command": "", "seconds": 0.0, "created": "",
    }  # fmt: skip
    manifest = Manifest(source={"ref": "m@1:fp32"}, facts=facts, **fields)
    return Artifact(tmp_path, manifest, "m@1:fp32-ort-cuda")


def test_something_must_be_quantized(tmp_path):
    source = artifact(tmp_path, weights={"float32": 1000})
    with pytest.raises(GateFailed, match="quantized nothing"):
        promise.check_quantized("quantize-static", {"quantized": {"total": 0}, "weights": {}}, source)


@pytest.mark.parametrize(("after", "passes"), [(250, True), (949, True), (951, False), (1200, False)])
def test_the_weights_must_shrink(tmp_path, after, passes):
    source = artifact(tmp_path, weights={"float32": 1000})
    facts = {"quantized": {"total": 3}, "weights": {"int8": after}, "ops": {"Conv": 4}}
    if passes:
        promise.check_quantized("quantize-dynamic", facts, source)
    else:
        with pytest.raises(GateFailed, match="of their bytes") as caught:
            promise.check_quantized("quantize-dynamic", facts, source)
        assert "quantize static" in caught.value.hint


def test_packed_attention_names_the_parent(tmp_path):
    source = artifact(tmp_path, ops={"com.microsoft.Attention": 6})
    promise.refuse_unquantizable(source, taken=6)
    with pytest.raises(BadInput, match="has 2 Attention nodes") as caught:
        promise.refuse_unquantizable(source, taken=4)
    assert "m@1:fp32 " in caught.value.hint


@pytest.mark.parametrize(
    ("features", "reduce", "warned"),
    [(["avx2"], False, True), (["avx2"], True, False), (["avx2", "avx512_vnni"], False, False)],
)
def test_processors_without_vnni_are_warned_of(monkeypatch, features, reduce, warned):
    monkeypatch.setattr(promise, "cpu_facts", lambda: {"features": features, "machine": "x86_64"})
    assert bool(promise.saturation(reduce)) is warned
