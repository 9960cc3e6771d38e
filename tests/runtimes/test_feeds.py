import numpy as np
import pytest

from optimizer.errors import BadInput, UnknownName
from optimizer.runtimes._feeds import check_feeds
from optimizer.types import TensorSpec

SPECS = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("mask", "int64", ("batch", "sequence")),
    TensorSpec("size", "float32", ("batch", 2)),
)


def feeds(**changed):
    good = {"ids": np.ones((3, 5), np.int64), "mask": np.ones((3, 5), np.int64), "size": np.ones((3, 2), np.float32)}
    return {name: array for name, array in {**good, **changed}.items() if array is not None}


def test_what_fits_passes():
    check_feeds(SPECS, feeds(), {"ids": (0, 1)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": None}, "'mask' is missing"),
        ({"ids": np.ones((3, 5), np.int32)}, "'ids' takes int64, not int32"),
        ({"ids": np.ones(5, np.int64)}, "'ids' takes 2 dimensions"),
        ({"size": np.ones((3, 4), np.float32)}, "'size' has 4 in dimension 1; the model takes only 2"),
        ({"mask": np.ones((3, 4), np.int64)}, r"'mask' has 4 in dimension 1 \(sequence\), but 'ids' has 5"),
        ({"size": np.ones((2, 2), np.float32)}, r"'size' has 2 in dimension 0 \(batch\), but 'ids' has 3"),
        ({"ids": np.full((3, 5), 9, np.int64)}, "'ids' holds 9; the model takes 0 to 8"),
        ({"ids": np.full((3, 5), -1, np.int64)}, "'ids' holds -1; the model takes 0 to 8"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    with pytest.raises(BadInput, match=message):
        check_feeds(SPECS, feeds(**changed), {"ids": (0, 8)})


def test_an_unknown_input_gets_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean mask"):
        check_feeds(SPECS, feeds(masks=np.ones(1)), {})
