"""build-ep-context: what is kept, what is refused, and that nothing is left behind where no GPU is."""

from __future__ import annotations

import numpy as np
import pytest
from runtimes import gpu_double as gpu
from runtimes.graphs import WEIGHT, node, value, write

import optimizer
from optimizer.benching.candidates import parse
from optimizer.errors import BadInput, GateFailed, MissingPiece
from optimizer.runtime import Provider
from optimizer.types import Kind, Precision


@pytest.fixture
def double(monkeypatch, tmp_path, source):  # the source first: it is exported for real
    return gpu.install(monkeypatch, gpu.Double(), tmp_path / "cache")


@pytest.fixture
def source(store, tmp_path):
    inputs = [value("input_ids", ["batch", "sequence"], 7)]
    nodes = [node("Gather", "w input_ids", ["g"]), node("MatMul", "g v", ["y"])]
    weights = {"w": WEIGHT, "v": np.ones((3, 2), np.float32)}
    path = write(
        tmp_path / "m.onnx", nodes, inputs=inputs, outputs=[value("y", ["batch", "sequence", 2])], weights=weights
    )
    return optimizer.export_onnx(str(path), name="m", store=store).artifact


@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_the_artifact_is_an_onnx_file_that_knows_its_shapes_and_its_provider(double, store, source, provider):
    done = optimizer.build_ep_context(
        source.ref, provider=provider, profile="input_ids:1x1:2x8:4x16", tf32=False, store=store
    )
    made = done.artifact
    assert made.kind is Kind.ONNX
    assert made.variant == f"fp32-{provider}-ctx"
    assert made.precision is Precision.FP32
    facts = made.manifest.facts
    assert facts["ops"] == {"com.microsoft.EPContext": 1}
    assert facts["engine"]["provider"] == provider
    assert facts["engine"]["profiles"] == [{"input_ids": {"min": [1, 1], "opt": [2, 8], "max": [4, 16]}}]
    assert facts["engine"]["tf32"] is False
    assert facts["engine"]["versions"]["onnxruntime"] == double.__version__
    assert [spec.shape for spec in made.manifest.inputs] == [("batch", "sequence")]

    candidate = parse(made.ref, store).candidate
    assert candidate.provider == Provider(provider), "it is run by what compiled it"
    session = candidate.open()
    assert session.facts["nodes"] == {provider: 1}
    assert session.facts["tf32"] is False, "as it was compiled"
    options = double.sessions[-1]["providers"][0][1]
    assert not [name for name in options if "profile" in name or "engine_cache" in name], "it compiles nothing"
    with pytest.raises(BadInput, match="compiled this model for other shapes than these: input_ids 5x3"):
        session.run({"input_ids": np.zeros((5, 3), np.int64)})
    session.close()
    assert optimizer.build_ep_context(
        source.ref, provider=provider, profile="input_ids:1x1:2x8:4x16", tf32=False, store=store
    ).cached


def test_the_usual_shapes_and_another_precision(double, store, source):
    done = optimizer.build_ep_context(source.ref, precision="fp16", store=store)
    assert done.artifact.variant == "fp16-tensorrt-ctx"
    assert done.artifact.precision is Precision.FP16
    facts = done.artifact.manifest.facts
    assert facts["cast"]["to"] == "fp16"
    assert facts["engine"]["profiles"][0]["input_ids"]["max"] == [32, 512]


def test_what_cannot_be_is_said_before_anything_is_compiled(double, store, source):
    with pytest.raises(BadInput, match="quantize static"):
        optimizer.build_ep_context(source.ref, precision="int8", store=store)
    with pytest.raises(BadInput, match="leaves sequence of input_ids open"):
        optimizer.build_ep_context(source.ref, profile="batch=1:2:4", store=store)
    assert double.sessions == double.compiled == []


def test_nothing_is_made_of_a_compiled_graph(double, store, source):
    made = optimizer.build_ep_context(source.ref, store=store).artifact
    assert made.compiled
    assert not source.compiled
    for again in (
        lambda: optimizer.build_ep_context(made.ref, provider="rtx", store=store),
        lambda: optimizer.ort_optimize(made.ref, store=store),
        lambda: optimizer.cast(made.ref, to="fp16", store=store),
        lambda: optimizer.quantize_dynamic(made.ref, store=store),
        lambda: optimizer.build_trt_engine(made.ref, store=store),
    ):
        with pytest.raises(BadInput, match="works on graphs, and m@1:fp32-tensorrt-ctx holds a compiled one") as caught:
            again()
        assert source.ref in caught.value.hint


@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_a_provider_that_writes_nothing_fails(double, store, source, provider):
    double.writes = False
    with pytest.raises(GateFailed, match="wrote no file"):
        optimizer.build_ep_context(source.ref, provider=provider, store=store)
    assert [each.variant for each in store.artifacts()] == ["fp32"]


def test_products_outside_of_the_compiled_graph_fail(double, store, source, monkeypatch):
    def half(graph, path, by):
        import onnx

        onnx.save(graph, path)

    monkeypatch.setattr(gpu, "write_context", half)
    with pytest.raises(GateFailed, match=r"rtx compiled nothing of the graph, and left MatMul \(1\)"):
        optimizer.build_ep_context(source.ref, provider="rtx", store=store)
    double.takes = lambda op: gpu.CUDA if op == "MatMul" else None
    with pytest.raises(GateFailed, match="would not run on tensorrt"):
        optimizer.build_ep_context(source.ref, store=store)
    assert [each.variant for each in store.artifacts()] == ["fp32"]


def test_other_outputs_than_the_sources_fail(double, store, source, monkeypatch):
    write_context = gpu.write_context

    def other(graph, path, by):
        graph.graph.output[0].name = "z"
        graph.graph.node[1].output[0] = "z"
        write_context(graph, path, by)

    monkeypatch.setattr(gpu, "write_context", other)
    with pytest.raises(GateFailed, match="other outputs"):
        optimizer.build_ep_context(source.ref, provider="rtx", store=store)


@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_without_the_provider_nothing_is_left_behind(store, source, provider):
    from optimizer.runtime import probe

    if probe(provider).ok:
        pytest.skip(f"{provider} works here")
    with pytest.raises(MissingPiece) as caught:
        optimizer.build_ep_context(source.ref, provider=provider, store=store)
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert [each.variant for each in store.artifacts()] == ["fp32"]
    assert not list((store.root / ".ml-opt" / "scratch").iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["tensorrt", "rtx"])
def test_a_gpu_runs_what_it_compiled(store, source, provider):
    from optimizer.runtime import Candidate, probe

    found = probe(provider)
    if not found.ok:
        pytest.skip(found.reason)
    made = optimizer.build_ep_context(source.ref, provider=provider, tf32=False, store=store).artifact
    feeds = {"input_ids": np.array([[1, 2, 3]])}
    right = Candidate("m", source.model_file, Provider("cpu")).open().run(feeds)["y"]
    session = parse(made.ref, store).candidate.open()
    assert np.allclose(session.run(feeds)["y"], right, atol=1e-5)
    assert set(session.facts["nodes"]) == {provider}
    session.close()
