"""Graphs small enough to know the answer of, and how runtimes open them."""

import json
import subprocess
import sys

import numpy as np
import onnx
import toys as toybox
from onnx import TensorProto, helper, numpy_helper

from optimizer.runtime import Provider, SessionOptions, get_runtime

FLOAT = TensorProto.FLOAT
WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
WIDE = np.random.default_rng(2).standard_normal((256, 64)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs, **attributes)


def write(path, nodes, *, inputs=None, outputs=None, weights=None, opset=20, ir=10, domains=(), external=None):
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [value("x", ["batch", 4])],
        outputs or [value("y", None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def matmul(path, **more):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return write(path, [node], weights={"w": WEIGHT}, **more)


def cdist(path):
    """Exp, CDist, Sin: ONNX Runtime has all three, OpenVINO has no CDist."""
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("CDist", ["a", "a"], ["b"], domain="com.microsoft", metric="euclidean"),
        helper.make_node("Sin", ["b"], ["y"]),
    ]
    return write(path, nodes, domains=["com.microsoft"])


def opened(path, provider="cpu", threads=1, extra=None, **model):
    parsed = Provider.parse(provider)
    return get_runtime(parsed).open(path, SessionOptions(parsed, threads, extra=extra or {}), model=model)


CHILD = """
import json, sys
from pathlib import Path
from optimizer.errors import MlOptError
from optimizer.runtime import Provider, SessionOptions, get_runtime
p = Provider(sys.argv[2])
try:
    session = get_runtime(p).open(Path(sys.argv[1]), SessionOptions(p, 1, extra=json.loads(sys.argv[3])), model={})
    print("opened", session.facts["provider"])
except MlOptError as e:
    print(e.message)
"""


def opened_in_a_child(path, provider, extra=None, **env):
    """What another process prints that opens a model: ``opened``, or the error."""
    words = [sys.executable, "-c", CHILD, str(path), provider, json.dumps(extra or {})]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=toybox.environment(**env))
