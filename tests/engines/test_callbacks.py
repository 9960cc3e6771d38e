"""What the builder calls back while TensorRT-RTX really builds, without a GPU: it is stopped, and it is heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_bert

import optimizer
from optimizer.engines import callbacks, vendor
from optimizer.errors import GateFailed
from optimizer.pipeline import apply
from optimizer.stages.build_trt_engine import STAGE, BuildTrtEngine
from optimizer.store import Store


def test_ctrl_c_stops_the_builder_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert(tmp_path / "tiny", "BertModel", num_hidden_layers=4)
    optimizer.export_onnx(str(model), name="tiny", store=store)
    stopped: list[Any] = []
    real = callbacks.progress_monitor

    def impatient(trt: Any, tell: Any) -> Any:
        monitor = real(trt, tell)
        stopped.append(monitor)
        return monitor

    def pressed(self: Any, timeout: float | None = None) -> None:
        if timeout is not None:  # the wait of whoever wants the engine, and not that for its end
            raise KeyboardInterrupt
        wait(self)

    wait = callbacks.threading.Thread.join
    monkeypatch.setattr(vendor, "progress_monitor", impatient)
    monkeypatch.setattr(callbacks.threading.Thread, "join", pressed)
    with pytest.raises(KeyboardInterrupt):
        optimizer.build_trt_engine("tiny:fp32", flavor="rtx", store=store)
    assert stopped[0].stop
    assert store.refs() == ["tiny@1:fp32"]
    assert not list(store.layout.scratch.glob("*"))


def test_a_builder_that_is_told_to_stop_makes_no_engine(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer.export_onnx(str(tiny_bert(tmp_path / "tiny", "BertModel")), name="tiny", store=store)
    real = callbacks.progress_monitor

    def stopped(trt: Any, tell: Any) -> Any:
        monitor = real(trt, tell)
        monitor.stop = True
        return monitor

    monkeypatch.setattr(vendor, "progress_monitor", stopped)
    with pytest.raises(GateFailed, match="did not build the engine"):
        optimizer.build_trt_engine("tiny:fp32", flavor="rtx", store=store)
    assert store.refs() == ["tiny@1:fp32"]


def test_progress_is_told_while_it_builds(store: Store, tmp_path: Path) -> None:
    model = tiny_bert(tmp_path / "tiny", "BertModel")
    optimizer.export_onnx(str(model), name="tiny", store=store)
    told: list[str] = []
    options = BuildTrtEngine(flavor="rtx")
    apply(STAGE, "tiny:fp32", options, store, progress=lambda doing, *_: told.append(doing))
    assert "loading TensorRT-RTX" in told
    assert any(each.startswith("building the engine: ") for each in told)
