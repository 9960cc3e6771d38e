"""Casts of small graphs in which one thing each would go wrong, run before and after."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from optimizer.errors import BadInput, MissingPiece, UnknownName
from optimizer.graph import cast_schema
from optimizer.graph.cast import cast_model, match_nodes
from optimizer.types import JSON, Precision

FP16, BF16 = Precision.FP16, Precision.BF16
FLOAT = ir.DataType.FLOAT
Arrays = dict[str, Any]


def parse(graph: str, weights: Mapping[str, Any] = {}, *, opset: int = 20, functions: str = "") -> onnx.ModelProto:
    """A model of the text form of ONNX, with its weights; types of inner values are left for the cast to find."""
    imports = f'"": {opset}, "com.microsoft": 1, "ai.onnx.ml": 3, "local": 1'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> {graph} {functions}")
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    return proto


def cast(proto: onnx.ModelProto, to: Precision = FP16, **options: Any) -> tuple[onnx.ModelProto, dict[str, JSON]]:
    model, report = cast_model(ir.from_proto(proto), to, **options)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=not any(node.domain for node in result.graph.node))
    return result, report


def run(proto: onnx.ModelProto, feeds: Arrays) -> Arrays:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def refer(proto: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """What ONNX's own reference computes: it knows bf16, which ONNX Runtime's CPU provider does not."""
    names = [output.name for output in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, feeds), strict=True))


def error(before: Arrays, after: Arrays) -> float:
    """Largest difference relative to an output's largest number; infinite when an output is not finite."""
    assert list(before) == list(after)
    worst = 0.0
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        assert after[name].shape == array.shape
        if not np.isfinite(after[name]).all():
            return float("inf")
        worst = max(worst, float(np.abs(after[name] - array).max() / (np.abs(array).max() or 1)))
    return worst


def stored(proto: onnx.ModelProto) -> dict[str, str]:
    """The type that each initializer and Constant of the outermost graph is stored in."""
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    types |= {n.output[0]: n.attribute[0].t.data_type for n in proto.graph.node if n.op_type == "Constant"}
    return {name: onnx.TensorProto.DataType.Name(number) for name, number in types.items()}


RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 8)).astype(np.float32)
#: x W has numbers of about 300, whose squares leave fp16's range.
W = (RNG.standard_normal((8, 8)) * 100).astype(np.float32)

PLANTED = """
g (float[N,8] x, bool c, int64 n) => (float[N,8] chosen, float[N,8] looped, float[N,8] normal, float[1,1,a,b] larger)
<float[8,8] W, float[8] big, float eps, float mask, float[4] scales>
{
  h = MatMul(x, W)
  chosen = If (c) <
    then_branch = t () => (float[N,8] ty) { k = Constant<value = float {2.0}>() ty = Mul(h, k) },
    else_branch = e () => (float[N,8] ey) { ey = Identity(x) }>
  true = Constant<value = bool {1}>()
  looped, all = Loop (n, true, h) <
    body = b (int64 i, bool go, float[N,8] acc) => (bool on, float[N,8] sum, float[N,8] each) {
    on = Identity(go) f = Cast<to = 1>(i) q = Add(acc, f) sum = Add(q, x) each = Identity(sum) }>
  two = Constant<value_float = 2.0>()
  squares = Pow(h, two)
  axes = Constant<value_ints = [-1]>()
  mean = ReduceMean(squares, axes)
  safe = Add(mean, eps)
  root = Sqrt(safe)
  rms = Div(h, root)
  wide = Mul(rms, big)
  small = Mul(wide, eps)
  shape = Constant<value_ints = [1, 1, -1, 8]>()
  image = Reshape(rms, shape)
  larger = Resize<mode = "nearest">(image, , scales)
  filled = Where(c, mask, rms)
  flag = Less(filled, rms)
  bit = Cast<to = 1>(flag)
  both = Add(rms, small)
  normal = Add(both, bit)
}"""
PLANTED_WEIGHTS = {
    "W": W,
    "big": [1e6, 2e6, 1, 1, 1, 1, 1, 1e-9],
    "eps": 1e-12,
    "mask": np.finfo(np.float32).min,
    "scales": [1, 1, 1.3334, 1.7],
}
PLANTED_FEEDS: Arrays = {"x": X, "c": np.array(False), "n": np.array(3)}


