"""Small graphs with known truths: where the outlier is, and what can be folded where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDE = 64
OUTLIER = 5


def graph(nodes: list[Any], weights: dict[str, Any], channels: int = WIDE, answer: str = "y") -> onnx.ModelProto:
    """A model of one input ``x`` [rows, channels] and one answer."""
    made = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", channels])],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, ["rows", None])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def outlier_model() -> onnx.ModelProto:
    """``first`` reads a channel 200 times larger than the rest, whose weights are smaller in turn; ``second`` reads
    nothing unusual.
    """
    random = np.random.default_rng(0)
    first = random.normal(size=(WIDE, WIDE)) / 8
    first[OUTLIER] /= 80
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    return graph(nodes, {"w1": first, "w2": random.normal(size=(WIDE, WIDE)) / 8})


def outlier_rows(count: int, seed: int = 1) -> np.ndarray[Any, Any]:
    rows = np.random.default_rng(seed).normal(size=(count, WIDE)).astype(np.float32)
    rows[:, OUTLIER] *= 200
    return rows


def write(folder: Path) -> tuple[Path, Path]:
    """The model and its calibration rows as files."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(outlier_model(), folder / "outlier.onnx")
    np.savez(folder / "rows.npz", x=outlier_rows(64))
    return folder / "outlier.onnx", folder / "rows.npz"


def answers(path: Path | bytes, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = path if isinstance(path, bytes) else str(path)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, {"x": rows})[0]
    return answer


def worst_cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(((left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min())
