import pytest

from optimizer.benching.shape import Shape, default_shapes
from optimizer.engines.profiles import parse
from optimizer.errors import BadInput
from optimizer.types import TensorSpec


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


def test_default_shapes_are_those_that_every_engine_was_built_for():
    text = (TensorSpec("ids", "int64", ("batch", "sequence")), TensorSpec("mask", "int64", ("batch", "sequence")))
    model = {"modality": "text", "max_length": 512}

    def shapes(*engines):
        return [str(s) for s in default_shapes(model, [[parse(each, text) for each in engine] for engine in engines])]

    assert shapes(["ids:1x8:8x64:32x128"]) == ["1x16", "1x128", "8x128"]
    assert shapes(["ids:1x8:8x64:32x100"]) == ["1x16"]
    assert shapes(["ids:1x8:8x64:32x100", "ids:8x101:8x128:8x512"]) == ["1x16", "8x128"]
    assert shapes(["ids:1x8:8x64:32x128"], ["ids:8x128"]) == ["8x128"]
    assert shapes(["ids:4x32", "ids:2x20:2x24:2x30"]) == ["4x32", "2x24"], "what their kernels were chosen for"
    image = (TensorSpec("pixels", "float32", ("batch", 3, 32, 32)),)
    assert [str(s) for s in default_shapes({"modality": "image"}, [[parse("batch=1:2:4", image)]])] == ["1"]
    assert [str(s) for s in default_shapes({"modality": "image"}, [[parse("batch=2:2:4", image)]])] == ["2"]