# fp16 twice: on a CPU, ONNX Runtime computes in fp32 and can hide an overflow; the reference rounds after each step.
@pytest.mark.parametrize(("to", "runner"), [(FP16, run), (FP16, refer), (BF16, refer)])
@pytest.mark.parametrize("chosen", [False, True])
def test_planted_traps_keep_their_answers(to: Precision, runner: Callable[..., Arrays], chosen: bool) -> None:
    proto = parse(PLANTED, PLANTED_WEIGHTS)
    result, _ = cast(proto, to)
    feeds = PLANTED_FEEDS | {"c": np.array(chosen)}
    assert error(run(proto, feeds), runner(result, feeds)) < (2e-3 if to is FP16 else 2e-2)


def test_the_report_counts_what_was_planted() -> None:
    result, report = cast(parse(PLANTED, PLANTED_WEIGHTS))
    assert report["to"] == "fp16"
    assert report["out_of_range"] == 2  # two numbers of `big`
    assert report["kept"] == ["big", "eps"]
    assert report["mask_fills"] == 1
    # W, the mask and the branch's 2.0; the exponent belongs to Pow and the scales to Resize, both in fp32
    assert (report["tensors"], report["numbers"]) == (3, 66)
    assert (report["subnormal"], report["zeroed"]) == (0, 0)
    assert report["nodes_kept"] == {"Add": 1, "Cast": 1, "Mul": 2, "Pow": 1, "ReduceMean": 1, "Sqrt": 1}
    types = stored(result)
    assert {name: types[name] for name in PLANTED_WEIGHTS} == {
        "W": "FLOAT16",
        "big": "FLOAT",
        "eps": "FLOAT",
        "mask": "FLOAT16",
        "scales": "FLOAT",
    }
    graphs = [result.graph, *(a.g for node in result.graph.node for a in node.attribute if a.HasField("g"))]
    casts = [node for graph in graphs for node in graph.node if node.op_type == "Cast"]
    assert report["casts"] == len(casts) - 2  # two were there before


def test_numbers_lost_are_counted() -> None:
    weights = {"W": [[1.0, 1e-5, 3e-6, 1e-8], [0.0, -2e-8, 65504.0, 5e-5]]}
    _, report = cast(parse("g (float[N,2] x) => (float[N,4] y) <float[2,4] W> { y = MatMul(x, W) }", weights))
    assert (report["numbers"], report["subnormal"], report["zeroed"]) == (8, 3, 2)
    _, report = cast(parse("g (float[N,2] x) => (float[N,4] y) <float[2,4] W> { y = MatMul(x, W) }", weights), BF16)
    assert (report["numbers"], report["subnormal"], report["zeroed"]) == (8, 0, 0)


@pytest.mark.parametrize("fill", [-3.4e38, -1e9])
def test_a_row_that_is_all_mask_stays_a_number(fill: float) -> None:
    graph = """g (float[N,8] x, bool[N,8] m) => (float[N,8] p) <float fill, float[8,8] W> {
        h = MatMul(x, W) s = Where(m, h, fill) t = Add(s, h) p = Softmax(t) }"""
    proto = parse(graph, {"fill": fill, "W": W / 1e4})
    feeds = {"x": X, "m": np.array([[True] * 8, [False] * 8, [True, False] * 4])}
    for to, runner in ((FP16, run), (BF16, refer)):
        result, report = cast(proto, to)
        after = runner(result, feeds)["p"]
        assert np.isfinite(after).all()
        assert after[2, 1::2].max() == 0
        assert report["mask_fills"] == (1 if fill < -1e30 or to is FP16 else 0)


def test_a_mask_of_integers_stays_finite_too() -> None:
    """(1 - mask) * -3.4e38, as older exports have it, with a row that is all mask."""
    graph = """g (float[N,8] x, int64[N,8] m) => (float[N,8] p) <float fill, float one, float[8,8] W> {
        h = MatMul(x, W) f = Cast<to = 1>(m) o = Sub(one, f) b = Mul(o, fill) t = Add(h, b) p = Softmax(t) }"""
    proto = parse(graph, {"fill": np.finfo(np.float32).min, "one": 1.0, "W": W / 1e4})
    feeds = {"x": X, "m": np.array([[1] * 8, [0] * 8, [1, 0] * 4])}
    for to, runner in ((FP16, run), (FP16, refer), (BF16, refer)):
        after = runner(cast(proto, to)[0], feeds)["p"]
        assert np.isfinite(after).all()
        assert after[2, 1::2].max() == 0


