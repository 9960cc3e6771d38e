"""A trace of a few layers, repeated, is the trace of all of them; and where layers differ, all are traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from optimizer.exporting import genai_decoder
from optimizer.exporting.genai_decoder import trace
from optimizer.exporting.repeat_layers import repeat_layers
from optimizer.exporting.same_layers import KEPT, stack_of
from optimizer.hf import LoadedModel

LAYERS = 5
SMALL = {"vocab_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64}


def loaded(family: str, **more: Any) -> LoadedModel:
    """A tiny model, none of whose weights is like another."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, **SMALL, **more}
    if family == "GPT2LMHeadModel":
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=LAYERS, n_head=2, n_positions=64, **more)
    elif family == "OPTForCausalLM":
        config = transformers.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **sizes)
    elif family == "GPTNeoXForCausalLM":
        config = transformers.GPTNeoXConfig(intermediate_size=64, **sizes)
    else:
        config = transformers.Cohere2Config(intermediate_size=64, num_key_value_heads=1, sliding_window=4, **sizes)
    module = getattr(transformers, family)(config).eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return LoadedModel(module, module.config, family)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers PyTorch was given, export by export."""
    import torch

    seen: list[int] = []
    own = torch.onnx.export

    def export(*given: Any, **asked: Any) -> Any:
        seen.append(len(asked["kwargs"]["past"]))
        return own(*given, **asked)

    monkeypatch.setattr(torch.onnx, "export", export)
    return seen


def answers(model: onnx_ir.Model) -> dict[str, Any]:
    """What a graph answers to three tokens after five."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "input_ids": random.integers(0, 64, (1, 3)),
        "position_ids": np.arange(5, 8)[None],
        "attention_mask": np.ones((1, 8), np.int64),
    }
    for each in session.get_inputs():
        if each.name.startswith("past"):
            feeds[each.name] = random.normal(size=(1, each.shape[1], 5, each.shape[3])).astype(np.float32)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


def skeleton(model: onnx_ir.Model) -> list[Any]:
    """Operators, their attributes, and the names that quantizers go by."""
    return [
        (
            node.op_type,
            node.name if node.op_type == "MatMul" else "",
            {name: str(attribute.value) for name, attribute in node.attributes.items()},
        )
        for node in model.graph
    ]


@pytest.mark.parametrize(
    "family",
    ["GPT2LMHeadModel", "GPTNeoXForCausalLM", pytest.param("OPTForCausalLM", marks=pytest.mark.thorough)],
)
def test_it_is_the_graph_of_the_whole_trace(family: str, traced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    few = trace(loaded(family))
    assert traced == [KEPT]
    monkeypatch.setattr(genai_decoder, "all_alike", lambda *_: False)
    whole = trace(loaded(family))
    assert traced == [KEPT, LAYERS]
    assert skeleton(few) == skeleton(whole)
    assert [str(each) for each in few.graph.inputs] == [str(each) for each in whole.graph.inputs]
    wanted, got = answers(whole), answers(few)
    assert list(wanted) == list(got)
    for name in wanted:
        assert np.array_equal(wanted[name], got[name]), f"{name}, to the last bit"


def test_the_model_has_all_its_layers_afterwards() -> None:
    given = loaded("GPT2LMHeadModel")
    own = given.module.transformer.h
    trace(given)
    assert given.module.transformer.h is own
    assert len(own) == LAYERS
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in own)


def test_scales_that_depend_on_the_layer_are_traced_one_by_one(traced: list[int]) -> None:
    model = trace(loaded("GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True))
    assert traced == [LAYERS]
    scales = [node.attributes["scale"].as_float() for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert scales == pytest.approx([0.25 / (layer + 1) for layer in range(LAYERS)])


def test_windows_beyond_the_first_layers_are_seen(traced: list[int]) -> None:
    """The layers that would be traced are alike, and one of the others is not."""
    sorts = ["sliding_attention"] * KEPT + ["full_attention", "sliding_attention"]
    model = trace(loaded("Cohere2ForCausalLM", layer_types=sorts))
    assert traced == [LAYERS]
    windows = ["local_window_size" in node.attributes for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert windows == [sort == "sliding_attention" for sort in sorts]


def test_a_stack_is_found_where_there_is_one() -> None:
    import torch

    one = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))
    model = torch.nn.ModuleDict({"body": torch.nn.ModuleDict({"h": one})})
    found = stack_of(model, 4)
    assert found is not None
    assert (found.path, found.layers) == ("body.h", one)
    assert stack_of(model, 5) is None
    model["experts"] = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(4))
    assert stack_of(model, 4) is None, "which of the two is meant cannot be known"
    shared = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 4)
    assert stack_of(torch.nn.ModuleDict({"h": shared}), 4) is None, "a layer that is run again and again is not many"


