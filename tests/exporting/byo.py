"""Small ONNX files of every sort that people bring."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(dtype), name)


def value(name, dtype, shape):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), *, opset=20, ir=10, functions=(), domains=()):
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=imports, functions=list(functions))
    made.ir_version = ir
    return made


def write(proto, path):
    onnx.save(proto, str(path))
    return path


def linear(opset=20, *, ir=10, rows="batch", width=4, dtype=np.float32, data_type=TensorProto.FLOAT):
    """``y = x · w + b``."""
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        [value("x", data_type, [rows, width])],
        [value("y", data_type, [rows, 3])],
        [weight("w", width, 3, dtype=dtype), weight("b", 3, dtype=dtype)],
        opset=opset,
        ir=ir,
    )


def embedding(dtype=TensorProto.INT32, vocab=7, opset=20):
    """Whole numbers through a table."""
    return model(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [value("ids", dtype, ["batch", "sequence"])],
        [value("y", TensorProto.FLOAT, ["batch", "sequence", 3])],
        [weight("table", vocab, 3)],
        opset=opset,
    )


def with_if(opset=20):
    """Another weight for positive sums than for negative ones, each in its own subgraph."""
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w_{name}"], [f"o_{name}"])],
            name,
            [],
            [value(f"o_{name}", TensorProto.FLOAT, None)],
            [weight(f"w_{name}", 4, 3)],
        )
        for name in ("then", "else")
    ]
    return model(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(0), "zero")],
        opset=opset,
    )


def with_loop():
    """``x`` times a matrix, three times over."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state", TensorProto.FLOAT, None)],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
        [weight("w", 4, 4)],
    )
    return model(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.int64(3), "n"), numpy_helper.from_array(np.array(True), "yes")],
    )


def with_function():
    """The product lies in a function of the model, with its constant inside."""
    constant = helper.make_node("Constant", [], ["w"], value=weight("w", 4, 3))
    body = helper.make_function(
        "own", "Dense", ["a"], ["b"], [constant, helper.make_node("MatMul", ["a", "w"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    return model(
        [helper.make_node("Dense", ["x"], ["y"], domain="own")],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 3])],
        functions=[body],
        domains=["own"],
    )


def conv(side="h", rows="batch"):
    return model(
        [
            helper.make_node("Conv", ["x", "k"], ["c"], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["c"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, [rows, 3, side, side])],
        [value("y", TensorProto.FLOAT, [rows, 5, 1, 1])],
        [weight("k", 5, 3, 7, 7)],
    )


def external(folder: Path, location="weights.bin", length=None, offset=0):
    """A model whose 12 numbers lie in ``folder/weights.bin`` (48 bytes), named as ``location``."""
    proto = linear()
    raw = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(raw.raw_data)
    raw.ClearField("raw_data")
    raw.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, "offset": offset, "length": length or 48}.items():
        raw.external_data.add(key=key, value=str(entry))
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def answers(path, feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def untouched(store):
    """Whether a store holds no model, no scratch folder and no lock."""
    left = {str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()}
    return store.names() == [] and left <= {".ml-opt/digests.json"}
