"""The stage on the real MiniLM: answers, sizes, names, and what is refused."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from processor import BF16
from tokenizers import Tokenizer

import optimizer
from optimizer.artifact import Artifact
from optimizer.errors import BadInput, GateFailed, MissingPiece, MlOptError, UnknownName
from optimizer.pipeline import Result
from optimizer.runtime import Provider, SessionOptions, get_runtime
from optimizer.stages.cast import STAGE, Cast
from optimizer.store import Store
from optimizer.types import Precision

SENTENCES = 64


def embed(artifact: Artifact, provider: str, sentences: Path) -> np.ndarray[Any, Any]:
    """Pooled, normalized embeddings of real sentences, one row each, 8 to a batch with padding."""
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    texts = [json.loads(line)["text"] for line in sentences.read_text().splitlines()[:SENTENCES]]
    chosen = Provider.parse(provider)
    session = get_runtime(chosen).open(artifact.model_file, SessionOptions(chosen, threads=1), model={})
    rows = []
    for start in range(0, len(texts), 8):
        encoded = tokenizer.encode_batch(texts[start : start + 8])
        mask = np.array([e.attention_mask for e in encoded])
        given = {
            "input_ids": np.array([e.ids for e in encoded]),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        hidden = session.run({spec.name: given[spec.name] for spec in session.inputs})["last_hidden_state"]
        assert hidden.dtype == np.float32
        pooled = (hidden * mask[..., None]).sum(1)
        rows.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    session.close()
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def reference(minilm_store: Store, sentences: Path) -> np.ndarray[Any, Any]:
    return embed(minilm_store.get("minilm:fp32"), "cpu", sentences)


@pytest.fixture(scope="module")
def make(minilm_store: Store) -> Any:
    return functools.cache(lambda to: optimizer.cast("minilm:fp32", to=to, store=minilm_store))


def test_fp16_answers_as_fp32_does(
    make: Any, minilm_store: Store, sentences: Path, reference: np.ndarray[Any, Any]
) -> None:
    result: Result = make("fp16")
    source, artifact = minilm_store.get("minilm:fp32"), result.artifact
    assert artifact.variant == "fp16"
    facts = artifact.manifest.facts
    assert facts["weights"].get("float32", 0) < 0.001 * facts["weights"]["float16"]
    assert facts["cast"]["numbers"] > 22_000_000
    assert facts["cast"]["out_of_range"] == 0
    assert facts["cast"]["kept"] == []
    assert facts["cast"]["mask_fills"] == 1
    for side in ("inputs", "outputs"):
        assert facts[side] == source.manifest.facts[side]
    assert artifact.model_file.stat().st_size <= 0.55 * source.model_file.stat().st_size
    assert artifact.model_info == source.model_info
    assert "fp16" in artifact.manifest.warnings[0]
    assert {"tokenizer.json", "golden.npz"} <= set(artifact.manifest.files)
    cosine = (embed(artifact, "cpu", sentences) * reference).sum(1)
    assert len(cosine) == SENTENCES
    assert cosine.min() >= 0.9999


def test_bf16_answers_nearly_so_on_openvino(
    make: Any, minilm_store: Store, sentences: Path, reference: np.ndarray[Any, Any], openvino_provider: str
) -> None:
    artifact = make("bf16").artifact
    source = minilm_store.get("minilm:fp32")
    assert artifact.model_info == {**source.model_info, "prefers": "openvino:bf16"}
    assert f"{openvino_provider}:bf16" in artifact.manifest.warnings[0]
    assert artifact.model_file.stat().st_size <= 0.55 * source.model_file.stat().st_size
    if not BF16:
        with pytest.raises(MissingPiece, match="cannot compute in bf16"):
            embed(artifact, f"{openvino_provider}:bf16", sentences)
        return
    cosine = (embed(artifact, f"{openvino_provider}:bf16", sentences) * reference).sum(1)
    assert cosine.min() >= 0.999


def test_bf16_does_not_run_on_the_cpu_provider(make: Any, sentences: Path) -> None:
    """What the warning says; when this fails, ONNX Runtime has learnt it and the warning must go."""
    with pytest.raises(MlOptError):
        embed(make("bf16").artifact, "cpu", sentences)


def test_kept_nodes_are_fp32_in_the_file(minilm_store: Store) -> None:
    result = optimizer.cast("minilm:fp32", to="fp16", keep=["Softmax", "LayerNormalization"], store=minilm_store)
    assert result.artifact.variant == "fp16-mixed"
    facts = result.artifact.manifest.facts
    ops = facts["ops"]
    assert len(facts["cast"]["kept_as_asked"]) == ops["Softmax"] + ops["LayerNormalization"]
    model = onnx.shape_inference.infer_shapes(onnx.load(result.artifact.model_file))
    types = {info.name: info.type.tensor_type.elem_type for info in [*model.graph.value_info, *model.graph.output]}
    normalized = [n.output[0] for n in model.graph.node if n.op_type in ("Softmax", "LayerNormalization")]
    assert {types[name] for name in normalized} == {onnx.TensorProto.FLOAT}
    products = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    assert {types[name] for name in products} == {onnx.TensorProto.FLOAT16}


def test_variants_keep_their_modifiers(tmp_path: Path) -> None:
    def named(variant: str, **options: Any) -> str:
        source = Artifact(tmp_path, SimpleNamespace(), f"m@1:{variant}")  # type: ignore[arg-type]
        return STAGE.variant(Cast(**options), source)

    assert named("fp32", to="fp16") == "fp16"
    assert named("fp32-ort", to="fp16") == "fp16-ort"
    assert named("fp32-ort-cuda", to="bf16", keep=["x"]) == "bf16-ort-cuda-mixed"
    assert named("mine", to="fp16") == "fp16-mine"


def test_bad_options_and_sources_are_refused(make: Any, minilm_store: Store) -> None:
    before = minilm_store.refs()
    with pytest.raises(BadInput, match="needs --to"):
        optimizer.cast("minilm:fp32", store=minilm_store)
    for wrong in ("int8", "fp32"):
        with pytest.raises(UnknownName, match=f"--to: '{wrong}'.*fp16"):
            optimizer.cast("minilm:fp32", to=wrong, store=minilm_store)
    with pytest.raises(UnknownName, match="did you mean MatMul"):
        optimizer.cast("minilm:fp32", to="fp16", keep=["Matmul"], store=minilm_store)
    with pytest.raises(GateFailed, match="most weights are still fp32"):
        optimizer.cast("minilm:fp32", to="fp16", keep=["*"], store=minilm_store)
    assert minilm_store.refs() == before
    ref = make("fp16").artifact.ref
    with pytest.raises(BadInput, match="fp16 already"):
        optimizer.cast(ref, to="fp16", store=minilm_store)
    with pytest.raises(BadInput, match="fp16 already"):
        optimizer.cast(ref, to="bf16", store=minilm_store)


def test_read_back_is_held_against_what_was_asked(minilm_store: Store, make: Any) -> None:
    source = minilm_store.get("minilm:fp32")
    facts = make("fp16").artifact.manifest.facts
    asked = Cast(to=Precision.FP16)
    STAGE.verify(asked, facts, source)
    renamed = [{**facts["outputs"][0], "dtype": "float16"}, *facts["outputs"][1:]]
    for changed, message in (
        ({"weights": source.manifest.facts["weights"]}, "still fp32"),
        ({"weights": {"float16": 10**9}}, "did not shrink"),
        ({"outputs": renamed}, "the outputs were"),
    ):
        with pytest.raises(GateFailed, match=message):
            STAGE.verify(asked, {**facts, **changed}, source)
