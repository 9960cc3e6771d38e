import re
from dataclasses import replace

import numpy as np
import pytest

from optimizer.errors import BadInput
from optimizer.evaluate.parity import (
    TOLERANCES,
    Case,
    CaseResult,
    Difference,
    Inputs,
    Tolerance,
    as_computed,
    compare,
    judge,
    measure_difference,
)
from optimizer.task import get_task
from optimizer.types import Precision, TensorSpec

INT8, FP32 = TOLERANCES[Precision.INT8], TOLERANCES[Precision.FP32]


def array(*values):
    return np.array(values, np.float32)


def difference(**changes):
    same = Difference(max_abs=0.0, mean_abs=0.0, p999_abs=0.0, scale=1.0, cosine=1.0, top1=None, finite=True)
    return replace(same, **changes)


def result(name="a case", inputs=Inputs.SWEEP, *, cosine=(), top1=(), error="", **changes):
    agreement = {k: list(v) for k, v in (("cosine", cosine), ("top1", top1)) if v}
    return CaseResult(name, inputs, {}, {} if error else {"y": difference(**changes)}, agreement, error)


class Fixed:
    """A session that gives fixed answers, or refuses."""

    def __init__(self, error=None, **answers):
        self.answers, self.error = answers, error
        self.inputs = (TensorSpec("x", "float32", ("batch", 2)),)
        self.outputs = tuple(TensorSpec(name, "float32", ("batch", *a.shape[1:])) for name, a in answers.items())
        self.facts = {}

    def run(self, feeds):
        if self.error:
            raise self.error
        return dict(self.answers)


def compared(reference, candidate, feeds=None, task="generic"):
    feeds = feeds or {"x": np.zeros((2, 2), np.float32)}
    (found,) = compare(reference, candidate, [Case("one", feeds)], get_task(task), {"task": task})
    return found


class TestMeasureDifference:
    def test_numbers(self):
        got = measure_difference("y", array([1, 2], [3, 4]), array([1, 2], [3, 4.5]), {})
        assert (got.max_abs, got.mean_abs, got.scale, got.finite) == (0.5, 0.125, 4.0, True)
        assert 0.49 < got.p999_abs <= 0.5
        assert got.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
        assert got.top1 is None

    def test_padding_never_counts(self):
        want, got = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
        got[1, 2] = np.nan
        got[1, 1] = 1e9
        feeds = {"attention_mask": np.array([[1, 1, 1], [1, 0, 0]])}
        clean = measure_difference("h", want, got, feeds, decides=True)
        assert (clean.max_abs, clean.finite, clean.cosine, clean.top1) == (0.0, True, 1.0, 1.0)
        got[1, 0, 3] = 0.25
        seen = measure_difference("h", want, got, feeds, decides=True)
        assert (seen.max_abs, seen.cosine) == (0.25, 0.0)
        assert seen.top1 == pytest.approx(3 / 4)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_finite_on_one_side_only(self, bad):
        assert not measure_difference("y", array([1, 2]), array([1, bad]), {}).finite
        assert not measure_difference("y", array([1, bad]), array([1, 2]), {}).finite
        both = measure_difference("y", array([1, bad]), array([1.5, bad]), {})
        assert (both.finite, both.max_abs, both.scale) == (True, 0.5, 1.0)

    def test_infinities_of_opposite_sign_differ(self):
        assert not measure_difference("y", array([1, np.inf]), array([1, -np.inf]), {}).finite

    def test_an_infinite_answer_does_not_widen_the_tolerance(self):
        """A scale of infinity would allow any difference in the other entries."""
        got = measure_difference("y", array([-np.inf, 1.0]), array([-np.inf, 2.0]), {})
        assert judge([CaseResult("c", Inputs.SWEEP, {}, {"y": got})], FP32)

    def test_integers_booleans_and_strings(self):
        assert measure_difference("y", np.array([1, 2]), np.array([1, 4]), {}).max_abs == 2
        assert measure_difference("y", np.array([True]), np.array([False]), {}).max_abs == 1
        assert measure_difference("y", np.array(["a", "b"], object), np.array(["a", "c"], object), {}).max_abs == 1
        assert measure_difference("y", np.array(["a", "b"], object), np.array(["a", "b"], object), {}).max_abs == 0

    def test_scalars_and_nothing_at_all(self):
        assert measure_difference("y", np.array(2.0), np.array(2.5), {}).max_abs == 0.5
        empty = np.zeros((0, 3), np.float32)
        assert measure_difference("y", empty, empty, {}).max_abs == 0