def drawn(scales: Sequence[float] = (2.0, 2.0, 2.0), between: bool = False, early: bool = False) -> onnx_ir.Model:
    """Three layers, each ``x * scale + weight`` and a cache that grows by x, with a node before and one after."""
    kind, shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape([2])
    x = onnx_ir.Value(name="x", type=kind, shape=shape)
    inputs, nodes, outputs, initializers = [x], [], [], []

    def node(sort: str, *read: onnx_ir.Value, name: str, scope: str = "", **attributes: Any) -> onnx_ir.Value:
        nodes.append(onnx_ir.node(sort, list(read), attributes, name=f"node_{name}"))
        nodes[-1].metadata_props["scopes"] = f"['', '{scope}', 'op']"
        (made,) = nodes[-1].outputs
        made.name, made.type, made.shape = name, kind, shape
        return made

    value = node("Neg", x, name="head")
    for layer, scale in enumerate(scales):
        scope = f"model.h.{layer}"
        weight = onnx_ir.tensor(np.full(2, layer + 1, np.float32), name=f"{scope}.bias")
        initializers.append(onnx_ir.Value(name=weight.name, type=kind, shape=onnx_ir.Shape([2]), const_value=weight))
        past = onnx_ir.Value(name=f"past_key_values.{layer}.key", type=kind, shape=onnx_ir.Shape([2]))
        inputs.append(past)
        factor = node(
            "Constant", name=f"factor_{layer}", scope=scope, value=onnx_ir.tensor(np.full(2, scale, np.float32))
        )
        scaled = node("Mul", value, factor, name=f"scaled_{layer}", scope=scope)
        outputs.append(node("Add", past, value, name=f"present.{layer}.key", scope=f"{scope}.attn"))
        value = node("Add", scaled, initializers[-1], name=f"added_{layer}", scope=scope)
        if between and layer == 1:
            value = node("Neg", value, name="between")
        if early and layer == 2:
            outputs.append(scaled)
    logits = node("Neg", value, name="logits")
    graph = onnx_ir.Graph(
        inputs, [logits, *outputs], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="drawn"
    )
    return onnx_ir.Model(graph, ir_version=10)


def weights(count: int) -> dict[str, Any]:
    import torch

    return {f"model.h.{layer}.bias": torch.full((2,), float(layer + 1)) for layer in range(count)}


def test_layers_are_added_with_weights_and_caches_of_their_own() -> None:
    import onnxruntime

    model = drawn()
    assert repeat_layers(model, "model.h", 3, 6, weights(6), "scopes")
    onnx.checker.check_model(onnx_ir.to_proto(model))
    caches = [f"past_key_values.{layer}.key" for layer in range(6)]
    assert [each.name for each in model.graph.inputs] == ["x", *caches]
    assert [each.name for each in model.graph.outputs] == ["logits", *(f"present.{layer}.key" for layer in range(6))]
    assert "'model.h.5.attn'" in str([node.metadata_props for node in model.graph])
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    x = np.array([1.0, 5.0], np.float32)
    got = session.run(None, {"x": x, **{name: np.full(2, 100 * n, np.float32) for n, name in enumerate(caches)}})
    value, present = -x, []
    for layer in range(6):
        present.append(100 * layer + value)
        value = value * 2 + layer + 1
    assert [each.tolist() for each in got] == [(-value).tolist(), *(each.tolist() for each in present)]


@pytest.mark.parametrize(
    "odd", [{"scales": (2.0, 2.0, 3.0)}, {"between": True}, {"early": True}], ids=["another number", "between", "early"]
)
def test_a_graph_that_cannot_be_repeated_stays_as_it_is(odd: dict[str, Any]) -> None:
    model = drawn(**odd)
    before = onnx_ir.to_proto(model).SerializeToString()
    assert not repeat_layers(model, "model.h", 3, 6, weights(6), "scopes")
    assert onnx_ir.to_proto(model).SerializeToString() == before


def test_a_first_layer_of_its_own_sort_is_kept() -> None:
    model = drawn(scales=(9.0, 2.0, 2.0))
    assert repeat_layers(model, "model.h", 3, 4, weights(4), "scopes")
    factors = [node.attributes["value"].as_tensor().numpy()[0] for node in model.graph if node.op_type == "Constant"]
    assert factors == [9.0, 2.0, 2.0, 2.0]
