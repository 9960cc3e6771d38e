"""Bring-your-own ONNX: whatever people bring is taken and proven, or refused by name."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporting import byo
from onnx import TensorProto, helper, numpy_helper

import optimizer
from optimizer.data.golden import Golden
from optimizer.errors import BadInput, GateFailed


def bring(proto, tmp_path, store, **options):
    path = byo.write(proto, tmp_path / "m.onnx")
    return optimizer.export_onnx(str(path), name="m", store=store, **options).artifact


def agrees(artifact, store):
    """Verify an import against its file over the sweep; the report's case names."""
    report = optimizer.verify(artifact.ref, store=store, threads=1)
    assert report.failures == ()
    return [case.name for case in report.cases]


def refused(proto, tmp_path, store, match, error=BadInput, **options):
    with pytest.raises(error, match=match):
        bring(proto, tmp_path, store, **options)
    assert byo.untouched(store)


@pytest.mark.parametrize(
    "proto",
    [
        byo.linear(opset=7, ir=3),
        byo.linear(opset=11, ir=6),
        byo.linear(opset=16),
        byo.linear(dtype=np.float64, data_type=TensorProto.DOUBLE),
        byo.linear(dtype=np.float16, data_type=TensorProto.FLOAT16),
        byo.linear(rows=None),
        byo.with_if(),
        byo.with_loop(),
        byo.with_function(),
        byo.conv(),
        byo.conv(side=224),
    ],
    ids=[
        "opset7",
        "opset11",
        "opset16",
        "float64",
        "float16",
        "unnamed",
        "if",
        "loop",
        "function",
        "conv",
        "conv-fixed",
    ],
)
def test_graphs_of_every_sort_answer_as_before(proto, tmp_path, store):
    artifact = bring(proto, tmp_path, store)
    assert artifact.manifest.warnings == []
    assert agrees(artifact, store) == ["golden", "1x1", "2x1", "8x1"]
    assert artifact.manifest.facts["opset"][""] == proto.opset_import[0].version
    assert artifact.manifest.facts["weights"]  # those of subgraphs and functions are counted


def test_magika(tmp_path, store):
    spec = importlib.util.find_spec("magika")
    path = next(Path(spec.origin).parent.rglob("model.onnx"))
    artifact = optimizer.export_onnx(str(path), name="magika", store=store).artifact
    assert artifact.manifest.model["inputs"] == [{"name": "bytes", "dtype": "int32", "shape": ["unk__214", 2048]}]
    assert artifact.manifest.model["limits"] == {}  # one-hot takes any number
    golden = Golden.load(artifact.path)
    assert golden.inputs["bytes"].max() > 200  # values spread over the table, not zeros and ones
    assert agrees(artifact, store)


@pytest.mark.parametrize("data_type", [TensorProto.INT32, TensorProto.INT64])
def test_whole_numbers_stay_inside_the_table_they_index(data_type, tmp_path, store):
    artifact = bring(byo.embedding(data_type, vocab=7), tmp_path, store)
    assert artifact.manifest.model["limits"] == {"ids": [0, 6]}
    ids = Golden.load(artifact.path).inputs["ids"]
    assert ids.min() >= 0
    assert ids.max() == 6
    assert agrees(artifact, store)[1:] == ["1x1", "1x17", "1x512", "2x1", "2x17", "2x512", "8x1", "8x17"]


def test_a_batch_that_is_fixed_stays_so(tmp_path, store):
    artifact = bring(byo.linear(rows=3), tmp_path, store)
    assert artifact.manifest.model["max_batch"] == 3
    assert agrees(artifact, store) == ["golden", "1x1"]
    assert Golden.load(artifact.path).inputs["x"].shape == (3, 4)
    with pytest.raises(BadInput, match="--max-batch 8 cannot be: the file takes batches of 3"):
        optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store, max_batch=8)
    with pytest.raises(BadInput, match="every dimension of this file is fixed"):
        optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store, max_length=8)


def test_an_open_batch_that_only_takes_one_row_is_found_out(tmp_path, store):
    proto = byo.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, [1, 2, 2])],
        [numpy_helper.from_array(np.array([1, 2, 2]), "shape")],
    )
    artifact = bring(proto, tmp_path, store)
    assert artifact.manifest.model["max_batch"] == 1
    assert "one row at a time" in artifact.manifest.warnings[0]
    assert agrees(artifact, store) == ["golden", "1x1"]


