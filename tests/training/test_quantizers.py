"""Rounding that is trained through, against ONNX's operators, ONNX Runtime's quantizers and the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from optimizer.quantizing.rounding import weight_levels
from optimizer.training.quantizers import (
    ActivationQuantizer,
    clip_weight,
    round_blocks,
    round_weight,
    weight_scale,
)


def settled(x: torch.Tensor, *, symmetric: bool) -> ActivationQuantizer:
    low, high = (-128, 127) if symmetric else (0, 255)
    quantizer = ActivationQuantizer(low, high, symmetric=symmetric)
    quantizer.observe(x)
    quantizer.settle()
    return quantizer


def through_onnx(x: torch.Tensor, quantizer: ActivationQuantizer) -> np.ndarray[Any, Any]:
    """QuantizeLinear and DequantizeLinear by onnx's reference."""
    dtype = np.int8 if quantizer.symmetric else np.uint8
    scale = quantizer.scale.detach().numpy()
    zero = np.array(int(quantizer.zero_point), dtype)
    graph = onnx.parser.parse_graph(
        "g (float[N] x, float s, %s z) => (float[N] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
        % ("int8" if quantizer.symmetric else "uint8")
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    return ReferenceEvaluator(model).run(None, {"x": x.numpy(), "s": scale, "z": zero})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_activation_is_rounded_as_onnx_rounds_it(symmetric: bool) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1)) * 3 + 1
    quantizer = settled(x, symmetric=symmetric)
    wide = torch.cat([x, 4 * x])  # beyond the range as well
    assert np.array_equal(quantizer(wide).detach().numpy(), through_onnx(wide, quantizer))


def test_halves_are_rounded_to_even() -> None:
    quantizer = ActivationQuantizer(-128, 127, symmetric=True)  # a scale of 1
    assert quantizer(torch.tensor([0.5, 1.5, 2.5, -0.5])).tolist() == [0.0, 2.0, 2.0, 0.0]


def test_the_step_has_the_gradient_of_lsq() -> None:
    """Esser et al., equation 3: round(v/s) - v/s within the range, its ends beyond; times 1 / sqrt(N Q)."""
    quantizer = ActivationQuantizer(-128, 127, symmetric=True)
    with torch.no_grad():
        quantizer.log_scale.fill_(float(np.log(0.5)))
    x = torch.tensor([0.6, -0.1, 80.0, -90.0], requires_grad=True)
    quantizer(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    by_scale = 1 * (1 - 1.2) + 2 * (0 + 0.2) + 3 * 127 + 4 * -128
    factor = (4 * 127) ** -0.5
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]
    # The logarithm of the step is what is learned.
    assert quantizer.log_scale.grad is not None
    assert float(quantizer.log_scale.grad) == pytest.approx(by_scale * factor * 0.5, rel=1e-5)


def test_a_first_range_leaves_a_lone_outlier_outside() -> None:
    x = torch.randn(16000, generator=torch.Generator().manual_seed(2))
    x[7] = 30.0
    with_outlier, without = settled(x, symmetric=True), settled(x.clamp(-4, 4), symmetric=True)

    def error(scale: float) -> float:
        return float(((x / scale).round().clamp(-128, 127) * scale - x).square().mean())

    assert 4 < float(with_outlier.scale.detach()) * 127 < 29
    assert error(float(with_outlier.scale.detach())) < min(error(30 / 127), error(float(without.scale.detach())))


def test_a_range_is_that_of_most_rows_where_one_row_is_far_larger() -> None:
    """Normalization looks at a row by its own size: the small ones must not be lost between two levels."""
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(5))
    x[0, 99] = 220.0
    scale = float(settled(x, symmetric=True).scale.detach())

    def lost(step: float) -> float:
        """Of each row's squares, the share that rounding changes, in the mean."""
        off = (x / step).round().clamp(-128, 127) * step - x
        return float((off.square().sum(1) / x.square().sum(1)).mean())

    assert scale < 220 / 127 / 3
    assert lost(scale) < 0.5 * lost(220 / 127)


def test_a_sample_looks_at_every_channel_and_batch() -> None:
    """A row has 384 numbers, which many steps through them share a factor with."""
    quantizer = ActivationQuantizer(-128, 127, symmetric=True)
    for batch in range(40):
        quantizer.observe(torch.arange(384.0).repeat(16, 128, 1) + 1000 * batch)
    seen = torch.cat([values[0] for values in quantizer._seen])
    assert len(set((seen % 1000).tolist())) == 384
    assert {int(value) // 1000 for value in seen.tolist()} == set(range(40))
    assert len(seen) <= 1 << 18


def test_what_is_never_negative_has_all_levels_above_zero() -> None:
    quantizer = settled(torch.rand(1000, generator=torch.Generator().manual_seed(3)), symmetric=False)
    assert int(quantizer.zero_point) == 0
    assert float(quantizer.scale.detach()) == pytest.approx(1 / 255, rel=0.1)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_are_those_of_post_training_quantization(axis: int | None) -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(4))
    levels, scale = weight_levels(weight.numpy(), axis)
    rounded = round_weight(weight, axis)
    assert np.allclose(weight_scale(weight, axis).numpy(), scale.reshape(-1), rtol=1e-6)
    assert np.allclose(rounded.numpy(), levels * scale, atol=1e-6)


