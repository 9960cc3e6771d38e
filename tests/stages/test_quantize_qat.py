"""Training for int8, from a model folder to a graph that answers like what was trained."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny import phrases, tiny_bert, two_layers, write

import optimizer
from optimizer.errors import BadInput
from optimizer.store import Store

LABELS = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
TAGS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "label2id": {"O": 0, "B-X": 1, "I-X": 2}}


def texts(path: Path, count: int, seed: int, label: Callable[[list[str]], Any] | None = None) -> Path:
    rows = [
        {"tokens": words, "tags": label(words)} if label is tagged
        else {"text": " ".join(words), **({"label": label(words)} if label else {})}
        for words in phrases(count, seed)
    ]  # fmt: skip
    return write(path, rows)


def classed(words: list[str]) -> str:
    return list(LABELS["label2id"])[sum(map(len, words)) % 3]


def tagged(words: list[str]) -> list[str]:
    return ["B-X" if word[0] in "aeiou" else "O" for word in words]


def images(path: Path, count: int, seed: int) -> Path:
    drawn = np.random.default_rng(seed)
    label = np.arange(count) % 3
    shades = (drawn.integers(0, 80, (count, 16, 16)) + 80 * label[:, None, None]).astype(np.uint8)
    np.savez(path, image=shades, label=label)
    return path


def small_vision(folder: Path, name: str) -> Path:
    import torch
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config: Any
    if name == "vit":
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
            patch_size=4, num_channels=1, initializer_range=0.2, **LABELS,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS
        )
        model = transformers.ResNetForImageClassification(config)
        for each in model.modules():
            if isinstance(each, torch.nn.BatchNorm2d):  # as training leaves them: none of them changes nothing
                each.running_mean.normal_(0, 0.2)
                each.running_var.uniform_(0.5, 2)
                torch.nn.init.normal_(each.bias, 0, 0.2)
    model.save_pretrained(folder)
    ViTImageProcessorPil(
        do_resize=True, size={"height": 16, "width": 16}, do_rescale=True, do_normalize=True, image_mean=[0.5],
        image_std=[0.5],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def case(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """A model, and data to train on and to judge by."""
    if name in ("vit", "resnet"):
        source = small_vision(folder / name, name)
        return source, images(folder / "train.npz", 48, 1), images(folder / "eval.npz", 30, 2)
    label = {"classifier": classed, "tagger": tagged}.get(name)
    train, judged = (texts(folder / f"{n}.jsonl", c, s, label) for n, c, s in (("train", 48, 1), ("eval", 40, 2)))
    if name == "embedder":
        return two_layers(folder / name), train, judged
    head = {"classifier": "BertForSequenceClassification", "tagger": "BertForTokenClassification"}[name]
    return tiny_bert(folder / name, head, **(LABELS if name == "classifier" else TAGS)), train, judged


QUICK = {"epochs": 2, "batch": 8, "lr": 1e-4}


@pytest.mark.parametrize(
    ("name", "options", "metric"),
    [
        ("classifier", {}, "accuracy"),
        ("classifier", {"distill": False, "quantize_head": True}, "accuracy"),
        ("classifier", {"all_ops": True, "per_channel": False}, "accuracy"),
        ("tagger", {"target": "tensorrt"}, "f1"),
        ("tagger", {"distill": False}, "f1"),
        ("embedder", {"scheme": "w8a8-sym"}, "cosine"),
        ("embedder", {"scheme": "w4a16"}, "cosine"),
        ("vit", {}, "accuracy"),
        ("vit", {"scheme": "w4a16"}, "accuracy"),
        ("resnet", {"target": "tensorrt"}, "accuracy"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else value,
)
def test_the_graph_answers_like_the_model_that_was_trained(
    tmp_path: Path, name: str, options: dict[str, Any], metric: str
) -> None:
    source, train, judged = case(tmp_path, name)
    store = Store(tmp_path / "models")
    made = optimizer.quantize_qat(str(source), name="m", store=store, train=train, eval=judged, **QUICK, **options)
    facts = made.artifact.manifest.facts
    parity = facts["parity"]
    assert parity["rows"] == (30 if judged.suffix == ".npz" else 40)
    # The kernel of 4-bit weights rounds activations to 8 bits by blocks, which training leaves in float.
    assert parity["median"] < (0.1 if options.get("scheme") == "w4a16" else 2e-3)
    assert parity["agreement"] is None or parity["agreement"] > 0.95
    training = facts["training"]
    assert list(training["scores"]) == ["float", "calibrated", "trained"]
    assert metric in training["scores"]["trained"]
    assert training["scores"]["float"]["cosine"] == pytest.approx(1.0)
    assert training["data"]["rows"] == 48
    assert training["steps"] == 12
    judgements = [line for line in training["curve"] if "cosine" in line]
    assert [line["step"] for line in judgements] == [6, 12]
    assert judgements[-1]["cosine"] == training["scores"]["trained"]["cosine"]
    if options.get("scheme") == "w4a16":
        assert facts["blocks"]["bits"] == [4]
        assert made.artifact.variant == "int4-qat"
    else:
        assert facts["quantized"]["total"] >= 6
    kept = store.get(f"m:checkpoint-{made.artifact.variant.partition('-')[2]}" + ("-w4a16" * ("blocks" in facts)))
    assert made.artifact.manifest.source["ref"] == kept.ref
    assert kept.manifest.source["digest"] == store.version_source("m", 1)["digest"]
    assert not {"model.safetensors", "ranges.json", "probe.npz"} & set(made.artifact.manifest.files)
    assert "golden.npz" in made.artifact.manifest.files
    again = optimizer.quantize_qat(str(source), name="m", store=store, train=train, eval=judged, **QUICK, **options)
    assert again.cached
    assert not list((tmp_path / "models" / ".ml-opt").glob("training/*"))


def test_the_trained_model_is_a_folder_like_any_other(tmp_path: Path) -> None:
    """Also one whose batch normalization was folded: loaded from it, it answers in float as what was trained did."""
    import torch
    import transformers

    source, train, _ = case(tmp_path, "resnet")
    store = Store(tmp_path / "models")
    made = optimizer.train_qat(str(source), name="m", store=store, train=train, epochs=1, lr=0.0)
    kept = made.artifact
    assert kept.kind == "checkpoint"
    assert kept.manifest.facts["weights"]["float32"] > 10000
    before, after = (
        transformers.AutoModelForImageClassification.from_pretrained(folder).eval() for folder in (source, kept.path)
    )
    pixels = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(before(pixels).logits, after(pixels).logits, atol=1e-5)
    exported = optimizer.export_onnx(str(kept.path), name="again", store=store)
    assert exported.artifact.manifest.facts["quantized"]["total"] == 0


def test_training_brings_back_what_rounding_lost(tmp_path: Path) -> None:
    source, train, judged = case(tmp_path, "embedder")
    made = optimizer.train_qat(
        str(source), name="m", store=Store(tmp_path / "models"), train=train, eval=judged, all_ops=True,
        per_channel=False, scheme="w8a8-sym", epochs=15, batch=8, lr=1e-3,
    )  # fmt: skip
    scores = made.artifact.manifest.facts["training"]["scores"]
    lost, left = (1 - scores[when]["cosine"] for when in ("calibrated", "trained"))
    assert left < 0.6 * lost


def test_the_symmetric_graph_is_one_that_tensorrt_builds(tmp_path: Path) -> None:
    source, train, _ = case(tmp_path, "classifier")
    store = Store(tmp_path / "models")
    made = optimizer.quantize_qat(str(source), name="m", store=store, train=train, target="tensorrt", epochs=1)
    engine = optimizer.build_trt_engine(made.artifact.ref, store=store, flavor="rtx")
    assert engine.artifact.manifest.facts["layers"]["products"].get("int8", 0) >= 6


def test_one_training_serves_every_target(tmp_path: Path) -> None:
    """The same numbers, signed for TensorRT, unsigned for ONNX Runtime, which leaves signed products in float."""
    import onnx

    source, train, _ = case(tmp_path, "embedder")
    store = Store(tmp_path / "models")
    made = {
        target: optimizer.quantize_qat(
            str(source), name="m", store=store, train=train, scheme="w8a8-sym", target=target, epochs=1, variant=target
        )
        for target in ("ort", "tensorrt")
    }
    (trained,) = {each.artifact.manifest.source["ref"] for each in made.values()}
    assert trained == "m@1:checkpoint-qat-sym"
    feeds = {name: np.ones((2, 5), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    answers, kernels = [], []
    for each in made.values():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(each.artifact.model_file), options)
        answers.append(session.run(["last_hidden_state"], feeds)[0])
        nodes = onnx.load(str(tmp_path / "optimized.onnx")).graph.node
        kernels.append(sum(node.op_type == "MatMulIntegerToFloat" for node in nodes))
    assert np.allclose(*answers, atol=1e-4)
    assert kernels[0] == 12 > kernels[1]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("nothing to learn from", {"distill": False, "train": "plain"}, "has no label to learn from", "leave --no-distill"),
    ("unknown label", {"distill": False, "train": "odd"}, "the model knows no label 'maybe'", ""),
    ("unknown label to judge by", {"eval": "odd"}, "the model knows no label 'maybe'", ""),
    ("judged on what was learned", {"eval": "train"}, "48 rows of the evaluation data are in the training", "overlap"),
    ("unsigned for TensorRT", {"target": "tensorrt", "scheme": "w8a8"}, "TensorRT does not take", "w8a8-sym"),
    ("four bits everywhere", {"scheme": "w4a16", "all_ops": True}, "--all-ops is about 8-bit numbers", ""),
    ("not its task", {"task": "question-answering"}, "question-answering cannot be trained", "quantize static"),
    ("nothing there", {"train": "absent"}, "absent", ""),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    case(folder, "classifier")
    texts(folder / "plain.jsonl", 20, 3)
    write(folder / "odd.jsonl", [{"text": "a b", "label": "no"}, {"text": "b c", "label": "maybe"}])
    return folder


@pytest.mark.parametrize(("options", "message", "hint"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_bad_input(classifier: Path, tmp_path: Path, options: dict[str, Any], message: str, hint: str) -> None:
    files = {k: classifier / f"{v}.jsonl" for k, v in {"train": "train", **options}.items() if k in ("train", "eval")}
    store = Store(tmp_path / "models")
    with pytest.raises(BadInput, match=message) as refused:
        optimizer.quantize_qat(str(classifier / "classifier"), name="m", store=store, **{**options, **files})
    assert hint in refused.value.hint
    assert store.refs() == []


def test_judging_by_rows_that_were_learned_can_be_insisted_on(classifier: Path, tmp_path: Path) -> None:
    data = classifier / "train.jsonl"
    made = optimizer.train_qat(
        str(classifier / "classifier"), name="m", store=Store(tmp_path / "models"), train=data, eval=data,
        allow_overlap=True, max_steps=1,
    )  # fmt: skip
    assert made.artifact.manifest.facts["training"]["steps"] == 1


def test_an_onnx_file_cannot_be_trained(classifier: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    graph = optimizer.export_onnx(str(classifier / "classifier"), name="m", store=store).artifact.model_file
    with pytest.raises(BadInput, match=r"is an \.onnx file, which cannot be trained"):
        optimizer.quantize_qat(str(graph), name="n", store=store, train=classifier / "train.jsonl")


def command(classifier: Path, store: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "optimizer", "train-qat", str(classifier / "classifier"), "--name", "m", "--json"),
        *("--train", str(classifier / "train.jsonl"), "--epochs", "12", "--batch", "8", "--store", str(store), *more),
    ]


def begun(classifier: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    """A training that has its first whole checkpoint."""
    process = subprocess.Popen(
        command(classifier, store, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not list((store / ".ml-opt" / "training").glob("*/checkpoint-*/whole")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_a_command_that_was_killed_goes_on_to_the_same_weights(classifier: Path, tmp_path: Path) -> None:
    process = begun(classifier, tmp_path / "cut", "--checkpoint-every", "0")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list((tmp_path / "cut").glob("m/*/*/manifest.json"))
    facts, weights = [], []
    for store in ("cut", "whole"):
        done = subprocess.run(command(classifier, tmp_path / store), capture_output=True, text=True, check=True)
        facts.append(json.loads(done.stdout)["facts"]["training"])
        kept = Store(tmp_path / store).get("m:checkpoint-qat")
        weights.append({name: kept.manifest.files[name]["sha256"] for name in ("model.safetensors", "ranges.json")})
    assert 0 < facts[0]["resumed_at"] < 72
    assert facts[1]["resumed_at"] == 0
    assert weights[0] == weights[1]
    assert facts[0]["curve"] == facts[1]["curve"]


def test_ctrl_c_says_where_it_goes_on(classifier: Path, tmp_path: Path) -> None:
    process = begun(classifier, tmp_path, "--checkpoint-every", "0")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    assert Store(tmp_path).refs() == []
