"""Engines that TensorRT-RTX has really built, on a machine that cannot run them: what the commands say."""

import json
import shutil
from pathlib import Path

import pytest
import toys as toybox
from tiny import tiny_bert

from optimizer.environment import has_module
from optimizer.store import Store

pytestmark = pytest.mark.skipif(not has_module("tensorrt_rtx"), reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store with ``tiny:fp32`` and ``tiny:fp32-rtx``."""
    import optimizer

    folder = tmp_path_factory.mktemp("engines")
    store = Store(folder / "models")
    fp32 = optimizer.export_onnx(str(tiny_bert(folder / "tiny", "BertModel")), name="tiny", store=store).artifact
    made = optimizer.build_trt_engine(fp32.ref, flavor="rtx", store=store)
    assert made.artifact.ref == "tiny@1:fp32-rtx"
    return store


@pytest.fixture
def engines(built, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(built.root, tmp_path / "models"))


def command(store, *words):
    # A GPU that is there is hidden: the same is said on every machine.
    return toybox.run(*words, "--store", store, CUDA_VISIBLE_DEVICES="")


def test_verify_without_a_gpu_is_a_missing_piece(built):
    done = command(built.root, "verify", "tiny:fp32-rtx", "--against", "golden")
    assert done.returncode == 4, done.stderr
    assert "no CUDA device can be used" in done.stderr
    assert "engines run on a machine with an NVIDIA GPU and its driver" in done.stderr


def test_bench_without_a_gpu_says_so_in_the_engines_row(built):
    done = command(built.root, "bench", "tiny:fp32-rtx", "--shape", "1x8", "--duration", "0.1", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert "no CUDA device can be used" in json.dumps(report)


def test_an_engine_runs_on_nothing_else(built):
    done = command(built.root, "bench", "tiny:fp32-rtx+cpu", "--shape", "1x8")
    assert done.returncode == 2
    assert "cpu does not run engines" in done.stderr
    assert "tensorrt-native" in done.stderr


def test_an_engine_that_was_tampered_with_is_never_loaded(engines):
    path = engines / "tiny" / "1" / "fp32-rtx" / "model.engine"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = command(engines, "verify", "tiny:fp32-rtx", "--against", "golden")
    assert done.returncode == 5
    assert "tiny@1:fp32-rtx is damaged: the content of model.engine" in done.stderr


def test_an_engine_without_a_manifest(engines):
    (engines / "tiny" / "1" / "fp32-rtx" / "manifest.json").unlink()
    done = command(engines, "bench", "tiny:fp32-rtx", "--shape", "1x8")
    assert done.returncode == 5
    assert "has no manifest.json" in done.stderr


def test_the_real_library_opens_nothing_that_is_no_engine(tmp_path):
    from optimizer.engines.flavors import FLAVORS
    from optimizer.engines.vendor import load
    from optimizer.errors import Damaged, MissingPiece

    with pytest.raises((Damaged, MissingPiece)) as caught:
        load(FLAVORS["rtx"]).open(b"no engine at all" * 100, tmp_path / "model.engine")
    assert "model.engine" in caught.value.message


def test_one_logger_hears_all_of_the_process():
    """The vendor goes on using the first logger that it is given, and so there is one."""
    from optimizer.engines.flavors import FLAVORS
    from optimizer.engines.vendor import load

    assert load(FLAVORS["rtx"]) is load(FLAVORS["rtx"])


@pytest.fixture
def gpu_store(engines, tmp_path, monkeypatch):
    """The same store on a machine with a GPU of numpy, whose engine computes what the ONNX file says."""
    from engines.fake_cuda import nothing_left
    from engines.fake_trt import plan, tensor
    from engines.machine import NAMES, Machine

    from optimizer.digest import digest_file
    from optimizer.store import file_entries

    machine = Machine(tmp_path, monkeypatch)
    folder = engines / "tiny" / "1" / "fp32-rtx"
    manifest = json.loads((folder / "manifest.json").read_text())
    dtypes = {theirs: ours for ours, theirs in NAMES.items()}

    def made(which, how=""):
        return [
            tensor(
                each["name"], dtypes[each["dtype"]], *(-1 if isinstance(d, str) else d for d in each["shape"]), how=how
            )
            for each in manifest["facts"][which]
        ]

    def store(off=0.0, narrow=()):
        for name in narrow and manifest["facts"]["engine"]["profiles"][0]:
            least, best, most = narrow
            manifest["facts"]["engine"]["profiles"][0][name] = {"min": least, "opt": best, "max": most}
        profiles = [
            {name: [each["min"], each["opt"], each["max"]] for name, each in profile.items()}
            for profile in manifest["facts"]["engine"]["profiles"]
        ]
        onnx = str(engines / "tiny" / "1" / "fp32" / "model.onnx")
        (folder / "model.engine").write_bytes(
            plan(made("inputs"), made("outputs", "onnx"), *profiles, onnx=onnx, off=off)
        )
        (folder / "manifest.json").unlink()
        files = file_entries(folder, digest_file)
        (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        return Store(engines)

    with nothing_left(machine.gpu):
        yield store


@pytest.mark.parametrize("options", [{"against": "golden"}, {"against": "tiny:fp32"}, {"against": "source"}])
def test_an_engine_that_answers_right_is_verified(gpu_store, options):
    import optimizer

    report = optimizer.verify("tiny:fp32-rtx", store=gpu_store(), **options)
    assert report.exit_code == 0, report.failures
    assert min(report.worst()["cosine"].values()) > 0.9999
    assert report.facts["candidate"]["provider"] == "tensorrt-native"


def test_an_engine_is_verified_on_the_shapes_it_was_built_for(gpu_store):
    import optimizer

    report = optimizer.verify("tiny:fp32-rtx", against="tiny:fp32", store=gpu_store(narrow=([2, 3], [3, 17], [4, 20])))
    assert report.exit_code == 0, report.failures
    assert [result.name for result in report.cases] == ["2x3", "3x17", "2x17", "2x17 padded"]
    assert {"1x1", "8x17"} <= set(report.facts["left_out"])


def test_an_engine_that_has_no_shape_in_common_with_the_kept_answers(gpu_store):
    import optimizer
    from optimizer.errors import BadInput

    store = gpu_store(narrow=([30, 1], [31, 1], [32, 1]))
    with pytest.raises(
        BadInput, match=r"tiny@1:fp32-rtx was not built for the shapes that are compared here \(golden\)"
    ):
        optimizer.verify("tiny:fp32-rtx", against="golden", store=store)


def test_an_engine_that_answers_wrong_is_not(gpu_store):
    import optimizer

    report = optimizer.verify("tiny:fp32-rtx", against="tiny:fp32", store=gpu_store(off=0.5))
    assert report.exit_code == 1
