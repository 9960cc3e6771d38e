"""Operations and bytes, against counts made by hand."""

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantizing import graphs

import optimizer
from optimizer.graph.cost import Cost, graph_cost, model_cost
from optimizer.graph.io import load
from optimizer.graph.shapes import infer_shapes

F, I32, U8 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8
WIDTH = graphs.WIDTH
MS = "com.microsoft"


def cost(proto, **fed):
    return graph_cost(onnx_ir.from_proto(proto), fed)


def one(op, inputs, shapes, out=F, *, weights=(), domain="", opset=20, dtypes=None, **attributes):
    """A graph of one node; inputs that are no weights are fed."""
    stored = {each.name for each in weights}
    dtypes = dtypes or {}
    node = helper.make_node(op, inputs.split(" "), ["y"], domain=domain, **attributes)
    fed = [
        helper.make_tensor_value_info(name, dtypes.get(name, F), shapes[name])
        for name in inputs.split(" ")
        if name and name not in stored
    ]
    domains = [domain] if domain else []
    return graphs.graph(
        [node], fed, [helper.make_tensor_value_info("y", out, None)], weights, opset=opset, domains=domains
    )


def stored(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def test_a_product_with_a_stored_matrix():
    found = cost(graphs.linear(), x=(3, WIDTH))
    assert found.arithmetic == {"fp32": 2 * 3 * 64 * 64}
    assert found.flops == 24_576
    assert found.weight_bytes == 4 * (64 * 64 + 64)
    assert found.io_bytes == 4 * (3 * 64 + 3 * 64)
    assert found.activation_bytes == 2 * 4 * 3 * 64  # the product, written and read; the sum is the answer
    assert found.bytes == found.least_bytes + found.activation_bytes
    assert found.uncounted == ()


def test_a_batch_of_products_of_two_activations():
    proto = one("MatMul", "a b", {"a": [2, 3, 4, 5], "b": [3, 5, 7]})
    assert cost(proto, a=(2, 3, 4, 5), b=(3, 5, 7)).flops == 2 * (2 * 3) * 4 * 5 * 7


def test_gemm_transposes_before_it_multiplies():
    proto = one("Gemm", "x w b", {"x": [5, 3]}, weights=[stored("w", 7, 5), stored("b", 7)], transA=1, transB=1)
    assert cost(proto, x=(5, 3)).flops == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("kernel", "attributes", "flops"),
    [
        # [1, 4, 10, 10] → 8 channels of 8 × 8, each from 4 × 3 × 3
        ((8, 4, 3, 3), {}, 2 * (8 * 8 * 8) * (4 * 3 * 3)),
        # stride 2, padded: 5 × 5
        ((8, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 2 * (8 * 5 * 5) * (4 * 3 * 3)),
        # two groups: each sees half of the channels
        ((8, 2, 3, 3), {"group": 2}, 2 * (8 * 8 * 8) * (2 * 3 * 3)),
        # dilated: the window spans 5 × 5 and holds 9
        ((8, 4, 3, 3), {"dilations": [2, 2]}, 2 * (8 * 6 * 6) * (4 * 3 * 3)),
    ],
)
def test_convolution(kernel, attributes, flops):
    proto = one("Conv", "x w", {"x": [1, 4, 10, 10]}, weights=[stored("w", *kernel)], **attributes)
    assert cost(proto, x=(1, 4, 10, 10)).flops == flops
    assert cost(proto, x=(3, 4, 10, 10)).flops == 3 * flops


def test_transposed_convolution_spreads_its_input():
    proto = one("ConvTranspose", "x w", {"x": [1, 4, 5, 5]}, weights=[stored("w", 4, 6, 3, 3)], strides=[2, 2])
    assert cost(proto, x=(1, 4, 5, 5)).flops == 2 * (4 * 5 * 5) * (6 * 3 * 3)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(op, gates):
    hidden, both = 6, 2
    weights = [stored("w", both, gates * hidden, 5), stored("r", both, gates * hidden, hidden)]
    proto = one(op, "x w r", {"x": [7, 3, 5]}, weights=weights, hidden_size=hidden, direction="bidirectional")
    assert cost(proto, x=(7, 3, 5)).flops == 2 * 7 * 3 * both * gates * hidden * (5 + hidden)


def test_einsum():
    proto = one("Einsum", "a b", {"a": [2, 3, 4], "b": [2, 4, 5]}, equation="bij,bjk->bik")
    assert cost(proto, a=(2, 3, 4), b=(2, 4, 5)).flops == 2 * 2 * 3 * 4 * 5


def test_packed_attention_is_its_projections_and_its_scores():
    found = cost(graphs.packed_attention(), x=(2, 6, WIDTH), mask=(2,))
    assert found.flops == 2 * (2 * 6) * 64 * 192 + 2 * 2 * 6 * 6 * (64 + 64)
    assert found.uncounted == ()


def test_attention_of_queries_to_other_keys():
    shapes = {"q": [2, 3, 32], "k": [2, 5, 32], "v": [2, 5, 48]}
    proto = one("MultiHeadAttention", "q k v", shapes, domain=MS, num_heads=4)
    assert cost(proto, q=(2, 3, 32), k=(2, 5, 32), v=(2, 5, 48)).flops == 2 * 2 * 3 * 5 * (32 + 48)


def test_attention_of_the_standard_is_the_same_count():
    shapes = {"q": [2, 3, 32], "k": [2, 5, 32], "v": [2, 5, 32]}
    proto = one("Attention", "q k v", shapes, opset=23, q_num_heads=4, kv_num_heads=4)
    assert cost(proto, q=(2, 3, 32), k=(2, 5, 32), v=(2, 5, 32)).flops == 2 * 2 * 3 * 5 * (32 + 32)
    shapes = {"q": [2, 4, 3, 8], "k": [2, 2, 5, 8], "v": [2, 2, 5, 8]}  # four heads share two of keys
    proto = one("Attention", "q k v", shapes, opset=23)
    fed = {name: tuple(dims) for name, dims in shapes.items()}
    assert cost(proto, **fed).flops == 2 * 2 * 3 * 5 * (32 + 32)


@pytest.mark.parametrize(("level", "arithmetic"), [(0, "fp32"), (4, "int8")])
def test_weights_of_four_bits(level, arithmetic):
    """64 columns of 32 numbers in blocks of 32: 16 bytes and one scale a column."""
    weights = [stored("w", 64, 1, 16, dtype=np.uint8), stored("s", 64)]
    attributes = {"K": 32, "N": 64, "bits": 4, "block_size": 32, "accuracy_level": level}
    proto = one("MatMulNBits", "x w s", {"x": [2, 3, 32]}, weights=weights, domain=MS, **attributes)
    found = cost(proto, x=(2, 3, 32))
    assert found.arithmetic == {arithmetic: 2 * 6 * 32 * 64}
    assert found.weight_bytes == 64 * 16 + 64 * 4


@pytest.mark.parametrize(
    ("op", "inputs", "domain", "weights"),
    [
        ("MatMulInteger", "x w", "", ()),
        ("MatMulIntegerToFloat", "x w s s", MS, ("s",)),
        ("QLinearMatMul", "x s z w s z s z", "", ("s", "z")),
    ],
)
def test_products_of_integers(op, inputs, domain, weights):
    extra = {"s": numpy_helper.from_array(np.float32(0.1), "s"), "z": numpy_helper.from_array(np.uint8(3), "z")}
    given = [stored("w", 4, 5, dtype=np.uint8), *(extra[name] for name in weights)]
    proto = one(op, inputs, {"x": [3, 4]}, weights=given, domain=domain, dtypes={"x": U8})
    found = cost(proto, x=(3, 4))
    assert found.arithmetic == {"int8": 2 * 3 * 4 * 5}
    assert found.uncounted == ()


def test_dynamic_quantization_in_one_node():
    weights = [stored("w", 4, 5, dtype=np.int8), stored("s", 5)]
    found = cost(one("DynamicQuantizeMatMul", "x w s", {"x": [3, 4]}, weights=weights, domain=MS), x=(3, 4))
    assert found.arithmetic == {"int8": 2 * 3 * 4 * 5}


def test_a_table_is_read_by_the_row():
    found = cost(graphs.table(), ids=(2, 3))
    assert found.weight_bytes == 2 * 3 * 64 * 4 + 64 * 64 * 4
    assert cost(graphs.table(), ids=(200, 3)).weight_bytes == 100 * 64 * 4 + 64 * 64 * 4  # never more than there is


def test_shapes_that_a_graph_computes_are_followed():
    """A Reshape to what Shape, Gather and Concat make of the input, as exporters write it."""
    nodes = [
        graphs.node("Shape", "x", "s"),
        graphs.node("Gather", "s zero", "rows"),
        graphs.node("Unsqueeze", "rows zero1", "rows1"),
        graphs.node("Concat", "rows1 rest", "to", axis=0),
        graphs.node("Reshape", "x to", "r"),
        graphs.node("MatMul", "r w", "y"),
    ]
    weights = [
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array([0]), "zero1"),
        numpy_helper.from_array(np.array([2, -1]), "rest"),
        stored("w", 32, 8),
    ]
    proto = graphs.graph(nodes, [graphs.value("x", ["batch", WIDTH])], [graphs.value("y", None)], weights)
    found = cost(proto, x=(5, WIDTH))
    assert found.flops == 2 * (5 * 2) * 32 * 8
    assert infer_shapes(onnx_ir.from_proto(proto), {"x": (5, WIDTH)})["r"].shape == (5, 2, 32)
    assert found.activation_bytes < 100  # a Reshape writes nothing; the rest are a few numbers of shapes


