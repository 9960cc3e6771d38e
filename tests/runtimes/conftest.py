"""What tests of OpenVINO share."""

import pytest
from runtimes.graphs import WIDE, node, value, write

from optimizer.runtimes._openvino import library


@pytest.fixture
def wide(tmp_path):
    """A product of rows of 256: long enough that bf16 is seen in its answers."""
    inputs = [value("x", ["batch", 256])]
    return write(tmp_path / "wide.onnx", [node("MatMul", "x w", ["y"])], inputs=inputs, weights={"w": WIDE})


@pytest.fixture
def capabilities():
    """What OpenVINO says that this processor can do."""
    return library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
