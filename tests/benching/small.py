"""A store with one small ONNX model, made without an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.artifact import Artifact
from optimizer.data.golden import Golden
from optimizer.digest import digest_file
from optimizer.manifest import Manifest
from optimizer.readback import read_back
from optimizer.store import Store, file_entries
from optimizer.types import Kind

WIDTH = 8


def mean_of_embeddings(path: Path, noise: float = 0.0) -> None:
    """``ids, mask [batch, sequence]`` → ``last_hidden_state [batch, sequence, 8]``: a table look-up and a MatMul."""
    random = np.random.default_rng(0)
    table = random.standard_normal((50, WIDTH)).astype(np.float32)
    weight = (random.standard_normal((WIDTH, WIDTH)) + noise * random.standard_normal((WIDTH, WIDTH))).astype(
        np.float32
    )
    dims = ["batch", "sequence"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["looked_up"]),
            helper.make_node("MatMul", ["looked_up", "weight"], ["mixed"]),
            helper.make_node("Cast", ["attention_mask"], ["keep"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["keep", "last"], ["keep3"]),
            helper.make_node("Mul", ["mixed", "keep3"], ["last_hidden_state"]),
        ],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*dims, WIDTH])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([-1]), "last"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def add(store: Store, variant: str, source: Path, *, noise: float = 0.0, **model: object) -> Artifact:
    """Put the small model into a store as ``small@1:<variant>``."""
    came_from = {"type": "folder", "spec": str(source), "path": str(source), "digest": "0" * 64, "revision": ""}
    with store.scratch() as scratch:
        mean_of_embeddings(scratch.path / "model.onnx", noise)
        ids = np.array([[3, 4, 5, 0], [6, 7, 8, 9]])
        mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
        Golden({"input_ids": ids, "attention_mask": mask}, {}).save(scratch.path)
        manifest = Manifest(
            kind=Kind.ONNX,
            key=variant,
            stage={"name": "test", "version": 1},
            source=came_from,
            model={
                "task": "feature-extraction",
                "modality": "text",
                "pooling": "mean",
                "max_length": 64,
                "source": came_from,
                **model,
            },
            options={},
            facts=read_back(Kind.ONNX, scratch.path),
            files=file_entries(scratch.path, digest_file),
            environment={},
            command="",
            seconds=0.0,
            created="",
        )
        manifest.write(scratch.path)
        return store.commit(scratch, "small", came_from, variant, variant)


@pytest.fixture
def small_store(tmp_path: Path) -> Store:
    """``small:fp32`` and ``small:noisy``; their source is a folder that is not there any more."""
    store = Store(tmp_path / "store")
    add(store, "fp32", tmp_path / "gone")
    add(store, "noisy", tmp_path / "gone", noise=0.3)
    return store