def test_a_square_by_multiplication_does_not_overflow() -> None:
    graph = """g (float[N,8] x) => (float[N,8] y) <float eps, float[8,8] W> {
        h = MatMul(x, W) s = Mul(h, h) a = Constant<value_ints = [-1]>() m = ReduceMean(s, a) e = Add(m, eps)
        r = Sqrt(e) y = Div(h, r) }"""
    proto = parse(graph, {"W": W * 10, "eps": 1e-6})
    assert error(run(proto, {"x": X}), refer(cast(proto)[0], {"x": X})) < 2e-3


def test_a_layer_behind_a_mean_is_cast() -> None:
    graph = """g (float[N,5,64] x) => (float[N,64] y) <float[64,64] W> {
        a = Constant<value_ints = [1]>() m = ReduceMean<keepdims = 0>(x, a) y = MatMul(m, W) }"""
    result, report = cast(parse(graph, {"W": RNG.standard_normal((64, 64))}))
    assert stored(result)["W"] == "FLOAT16"
    assert report["nodes_kept"] == {"ReduceMean": 1}


def test_a_loop_that_starts_out_of_range_stays_in_fp32() -> None:
    graph = """g (float[N,8] x, int64 n) => (float[N,8] y) <float[8] start, float[8,8] W> {
        h = MatMul(x, W) true = Constant<value = bool {1}>()
        s = Loop (n, true, start) <body = b (int64 i, bool go, float[8] acc) => (bool on, float[8] half) {
            on = Identity(go) two = Constant<value_float = 2.0>() half = Div(acc, two) }>
        y = Div(h, s) }"""
    proto = parse(graph, {"start": [1e6] * 8, "W": W})
    feeds = {"x": X, "n": np.array(6)}
    result, report = cast(proto)
    assert report["out_of_range"] == 8
    assert error(run(proto, feeds), refer(result, feeds)) < 2e-3


@pytest.mark.parametrize("to", [FP16, BF16])
def test_the_statistics_of_a_normalization_are_its_own(to: Precision) -> None:
    graph = """g (float[N,8] x) => (float[N,8] y, float[N,1] m) <float[8] s, float[8,8] W> {
        h = MatMul(x, W) n, m = LayerNormalization(h, s) y = MatMul(n, W) }"""
    proto = parse(graph, {"W": W / 100, "s": np.ones(8)})
    result, report = cast(proto, to)
    assert report["casts"] == 2  # x on its way in, y on its way out; the mean is fp32 as it comes
    if to is FP16:  # the reference gives the mean in bf16, against the operator's own definition
        assert error(run(proto, {"x": X}), run(result, {"x": X})) < 5e-3


def test_a_clip_at_the_ends_of_float32_cuts_nothing() -> None:
    graph = """g (float[N,8] x) => (float[N,8] y) <float low, float high, float[8,8] W> {
        h = MatMul(x, W) y = Clip(h, low, high) }"""
    info = np.finfo(np.float32)
    proto = parse(graph, {"low": info.min, "high": info.max, "W": np.eye(8)})
    feeds = {"x": np.full((1, 8), 60000, np.float32)}
    result, _ = cast(proto)
    assert run(result, feeds)["y"].tolist() == run(proto, feeds)["y"].tolist()


def test_positions_are_not_rounded_before_their_angle_is_known() -> None:
    """A rotary embedding: position 2,999 is no number of fp16 or bf16."""
    graph = """g (float[N,8] x, int64[N] p) => (float[N,8] y) <float[1,8] f, float[8,8] W> {
        h = MatMul(x, W) q = Cast<to = 1>(p) a = Constant<value_ints = [1]>() u = Unsqueeze(q, a) t = MatMul(u, f)
        c = Cos(t) y = Mul(h, c) }"""
    proto = parse(graph, {"f": 0.7 ** np.arange(8)[None], "W": W})
    feeds = {"x": X, "p": np.array([257, 2049, 2999])}
    before = run(proto, feeds)
    assert error(before, run(cast(proto, FP16)[0], feeds)) < 2e-3
    assert error(before, refer(cast(proto, BF16)[0], feeds)) < 2e-2


