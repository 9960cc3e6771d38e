"""What an engine is asked to be, in the words of options; that it is refused before it is built is the stage's test."""

from __future__ import annotations

import pytest

from optimizer.engines import asked
from optimizer.engines.asked import capabilities_of, read_batch, read_bytes, specs_of
from optimizer.engines.flavors import FLAVORS
from optimizer.engines.vendor import Input
from optimizer.errors import BadInput
from optimizer.types import Precision, TensorSpec

TENSORRT, RTX = FLAVORS["tensorrt"], FLAVORS["rtx"]


def test_sizes_are_read() -> None:
    assert [read_bytes(text) for text in ("", "2GiB", "512 MiB", "1.5GB", "1000", "64kb")] == [
        0, 2**31, 2**29, 1_500_000_000, 1000, 64_000,
    ]  # fmt: skip


def test_rows_are_read() -> None:
    assert [read_batch(text) for text in ("", "1:8:32", "4")] == [(), (1, 8, 32), (4, 4, 4)]
    for text in ("1:8", "0", "1:8:²"):
        with pytest.raises(BadInput, match=rf"--batch {text}: .* is no range"):
            read_batch(text)


def test_an_engine_is_for_what_is_named_or_for_what_the_flavor_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "gpu_facts", lambda: ({"compute_capability": "8.6"},))
    assert capabilities_of(RTX, Precision.FP16, ("7.5", "8.9"), False) == ["7.5", "8.9"]
    assert capabilities_of(RTX, Precision.BF16, (), False) == list(RTX.portable)
    assert capabilities_of(TENSORRT, Precision.FP32, (), True) == ["8.6"]
    with pytest.raises(BadInput, match=r"8\.6 have no fp8; it begins with 8\.9"):
        capabilities_of(TENSORRT, Precision.FP8, (), False)
    with pytest.raises(BadInput, match="TensorRT builds for the GPU of this machine"):
        capabilities_of(TENSORRT, Precision.FP32, ("8.6",), False)


def test_what_is_open_has_the_name_that_the_export_gave_it() -> None:
    known = (TensorSpec("ids", "int64", ("batch", "sequence")), TensorSpec("other", "float32", ("batch",)))
    found = (
        Input("ids", "int64", (-1, 128)),
        Input("other", "float32", (-1, 3)),  # another rank than it is known by
        Input("new", "float32", (-1, -1)),
    )
    assert specs_of(found, known) == (
        TensorSpec("ids", "int64", ("batch", 128)),
        TensorSpec("other", "float32", ("other_0", 3)),
        TensorSpec("new", "float32", ("new_0", "new_1")),
    )
    assert specs_of((Input("ids", "int64", (-1, -1)),), (TensorSpec("ids", "int64", (8, "sequence")),)) == (
        TensorSpec("ids", "int64", ("ids_0", "sequence")),
    )