def test_an_operator_that_nobody_knows_is_named():
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], name="dark", domain="own"),
        graphs.node("MatMul", "h w", "y", name="after"),
    ]
    proto = graphs.graph(nodes, [graphs.X], [graphs.Y], [stored("w", WIDTH, WIDTH)], domains=["own"])
    found = cost(proto, x=(2, WIDTH))
    assert [(each.node, each.op, each.why, each.product) for each in found.uncounted] == [
        ("dark", "own.Mystery", "operator unknown", True),
        ("after", "MatMul", "shape unknown", True),
    ]
    assert found.flops == 0


def test_what_follows_from_values_is_named_and_not_zero():
    nodes = [graphs.node("NonZero", "x", "places", name="nz"), graphs.node("Cast", "places", "y", to=F, name="c")]
    proto = graphs.graph(nodes, [graphs.X], [graphs.value("y", None)])
    found = cost(proto, x=(2, WIDTH))
    assert {each.node: each.product for each in found.uncounted} == {"nz": False, "c": False}


def test_branches_with_products_in_them_are_named():
    found = cost(graphs.branches(), x=(2, WIDTH), flag=())
    assert [(each.op, each.why) for each in found.uncounted] == [("If", "body not counted")]


def test_calls_add_up():
    once, twice = cost(graphs.linear(), x=(3, WIDTH)), cost(graphs.linear(), x=(6, WIDTH))
    assert (once + twice).flops == 3 * once.flops
    assert (once + twice).weight_bytes == 2 * once.weight_bytes
    assert once + Cost() == once


