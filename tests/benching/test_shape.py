import pytest

from optimizer.benching.shape import Shape, default_shapes
from optimizer.errors import BadInput


@pytest.mark.parametrize(
    ("text", "shape"),
    [("8x128", Shape(8, 128)), ("8×128", Shape(8, 128)), (" 1X16 ", Shape(1, 16)), ("4", Shape(4, 0))],
)
def test_shapes_are_read(text, shape):
    assert Shape.parse(text) == shape
    assert Shape.parse(str(shape)) == shape


@pytest.mark.parametrize("text", ["", "x", "0x4", "4x0", "-1x4", "1x2x3", "1.5x2", "8x", "a"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(BadInput, match="is not a shape"):
        Shape.parse(text)


def test_a_shape_beyond_the_model_is_refused():
    model = {"max_length": 128, "max_batch": 8}
    Shape(8, 128).check(model)
    with pytest.raises(BadInput, match="longest sequence, 128"):
        Shape(1, 129).check(model)
    with pytest.raises(BadInput, match="exported for, 8"):
        Shape(9, 1).check(model)


def test_default_shapes_fit_the_model():
    assert [str(s) for s in default_shapes({"modality": "text", "max_length": 512})] == ["1x16", "1x128", "8x128"]
    assert [str(s) for s in default_shapes({"modality": "text", "max_length": 12})] == ["1x12", "8x12"]
    assert [str(s) for s in default_shapes({"modality": "image"})] == ["1", "8"]