def test_bucket_numbers_come_out_the_same() -> None:
    """The logarithmic buckets of T5's and DeBERTa's relative positions: a rounding decides which bias is taken."""
    graph = """g (float[N,8] x, int64[L] d) => (float[L,8] y) <float[64,8] table, float most, float span, float count> {
        f = Cast<to = 1>(d) r = Div(f, most) l = Log(r) s = Div(l, span) m = Mul(s, count) c = Ceil(m)
        i = Cast<to = 7>(c) b = Gather(table, i)
        w = Constant<value_ints = [0]>() o = ReduceMax<keepdims = 1>(x, w) y = Add(b, o) }"""
    weights = {"table": np.arange(512).reshape(64, 8), "most": 8.0, "span": np.log(512 / 8), "count": 62.0}
    proto = parse(graph, weights)
    feeds = {"x": X, "d": np.arange(8, 512)}
    before = run(proto, feeds)
    assert error(before, run(cast(proto, FP16)[0], feeds)) < 1e-3
    assert error(before, refer(cast(proto, BF16)[0], feeds)) < 8e-3


def test_the_scales_of_resize_stay_exact() -> None:
    graph = """g (float[1,1,300,8] x) => (float[1,1,a,b] y) <float[4] scales, float[8,8] W> {
        h = MatMul(x, W) y = Resize<mode = "nearest">(h, , scales) }"""
    proto = parse(graph, {"scales": [1, 1, 1.3337, 1], "W": np.eye(8)})
    feeds = {"x": RNG.standard_normal((1, 1, 300, 8)).astype(np.float32)}
    result, _ = cast(proto)
    assert run(result, feeds)["y"].shape == (1, 1, 400, 8)  # 1.3337 in fp16 makes 399
    assert error(run(proto, feeds), run(result, feeds)) < 1e-3


def test_a_constant_with_an_fp32_user_is_not_rounded_for_it() -> None:
    graph = "g (float[N,8] x) => (float[N,8] y, float[8,8] w) <float[8,8] W> { y = MatMul(x, W) w = Exp(W) }"
    proto = parse(graph, {"W": W / 100})
    result, _ = cast(proto)
    assert stored(result)["W"] == "FLOAT"
    assert np.array_equal(run(proto, {"x": X})["w"], run(result, {"x": X})["w"])
    assert error(run(proto, {"x": X}), run(result, {"x": X})) < 2e-3


def test_outputs_keep_their_names_and_their_other_users() -> None:
    graph = "g (float[N,8] x) => (float[N,8] h, float[N,8] y) <float[8,8] W> { h = MatMul(x, W) y = Relu(h) }"
    proto = parse(graph, {"W": W})
    result, _ = cast(proto)
    assert [o.name for o in result.graph.output] == ["h", "y"]
    assert {o.type.tensor_type.elem_type for o in result.graph.output} == {onnx.TensorProto.FLOAT}
    assert error(run(proto, {"x": X}), run(result, {"x": X})) < 2e-3


def test_kept_nodes_stay_with_everything_inside_them() -> None:
    proto = parse(PLANTED, PLANTED_WEIGHTS)
    model = ir.from_proto(proto)
    names = match_nodes(model, ("Loop", "MatMul"))
    assert len(names) == 2
    model, _ = cast_model(model, FP16, keep_nodes=names)
    for graph in model.graphs():
        for node in graph:
            if node.op_type in ("MatMul", "Loop") or (node.op_type == "Add" and graph is not model.graph):
                assert {v.dtype for v in (*node.inputs, *node.outputs)} <= {FLOAT, ir.DataType.INT64, ir.DataType.BOOL}
    result = ir.to_proto(model)
    assert stored(result)["W"] == "FLOAT"
    assert error(run(proto, PLANTED_FEEDS), run(result, PLANTED_FEEDS)) < 2e-3


def test_functions_are_inlined() -> None:
    graph = "g (float[N,8] x) => (float[N,8] y) <float[8,8] W> { y = local.twice(x, W) }"
    function = '<domain: "local", opset_import: ["": 20]> twice (a, b) => (d) { c = MatMul(a, b) d = MatMul(c, b) }'
    proto = parse(graph, {"W": W / 100}, functions=function)
    result, report = cast(proto)
    assert report["nodes_cast"] == 2
    assert not result.functions
    assert error(run(proto, {"x": X}), run(result, {"x": X})) < 2e-3


ORT_OPS = """g (float[N,2,8] x) => (float[N,2,8] y) <float[8,8] W, float[8] s> {
    h = MatMul(x, W) a, m, v, sum = com.microsoft.SkipLayerNormalization(h, x, s, s) b = com.microsoft.QuickGelu(a)
    e = com.microsoft.FusedMatMul(b, W) y = Add(e, sum) }"""


