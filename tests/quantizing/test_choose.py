import onnx
import pytest
from quantizing import graphs

from optimizer.errors import BadInput, UnknownName
from optimizer.quantizing.choose import choose_nodes, graphs_of, told_to_dynamic

ALL = ("MatMul", "Gemm", "Gather", "Conv")


def test_nodes_without_a_name_get_one_that_no_other_has():
    proto = graphs.shared()
    proto.graph.node[1].name = "MatMul_0"
    proto.graph.node.append(graphs.node("MatMul", "y w", "z", name="MatMul_0"))
    choose_nodes(proto, ALL)
    names = [node.name for node in proto.graph.node]
    assert all(names)
    assert len(set(names)) == len(names) == 4
    assert names[1] == "MatMul_0" or names[0] == "MatMul_0"


def test_names_are_apart_across_branches():
    proto = graphs.branches()
    choice = choose_nodes(proto, ALL, dynamic=True)
    assert len(set(choice.chosen)) == 2
    assert len(list(graphs_of(proto.graph))) == 3


def test_a_gather_of_whole_numbers_has_no_weight():
    """Position ids are a buffer of int64 that BERT slices by a Gather."""
    proto = graphs.table()
    ids = onnx.numpy_helper.from_array(onnx.numpy_helper.np.arange(9), "positions")
    proto.graph.initializer.append(ids)
    proto.graph.node.append(graphs.node("Gather", "positions ids", "unused"))
    choice = choose_nodes(proto, ALL)
    assert choice.counts == {"Gather": 1, "MatMul": 1}
    assert choice.weighted == 2
    assert len(choice.excluded) == 1


def test_products_of_activations():
    proto = graphs.attention_scores()
    with pytest.raises(BadInput, match="is computed"):
        choose_nodes(proto, ALL)
    assert choose_nodes(proto, ALL, activation_products=True).counts == {"MatMul": 1}
    with pytest.raises(BadInput, match="is computed"):
        choose_nodes(proto, ALL, activation_products=True, dynamic=True)


def test_a_pattern_that_matches_only_such_products_says_so():
    proto = graphs.attention_scores()
    proto.graph.node[1].name = "scores"
    proto.graph.node.append(graphs.node("MatMul", "y w", "z", name="project"))
    proto.graph.initializer.append(graphs.weight("w", 4, 4))
    with pytest.raises(BadInput, match="only nodes without a weight") as caught:
        choose_nodes(proto, ALL, include=("sco*",))
    assert "--activation-products" in caught.value.hint
    assert choose_nodes(proto, ALL, exclude=("sco*",)).chosen == ("project",)
    with pytest.raises(UnknownName, match="did you mean project"):
        choose_nodes(proto, ALL, include=("projct",))
    with pytest.raises(BadInput, match="nothing is left"):
        choose_nodes(proto, ALL, exclude=("*",))


def test_branches_are_out_of_a_static_quantizers_reach():
    with pytest.raises(BadInput, match="inside an If or a Loop") as caught:
        choose_nodes(graphs.branches(), ALL)
    assert "quantize dynamic" in caught.value.hint
    proto = graphs.branches()
    proto.graph.node.append(graphs.node("MatMul", "y w", "z"))
    proto.graph.initializer.append(graphs.weight("w", graphs.WIDTH, 4))
    choice = choose_nodes(proto, ALL)
    assert (choice.counts, choice.inside) == ({"MatMul": 1}, 2)


def test_half_precision_counts_and_double_does_not():
    for dtype, taken in (("float32", True), ("float16", True), ("float64", False)):
        proto = graphs.linear()
        proto.graph.initializer[0].CopyFrom(graphs.weight("w", graphs.WIDTH, graphs.WIDTH, dtype=dtype))
        if taken:
            assert choose_nodes(proto, ALL).counts == {"MatMul": 1}
        else:
            with pytest.raises(BadInput, match="no float32"):
                choose_nodes(proto, ALL)


def test_ort_attention_with_a_bias_of_its_scores_is_left():
    for bias, taken in ((False, {"Attention": 1}), (True, None)):
        proto = graphs.packed_attention(bias=bias)
        if taken:
            assert choose_nodes(proto, ("Attention",), dynamic=True).counts == taken
        else:
            with pytest.raises(BadInput):
                choose_nodes(proto, ("Attention",), dynamic=True)


def test_what_the_dynamic_quantizer_is_told():
    proto = graphs.gemm()
    proto.graph.node[0].name = "head"
    proto.graph.node.append(graphs.node("MatMul", "y w", "z", name="product"))
    only_gemm = choose_nodes(proto, ("Gemm",), dynamic=True)
    assert told_to_dynamic(proto, only_gemm) == (["MatMul"], ["product"])
    without = choose_nodes(proto, ALL, exclude=("head",), dynamic=True)
    assert told_to_dynamic(proto, without) == (["Conv", "Gather", "MatMul"], ["head_MatMul"])
