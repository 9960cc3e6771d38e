import json
import shutil
from pathlib import Path

import pytest
from benching.small import add

from optimizer import runtime
from optimizer.benching.candidates import (
    Entrant,
    candidate_from_json,
    candidate_to_json,
    default_baseline,
    entrants,
    file_bytes,
    parse,
)
from optimizer.errors import BadInput, UnknownName
from optimizer.runtime import Candidate, Provider
from optimizer.source import resolve_source


def labels(refs, providers, store):
    return [entrant.label for entrant in entrants(refs, providers, store)]


def test_a_reference_runs_on_the_cpu_unless_told_otherwise(small_store):
    plain = parse("small:fp32", small_store).candidate
    assert str(plain.provider) == "cpu"
    assert plain.path.name == "model.onnx"
    assert plain.key == "fp32"
    assert [spec["name"] for spec in plain.model["inputs"]] == ["input_ids", "attention_mask"]
    for provider in ("openvino:bf16", "openvino-native:bf16"):
        assert str(parse(f"small:fp32+{provider}", small_store).candidate.provider) == provider


def test_a_provider_of_text_generators_runs_no_graph(small_store):
    with pytest.raises(UnknownName, match="fp32-kv8"):
        parse("small:fp32+openvino-native:fp32-kv8", small_store)
    with pytest.raises(UnknownName, match="fp32-kv9"):
        parse("small:fp32+openvino-native:fp32-kv9", small_store)


@pytest.mark.parametrize("here", ["openvino", "openvino-native"])
def test_an_artifact_may_prefer_a_provider(small_store, tmp_path, monkeypatch, here):
    """OpenVINO is meant in either of its forms; what was asked for by name is left as it is."""
    monkeypatch.setattr(runtime, "openvino_here", lambda: here)
    add(small_store, "bf16", tmp_path / "gone", prefers="openvino:bf16")
    assert str(parse("small:bf16", small_store).candidate.provider) == f"{here}:bf16"
    assert str(parse("small:bf16+openvino:bf16", small_store).candidate.provider) == "openvino:bf16"
    assert str(parse("small:bf16+cpu", small_store).candidate.provider) == "cpu"


def test_given_providers_go_to_references_that_name_none(small_store, tmp_path):
    fake = tmp_path / "f.json"
    fake.write_text("{}")
    refs = ["small:fp32", "small:noisy+openvino", f"fake:{fake}"]
    assert labels(refs, ["cpu", "openvino:bf16"], small_store) == [
        "small:fp32+cpu",
        "small:fp32+openvino:bf16",
        "small:noisy+openvino",
        f"fake:{fake}",
    ]


def test_the_same_twice_is_measured_twice(small_store):
    assert labels(["small:fp32", "small:fp32"], [], small_store) == ["small:fp32", "small:fp32 #2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small:fp32+opnvino", "did you mean openvino"),
        ("small:fp32+openvino:int4", "unknown precision of openvino"),
        ("small:fp32+torch", "does not run ONNX files"),
        ("small:fp23", "did you mean fp32"),
        ("nothing.onnx", "no such file: nothing.onnx"),
        ("some/where", "no such file: some/where"),
        ("torch:nowhere", "no such folder: nowhere"),
        ("fake:nowhere.json", "no such file: nowhere.json"),
        ("fake:nowhere.json+cpu", "leave .cpu out"),
        ("source", "put that reference first"),
    ],
)
def test_what_cannot_take_part_is_named(small_store, text, message):
    with pytest.raises(BadInput, match=message) as caught:
        parse(text, small_store)
    assert isinstance(caught.value, UnknownName) == ("unknown" in str(caught.value))


def test_a_file_with_a_plus_in_its_name_is_a_file(small_store, tmp_path):
    path = tmp_path / "a+b.onnx"
    path.write_bytes(parse("small:fp32", small_store).candidate.path.read_bytes())
    assert parse(str(path), small_store).candidate.path == path
    assert str(parse(f"{path}+openvino", small_store).candidate.provider) == "openvino"


def test_source_is_what_the_first_reference_came_from(small_store, tmp_path):
    first = small_store.get("small:fp32")
    with pytest.raises(BadInput, match="gone, which is not there any more"):
        parse("source", small_store, first)
    (tmp_path / "gone").mkdir()
    assert str(parse("source", small_store, first).candidate.provider) == "torch"
    found = parse("source:bf16", small_store, first)
    assert found.candidate.path == tmp_path / "gone"
    assert str(found.candidate.provider) == "torch:bf16"
    assert str(parse("source:compiled", small_store, first).candidate.provider) == "torch:compiled"
    with pytest.raises(UnknownName, match="precision of torch"):
        parse("source:int8", small_store, first)


def test_a_source_is_known_again_by_the_digest_of_its_files(small_store, tmp_path, minilm_dir):
    first = small_store.get("small:fp32")
    model = tmp_path / "gone"
    model.mkdir()
    assert parse("source", small_store, first).candidate.key == ""  # no model lies there
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(minilm_dir / name, model / name)
    (model / "model.safetensors").write_bytes(b"some weights")
    key = parse("source", small_store, first).candidate.key
    assert key == parse("source:bf16", small_store, first).candidate.key == resolve_source(str(model)).digest
    (model / "model.safetensors").write_bytes(b"other weights")
    assert parse("source", small_store, first).candidate.key not in ("", key)


def test_the_baseline_is_the_source_where_it_can_run(small_store, tmp_path):
    found = entrants(["small:noisy", "small:fp32"], [], small_store)
    assert default_baseline(found, small_store).label == "small:noisy"
    (tmp_path / "gone").mkdir()
    assert default_baseline(found, small_store).label == "source"


def test_a_torch_folder_may_carry_a_precision(small_store, tmp_path):
    found = parse(f"torch:{tmp_path}:bf16", small_store).candidate
    assert (found.path, str(found.provider)) == (tmp_path, "torch:bf16")
    found = parse(f"torch:{tmp_path}:compiled-bf16", small_store).candidate
    assert (found.path, str(found.provider)) == (tmp_path, "torch:compiled-bf16")
    assert str(parse(f"torch:{tmp_path}", small_store).candidate.provider) == "torch"


def test_size_is_of_graph_and_weights(small_store, tmp_path):
    import onnx

    entrant = parse("small:fp32", small_store)
    assert file_bytes(entrant) == entrant.candidate.path.stat().st_size
    outside = tmp_path / "big.onnx"
    onnx.save(
        onnx.load(entrant.candidate.path), outside, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert file_bytes(parse(str(outside), small_store)) == outside.stat().st_size + (tmp_path / "w.bin").stat().st_size
    (tmp_path / "m.xml").write_bytes(b"123")
    (tmp_path / "m.bin").write_bytes(b"1234")
    assert file_bytes(Entrant(Candidate("openvino", tmp_path / "m.xml", Provider("peer")))) == 7
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"12345")
    (folder / "README.md").write_text("not shipped")
    assert file_bytes(parse(f"torch:{folder}", small_store)) == 5


def test_a_candidate_survives_json(small_store):
    candidate = parse("small:fp32+openvino:bf16", small_store).candidate
    assert candidate_from_json(json.loads(json.dumps(candidate_to_json(candidate)))) == candidate
    assert isinstance(candidate_from_json(candidate_to_json(candidate)).path, Path)
