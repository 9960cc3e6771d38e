"""Engines that TensorRT-RTX really builds here, without a GPU; and everything that is refused before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from quantizing import graphs
from tiny import write

import optimizer
from optimizer.artifact import Artifact
from optimizer.data.golden import Golden
from optimizer.engines import flavors, vendor
from optimizer.engines.flavors import FLAVORS, choose
from optimizer.engines.prepare import prepared
from optimizer.errors import BadInput, Damaged, GateFailed, MissingPiece, MlOptError, UnknownName
from optimizer.readback import read_back
from optimizer.stages import build_trt_engine as stage
from optimizer.store import Store
from optimizer.types import Kind, Precision

PROFILE = "input_ids:1x8:8x64:32x128"


@pytest.fixture(scope="module")
def build(minilm_store: Store) -> Callable[..., Artifact]:
    def built(ref: str = "minilm:fp32", **options: Any) -> Artifact:
        return optimizer.build_trt_engine(ref, flavor="rtx", store=minilm_store, **options).artifact

    return built


@pytest.fixture(scope="module")
def fp32(build: Callable[..., Artifact]) -> Artifact:
    return build(profile=[PROFILE])


@pytest.fixture(scope="module")
def fp16(build: Callable[..., Artifact]) -> Artifact:
    return build(precision="fp16", profile=[PROFILE])


@pytest.fixture(scope="module")
def symmetric(minilm_store: Store, sentences: Path) -> Artifact:
    options: dict[str, Any] = {"calib": sentences, "samples": 16, "store": minilm_store}
    return optimizer.quantize_static("minilm:fp32", symmetric=True, **options).artifact


def engine_bytes(artifact: Artifact) -> int:
    return artifact.runnable.stat().st_size


# -------------------------------------------------------------------------------------------------- what is built


def test_an_engine_is_an_artifact_with_all_that_serving_needs(fp32: Artifact, minilm_store: Store) -> None:
    assert (fp32.kind, fp32.ref) == (Kind.ENGINE, "minilm@1:fp32-rtx")
    fp32.check()
    assert {"model.engine", "layers.json", "build.log", "tokenizer.json", "tokenizer_config.json"} <= set(
        fp32.manifest.files
    )
    assert fp32.runnable.read_bytes()[:4] == b"vtrt"
    source = minilm_store.get("minilm:fp32")
    assert fp32.manifest.source["ref"] == source.ref
    assert fp32.manifest.inputs == source.manifest.inputs, "the names of dimensions are kept"
    assert fp32.manifest.outputs == source.manifest.outputs
    assert fp32.manifest.model["prefers"] == "tensorrt-native"
    assert engine_bytes(fp32) < 1.3 * source.manifest.bytes + 16 * 2**20


def test_the_manifest_says_by_whom_for_what_and_how(fp32: Artifact) -> None:
    engine = fp32.manifest.facts["engine"]
    assert engine["flavor"] == "rtx"
    assert engine["version"] == FLAVORS["rtx"].version
    assert engine["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"]
    dims = {"min": [1, 8], "opt": [8, 64], "max": [32, 128]}
    assert engine["profiles"] == [dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), dims)]
    assert set(engine["memory"]) == {"weights", "activation", "scratch"}
    assert engine["memory"]["weights"] > 80 * 2**20
    log = (fp32.path / "build.log").read_text()
    assert "Engine generation completed" in log
    assert "VERBOSE" not in log


def test_precision_is_read_back_from_the_engines_own_layers(fp32: Artifact, fp16: Artifact) -> None:
    full, half = fp32.manifest.facts["layers"], fp16.manifest.facts["layers"]
    assert set(full["products"]) == {"float32"}
    assert set(half["products"]) == {"float16"}
    assert half["attention"] == 6, "TensorRT-RTX makes one kernel of an attention, of six layers in 16 bits"
    assert half["layers"] < full["layers"] < fp32.manifest.facts["network"]["layers"]
    assert fp16.manifest.facts["cast"]["to"] == "fp16"
    layers = json.loads((fp16.path / "layers.json").read_text())
    assert len(layers["engine"]) == half["layers"]
    (attention, *_) = [each for each in layers["engine"] if "mha" in each["name"]]
    assert attention["inputs"][0] == "float16"
    assert any("softmax" in node for node in attention["nodes"])


def test_half_the_bits_are_half_the_size(fp32: Artifact, fp16: Artifact, build: Callable[..., Artifact]) -> None:
    assert engine_bytes(fp16) <= 0.55 * engine_bytes(fp32)
    bf16 = build(precision="bf16", profile=[PROFILE])
    assert engine_bytes(bf16) <= 0.55 * engine_bytes(fp32)
    assert set(bf16.manifest.facts["layers"]["products"]) == {"bfloat16"}


def test_an_engine_of_what_was_cast_before_is_the_same(
    build: Callable[..., Artifact], fp16: Artifact, minilm_store: Store
) -> None:
    cast = optimizer.cast("minilm:fp32", to="fp16", store=minilm_store).artifact
    engine = build(cast.ref, profile=[PROFILE])
    assert engine.precision is Precision.FP16
    assert engine.manifest.facts["layers"] == fp16.manifest.facts["layers"]


def test_int8_comes_from_symmetric_qdq(symmetric: Artifact, build: Callable[..., Artifact], fp32: Artifact) -> None:
    engine = build(symmetric.ref, profile=[PROFILE])
    assert engine.precision is Precision.INT8
    assert engine.manifest.facts["layers"]["products"]["int8"] >= 24
    assert engine_bytes(engine) <= 0.35 * engine_bytes(fp32)


def test_int4_weights_are_rewritten_to_the_form_of_the_standard(
    minilm_store: Store, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    weights = optimizer.quantize_weights(
        "minilm:fp32", symmetric=True, block_size=128, tables="float", accuracy_level=1, store=minilm_store
    ).artifact
    engine = build(weights.ref, profile=[PROFILE])
    assert engine.precision is Precision.INT4
    assert engine.manifest.facts["layers"]["weights"]["int4"] == 37
    # The graph that the builder got answers as the one with MatMulNBits does.
    ready = prepared(weights, Precision.INT4, tmp_path, lambda doing: None)
    golden = Golden.load(weights.path)
    assert golden is not None
    answers = []
    for path in (weights.model_file, ready.path):
        plain = onnxruntime.SessionOptions()  # or it makes MatMulNBits of it again, with activations in 8 bits
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), plain, providers=["CPUExecutionProvider"])
        answers.append(session.run(["last_hidden_state"], golden.inputs)[0])
    assert np.abs(answers[0] - answers[1]).max() < 2e-3
    assert "MatMulNBits" not in {node.op_type for node in onnx.load(str(ready.path)).graph.node}


def test_several_profiles_and_one_capability(build: Callable[..., Artifact]) -> None:
    made = build(profile=[PROFILE, "input_ids:1x128:4x256:8x512"], compute_capability=["8.6", "12.0"])
    engine = made.manifest.facts["engine"]
    assert engine["compute_capabilities"] == ["8.6", "12.0"]
    assert [each["input_ids"]["max"] for each in engine["profiles"]] == [[32, 128], [8, 512]]
    with pytest.raises(BadInput, match=r"no such arithmetic for these GPUs: .*FP32 GEMM is not supported"):
        build(compute_capability=["7.5"])
    turing = build(compute_capability=["7.5"], precision="fp16", batch="1:2:4")
    assert turing.manifest.facts["engine"]["compute_capabilities"] == ["7.5"]
    assert turing.manifest.facts["engine"]["profiles"][0]["input_ids"] == {
        "min": [1, 1], "opt": [2, 128], "max": [4, 512],
    }  # fmt: skip


def test_profiles_come_from_the_lengths_of_data(build: Callable[..., Artifact], sentences: Path) -> None:
    engine = build(profiles_from=sentences).manifest.facts["engine"]
    assert engine["profiles_why"].startswith("from the lengths of ")
    found = [each["input_ids"] for each in engine["profiles"]]
    assert len(found) >= 2, "sentences of 3 to 60 tokens"
    assert found[0]["max"][1] + 1 == found[1]["min"][1]
    assert found[-1]["max"][1] == 512


@pytest.mark.parametrize("option", ["refit", "strip_weights", "weight_streaming", "strict_nans", "version_compatible"])
def test_what_the_builder_is_told_reaches_it(
    option: str, build: Callable[..., Artifact], fp32: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: list[Any] = []
    real = vendor.Vendor._config

    def kept(self: Any, network: Any, asked: Any) -> Any:
        config.append((self, real(self, network, asked)))
        return config[-1][1]

    monkeypatch.setattr(vendor.Vendor, "_config", kept)
    try:
        made = build(profile=[PROFILE], tf32=False, opt_level=1, workspace="1GiB", **{option: True})
    except MissingPiece as error:  # TensorRT-RTX wants a GPU for these, or a library that its package lacks
        assert option in ("refit", "strip_weights", "version_compatible")
        assert "wants a GPU for what was asked" in error.message or "without libnvinfer_lean" in error.message
        made = None
    ((self, got),) = config
    flags = {
        "refit": "REFIT",
        "strip_weights": "STRIP_PLAN",
        "weight_streaming": "WEIGHT_STREAMING",
        "strict_nans": "STRICT_NANS",
        "version_compatible": "VERSION_COMPATIBLE",
    }
    assert got.get_flag(getattr(self.trt.BuilderFlag, flags[option]))
    assert not got.get_flag(self.trt.BuilderFlag.TF32)
    assert got.builder_optimization_level == 1
    assert got.get_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE) == 2**30
    if made is not None and option == "strip_weights":
        assert engine_bytes(made) < 0.2 * engine_bytes(fp32)


# ----------------------------------------------------------------------------------------------------- from where


def test_a_fused_graph_is_exchanged_for_its_export(minilm_store: Store, build: Callable[..., Artifact]) -> None:
    fused = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    engine = build(fused.ref, profile=["input_ids:1x16:4x16:8x16"])
    assert engine.manifest.source["ref"] == "minilm@1:fp32"
    assert engine.manifest.warnings[0].startswith(f"{fused.ref} is fused for ONNX Runtime")
    assert "built from minilm@1:fp32 instead" in engine.manifest.warnings[0]
    again = optimizer.build_trt_engine(
        "minilm:fp32", flavor="rtx", profile=["input_ids:1x16:4x16:8x16"], store=minilm_store
    )
    assert again.cached, "it is the same engine"


def test_a_cast_of_a_fused_graph_keeps_its_precision(minilm_store: Store, build: Callable[..., Artifact]) -> None:
    fused = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    cast = optimizer.cast(fused.ref, to="bf16", store=minilm_store).artifact
    engine = build(cast.ref, profile=["input_ids:1x16:4x16:8x16"])
    assert (engine.precision, engine.manifest.source["ref"]) == (Precision.BF16, "minilm@1:fp32")


def test_what_was_quantized_after_fusing_is_refused_with_the_command(
    minilm_store: Store, sentences: Path, build: Callable[..., Artifact]
) -> None:
    fused = optimizer.ort_optimize("minilm:fp32", store=minilm_store).artifact
    int8 = optimizer.quantize_static(fused.ref, calib=sentences, samples=8, symmetric=True, store=minilm_store).artifact
    with pytest.raises(BadInput, match="quantize-static stands between it and the export") as error:
        build(int8.ref)
    assert error.value.hint == "quantize the export: ml-opt quantize static minilm@1:fp32 --calib FILE --symmetric"


def test_forms_of_quantization_that_no_engine_takes(
    minilm_store: Store, sentences: Path, build: Callable[..., Artifact]
) -> None:
    dynamic = optimizer.quantize_dynamic("minilm:fp32", store=minilm_store).artifact
    with pytest.raises(BadInput, match=r"in a form that TensorRT does not take \(dynamic\)") as error:
        build(dynamic.ref)
    assert "ml-opt quantize static minilm@1:fp32" in error.value.hint
    skewed = optimizer.quantize_static("minilm:fp32", calib=sentences, samples=8, store=minilm_store).artifact
    with pytest.raises(BadInput, match="quantized around other points than zero") as error:
        build(skewed.ref)
    assert error.value.hint == f"quantize again: {skewed.manifest.command} --symmetric"
    blocks = optimizer.quantize_weights("minilm:fp32", store=minilm_store).artifact
    with pytest.raises(BadInput, match=r"4-bit weights around other points|blocks of 32"):
        build(blocks.ref)


@pytest.mark.parametrize(
    ("precision", "says", "hint"),
    [
        ("int8", "int8 was asked for, and minilm@1:fp32 is fp32", "quantize static minilm@1:fp32 --calib FILE"),
        ("int4", "int4 was asked for, and minilm@1:fp32 is fp32", "quantize weights minilm@1:fp32 --bits 4"),
        ("fp8", "fp8 was asked for, and minilm@1:fp32 is fp32", "ModelOpt"),
    ],
)
def test_a_precision_that_is_not_in_the_graph_names_the_command(
    precision: str, says: str, hint: str, build: Callable[..., Artifact]
) -> None:
    with pytest.raises(BadInput, match=says) as error:
        build(precision=precision)
    assert hint in error.value.hint


def test_a_precision_that_the_graph_has_left_behind(symmetric: Artifact, build: Callable[..., Artifact]) -> None:
    with pytest.raises(BadInput, match=r"fp32 was asked for, and minilm@1:.* is int8") as error:
        build(symmetric.ref, precision="fp32")
    assert error.value.hint == "build from its float parent: minilm@1:fp32"


# ----------------------------------------------------------------------------------------------- key, cache, again


def test_the_second_call_is_cached_and_imports_nothing(
    minilm_store: Store, fp32: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_again(*_: Any) -> Any:
        raise AssertionError("the vendor's package was loaded")

    monkeypatch.setattr(vendor, "load", not_again)
    again = optimizer.build_trt_engine("minilm:fp32", flavor="rtx", profile=[PROFILE], store=minilm_store)
    assert again.cached
    assert again.artifact.manifest.key == fp32.manifest.key


def test_the_key_knows_what_decides(minilm_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from optimizer import pipeline

    source = minilm_store.get("minilm:fp32")

    def key(**options: Any) -> str:
        return pipeline.stage_key(stage.STAGE, source, stage.BuildTrtEngine(**options), minilm_store)

    plain = key(flavor="rtx")
    assert key(flavor="rtx", timing_cache=tmp_path) == plain, "where timings are kept decides nothing"
    assert key(flavor="rtx", profile=(PROFILE,)) != plain
    gpu = {"name": "RTX 4090", "driver": "580.1", "memory_mib": "1", "compute_capability": "8.9"}
    monkeypatch.setattr(pipeline, "gpu_facts", lambda: (gpu,))
    assert key(flavor="rtx") == plain, "an engine of TensorRT-RTX is compiled where it is loaded"
    monkeypatch.setattr(flavors, "has_module", lambda name: True)
    bound = key(flavor="tensorrt")
    monkeypatch.setattr(pipeline, "gpu_facts", lambda: ({**gpu, "driver": "590.0"},))
    assert key(flavor="tensorrt") != bound, "one of TensorRT belongs to a GPU and its driver"
    monkeypatch.setattr(pipeline, "version_of", lambda name: "9" if "rtx" in name else None)
    assert key(flavor="rtx") != plain


def test_an_engine_is_rebuilt_by_its_recipe(minilm_store: Store, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    shutil.copytree(minilm_store.root, store.root)
    made = optimizer.build_trt_engine(
        "minilm:fp32", flavor="rtx", precision="fp16", profile=["input_ids:1x8"], store=store
    ).artifact
    with pytest.raises(BadInput, match="is an engine already") as error:
        optimizer.build_trt_engine(made.ref, store=store)
    assert error.value.hint.endswith(f"ml-opt build-trt-engine {made.ref} --rebuild")
    assert optimizer.build_trt_engine(made.ref, rebuild=True, store=store).cached
    rows = write(tmp_path / "rows.jsonl", [{"text": "good " * n} for n in (3, 4, 5, 60)])
    chosen = optimizer.build_trt_engine("minilm:fp32", flavor="rtx", profiles_from=rows, store=store).artifact
    assert optimizer.build_trt_engine(chosen.ref, rebuild=True, store=store).artifact.ref == chosen.ref
    rows.unlink()
    again = optimizer.build_trt_engine(chosen.ref, rebuild=True, store=store).artifact
    profiles = [each.manifest.facts["engine"]["profiles"] for each in (chosen, again)]
    assert profiles[0] == profiles[1]
    assert len(profiles[0]) > 1
    assert again.manifest.options["profiles_from"] is None, "the data is gone that they were chosen by"
    (made.path / "model.engine").write_bytes(b"vtrt" + bytes(100))
    with pytest.raises(Damaged, match="has 104 bytes, its manifest says"):
        optimizer.build_trt_engine(made.ref, rebuild=True, store=store)
    with pytest.raises(BadInput, match="--rebuild is for engines"):
        optimizer.build_trt_engine("minilm:fp32", rebuild=True, store=store)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"profile": ["ids:1x8"]}, UnknownName, "unknown input: 'ids'"),
        ({"profile": ["input_ids:8x8:4x8:8x8"]}, BadInput, "goes from 8 over 4 to 8"),
        ({"profile": ["input_ids:1x8:8x64:32x1024"]}, BadInput, "longest sequence .* is 512"),
        ({"profile": [PROFILE], "batch": "1:2:4"}, BadInput, "--batch is for profiles that are chosen for you"),
        ({"batch": "4:2:1"}, BadInput, "smallest ≤ best ≤ largest"),
        ({"batch": "many"}, BadInput, "is no range"),
        ({"workspace": "lots"}, BadInput, "is no size"),
        ({"workspace": "0GiB"}, BadInput, "is no size"),
        ({"compute_capability": ["86"]}, BadInput, "write it with a point"),
        ({"compute_capability": ["8.7"]}, UnknownName, "compute capability of TensorRT-RTX: '8.7'"),
        ({"compute_capability": ["7.5"], "precision": "bf16"}, BadInput, "7.5 have no bf16; it begins with 8.0"),
        ({"hardware_compatible": True}, BadInput, "--hardware-compatible is TensorRT's"),
        ({"strip_weights": True, "refit": True}, BadInput, "two ways to the same"),
        ({"column": ["text=a"]}, BadInput, "--profiles-from are, which is not given"),
        ({"opt_level": 6}, BadInput, "out of range"),
    ],
)
def test_what_cannot_be_built_is_refused_before_it_is(
    options: dict[str, Any], error: type[MlOptError], says: str, build: Callable[..., Artifact], minilm_store: Store
) -> None:
    before = minilm_store.refs()
    with pytest.raises(error, match=says):
        build(**options)
    assert minilm_store.refs() == before
    assert not list(minilm_store.layout.scratch.glob("*"))


def test_an_operator_that_is_not_there_is_named(store: Store, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="the_determinant")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch"])
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    ref = graphs.put(store, tmp_path, onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]))
    with pytest.raises(BadInput, match=r"does not take the_determinant \(Det\)"):
        optimizer.build_trt_engine(ref, flavor="rtx", profile=["batch=1:2:4"], store=store)
    assert store.refs() == [store.get(ref).ref]


def test_onnxruntime_builds_when_it_is_asked_to(
    minilm_store: Store, build: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer import pipeline

    asked: list[Any] = []
    monkeypatch.setattr(pipeline, "_make", lambda made, source, given, *rest: asked.append((made, source, given)))
    options: dict[str, Any] = {"via": "ort", "precision": "fp16", "profile": [PROFILE], "store": minilm_store}
    for flavor, provider in (("rtx", "rtx"), ("tensorrt", "tensorrt"), ("auto", "tensorrt")):
        optimizer.build_trt_engine("minilm:fp32", flavor=flavor, tf32=False, **options)
        made, source, given = asked.pop()
        assert (made.name, source.ref) == ("build-ep-context", "minilm@1:fp32")
        assert (given.provider, given.precision, given.profile, given.tf32) == (provider, "fp16", PROFILE, False)
    with pytest.raises(BadInput, match="is not told --opt-level, --refit"):
        optimizer.build_trt_engine("minilm:fp32", refit=True, opt_level=3, **options)
    with pytest.raises(BadInput, match="takes one profile"):
        optimizer.build_trt_engine("minilm:fp32", **{**options, "profile": [PROFILE, PROFILE]})


def test_a_missing_package_names_the_line_for_this_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavors, "has_module", lambda name: False)
    with pytest.raises(MissingPiece, match="building engines needs TensorRT-RTX, which is not installed") as error:
        choose("auto")
    assert 'pip install "ml-opt[tensorrt-rtx]"' in error.value.hint
    with pytest.raises(MissingPiece, match="needs TensorRT, which") as error:
        choose("tensorrt")
    assert 'pip install "ml-opt[tensorrt]"' in error.value.hint
    old = {"name": "GPU", "driver": "550.54", "memory_mib": "1", "compute_capability": "8.6"}
    monkeypatch.setattr(flavors, "gpu_facts", lambda: (old,))
    for name, line in (("rtx", "pip install tensorrt-rtx-cu12"), ("tensorrt", "pip install tensorrt-cu12 'cuda")):
        with pytest.raises(MissingPiece) as error:
            choose(name)
        assert line in error.value.hint


def test_an_engine_that_is_not_what_was_asked_for_is_not_kept(fp32: Artifact, minilm_store: Store) -> None:
    facts = fp32.manifest.facts
    source = minilm_store.get("minilm:fp32")
    options = stage.BuildTrtEngine(flavor="rtx")
    stage.STAGE.verify(options, facts, source)
    for precision in ("fp16", "bf16", "int8", "fp8", "int4"):
        wrong = {**facts, "engine": {**facts["engine"], "precision": precision}}
        with pytest.raises(
            GateFailed, match=f"{precision} was asked for, and of the engine's .* products are 37 in float32"
        ):
            stage.STAGE.verify(options, wrong, source)
    silent = {**facts, "layers": {"layers": 0, "products": {}, "weights": {}, "types": {}}}
    stage.STAGE.verify(options, silent, source)
    with pytest.raises(GateFailed, match="fp16 was asked for"):
        stage.STAGE.verify(options, {**silent, "engine": {**facts["engine"], "precision": "fp16"}}, source)
    with pytest.raises(GateFailed, match="written by tensorrt"):
        stage.STAGE.verify(options, {**facts, "plan": {"bytes": 1, "written_by": "tensorrt"}}, source)


def test_a_file_that_is_no_engine_is_not_read_back(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"")
    with pytest.raises(Damaged, match="is no TensorRT engine"):
        read_back(Kind.ENGINE, tmp_path)


# -------------------------------------------------------------------------------------------------- other models


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Where image models are exported to once, for engines of every precision."""
    return Store(tmp_path_factory.mktemp("images") / "models")