def test_the_longest_sequence_is_found_out(tmp_path, store):
    proto = byo.model(
        [
            helper.make_node("Shape", ["x"], ["n"], start=1, end=2),
            helper.make_node("Squeeze", ["n"], ["count"]),
            helper.make_node("Range", ["zero", "count", "one"], ["places"]),
            helper.make_node("Gather", ["table", "places"], ["y"]),
        ],
        [byo.value("x", TensorProto.FLOAT, ["batch", "sequence"])],
        [byo.value("y", TensorProto.FLOAT, ["sequence", 2])],
        [byo.weight("table", 128, 2), *(numpy_helper.from_array(np.int64(n), k) for n, k in ((0, "zero"), (1, "one")))],
    )
    artifact = bring(proto, tmp_path, store)
    assert (artifact.manifest.model["min_length"], artifact.manifest.model["max_length"]) == (1, 128)
    assert "does not take 512 steps" in artifact.manifest.warnings[0]
    assert "2x128" in agrees(artifact, store)


def test_unnamed_dimensions_of_two_inputs_are_their_own(tmp_path, store):
    proto = byo.model(
        [helper.make_node("ReduceSum", ["b"], ["s"], keepdims=0), helper.make_node("Add", ["a", "s"], ["y"])],
        [byo.value("a", TensorProto.FLOAT, [2, None]), byo.value("b", TensorProto.FLOAT, [5, None, 3])],
        [byo.value("y", TensorProto.FLOAT, [2, None])],
    )
    artifact = bring(proto, tmp_path, store)
    assert [i["shape"] for i in artifact.manifest.facts["inputs"]] == [[2, "dim_0_1"], [5, "dim_1_1", 3]]
    assert agrees(artifact, store)


def test_initializers_among_the_inputs_are_not_fed(tmp_path, store):
    proto = byo.linear(opset=8, ir=3)
    proto.graph.input.extend(byo.value(i.name, i.data_type, list(i.dims)) for i in proto.graph.initializer)
    artifact = bring(proto, tmp_path, store)
    assert [i["name"] for i in artifact.manifest.facts["inputs"]] == ["x"]
    assert agrees(artifact, store)


def test_weights_behind_identity_and_shared_by_two_nodes(tmp_path, store):
    proto = byo.model(
        [
            helper.make_node("Identity", ["w"], ["w2"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "w2"], ["y"]),
        ],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 4])],
        [byo.weight("w", 4, 4)],
    )
    assert agrees(bring(proto, tmp_path, store), store)


def test_a_model_without_weights(tmp_path, store):
    proto = byo.model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 4])],
    )
    artifact = bring(proto, tmp_path, store)
    assert artifact.manifest.facts["weights"] == {}
    assert agrees(artifact, store)


def test_a_scalar_input_is_fed_as_it_is(tmp_path, store):
    proto = byo.model(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4]), byo.value("k", TensorProto.FLOAT, [])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 4])],
    )
    artifact = bring(proto, tmp_path, store)
    assert Golden.load(artifact.path).inputs["k"].shape == ()
    assert agrees(artifact, store) == ["golden", "1x1", "2x1", "8x1"]


def test_a_batch_normalization_left_in_training_mode(tmp_path, store):
    proto = byo.model(
        [helper.make_node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "m", "v"], training_mode=1)],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 4])],
        [byo.weight("s", 4)],
    )
    assert agrees(bring(proto, tmp_path, store), store)


