"""Which integers an input may hold."""

import numpy as np
import onnx_ir
import pytest
from exporting import byo
from onnx import TensorProto, helper, numpy_helper

from optimizer.graph.ranges import integer_limits


def graph(nodes, initializers=(), inputs=(("ids", TensorProto.INT64, ["batch", "sequence"]),)):
    proto = byo.model(nodes, [byo.value(*i) for i in inputs], [byo.value("y", TensorProto.FLOAT, None)], initializers)
    return onnx_ir.from_proto(proto)


def node(op, *inputs, out="y", **attributes):
    return helper.make_node(op, list(inputs), [out], **attributes)


TABLE = byo.weight("table", 11, 4)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Gather", "table", "ids")],
        [node("Cast", "ids", out="a", to=TensorProto.INT32), node("Gather", "table", "a")],
        [node("Transpose", "ids", out="a"), node("Identity", "a", out="b"), node("Gather", "table", "b")],
        [node("Where", "no", "ids", "ids", out="a"), node("Gather", "table", "a")],
        [node("Concat", "one", "ids", out="a", axis=1), node("Gather", "table", "a")],
    ],
    ids=["direct", "cast", "moved", "chosen", "joined"],
)
def test_a_table_limits_what_reaches_it_unchanged(nodes):
    extra = [numpy_helper.from_array(np.array(False), "no"), numpy_helper.from_array(np.ones((1, 1), np.int64), "one")]
    assert integer_limits(graph(nodes, [TABLE, *extra])) == {"ids": (0, 10)}


def test_the_smallest_table_decides():
    small = byo.weight("small", 3, 4)
    nodes = [node("Gather", "table", "ids", out="a"), node("Gather", "small", "ids", out="b"), node("Add", "a", "b")]
    assert integer_limits(graph(nodes, [TABLE, small])) == {"ids": (0, 2)}


def test_the_axis_says_which_side_of_the_table_counts():
    assert integer_limits(graph([node("Gather", "table", "ids", axis=1)], [TABLE])) == {"ids": (0, 3)}


def test_numbers_that_are_computed_with_are_not_limited():
    plus = [node("Add", "ids", "ids", out="a"), node("Gather", "table", "a")]
    assert integer_limits(graph(plus, [TABLE])) == {}
    clamped = [node("Clip", "ids", out="a"), node("Gather", "table", "a")]
    assert integer_limits(graph(clamped, [TABLE])) == {}


def test_masks_hold_zero_and_one_and_positions_called_masked_do_not():
    inputs = [("attention_mask", TensorProto.INT64, ["b", "s"]), ("masked_positions", TensorProto.INT64, ["b", "s"])]
    nodes = [
        node("Gather", "table", "masked_positions", out="a"),
        node("ReduceSum", "attention_mask", out="n", keepdims=0),
        node("Cast", "n", out="f", to=TensorProto.FLOAT),
        node("Mul", "a", "f"),
    ]
    limits = integer_limits(graph(nodes, [TABLE], inputs))
    assert limits == {"attention_mask": (0, 1), "masked_positions": (0, 10)}


def test_one_hot_is_sensible_to_feed_and_refuses_nothing():
    counting = numpy_helper.from_array(np.arange(9, dtype=np.int64).reshape(1, 1, 9), "counting")
    nodes = [
        node("Unsqueeze", "ids", "last", out="a"),
        node("Equal", "a", "counting", out="b"),
        node("Cast", "b", to=TensorProto.FLOAT),
    ]
    made = graph(nodes, [counting, numpy_helper.from_array(np.array([2]), "last")])
    assert integer_limits(made) == {}
    assert integer_limits(made, sensible=True) == {"ids": (0, 8)}
    compared = graph([node("Equal", "ids", "k", out="b"), node("Cast", "b", to=TensorProto.FLOAT)],
                     [numpy_helper.from_array(np.array([4, 2]), "k")])  # fmt: skip
    assert integer_limits(compared, sensible=True) == {}


def test_tables_inside_subgraphs_count():
    branches = [
        helper.make_graph([node("Gather", "table", "ids", out=f"o{i}")], f"b{i}", [], [byo.value(f"o{i}", 1, None)])
        for i in range(2)
    ]
    made = graph([node("If", "yes", then_branch=branches[0], else_branch=branches[1])],
                 [TABLE, numpy_helper.from_array(np.array(True), "yes")])  # fmt: skip
    assert integer_limits(made) == {"ids": (0, 10)}