class TestCompare:
    def test_equal_answers(self):
        a = array([1, 2], [3, 4])
        found = compared(Fixed(y=a), Fixed(y=a))
        assert not judge([found], FP32)
        assert found.agreement["cosine"] == [1.0, 1.0]
        assert found.shapes == {"x": [2, 2]}

    @pytest.mark.parametrize(
        ("candidate", "message"),
        [
            (Fixed(y=np.zeros((2, 2))), "answers with y, z; this with y"),
            (Fixed(y=np.zeros((2, 2)), z=np.zeros((2, 2)), more=np.zeros(2)), "this with more, y, z"),
            (Fixed(y=np.zeros((2, 3)), z=np.zeros((2, 2))), r"'y' has shape \[2, 3\]; the reference gives \[2, 2\]"),
            (Fixed(BadInput("no such shape"), y=np.zeros((2, 2)), z=np.zeros((2, 2))), "no such shape"),
        ],
        ids=["lacking", "too many", "shape", "refusal"],
    )
    def test_a_candidate_that_does_not_answer_has_failed_and_the_others_count(self, candidate, message):
        reference = Fixed(y=np.zeros((2, 2)), z=np.zeros((2, 2)))
        found = compared(reference, candidate)
        (failure,) = judge([found], Tolerance())
        assert failure.startswith("one: ")
        assert re.search(message, failure)

    def test_a_reference_that_does_not_answer_is_no_verdict(self):
        with pytest.raises(BadInput, match="broken"):
            compared(Fixed(BadInput("broken"), y=np.zeros((2, 2))), Fixed(y=np.zeros((2, 2))))

    def test_swapped_outputs_fail(self):
        a, b = array([1, 2], [3, 4]), array([2, 1], [4, 3])
        found = compared(Fixed(start=a, end=b), Fixed(start=b, end=a))
        assert len([f for f in judge([found], FP32) if "max difference" in f]) == 2

    def test_classes_are_no_padding_even_where_their_count_is_the_sequence(self):
        """logits [2, 2] beside a mask [2, 2]: the second class of the padded row must count."""
        feeds = {"input_ids": np.ones((2, 2), int), "attention_mask": np.array([[1, 1], [1, 0]])}
        want, got = array([1, 2], [3, 4]), array([1, 2], [3, 9])
        found = compared(Fixed(logits=want), Fixed(logits=got), feeds, "text-classification")
        assert found.outputs["logits"].max_abs == 5


class TestJudge:
    def test_nothing_compared_proves_nothing(self):
        assert judge([], FP32) == ["nothing was compared"]

    def test_the_largest_difference_is_relative_to_the_answers(self):
        assert not judge([result(max_abs=0.99e-4)], FP32)
        assert judge([result(max_abs=1.01e-4)], FP32)
        assert not judge([result(max_abs=0.9e-2, scale=100.0)], FP32)
        assert judge([result(max_abs=float("nan"))], FP32)

    def test_not_finite_fails_whatever_is_allowed(self):
        assert judge([result(finite=False)], Tolerance())

    def test_the_worst_row_is_judged_not_the_mean(self):
        assert not judge([result(cosine=[0.96] * 30)], INT8)
        (failure,) = judge([result("8x17", cosine=[1.0] * 29 + [0.94])], INT8)
        assert failure == "8x17: worst cosine 0.94000, at least 0.95 is asked"
        assert judge([result(cosine=[1.0, float("nan")])], INT8)

    def test_decisions_are_counted_over_all_cases(self):
        """Eight rows a batch: no single case ever has enough of them to judge."""
        cases = [result(inputs=Inputs.DATA, top1=[1.0] * 7 + [0.0]) for _ in range(10)]
        (failure,) = judge(cases, INT8)
        assert failure == "the data: 87.5% top-1 agreement over 80 rows, at least 95.0% is asked"
        assert not judge([*cases[:1], *[result(inputs=Inputs.DATA, top1=[1.0] * 8) for _ in range(9)]], INT8)

    def test_repeated_golden_rows_do_not_outvote_the_data(self):
        sweep = [result(top1=[1.0] * 8) for _ in range(100)]
        data = [result(inputs=Inputs.DATA, top1=[1.0] * 18 + [0.0] * 2)]
        (failure,) = judge([*sweep, *data], INT8)
        assert failure.startswith("the data: 90.0%")
        (failure,) = judge([result(top1=[0.0] * 8), *[result(inputs=Inputs.DATA, top1=[1.0] * 400)]], INT8)
        assert failure.startswith("golden inputs and sweep: 0.0%")

    def test_one_row_of_a_handful_may_differ_unless_none_may(self):
        assert not judge([result(top1=[1.0] * 7 + [0.0])], INT8)
        assert judge([result(top1=[1.0] * 6 + [0.0] * 2)], INT8)
        assert judge([result(top1=[1.0] * 7 + [0.0])], Tolerance(min_top1=1.0))
        assert judge([result(top1=[1.0] * 18 + [0.0] * 2)], INT8)

    def test_a_row_that_tips_over_is_counted_once(self):
        """Two classes: its logits turn round, which is a cosine of -1."""
        case = result(inputs=Inputs.DATA, cosine=[1.0] * 63 + [-1.0], top1=[1.0] * 63 + [0.0])
        assert not judge([case], INT8)
        assert judge([case], INT8, every_cosine=True)
        assert judge([case], FP32)
        assert judge([replace(case, inputs=Inputs.SWEEP)], INT8)
        assert judge([result(inputs=Inputs.DATA, cosine=[1.0] * 63 + [-1.0])], INT8)

    def test_every_precision_has_a_tolerance_that_judges_something(self):
        for precision in Precision:
            assert judge([result(cosine=[0.5] * 40, top1=[0.5] * 40, max_abs=1.0)], TOLERANCES[precision])


@pytest.mark.parametrize(
    ("own", "facts", "coarsest"),
    [
        ("fp32", {}, "fp32"),
        ("fp32", {"precision": "fp32", "tf32": False}, "fp32"),
        ("fp32", {"precision": "", "tf32": True}, "fp16"),
        ("fp16", {"tf32": True}, "fp16"),
        ("bf16", {"tf32": True}, "bf16"),
        ("int8", {"tf32": True, "precision": "bf16"}, "int8"),
        ("fp32", {"precision": "bf16"}, "bf16"),
        ("fp16", {"precision": "bf16"}, "bf16"),
        ("fp32", {"precision": "fp16"}, "fp16"),
    ],
)
def test_the_coarsest_of_what_is_stored_and_what_is_computed_in(own, facts, coarsest):
    assert as_computed(Precision(own), facts) == coarsest
