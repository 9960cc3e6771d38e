"""Small graphs that quantizers stumble over, and what is needed to try them."""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import optimizer

F, I64, I32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
WIDTH = 64


def weight(name, *shape, seed=0, dtype=np.float32):
    values = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(dtype), name)


def value(name, shape, dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def graph(nodes, inputs, outputs, weights=(), *, opset=20, domains=()):
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, list(weights)), opset_imports=imports)
    made.ir_version = 10
    return made


X, Y = value("x", ["batch", WIDTH]), value("y", ["batch", WIDTH])


def linear(name="w"):
    """One product and its bias."""
    nodes = [node("MatMul", "x w", "h", name="project"), node("Add", "h b", "y")]
    return graph(nodes, [X], [Y], [weight("w", WIDTH, WIDTH), weight("b", WIDTH)])


def behind(op, **attributes):
    """A weight that is no initializer of the product: it goes through one more node."""
    nodes = [node(op, "w", "v", **attributes), node("MatMul", "x v", "y")]
    return graph(nodes, [X], [Y], [weight("w", WIDTH, WIDTH)])


def shared():
    """One weight, two products."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w", "y")]
    return graph(nodes, [X], [Y], [weight("w", WIDTH, WIDTH)])


def gemm():
    """As torch writes a linear layer: the weight transposed."""
    nodes = [node("Gemm", "x w b", "y", transB=1)]
    return graph(nodes, [X], [Y], [weight("w", WIDTH, WIDTH), weight("b", WIDTH)])


def branches():
    """An If whose branches multiply by weights of their own."""
    branch = {
        name: helper.make_graph(
            [node("MatMul", f"x {name}_w", f"{name}_y")],
            name,
            [],
            [value(f"{name}_y", ["batch", WIDTH])],
            [weight(f"{name}_w", WIDTH, WIDTH)],
        )
        for name in ("then", "else")
    }
    nodes = [node("If", "flag", "y", then_branch=branch["then"], else_branch=branch["else"])]
    return graph(nodes, [X, value("flag", [], TensorProto.BOOL)], [Y])


def attention_scores():
    """Products of two activations and nothing else."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    return graph(nodes, [X], [value("y", ["batch", "batch"])])


def convolution():
    nodes = [
        node("Conv", "x k", "c", name="conv", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r k2", "y", pads=[1, 1, 1, 1]),
    ]
    return graph(
        nodes,
        [value("x", ["batch", 3, 16, 16])],
        [value("y", ["batch", 8, 16, 16])],
        [weight("k", 32, 3, 3, 3), weight("k2", 8, 32, 3, 3)],
    )


def lstm(hidden=32):
    nodes = [node("LSTM", "x w r", "y", hidden_size=hidden)]
    return graph(
        nodes,
        [value("x", ["sequence", "batch", WIDTH])],
        [value("y", ["sequence", 1, "batch", hidden])],
        [weight("w", 1, 4 * hidden, WIDTH), weight("r", 1, 4 * hidden, hidden)],
    )


def table():
    """int32 ids into a table, then a product."""
    nodes = [node("Gather", "t ids", "x"), node("MatMul", "x w", "y")]
    return graph(
        nodes,
        [value("ids", ["batch", "sequence"], I32)],
        [value("y", ["batch", "sequence", WIDTH])],
        [weight("t", 100, WIDTH), weight("w", WIDTH, WIDTH)],
    )


def packed_attention(*, bias=False):
    """ORT's own Attention, projections packed: ``mask`` counts the real tokens of a row."""
    inputs = "x w b mask" + ("  past score_bias" if bias else "")
    made = helper.make_node(
        "Attention",
        ["x", "w", "b", "mask", *(["", "score_bias"] if bias else [])],
        ["y"],
        domain="com.microsoft",
        num_heads=4,
        name=f"attention{len(inputs)}",
    )
    weights = [weight("w", WIDTH, 3 * WIDTH), weight("b", 3 * WIDTH)]
    sequence = 6 if bias else "sequence"
    if bias:
        weights.append(weight("score_bias", 1, 4, 6, 6))
    return graph(
        [made],
        [value("x", ["batch", sequence, WIDTH]), value("mask", ["batch"], I32)],
        [value("y", ["batch", sequence, WIDTH])],
        weights,
        domains=["com.microsoft"],
    )


def put(store, folder, proto, name="small"):
    """The graph as an artifact of the store; returns its reference."""
    path = folder / f"{name}.onnx"
    onnx.save(proto, str(path))
    return optimizer.export_onnx(str(path), name=name, store=store).artifact.ref


def run(path, feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def cosine(a, b):
    a, b = np.ravel(a).astype(float), np.ravel(b).astype(float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def rows(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def npz(folder, name="calib.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


def lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def initializers(path):
    """Every weight of a file as an array, by name."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def ops(path):
    return [n.op_type for n in onnx.load(str(path)).graph.node]


def model_bytes(artifact):
    return sum(entry["bytes"] for name, entry in artifact.manifest.files.items() if name.startswith("model.onnx"))
