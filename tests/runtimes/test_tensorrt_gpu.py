"""Engines on a real GPU: skipped, with the reason, where there is none."""

import numpy as np
import pytest
from tiny import tiny_bert

from optimizer.engines.flavors import FLAVORS
from optimizer.runtime import TENSORRT_NATIVE, Candidate, Provider, probe
from optimizer.store import Store

pytestmark = pytest.mark.gpu

IDS = np.random.default_rng(0).integers(5, 30, (4, 12))


@pytest.fixture(scope="module", params=FLAVORS)
def flavor(request):
    """A flavour that is installed, on a machine that runs engines."""
    if not FLAVORS[request.param].installed:
        pytest.skip(f"{FLAVORS[request.param].title} is not installed")
    found = probe(TENSORRT_NATIVE)
    if not found.ok:
        pytest.skip(found.reason)
    return request.param


@pytest.fixture(scope="module")
def built(flavor, tmp_path_factory):
    """An export, and its engine of two profiles."""
    import optimizer

    folder = tmp_path_factory.mktemp("engines")
    store = Store(folder / "models")
    fp32 = optimizer.export_onnx(str(tiny_bert(folder / "tiny", "BertModel")), name="tiny", store=store).artifact
    profiles = ("input_ids:1x1:4x8:8x12", "input_ids:1x8:2x16:4x32")
    made = optimizer.build_trt_engine(fp32.ref, flavor=flavor, profile=profiles, tf32=False, store=store)
    return store, fp32, made.artifact


def feeds(rows, steps):
    ids = np.resize(IDS, (rows, steps))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def sessions(built, tmp_path, monkeypatch):
    """The engine's session and ONNX Runtime's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, fp32, artifact = built

    def opened():
        engine = Candidate("engine", artifact.runnable, Provider(TENSORRT_NATIVE), model=artifact.manifest.model).open()
        return engine, Candidate("onnx", fp32.model_file, Provider("cpu"), model=fp32.manifest.model).open()

    return opened


def test_answers_are_those_of_onnx_runtime_for_every_profile(sessions):
    engine, onnx = sessions()
    for shape in ((1, 1), (8, 12), (2, 16), (4, 32), (3, 9), (1, 1)):
        given = feeds(*shape)
        want, got = onnx.run(given), engine.run(given)
        for name in want:
            assert np.allclose(want[name], got[name], atol=1e-4), (shape, name)
    engine.close()


def test_a_bound_call_is_a_graph_and_run_goes_on_beside_it(sessions):
    engine, onnx = sessions()
    calls = [engine.bind(feeds(*shape)) for shape in ((4, 8), (2, 20))]
    assert engine.facts["cuda_graph"] is True
    assert engine.facts["device_ms"] > 0
    want = onnx.run(feeds(3, 9))
    for call in calls:
        call()
        got = engine.run(feeds(3, 9))
        assert all(np.allclose(want[name], got[name], atol=1e-4) for name in want)
    engine.close()


def test_what_rtx_compiled_is_there_the_second_time(sessions, flavor):
    if flavor != "rtx":
        pytest.skip("TensorRT compiles nothing when it loads")
    for time in range(2):
        engine, _ = sessions()
        engine.run(feeds(4, 8))
        engine.close()
        assert engine.facts["kernels_kept"] is True
        assert (engine.facts["kernels_read"] > 0) is bool(time)


def test_memory_is_given_back(sessions):
    from cuda.bindings import runtime

    def free():
        return runtime.cudaMemGetInfo()[1]

    def once():
        engine, _ = sessions()
        engine.run(feeds(8, 12))
        engine.bind(feeds(4, 32))
        engine.close()

    once()  # libraries are loaded once
    before = free()
    for _ in range(3):
        once()
    assert free() >= before - 2**20


def test_verify_and_golden(built, tmp_path, monkeypatch):
    import optimizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, fp32, artifact = built
    report = optimizer.verify(artifact.ref, against=fp32.ref, store=store)
    assert report.exit_code == 0, report.failures
