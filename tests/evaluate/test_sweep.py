"""The shapes that parity is proven on."""

import numpy as np

from optimizer.data.golden import Golden
from optimizer.evaluate.sweep import shape_sweep, sweep_cases
from optimizer.types import TensorSpec


def spec(*shape, name="x"):
    return TensorSpec(name, "int64", shape)


TEXT = [spec("batch", "sequence", name="input_ids"), spec("batch", "sequence", name="attention_mask")]


def test_text_is_swept_over_batch_length_and_padding():
    cases = shape_sweep(TEXT, {"min_length": 1, "max_length": 128})
    assert cases == [
        (1, 1, False), (1, 17, False), (1, 128, False),
        (2, 1, False), (2, 17, False), (2, 17, True), (2, 128, False), (2, 128, True),
        (8, 1, False), (8, 17, False), (8, 17, True),
    ]  # fmt: skip


def test_without_a_limit_the_longest_is_long_enough():
    assert max(length for _, length, _ in shape_sweep(TEXT, {})) == 512
    audio = [spec("batch", "samples")]
    lengths = {length for _, length, _ in shape_sweep(audio, {"min_length": 400, "max_length": None})}
    assert lengths == {400, 801, 16000}


def test_short_models_are_swept_to_their_end_at_every_batch():
    cases = shape_sweep(TEXT, {"max_length": 8})
    assert {length for _, length, _ in cases} == {1, 8}
    assert (8, 8, True) in cases


def test_the_largest_batch_is_kept():
    assert {batch for batch, _, _ in shape_sweep(TEXT, {"max_batch": 2})} == {1, 2}


def test_models_without_a_sequence_have_batches_alone():
    assert shape_sweep([spec("batch", 3, 8, 8)], {}) == [(1, 1, False), (2, 1, False), (8, 1, False)]
    assert shape_sweep([spec("s18", 3)], {}) == [(1, 1, False), (2, 1, False), (8, 1, False)]
    assert shape_sweep([spec(4, 3)], {}) == [(1, 1, False)]


def test_a_fixed_sequence_with_a_mask_is_padded_as_well():
    fixed = [spec("batch", 16, name="attention_mask")]
    assert shape_sweep(fixed, {}) == [(1, 1, False), (2, 1, False), (2, 1, True), (8, 1, False), (8, 1, True)]


def test_cases_are_named_and_filled():
    golden = Golden({s.name: np.ones((2, 4), np.int64) for s in TEXT}, {})
    cases = {case.name: case.feeds for case in sweep_cases(golden, TEXT, {"max_length": 8})}
    assert cases["2x8 padded"]["attention_mask"].sum(1).tolist() == [8, 4]
    assert cases["1x1"]["input_ids"].shape == (1, 1)
