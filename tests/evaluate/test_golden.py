import numpy as np

from optimizer.data.golden import Golden
from optimizer.evaluate.golden import GoldenSession
from optimizer.runtime import Session
from optimizer.types import TensorSpec


def test_it_answers_what_was_kept():
    kept = Golden({"x": np.ones((2, 3), np.int64)}, {"y": np.full((2, 1), 0.5, np.float32)})
    session = GoldenSession(kept)
    assert isinstance(session, Session)
    assert session.inputs == (TensorSpec("x", "int64", (2, 3)),)
    assert session.outputs == (TensorSpec("y", "float32", (2, 1)),)
    assert session.run(kept.inputs)["y"] is kept.outputs["y"]
    assert session.bind(kept.inputs)() is None
    session.close()