@pytest.mark.parametrize("most", [127, 63])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_weight_is_rounded_to_the_bit_as_torchs_own_fake_quantization_does(axis: int | None, most: int) -> None:
    """Weights that were trained before keep their levels."""
    weight = torch.randn(96, 130, generator=torch.Generator().manual_seed(8)) ** 3
    weight[5] = 0.0
    scale = weight_scale(weight, axis, most)
    # Halfway between two levels as well, where the last bit decides.
    weight[7] = (torch.arange(130) % 40 - 20.5) * (scale[7] if axis == 0 else scale[:130] if axis == 1 else scale)
    scale = weight_scale(weight, axis, most)
    if axis is None:
        zero = torch.zeros(1, dtype=torch.int32)
        wanted = torch.fake_quantize_per_tensor_affine(weight, scale, zero, -most, most)
    else:
        zero = torch.zeros_like(scale, dtype=torch.int32)
        wanted = torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -most, most)
    made = round_weight(weight, axis, most=most)
    assert torch.equal(made, wanted)
    assert float((made - weight).abs().max()) > 0


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_multiplied_rounded_and_divided_at_once_is_what_it_is_in_steps(symmetric: bool, divides: bool) -> None:
    drawn = torch.Generator().manual_seed(9)
    x = torch.randn(4, 50, 24, generator=drawn) * 3 + 0.5
    given = torch.randn(4, 50, 24, generator=drawn)
    quantizer = settled(x, symmetric=symmetric)
    quantizer.multiplier = torch.rand(24, generator=drawn) * 2 + 0.1
    quantizer.divides = divides
    ours = x.clone().requires_grad_()
    answer = quantizer(ours)
    answer.backward(given)
    low, high = (end - int(quantizer.zero_point) for end in (quantizer.low, quantizer.high))
    scale = quantizer.scale.detach()
    steps = (x * quantizer.multiplier) / scale
    levels = steps.round().clamp(low, high)
    inverse = quantizer.multiplier.reciprocal()
    assert torch.equal(answer.detach(), levels * scale * (inverse if divides else 1))
    inside = (steps >= low) & (steps <= high)
    assert 0 < int((~inside).sum()) < 1000
    gradient = given * inverse if divides else given
    assert ours.grad is not None
    assert torch.equal(ours.grad, gradient * inside * quantizer.multiplier)
    by_scale = (gradient * torch.where(inside, levels - steps, levels)).sum() / (x.numel() * max(high, 1)) ** 0.5
    assert quantizer.log_scale.grad is not None
    assert torch.equal(quantizer.log_scale.grad, by_scale * scale)
    # Where nothing is learned, in fewer passes: x stays what it is, and the answer too.
    before = x.clone()
    with torch.inference_mode():
        assert torch.equal(quantizer(x), answer.detach())
    assert torch.equal(x, before)


def test_the_gradient_of_a_weight_passes_rounding() -> None:
    for rounding in (lambda w: round_weight(w, 0), lambda w: round_blocks(w, 8)):
        weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(5), requires_grad=True)
        rounding(weight).backward(torch.full((4, 16), 3.0))
        assert weight.grad is not None
        assert weight.grad.tolist() == [[3.0] * 16] * 4


def test_blocks_are_those_of_onnx_runtime() -> None:
    """Its quantizer, given the rounded weight, stores the very same numbers: what was trained is what is run."""
    import onnxruntime
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weight = torch.randn(24, 80, generator=torch.Generator().manual_seed(6))  # 80 is no multiple of 32
    rounded = round_blocks(weight, 32)
    assert torch.equal(round_blocks(rounded, 32), rounded)
    assert 0.02 < float((rounded - weight).abs().mean()) < 0.2
    graph = onnx.parser.parse_graph("g (float[N, 80] x) => (float[N, 24] y) { y = MatMul(x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(rounded.numpy().T), "w"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=32, is_symmetric=True, accuracy_level=1)
    quantizer.process()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(quantizer.model.model.SerializeToString(), options)
    found = session.run(None, {"x": np.eye(80, dtype=np.float32)})[0]
    assert np.allclose(found.T, rounded.numpy(), atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0])
def test_a_weight_is_cut_off_where_the_others_gain_by_it(axis: int | None) -> None:
    weight = torch.randn(4, 65536, generator=torch.Generator().manual_seed(6)) * 0.05
    plain = weight.clone()
    weight[3, 7] = 8.0
    cut = clip_weight(weight, axis)

    def error(of: torch.Tensor) -> float:
        return float((round_weight(of, axis) - weight).square().sum())

    assert 0 < float(cut[3, 7]) < 8
    assert error(cut) < 0.9 * error(weight)
    if axis == 0:  # the other channels are as they were cut without it
        others = [0, 1, 2]
        assert torch.equal(cut[others], clip_weight(plain, 0)[others])