def test_a_model_that_draws_random_numbers_says_so(tmp_path, store):
    proto = byo.model(
        [helper.make_node("RandomNormalLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 4])],
        opset=15,
    )
    assert "different answers twice" in bring(proto, tmp_path, store).manifest.warnings[0]
    with pytest.raises(BadInput, match=r"cannot be checked: .*different answers"):
        optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store, opset=20)


# --- what cannot be used is refused by name


def test_values_that_are_no_tensors_of_numbers(tmp_path, store):
    x = byo.value("x", TensorProto.FLOAT, ["batch", 4])
    sequence = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    split = byo.model([helper.make_node("SplitToSequence", ["x"], ["parts"])], [x], [sequence])
    refused(split, tmp_path, store, r"output 'parts' is sequence\(float32\); only tensors of plain numbers")
    maybe = helper.make_value_info("o", helper.make_optional_type_proto(x.type))
    optional = byo.model([helper.make_node("Optional", ["x"], ["o"])], [x], [maybe])
    refused(optional, tmp_path, store, r"output 'o' is optional\(float32\)")
    word = byo.value("word", TensorProto.STRING, ["batch"])
    strings = byo.model(
        [helper.make_node("Identity", ["word"], ["z"])], [word], [byo.value("z", TensorProto.STRING, ["batch"])]
    )
    refused(strings, tmp_path, store, "input 'word' is string")


def test_a_map_is_named(tmp_path, store):
    proto = byo.linear()
    key = proto.graph.output[0].type.sequence_type.elem_type.map_type
    key.key_type = TensorProto.INT64
    key.value_type.tensor_type.elem_type = TensorProto.FLOAT
    refused(proto, tmp_path, store, "has a type of value that is not known here: Map types")


def test_a_model_without_inputs(tmp_path, store):
    constant = helper.make_node("Constant", [], ["y"], value=byo.weight("w", 2))
    proto = byo.model([constant], [], [byo.value("y", TensorProto.FLOAT, [2])])
    refused(proto, tmp_path, store, "has no inputs")


def test_what_onnx_runtime_cannot_load(tmp_path, store):
    unknown = byo.linear()
    unknown.graph.node[0].op_type = "NoSuchOperator"
    refused(unknown, tmp_path, store, "ONNX Runtime cannot load .*NoSuchOperator")
    twice = byo.linear()
    twice.graph.node[1].output[0] = "h"
    twice.graph.output[0].name = "h"
    refused(twice, tmp_path, store, "m.onnx")


@pytest.mark.parametrize("content", [b"this is text, and no protobuf at all\n" * 9, b"", b"\x00" * 64, b"\x08\x0a"])
def test_files_that_are_not_onnx(content, tmp_path, store):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"m\.onnx is (not an ONNX model|empty)"):
        optimizer.export_onnx(str(path), store=store)
    assert byo.untouched(store)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short(share, tmp_path, store):
    whole = byo.linear(width=500).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=r"m\.onnx"):
        optimizer.export_onnx(str(path), store=store)
    assert byo.untouched(store)


# --- weights in files of their own


def test_external_weights_come_along(tmp_path, store):
    artifact = optimizer.export_onnx(str(byo.external(tmp_path)), name="m", store=store).artifact
    assert set(artifact.manifest.files) == {"model.onnx", "golden.npz"}
    assert agrees(artifact, store)
    # Other weights are another version, though model and file names are the same.
    (tmp_path / "weights.bin").write_bytes(np.ones(12, np.float32).tobytes())
    again = optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store).artifact
    assert (artifact.ref, again.ref) == ("m@1:fp32", "m@2:fp32")


def test_external_weights_in_a_folder_below(tmp_path, store):
    (tmp_path / "sub").mkdir()
    path = byo.external(tmp_path, "sub/./weights.bin")
    (tmp_path / "weights.bin").rename(tmp_path / "sub" / "weights.bin")
    assert agrees(optimizer.export_onnx(str(path), name="m", store=store).artifact, store)


@pytest.mark.parametrize(
    ("location", "entry", "match"),
    [
        ("gone.bin", {}, "weights file gone.bin is missing"),
        ("../secret.bin", {}, "outside the model's folder"),
        ("/etc/hostname", {}, "outside the model's folder"),
        ("sub/../../secret.bin", {}, "outside the model's folder"),
        ("weights.bin", {"offset": 16}, "weights.bin is cut short"),
        ("weights.bin", {"length": 8}, "takes 48 bytes, and its entry names 8"),
        ("weights.bin", {"offset": -8}, "m.onnx is not an ONNX model"),
    ],
)
def test_external_weights_that_cannot_be_trusted(location, entry, match, tmp_path, store):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    path = byo.external(folder, location, **entry)
    with pytest.raises(BadInput, match=match):
        optimizer.export_onnx(str(path), store=store)
    assert byo.untouched(store)


def test_weights_that_are_links_are_refused_with_the_cure(tmp_path, store):
    path = byo.external(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}.bin"
    (tmp_path / "weights.bin").rename(outside)
    (tmp_path / "weights.bin").symlink_to(outside)
    with pytest.raises(BadInput, match=r"is a link to .*\n.*copy the model's own files"):
        optimizer.export_onnx(str(path), store=store)
    (tmp_path / "weights.bin").unlink()
    os.link(outside, tmp_path / "weights.bin")
    with pytest.raises(BadInput, match="hard link"):
        optimizer.export_onnx(str(path), store=store)


