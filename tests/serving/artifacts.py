"""Artifacts made by hand in milliseconds: a layer of attention over letters, with its tokenizer and golden answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifact import Artifact
from optimizer.data.golden import Golden
from optimizer.digest import digest_file
from optimizer.manifest import Manifest
from optimizer.runtime import Provider, SessionOptions, get_runtime
from optimizer.store import Store, file_entries
from optimizer.types import Kind

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
LONGEST = 32
LABELS = ["cold", "warm", "hot"]
_WIDTH = 16


def write_graph(path: Path, head: str, seed: int = 0, *, blind: bool = False) -> None:
    """A layer of self-attention; what ``attention_mask`` hides is not attended to.

    Args:
        path: of the ``.onnx`` file.
        head: ``logits`` ``[batch, 3]``, or ``last_hidden_state`` ``[batch, sequence, 16]``.
        seed: of the weights.
        blind: pay no heed to the mask, as a wrong export does.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {"embedding": random.normal(size=(len(VOCABULARY), _WIDTH))}
    weights |= {name: random.normal(size=(_WIDTH, _WIDTH)) / 2 for name in ("wq", "wk", "wv")}
    weights["head"] = random.normal(size=(_WIDTH, len(LABELS)))
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    initializers += [numpy_helper.from_array(np.float32(-1e9 * (not blind)), "far")]
    initializers += [numpy_helper.from_array(np.float32(1), "one")]
    initializers += [numpy_helper.from_array(np.int64([1]), "axis1"), numpy_helper.from_array(np.int64([2]), "axis2")]
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x"]),
        *(node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Sub", ["one", "mask"], ["hidden"]),
        node("Unsqueeze", ["hidden", "axis1"], ["hidden3"]),
        node("Mul", ["hidden3", "far"], ["bias"]),
        node("Add", ["scores", "bias"], ["biased"]),
        node("Softmax", ["biased"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["last_hidden_state"]),
        node("Gather", ["last_hidden_state", "zero"], ["first"], axis=1),
        node("MatMul", ["first", "head"], ["logits"]),
    ]
    initializers.append(numpy_helper.from_array(np.int64(0), "zero"))
    shapes = {"logits": ["batch", 3], "last_hidden_state": ["batch", "sequence", _WIDTH]}
    kept = nodes if head == "logits" else nodes[:-2]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info(head, TensorProto.FLOAT, shapes[head])]
    graph = helper.make_graph(kept, "layer", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_tokenizer(folder: Path) -> None:
    """Each letter is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))


def golden_feeds() -> dict[str, np.ndarray]:
    """Four rows of different lengths."""
    random = np.random.default_rng(7)
    mask = np.arange(12)[None] < np.array([5, 12, 1, 8])[:, None]
    ids = random.integers(4, len(VOCABULARY), mask.shape) * mask
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}


def put(store: Store, name: str, head: str = "logits", seed: int = 0, variant: str = "fp32", blind: bool = False,
        spoil: float = 0.0) -> Artifact:  # fmt: skip
    """Commit such a model; another seed is another version.

    Args:
        spoil: added to the golden answers, which then are not the model's.
    """
    with store.scratch() as scratch:
        folder = scratch.path
        write_graph(folder / "model.onnx", head, seed, blind=blind)
        write_tokenizer(folder)
        session = get_runtime(Provider("cpu")).open(
            folder / "model.onnx", SessionOptions(Provider("cpu"), threads=1), model={}
        )
        feeds = golden_feeds()
        answers = session.run(feeds)
        Golden(feeds, {each: array + np.float32(spoil) for each, array in answers.items()}).save(folder)
        specs = {part: [spec.to_json() for spec in getattr(session, part)] for part in ("inputs", "outputs")}
        session.close()
        classes = head == "logits"
        model = {
            "task": "text-classification" if classes else "feature-extraction",
            "labels": LABELS if classes else [],
            "pooling": "" if classes else "mean",
            "max_length": LONGEST,
            "limits": {"input_ids": [0, len(VOCABULARY) - 1], "attention_mask": [0, 1]},
            **specs,
        }
        Manifest(
            kind=Kind.ONNX, key=f"{name}{head}{seed}{variant}".ljust(64, "0"), stage={"name": "by-hand", "version": 1},
            source={"digest": f"{name} {seed}"}, model=model, options={}, facts=specs,
            files=file_entries(folder, digest_file), environment={}, command="by hand", seconds=0.0,
            created="2026-11-26T00:00:00+00:00",
        ).write(folder)  # fmt: skip
        return store.commit(
            scratch, name, {"digest": f"{name} {seed}"}, variant, f"{name}{head}{seed}{variant}".ljust(64, "0")
        )