def test_functions_are_looked_into(tmp_path):
    from exporting import byo

    assert model_cost(byo.write(byo.with_function(), tmp_path / "m.onnx"), [{"x": (2, 4)}]).flops > 0


def bert(batch, steps, *, hidden=384, inner=1536, layers=6):
    """Four square products and two to and from the inner width a token and layer, the scores, and one pooler a row."""
    token = 2 * (4 * hidden * hidden + 2 * hidden * inner) + 2 * 2 * steps * hidden
    return batch * steps * layers * token + 2 * batch * hidden * hidden


@pytest.fixture(scope="module")
def variants(minilm_store, tmp_path_factory, train_sentences):
    calib = tmp_path_factory.mktemp("calib") / "calib.jsonl"
    calib.write_text("".join(train_sentences.read_text().splitlines(keepends=True)[:16]))
    ref, at = "minilm:fp32", {"store": minilm_store}
    made = {
        "fp32": minilm_store.get(ref),
        "fused": optimizer.ort_optimize(ref, **at).artifact,
        "dynamic": optimizer.quantize_dynamic(ref, **at).artifact,
        "static": optimizer.quantize_static(ref, calib=calib, **at).artifact,
        "bf16": optimizer.cast(ref, to="bf16", **at).artifact,
    }
    return {name: artifact.model_file for name, artifact in made.items()}


@pytest.mark.parametrize("shape", [(8, 128), (1, 16)])
def test_minilm_is_what_the_formula_says_however_it_is_written(variants, shape):
    fed = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), shape)
    found = {name: model_cost(path, [fed]) for name, path in variants.items()}
    assert {name: each.flops for name, each in found.items()} == dict.fromkeys(variants, bert(*shape))
    assert all(each.uncounted == () for each in found.values())
    scores = shape[0] * shape[1] * 6 * 2 * 2 * shape[1] * 384
    assert found["dynamic"].arithmetic == {"fp32": scores, "int8": bert(*shape) - scores}
    assert found["static"].arithmetic == found["dynamic"].arithmetic
    assert found["bf16"].arithmetic == {"bf16": bert(*shape)}
    assert found["bf16"].weight_bytes == pytest.approx(found["fp32"].weight_bytes / 2, rel=0.02)
    assert found["static"].weight_bytes == pytest.approx(found["fp32"].weight_bytes / 4, rel=0.1)
    assert found["fused"].activation_bytes < found["fp32"].activation_bytes


def test_minilm_at_eight_rows_is_23_gflop():
    assert bert(8, 128) == 22_953_590_784


def test_fused_minilm_has_the_shapes_that_it_answers(variants):
    import onnxruntime

    fed = {name: np.ones((3, 7), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    session = onnxruntime.InferenceSession(str(variants["fused"]), providers=["CPUExecutionProvider"])
    known = infer_shapes(load(variants["fused"]), {name: array.shape for name, array in fed.items()})
    answers = dict(zip([each.name for each in session.get_outputs()], session.run(None, fed), strict=True))
    assert {name: known[name].shape for name in answers} == {name: array.shape for name, array in answers.items()}


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no")
    with pytest.raises(optimizer.errors.BadInput, match="is not an ONNX model"):
        model_cost(tmp_path / "m.onnx", [{}])


def test_what_the_reference_implementation_runs_is_no_weight(tmp_path):
    """A stored matrix behind Transpose is read as it is stored, and what a session folds is no activation."""
    nodes = [graphs.node("Transpose", "w", "t", perm=[1, 0]), graphs.node("MatMul", "x t", "y")]
    proto = graphs.graph(nodes, [graphs.X], [graphs.value("y", ["batch", 200])], [stored("w", 200, WIDTH)])
    onnx.save(proto, str(tmp_path / "m.onnx"))
    found = model_cost(tmp_path / "m.onnx", [{"x": (2, WIDTH)}])
    assert found.weight_bytes == 200 * WIDTH * 4
    assert found.activation_bytes == 0
