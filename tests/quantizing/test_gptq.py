"""GPTQ: rounding in view of the errors before it, on planted weights."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from quantizing import graphs

import optimizer
from optimizer.errors import BadInput
from optimizer.quantizing import gptq
from optimizer.quantizing.blocks import Blocks, products_of, read_blocks
from optimizer.quantizing.gptq import Moments, Original, compensated, moments
from optimizer.store import Store

WIDTH = graphs.WIDTH


def correlated(rows: int, width: int = WIDTH, seed: int = 1) -> np.ndarray:
    """Rows whose numbers move together, as those of a hidden state do."""
    random = np.random.default_rng(seed)
    mixed = np.random.default_rng(0).normal(size=(width // 4, width))
    made = random.normal(size=(rows, width // 4)) @ mixed + 0.1 * random.normal(size=(rows, width))
    return made.astype(np.float32)


def sums(rows: np.ndarray) -> np.ndarray:
    return rows.T.astype(np.float64) @ rows


def grid(outputs: int, inputs: int, scale: float) -> Blocks:
    return Blocks(
        np.zeros((outputs, inputs), np.uint8),
        np.full((outputs, inputs), scale, np.float32),
        np.full((outputs, inputs), 8, np.float32),
    )


def test_inputs_that_have_nothing_to_do_with_each_other_take_the_nearest_levels() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 200)).astype(np.float32)
    blocks = grid(7, 200, 0.2)
    levels = compensated(weight, Moments.of(np.diag(np.linspace(1, 9, 200))), blocks)
    assert (levels == blocks.rounded(weight)).all()


def test_two_inputs_that_are_one_share_their_error() -> None:
    """What the first is off by is made up for in the second; on damped moments ``[[d, 1], [1, d]]`` by 1 / d of it."""
    blocks = grid(1, 2, 1.0)
    weight = np.array([[0.4, 0.3]], np.float32)
    assert blocks.weight(blocks.rounded(weight)).tolist() == [[0, 0]], "alone, both are lost"
    levels = compensated(weight, Moments.of(np.ones((2, 2))), blocks)
    assert blocks.weight(levels).tolist() == [[0, 1]], "0.3 and what 0.4 was off by are nearer to 1"


def test_it_is_not_far_from_the_best_levels_there_are() -> None:
    """Every choice of levels around the weights is tried: GPTQ is to be near the best of them."""
    rows = correlated(64, 8)
    moment = Moments.of(sums(rows))
    shares = []
    for seed in range(12):
        weight = np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32)
        blocks = grid(1, 8, 0.4)
        low = np.floor(weight / 0.4) + 8
        every = np.array([low[0] + up for up in itertools.product((0, 1), repeat=8)])
        best = min(moment.noises(weight, *(blocks.weight(levels[None]) for levels in every)))
        nearest, ours = moment.noises(
            weight, blocks.weight(blocks.rounded(weight)), blocks.weight(compensated(weight, moment, blocks))
        )
        shares.append((ours - best) / (nearest - best))
    assert np.median(shares) < 0.35


def test_errors_are_handed_on_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(size=(16, WIDTH)).astype(np.float32)
    moment, blocks = Moments.of(sums(correlated(300))), grid(16, WIDTH, 0.3)
    whole = compensated(weight, moment, blocks)
    monkeypatch.setattr(gptq, "_AT_ONCE", 5)
    assert (compensated(weight, moment, blocks) == whole).mean() > 0.99, "but for additions in another order"


def test_the_data_is_run_again_where_memory_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(graphs.shared(), path)
    rows = [correlated(n, seed=n) for n in (3, 40, 2000)]
    original = Original(path, lambda: ({"x": each} for each in rows), len(rows))
    monkeypatch.setattr(gptq, "_ROOM", 8 * WIDTH**2)
    said: list[tuple[Any, ...]] = []
    found = dict(moments(original, {"x": WIDTH, "r": WIDTH}, lambda *told: said.append(told)))
    assert [told[1:] for told in said] == [(n, 6) for n in range(1, 7)], "two passes of three runs"
    weight = onnx.numpy_helper.to_array(graphs.shared().graph.initializer[0])
    whole = np.concatenate(rows)
    np.testing.assert_allclose(found["x"].matrix, sums(whole), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found["r"].matrix, sums(np.maximum(whole @ weight, 0)), rtol=1e-4, atol=1e-1)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def learned(store: Store, tmp_path: Path, proto: onnx.ModelProto, **options: Any) -> tuple[Any, Any, Any]:
    """A small graph, and its products in 4 bits, at the nearest levels and by GPTQ."""
    ref = graphs.put(store, tmp_path, proto)
    np.savez(tmp_path / "calib.npz", x=correlated(300)[:, None][:, 0])
    plain = optimizer.quantize_weights(ref, store=store, **options).artifact
    made = optimizer.quantize_weights(
        ref, store=store, algorithm="gptq", calib=tmp_path / "calib.npz", samples=300, **options
    ).artifact
    return store.get(ref), plain, made


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "proto",
    [graphs.linear(), graphs.behind("Transpose", perm=[1, 0]), graphs.gemm()],
    ids=["plain", "transpose", "gemm"],
)
def test_answers_on_other_rows_are_nearer(
    store: Store, tmp_path: Path, proto: onnx.ModelProto, symmetric: bool
) -> None:
    before, plain, made = learned(store, tmp_path, proto, symmetric=symmetric, accuracy_level=1)
    facts = made.manifest.facts["gptq"]
    assert (facts["products"], facts["left"]) == (1, [])
    x = {"x": correlated(100, seed=2)}
    want = graphs.run(before.model_file, x)
    near, far = (float(((graphs.run(each.model_file, x) - want) ** 2).mean()) for each in (made, plain))
    assert near < 0.5 * far
    # What the manifest says of the rows that were learned from holds for others too.
    power = float((want**2).mean()) if proto.graph.node[-1].op_type == "MatMul" else None
    if power is not None:
        assert facts["noise"]["before"] == pytest.approx(far / power, rel=0.3)
        assert facts["noise"]["after"] == pytest.approx(near / power, rel=0.3)
    assert graphs.model_bytes(made) == graphs.model_bytes(plain)


@pytest.mark.parametrize(("inputs", "symmetric"), [(64, False), (80, True), (96, False)])
def test_blocks_are_what_the_kernel_multiplies_by(store: Store, tmp_path: Path, inputs: int, symmetric: bool) -> None:
    """Also where the last block is not full."""
    proto = graphs.graph(
        [graphs.node("MatMul", "x w", "y")],
        [graphs.value("x", ["batch", inputs])],
        [graphs.value("y", ["batch", 24])],
        [graphs.weight("w", inputs, 24)],
    )
    ref = graphs.put(store, tmp_path, proto)
    made = optimizer.quantize_weights(ref, store=store, symmetric=symmetric, accuracy_level=1).artifact
    (node,) = products_of(onnx_ir.load(str(made.model_file)))
    got = graphs.run(made.model_file, {"x": np.eye(inputs, dtype=np.float32)})
    np.testing.assert_allclose(read_blocks(node).weight().T, got, atol=1e-6)


def test_a_product_that_it_would_spoil_stays_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "compensated", lambda weight, moment, blocks: np.zeros(weight.shape, np.uint8))
    _, plain, made = learned(store, tmp_path, graphs.linear())
    facts = made.manifest.facts["gptq"]
    assert (facts["products"], facts["left"]) == (0, ["project_Q4"])
    assert facts["noise"]["before"] == facts["noise"]["after"] > 0
    x = {"x": graphs.rows(5, WIDTH)}
    assert (graphs.run(plain.model_file, x) == graphs.run(made.model_file, x)).all()


def test_a_weight_of_two_products_suits_neither_better(store: Store, tmp_path: Path) -> None:
    _, plain, made = learned(store, tmp_path, graphs.shared())
    assert made.manifest.facts["gptq"]["products"] == 0
    assert len(made.manifest.facts["gptq"]["left"]) == 2
    x = {"x": graphs.rows(5, WIDTH)}
    assert (graphs.run(plain.model_file, x) == graphs.run(made.model_file, x)).all()


def test_infinities_are_no_lesson(store: Store, tmp_path: Path) -> None:
    ref = graphs.put(store, tmp_path, graphs.linear())
    rows = correlated(20)
    rows[3, 3] = np.inf
    np.savez(tmp_path / "calib.npz", x=rows)
    with pytest.raises(BadInput, match="not finite"):
        optimizer.quantize_weights(ref, store=store, algorithm="gptq", calib=tmp_path / "calib.npz")
    assert [artifact.variant for artifact in store.artifacts()] == ["fp32"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"algorithm": "gptq"}, "learns from data", "--calib FILE"),
        ({"algorithm": "gptq", "calib": "c.npz", "bits": 8}, "4 bits", "leave out"),
        ({"calib": "c.npz"}, "--calib is for GPTQ", "--algorithm gptq"),
        ({"samples": 3}, "--samples is for GPTQ", "--algorithm gptq"),
        ({"seed": 3}, "--seed is for GPTQ", "--algorithm gptq"),
    ],
)
def test_what_cannot_be_asked_for_together(
    options: dict[str, Any], message: str, hint: str, store: Store, tmp_path: Path
) -> None:
    ref = graphs.put(store, tmp_path, graphs.linear())
    with pytest.raises(BadInput, match=message) as caught:
        optimizer.quantize_weights(ref, store=store, **options)
    assert hint in str(caught.value.hint)
