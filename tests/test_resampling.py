"""Weights of the Bayesian bootstrap."""

import numpy as np

from optimizer.resampling import draws_for, exponential_weights


def test_weights_have_the_moments_of_gammas_and_come_again_with_their_seed():
    drawn = np.concatenate(list(exponential_weights(np.array([1, 4]), 20_000, 3)))
    assert drawn.shape == (20_000, 2)
    assert np.allclose(drawn.mean(0), [1, 4], rtol=0.05)
    assert np.allclose(drawn.var(0), [1, 4], rtol=0.1)
    assert (drawn == np.concatenate(list(exponential_weights(np.array([1, 4]), 20_000, 3)))).all()


def test_many_rows_come_in_parts():
    parts = list(exponential_weights(np.ones(1_000_000), 5, 0))
    assert [len(part) for part in parts] == [2, 2, 1]


def test_draws_for_a_bound():
    assert draws_for(0.95) == 2000
    assert draws_for(0.99) == 5000