@pytest.mark.parametrize("name", ["vit", "resnet", "convnext"])
@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_image_models(arch: Callable[[str, str], Path], name: str, precision: str | None, images: Store) -> None:
    optimizer.export_onnx(str(arch(name, "image-classification")), name=name, store=images)
    engine = optimizer.build_trt_engine(f"{name}:fp32", precision=precision, flavor="rtx", store=images).artifact
    products = engine.manifest.facts["layers"]["products"]
    wanted = {None: "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    assert next(iter(products)) == wanted
    assert engine.manifest.facts["engine"]["profiles"][0]["pixel_values"]["max"][0] == 32


@pytest.mark.thorough
def test_the_sentiment_classifier(sentiment_store: Store) -> None:
    made = optimizer.build_trt_engine("sentiment:fp32", precision="fp16", flavor="rtx", store=sentiment_store)
    engine = made.artifact
    assert engine.manifest.facts["layers"]["attention"] == 6
    assert [spec.name for spec in engine.manifest.outputs] == ["logits"]


def test_a_file_that_somebody_brought(store: Store) -> None:
    from benchmarks.file_types import magika_file

    optimizer.export_onnx(str(magika_file()), name="magika", store=store)
    for precision in (None, "fp16"):
        engine = optimizer.build_trt_engine("magika:fp32", precision=precision, flavor="rtx", store=store).artifact
        assert engine.manifest.facts["layers"]["products"]
        assert replace(engine.manifest.inputs[0]).shape[1] == 2048