def test_operators_of_onnxruntime_are_typed_and_cast() -> None:
    proto = parse(ORT_OPS, {"W": W / 100, "s": np.ones(8)})
    result, report = cast(proto)
    assert report["nodes_cast"] == 5
    assert report["nodes_kept"] == {}
    feeds = {"x": RNG.standard_normal((3, 2, 8)).astype(np.float32)}
    assert error(run(proto, feeds), run(result, feeds)) < 5e-3


def test_operators_of_onnxruntime_need_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (cast_schema._signature, cast_schema._ort_signatures):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime.capi.onnxruntime_pybind11_state", None)
    with pytest.raises(MissingPiece, match="ONNX Runtime's own operators") as caught:
        cast(parse(ORT_OPS, {"W": W, "s": np.ones(8)}))
    assert "pip install" in caught.value.hint
    cast(parse("g (float[N,8] x) => (float[N,8] y) <float[8,8] W> { y = MatMul(x, W) }", {"W": W}))


def test_sequences_and_old_operators_stay_in_fp32() -> None:
    graph = """g (float[N,8] x) => (float[N,8] y) <float[8,8] W> {
        h = MatMul(x, W) s = SequenceConstruct(h, h) z = Constant<value = int64 {0}>() a = SequenceAt(s, z)
        y = Relu(a) }"""
    with pytest.raises(BadInput, match="does not say what type") as caught:
        cast(parse(graph, {"W": W}))
    assert "infer_shapes" in caught.value.hint
    proto = onnx.shape_inference.infer_shapes(parse(graph, {"W": W}))
    result, report = cast(proto)
    assert report["nodes_kept"] == {"SequenceAt": 1, "SequenceConstruct": 1}
    assert error(run(proto, {"x": X}), run(result, {"x": X})) < 2e-3
    # bf16 came to most operators with opset 13
    proto = parse("g (float[N,8] x) => (float[N,8] y) <float[8,8] W> { y = MatMul(x, W) }", {"W": W}, opset=9)
    result, report = cast(proto, BF16)
    assert report["nodes_kept"] == {"MatMul": 1}
    assert stored(result) == {"W": "FLOAT"}


def test_large_constants_become_weights() -> None:
    proto = parse("g (float[N,32] x) => (float[N,32] y) { y = MatMul(x, W) }")
    weight = onnx.numpy_helper.from_array(RNG.standard_normal((32, 32)).astype(np.float32), "W")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["W"], value=weight))
    result, report = cast(proto)
    assert report["numbers"] == 1024
    assert [tensor.data_type for tensor in result.graph.initializer] == [onnx.TensorProto.FLOAT16]


DENSE = "g (float[N,8] x) => (float[N,8] y) <float[8,8] W> { y = MatMul(x, W) }"


def test_what_cannot_be_cast_is_refused() -> None:
    proto = parse(DENSE, {"W": W})
    with pytest.raises(BadInput, match="not to int8"):
        cast(proto, Precision.INT8)
    with pytest.raises(UnknownName, match="unknown node: 'nothing'"):
        cast(proto, keep_nodes=frozenset({"nothing"}))
    with pytest.raises(UnknownName, match="did you mean MatMul"):
        match_nodes(ir.from_proto(proto), ("Matmul",))
    again, _ = cast(proto)
    with pytest.raises(BadInput, match="fp16 already") as caught:
        cast(again)
    assert "nothing left" in caught.value.hint
    with pytest.raises(BadInput, match="fp16 already") as caught:
        cast(again, BF16)
    assert "fp32 artifact" in caught.value.hint
    with pytest.raises(BadInput, match="no float32 weights"):
        cast(parse("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"))
    quantized = """g (float[N,8] x) => (float[N,8] y) <float s, float[8,8] W> {
        q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = MatMul(d, W) }"""
    with pytest.raises(BadInput, match=r"quantized: QuantizeLinear \(1\), DequantizeLinear \(1\)"):
        cast(parse(quantized, {"s": 0.1, "W": W}))
    mystery = """g (float[N,8] x) => (float[N,8] y) <float[8,8] W> {
        h = MatMul(x, W) [unheard] m = local.Mystery(h) y = Relu(m) }"""
    with pytest.raises(BadInput, match="does not say what type Mystery 'unheard' returns"):
        cast(parse(mystery, {"W": W}))