def test_weights_that_a_constant_keeps_outside_are_checked_too(tmp_path, store):
    constant = helper.make_node("Constant", [], ["w"], value=byo.weight("w", 4, 3))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    proto = byo.model(
        [constant, helper.make_node("MatMul", ["x", "w"], ["y"])],
        [byo.value("x", TensorProto.FLOAT, ["batch", 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 3])],
    )
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(BadInput, match="weights of 'w' lie outside the model's folder"):
        optimizer.export_onnx(str(tmp_path / "m.onnx"), store=store)


def test_a_link_to_a_model_file_is_followed(tmp_path, store):
    byo.write(byo.linear(), tmp_path / "blob")
    (tmp_path / "m.onnx").symlink_to(tmp_path / "blob")
    assert agrees(optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store).artifact, store)


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path, store):
    """The weights are a hole in a file: 2.2 GB of zeros that take no room until the store copies them."""
    rows, width = 2_200, 250_000
    proto = byo.model(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [byo.value("ids", TensorProto.INT64, ["batch"])],
        [byo.value("y", TensorProto.FLOAT, ["batch", width])],
    )
    table = proto.graph.initializer.add(name="table", data_type=TensorProto.FLOAT, dims=[rows, width])
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="table.bin")
    with open(tmp_path / "table.bin", "wb") as data:
        data.truncate(rows * width * 4)
        data.seek((rows - 1) * width * 4)
        data.write(np.arange(width, dtype=np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    artifact = optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store).artifact
    assert {"model.onnx", "model.onnx.data"} < set(artifact.manifest.files)
    assert artifact.manifest.facts["weights"] == {"float32": rows * width * 4}
    last = byo.answers(artifact.model_file, {"ids": np.array([rows - 1])})[0]
    assert np.array_equal(last[0], np.arange(width, dtype=np.float32))
    with pytest.raises(BadInput, match="more than 2 GB of weights"):
        optimizer.export_onnx(str(tmp_path / "m.onnx"), name="m", store=store, opset=21)
    for path in (tmp_path / "table.bin", artifact.path / "model.onnx.data"):
        path.unlink()


# --- --opset


@pytest.mark.parametrize("make", [byo.linear, byo.with_if, lambda opset: byo.embedding(opset=opset)])
def test_an_upgrade_answers_as_before(make, tmp_path, store):
    artifact = bring(make(opset=15), tmp_path, store, opset=20)
    assert artifact.manifest.facts["opset"][""] == 20
    assert artifact.manifest.facts["converted"] == {"from": 15, "to": 20}
    assert artifact.variant == "fp32-opset20"
    assert agrees(artifact, store)


def test_a_downgrade_is_refused(tmp_path, store):
    refused(byo.linear(opset=20), tmp_path, store, "--opset 18 is below the file's own 20", opset=18)


@pytest.mark.parametrize("opset", [16, 25])
def test_an_opset_out_of_range(opset, tmp_path, store):
    refused(byo.linear(), tmp_path, store, f"--opset .*{opset}|{opset}.*--opset|opset", opset=opset)


def test_a_conversion_that_really_changes_answers_is_caught(tmp_path, store):
    """ONNX 1.23 turns Upsample into a Resize that counts its coordinates in another way."""
    proto = byo.model(
        [helper.make_node("Upsample", ["x", "scales"], ["y"], mode="linear")],
        [byo.value("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [byo.value("y", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
        opset=9,
        ir=4,
    )
    refused(proto, tmp_path, store, "output 'y' is not what the file answered before", GateFailed, opset=20)


def test_a_conversion_that_changes_answers_fails(tmp_path, store, monkeypatch):
    convert = onnx.version_converter.convert_version

    def spoilt(proto, opset):
        made = convert(proto, opset)
        next(i for i in made.graph.initializer if i.name == "b").raw_data = np.full(3, 9, np.float32).tobytes()
        return made

    monkeypatch.setattr(onnx.version_converter, "convert_version", spoilt)
    refused(byo.linear(opset=15), tmp_path, store, "output 'y' is not what the file answered", GateFailed, opset=20)


# --- options that are for folders


@pytest.mark.parametrize("option", [{"revision": "main"}, {"trust_remote_code": True}, {"allow_pickle": True}])
def test_options_for_folders_are_refused(option, tmp_path, store):
    flag = "--" + next(iter(option)).replace("_", "-")
    refused(byo.linear(), tmp_path, store, flag, **option)


def test_the_task_of_a_file_must_exist(tmp_path, store):
    refused(
        byo.linear(),
        tmp_path,
        store,
        "unknown task: 'txt-classification'; did you mean text",
        task="txt-classification",
    )
