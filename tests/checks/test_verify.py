import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from quantizing import graphs

import optimizer
from benchmarks.architectures import save
from optimizer.checks.verify import precision_of
from optimizer.data.golden import Golden
from optimizer.digest import digest_file
from optimizer.errors import BadInput, Damaged, UnknownName
from optimizer.evaluate import parity
from optimizer.runtimes.ort import OrtSession
from optimizer.store import Store
from optimizer.types import Precision


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A store with small random models: a BERT for features, one for classes, a ViT, a Wav2Vec2."""
    root = tmp_path_factory.mktemp("verify")
    store = Store(root / "models")
    for name, architecture, task in (
        ("bert", "bert", "feature-extraction"),
        ("classes", "bert", "text-classification"),
        ("vit", "vit", "image-classification"),
        ("sound", "wav2vec2-layer", "audio-classification"),
    ):
        folder = save(architecture, task, root / name)
        optimizer.export_onnx(str(folder), name=name, store=store)
    return store


def verify(store, ref, **options):
    return optimizer.verify(ref, store=store, threads=1, **options)


def planted(store, ref, change, variant="planted"):
    """A copy of an artifact with another graph in it, whose manifest vouches for that graph."""
    artifact = store.get(ref)
    folder = artifact.path.with_name(variant)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact.path, folder)
    model = onnx.load(str(folder / "model.onnx"))
    change(model)
    onnx.save(model, str(folder / "model.onnx"))
    manifest = json.loads((folder / "manifest.json").read_text())
    file = folder / "model.onnx"
    manifest["files"]["model.onnx"] = {"bytes": file.stat().st_size, "sha256": digest_file(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return f"{ref.partition(':')[0]}:{variant}"


def perturb(shape, amount):
    """Add to one number in the middle of the first weight of that shape."""

    def change(model):
        tensor = next(t for t in model.graph.initializer if tuple(t.dims) == shape)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[shape[0] // 2, shape[1] // 2] += amount
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    return change


FEED_FORWARD = (128, 512)


class TestTheExport:
    @pytest.mark.parametrize("name", ["bert", "classes", "vit", "sound"])
    def test_answers_like_pytorch_at_every_shape(self, shop, name):
        report = verify(shop, f"{name}:fp32")
        assert report.exit_code == 0, report.failures
        assert (report.against, report.precision) == ("source", "fp32")
        assert report.facts["reference"]["provider"] == "torch"
        names = [case.name for case in report.cases]
        expected = {
            "bert": {"golden", "1x1", "1x17", "1x128", "2x17 padded", "2x128 padded", "8x17", "8x17 padded"},
            "vit": {"golden", "1x1", "2x1", "8x1"},
        }
        assert expected.get(name, set()) <= set(names)
        if name == "sound":
            lengths = {case.shapes["input_values"][1] for case in report.cases}
            assert len(lengths) >= 3
            assert any("padded" in case for case in names)

    def test_real_rows(self, shop, sentences):
        report = verify(shop, "classes:fp32", data=sentences, samples=20, batch=8, sweep=False)
        assert [case.inputs for case in report.cases] == ["golden", "data", "data", "data"]
        assert sum(len(case.agreement["top1"]) for case in report.cases if case.inputs == "data") == 20
        assert report.facts["data"]["rows_used"] == 20
        assert len(report.facts["data"]["sha256"]) == 64


class TestPlanted:
    def test_one_weight(self, shop):
        ref = planted(shop, "bert@1:fp32", perturb(FEED_FORWARD, 0.5))
        report = verify(shop, ref)
        assert report.exit_code == 1
        assert any("max difference" in failure for failure in report.failures)

    def test_nan(self, shop):
        report = verify(shop, planted(shop, "bert@1:fp32", perturb(FEED_FORWARD, np.nan)))
        assert report.exit_code == 1
        assert all("NaN" in failure or "cosine -1" in failure for failure in report.failures)
        json.dumps(report.to_json(), allow_nan=False)

    def test_swapped_outputs(self, shop):
        def swap(model):
            first, second = (output.name for output in model.graph.output)
            names = {first: second, second: first}
            for node in model.graph.node:
                node.output[:] = [names.get(name, name) for name in node.output]
                node.input[:] = [names.get(name, name) for name in node.input]

        report = verify(shop, planted(shop, "bert@1:fp32", swap))
        assert report.exit_code == 1
        assert any("shape" in failure for failure in report.failures)

    def test_a_lost_output(self, shop):
        report = verify(shop, planted(shop, "bert@1:fp32", lambda model: model.graph.output.pop()))
        assert report.exit_code == 1
        assert "the reference answers with last_hidden_state, pooler_output" in report.failures[0]

    def test_a_batch_baked_into_the_graph(self, shop):
        """Right at the golden shape, wrong everywhere else: what a careless export makes."""

        rows = len(Golden.load(shop.get("bert:fp32").path).inputs["input_ids"])

        def bake(model):
            for end in (*model.graph.input, *model.graph.output):
                end.type.tensor_type.shape.dim[0].dim_value = rows

        report = verify(shop, planted(shop, "bert@1:fp32", bake))
        assert report.exit_code == 1
        failed = {case.name for case in report.cases if case.error}
        assert {"1x1", "8x17"} <= failed
        assert "golden" not in failed

    def test_a_mask_that_is_not_looked_at_fails_on_padding_only(self, shop):
        def ignore(model):
            ones = onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["all_true"])
            cast = onnx.helper.make_node("Cast", ["all_true"], ["all_ones"], to=onnx.TensorProto.INT64)
            for node in model.graph.node:
                node.input[:] = ["all_ones" if name == "attention_mask" else name for name in node.input]
            model.graph.node.insert(0, cast)
            model.graph.node.insert(0, ones)

        report = verify(shop, planted(shop, "bert@1:fp32", ignore))
        failed = {failure.partition(",")[0].partition(":")[0] for failure in report.failures}
        assert "2x17 padded" in failed
        assert "2x17" not in failed

    def test_garbage_at_padded_positions_passes(self, shop):
        def garbage(model):
            output = model.graph.output[0].name
            for node in model.graph.node:
                node.output[:] = ["clean" if name == output else name for name in node.output]
                node.input[:] = ["clean" if name == output else name for name in node.input]
            make = onnx.helper.make_node
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "last"))
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1e6, np.float32), "huge"))
            model.graph.node.extend(
                [
                    make("Cast", ["attention_mask"], ["flag"], to=onnx.TensorProto.BOOL),
                    make("Unsqueeze", ["flag", "last"], ["flags"]),
                    make("Where", ["flags", "clean", "huge"], [output]),
                ]
            )

        ref = planted(shop, "bert@1:fp32", garbage)
        report = verify(shop, ref)
        assert report.exit_code == 0, report.failures
        assert any("padded" in case.name for case in report.cases)

    def test_the_judge_is_what_fails_it(self, shop, monkeypatch):
        """The tests above would pass with a verify that fails everything; this one is its mutation."""
        ref = planted(shop, "bert@1:fp32", perturb(FEED_FORWARD, 0.5))
        monkeypatch.setattr(parity, "judge", lambda results, tolerance, **more: [])
        assert verify(shop, ref).exit_code == 0


class TestTolerances:
    def test_they_follow_the_precision_and_can_be_overruled(self, shop):
        small = optimizer.quantize_dynamic("bert:fp32", store=shop).artifact
        report = verify(shop, small.ref)
        assert (report.precision, report.tolerance) == ("int8", parity.TOLERANCES[Precision.INT8])
        assert report.exit_code == 0, report.failures
        assert verify(shop, small.ref, min_cosine=0.999999).exit_code == 1
        assert verify(shop, small.ref, max_abs=1e-6).exit_code == 1
        strict = verify(shop, small.ref, max_abs=10.0, min_cosine=0.5, min_top1=None)
        assert strict.tolerance == parity.Tolerance(10.0, 0.5, 0.95)

    def test_a_graph_that_was_compiled_with_tf32_is_held_to_what_that_can_be(self, shop, monkeypatch):
        """It cannot be told otherwise any more; all else is opened without."""
        real = OrtSession.__init__

        def rounds(self, *given, **more):
            real(self, *given, **more)
            self.facts["tf32"] = True

        monkeypatch.setattr(OrtSession, "__init__", rounds)
        report = verify(shop, "bert:fp32", against="golden")
        assert (report.precision, report.tolerance) == ("fp16", parity.TOLERANCES[Precision.FP16])

    def test_decisions_can_be_asked_for_where_there_are_some(self, shop, sentences):
        assert verify(shop, "classes:fp32", min_top1=1.0, sweep=False, data=sentences, samples=8).exit_code == 0
        with pytest.raises(BadInput, match="feature-extraction has none"):
            verify(shop, "bert:fp32", min_top1=0.9)

    def test_the_coarsest_format_on_the_way_decides(self, shop):
        from optimizer.benching.candidates import parse

        def precision(text):
            entrant = parse(text, shop)
            return precision_of(entrant.artifact, entrant.candidate)

        optimizer.cast("bert:fp32", to="fp16", store=shop)
        assert precision("bert:fp32") is Precision.FP32
        assert precision("bert:fp32+openvino:bf16") is Precision.BF16
        assert precision("bert:fp16") is Precision.FP16


class TestReferences:
    def test_another_artifact(self, shop):
        fused = optimizer.ort_optimize("bert:fp32", store=shop).artifact
        report = verify(shop, fused.ref, against="bert:fp32")
        assert (report.exit_code, report.against) == (0, "bert:fp32")
        assert report.facts["reference"]["provider"] == "cpu"
        with pytest.raises(UnknownName, match="fp32"):
            verify(shop, "bert:fp32", against="bert:fp33")

    def test_another_task_is_no_reference(self, shop):
        report = verify(shop, "bert:fp32", against="classes:fp32")
        assert report.exit_code == 1
        assert "the reference answers with logits" in report.failures[0]

    def test_golden_answers_need_no_pytorch(self, shop):
        script = (
            "import sys\n"
            "class Block:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] in ('torch', 'transformers'):\n"
            "            raise ImportError(name)\n"
            "sys.meta_path.insert(0, Block())\n"
            "import optimizer\n"
            f"report = optimizer.verify(sys.argv[1], against='golden', threads=1, store={str(shop.root)!r})\n"
            "print(report.exit_code, report.against, [case.name for case in report.cases])\n"
        )
        bad = planted(shop, "bert@1:fp32", perturb(FEED_FORWARD, 0.5))
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        for ref, code in (("bert:fp32", 0), (bad, 1)):
            ran = subprocess.run(
                [sys.executable, "-c", script, ref], capture_output=True, text=True, env=env, timeout=120, check=False
            )
            assert ran.stdout.strip() == f"{code} golden ['golden']", ran.stderr

    def test_golden_answers_to_other_rows_do_not_exist(self, shop, sentences):
        with pytest.raises(BadInput, match="no golden answers to compare with"):
            verify(shop, "bert:fp32", against="golden", data=sentences)

    def test_a_source_that_moved(self, tmp_path):
        store = Store(tmp_path / "models")
        folder = save("bert", "feature-extraction", tmp_path / "source")
        optimizer.export_onnx(str(folder), name="b", store=store)
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-4:] = bytes(4)
        weights.write_bytes(content)
        with pytest.raises(BadInput, match="is not the model any more") as caught:
            verify(store, "b:fp32")
        assert "--against golden" in caught.value.hint
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(BadInput, match="not there any more"):
            verify(store, "b:fp32")
        assert verify(store, "b:fp32", against="golden").exit_code == 0


class TestBringYourOwn:
    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_batch_that_is_written_into_the_model(self, store, tmp_path, rows):
        proto = graphs.linear()
        for end in (*proto.graph.input, *proto.graph.output):
            end.type.tensor_type.shape.dim[0].dim_value = rows
        ref = graphs.put(store, tmp_path, proto)
        report = verify(store, ref)
        assert report.exit_code == 0, report.failures
        assert {case.shapes["x"][0] for case in report.cases} == {rows}

    def test_an_input_without_a_batch(self, store, tmp_path):
        proto = graphs.linear()
        proto.graph.node[1].output[0] = "s"
        proto.graph.node.append(graphs.node("Mul", "s scale", "y"))
        proto.graph.input.append(graphs.value("scale", []))
        report = verify(store, graphs.put(store, tmp_path, proto))
        assert report.exit_code == 0, report.failures
        assert {case.shapes["x"][0] for case in report.cases} >= {1, 2, 8}


class TestUsage:
    def test_what_leaves_nothing_to_compare(self, shop):
        with pytest.raises(BadInput, match="leaves nothing to compare on"):
            verify(shop, "bert:fp32", sweep=False)

    def test_a_provider_is_named_once(self, shop):
        with pytest.raises(BadInput, match="names its provider"):
            verify(shop, "bert:fp32+cpu", provider="cpu")

    def test_no_artifact(self, shop, tmp_path):
        path = tmp_path / "m.onnx"
        onnx.save(graphs.linear(), str(path))
        with pytest.raises(BadInput, match="is not an artifact"):
            verify(shop, str(path))

    def test_a_damaged_artifact_is_not_judged(self, tmp_path):
        store = Store(tmp_path / "models")
        artifact = store.get(graphs.put(store, tmp_path, graphs.linear()))
        content = bytearray(artifact.model_file.read_bytes())
        content[-1] ^= 1
        artifact.model_file.write_bytes(content)
        with pytest.raises(Damaged):
            verify(store, artifact.ref)

    def test_the_report_says_it_all_in_json(self, shop):
        data = json.loads(json.dumps(verify(shop, "classes:fp32").to_json(), allow_nan=False))
        assert data["passed"]
        assert data["facts"]["environment"]
        assert data["worst"]["outputs"]["logits"]["max_abs"] < 1e-4
