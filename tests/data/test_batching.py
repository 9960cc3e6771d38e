import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.data.batching import IN_ORDER, ONE_BY_ONE, SORTED, Batching, budgets, padded
from optimizer.errors import BadInput

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 900), st.integers(0, 9))
def test_every_row_once_and_no_batch_beyond_its_budget(lengths, tokens, most):
    groups = Batching(tokens=tokens).groups(lengths, most or None)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[place] for place in group) <= tokens or len(group) == 1
        assert not most or len(group) <= most


@given(LENGTHS)
def test_sorting_never_pads_more(lengths):
    assert padded(lengths, SORTED.groups(lengths)) <= padded(lengths, IN_ORDER.groups(lengths))


def test_batches_are_filled_before_another_begins():
    assert Batching(tokens=12).groups([2, 6, 3, 6, 3]) == ((1, 3), (2, 4, 0))
    assert Batching(rows=2, sort=False).groups([2, 6, 3, 6, 3]) == ((0, 1), (2, 3), (4,))
    assert ONE_BY_ONE.groups([2, 6]) == ((0,), (1,))
    assert SORTED.groups([1] * 70) == (tuple(range(32)), tuple(range(32, 64)), tuple(range(64, 70)))


def test_padding_is_counted_by_the_longest_row():
    assert padded([2, 6, 3], [(0, 1), (2,)]) == 15


@pytest.mark.parametrize("text", ["tokens:2048", "sorted:32", "order:32", "order:1"])
def test_a_rule_is_read_as_it_is_spelled(text):
    assert Batching.parse(text).spelled == text
    assert Batching.parse(f" {text.upper()} ") == Batching.parse(text)


@pytest.mark.parametrize("text", ["", "tokens", "tokens:0", "tokens:-1", "length:3", "2048", "order:1.5"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(BadInput, match="no way to batch rows"):
        Batching.parse(text)


def test_rules_say_what_they_do():
    assert [str(each) for each in (ONE_BY_ONE, IN_ORDER, SORTED, Batching(tokens=64))] == [
        "one by one",
        "batches of 32, in the order of the data",
        "batches of 32, sorted by length",
        "batches of up to 64 tokens, sorted by length",
    ]


def test_the_smallest_budget_has_room_for_the_longest_row():
    assert [each.tokens for each in budgets(71)] == [512, 1024, 2048, 4096]
    assert budgets(9000)[0].tokens == 9000
