"""Logits of the last tokens alone: the same numbers, for whoever asks; and nothing changed for whoever does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from generators import greedy, prompts
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from optimizer.generator import GeneratorOptions, Sampling, open_generator
from optimizer.graph.head import LOGITS_FROM, choose_rows, chooses_rows


def decoder_head(*after: str, tied: bool = False) -> onnx_ir.Model:
    """Hidden states ``[batch, tokens, 4]`` and a head of 6 tokens, with nodes after it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 4) if tied else (4, 6)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0])] if tied else []
    nodes.append(helper.make_node("MatMul", ["hidden", "w_t" if tied else "w"], ["n0"], name="/lm_head"))
    for number, op in enumerate(after):
        inputs = [f"n{number}"] if op in ("Tanh", "Softmax") else [f"n{number}", "two"]
        nodes.append(helper.make_node(op, inputs, [f"n{number + 1}"]))
    nodes[-1].output[0] = "logits"
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "tokens", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", 6])
    stored = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")]
    graph = helper.make_graph(nodes, "head", [hidden], [logits], stored)
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize("model", [decoder_head(), decoder_head("Div", "Tanh", "Mul"), decoder_head(tied=True)])
def test_last_rows_are_those_of_all(model: onnx_ir.Model) -> None:
    hidden = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    whole = InferenceSession(onnx_ir.to_proto(model).SerializeToString()).run(None, {"hidden": hidden})[0]
    assert choose_rows(model, "logits")
    assert chooses_rows(model)
    session = InferenceSession(onnx_ir.to_proto(model).SerializeToString())
    assert [one.name for one in session.get_inputs()] == ["hidden"]
    np.testing.assert_array_equal(session.run(None, {"hidden": hidden})[0], whole)
    for last in (1, 3):
        got = session.run(None, {"hidden": hidden, LOGITS_FROM: np.array([-last])})[0]
        np.testing.assert_array_equal(got, whole[:, -last:])


@pytest.mark.parametrize("model", [decoder_head("Softmax"), decoder_head("Mul", "Softmax")])
def test_another_end_of_a_graph_stays_as_it_is(model: onnx_ir.Model) -> None:
    """What follows the head mixes the numbers of a row, so that nobody knows here what it would do with fewer."""
    before = onnx_ir.to_proto(model).SerializeToString()
    assert not choose_rows(model, "logits")
    assert not choose_rows(model, "scores")
    assert not chooses_rows(model)
    assert onnx_ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("at_once", [512, 5])
@pytest.mark.parametrize("runtime", ["onnxruntime", "genai"])
def test_a_decoder_writes_the_same(
    llama_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, at_once: int
) -> None:
    """With the input and a prompt read whole or in parts; a runtime that does not know the input reads it too."""
    monkeypatch.setattr("optimizer.runtimes._ort_decoder.Decoder.part", at_once)
    for path in llama_generator.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = onnx_ir.load(str(tmp_path / "model.onnx"))
    assert choose_rows(model, "logits")
    onnx_ir.save(model, str(tmp_path / "model.onnx"))
    opened = open_generator(tmp_path, GeneratorOptions(runtime=runtime, threads=1))
    try:
        for prompt in prompts(4):
            pieces = list(opened.submit(prompt, Sampling(max_tokens=40)))
            assert [token for piece in pieces for token in piece.tokens] == greedy(prompt, 40)
        plain = open_generator(llama_generator, GeneratorOptions(runtime=runtime, threads=1))
        rows = np.array([prompts(4)[3]])
        np.testing.assert_array_equal(opened.score(rows), plain.score(rows))
        plain.close()
    finally:
        opened.close()
