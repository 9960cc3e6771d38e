import json
import time

import numpy as np
import pytest

from optimizer.errors import BadInput, GateFailed, UnknownName
from optimizer.runtime import Provider, SessionOptions, get_runtime


@pytest.fixture
def opened(tmp_path):
    def make(**model):
        path = tmp_path / "fake.json"
        path.write_text(json.dumps(model))
        provider = Provider("fake")
        return get_runtime(provider).open(path, SessionOptions(provider), model={})

    return make


X = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}


def test_answers_depend_on_each_row_and_on_nothing_else(opened):
    whole = opened().run(X)["y"]
    assert whole.shape == (3, 4)
    assert whole.dtype == np.float32
    alone = opened(seed=7, noise=0.5).run({"x": X["x"][1:2]})["y"]
    assert np.array_equal(alone[0], whole[1])
    assert not np.array_equal(whole[0], whole[1])


def test_planted_errors_are_there(opened):
    assert np.allclose(opened(offset=0.5).run(X)["y"] - opened().run(X)["y"], 0.5)
    assert np.isnan(opened(nan=True).run(X)["y"]).all()
    assert opened(wrong_shape=True).run(X)["y"].shape == (3, 5)


@pytest.mark.parametrize("wait", ["busy", "sleep"])
def test_latency_is_at_least_what_was_planted(opened, wait):
    call = opened(latency_s=0.002, row_s=0.001, wait=wait).bind(X)
    start = time.perf_counter()
    for _ in range(4):
        call()
    assert time.perf_counter() - start >= 4 * 0.005


def test_it_fails_after_as_many_calls_as_planted(opened):
    call = opened(fail_after=2).bind(X)
    call()
    call()
    with pytest.raises(GateFailed, match="after 2 calls"):
        call()


def test_an_unknown_key_is_an_error_that_offers_the_right_one(opened):
    with pytest.raises(UnknownName, match="latency_s"):
        opened(latency=1)


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1")
    with pytest.raises(BadInput, match=r"x\.json is not a fake model"):
        get_runtime(Provider("fake")).open(path, SessionOptions(Provider("fake")), model={})
