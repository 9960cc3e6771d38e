"""What a server does not become ready with: a provider that fell back, an engine that was built for another machine.

The vendors' libraries are doubles, as there is no GPU; what is asked of them is the server's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from engines.fake_cuda import FakeCuda, nothing_left
from engines.fake_trt import plan, tensor
from engines.machine import Machine
from runtimes import gpu_double as gpu
from serving import artifacts

from optimizer.errors import GateFailed, MissingPiece, MlOptError
from optimizer.serving.server import serve
from optimizer.serving.settings import Settings
from optimizer.store import Store


def refused(kind: type[MlOptError], store: Store, ref: str, provider: str = "auto") -> MlOptError:
    """The error that a server ends with; it has said nothing, least of all that it is ready."""
    events: list[Mapping[str, Any]] = []
    with pytest.raises(kind) as ended:
        serve([ref], Settings(port=0, provider=provider, access_log=False), store, events.append)
    assert events == []
    return ended.value


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "models")
    artifacts.put(made, "classes")
    return made


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_left_a_part_of_the_model_to_another(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    double = gpu.Double(takes=lambda op: gpu.CPU if op == "MatMul" else None)
    gpu.install(monkeypatch, double, tmp_path / "cache")
    error = refused(GateFailed, store, "classes", provider)
    assert f"nodes would not run on {provider}: MatMul" in error.message
    assert error.hint.startswith(f"use the provider {'cpu' if provider == 'cuda' else 'cuda'}, or another variant")
    assert double.sessions


def test_a_provider_that_did_not_load_and_left_all_of_it_to_the_processor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = gpu.install(monkeypatch, gpu.Double(loads=False), tmp_path / "cache")
    error = refused(MissingPiece, store, "classes", "cuda")
    assert "the provider cuda" in error.message
    assert "`ml-opt doctor`" in error.hint or error.hint.startswith("run: pip install")
    assert double.sessions


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Machine(tmp_path, monkeypatch)
    with nothing_left(made.gpu):
        yield made


def put(machine: Machine, **about: Any) -> tuple[Store, str]:
    """An engine in a store, which says of itself what it was built by and for."""
    told = {"inputs": [tensor("x", "FLOAT", -1, -1)], "outputs": [tensor("y", "FLOAT", -1, -1, how="twice")]}
    machine.put(plan(told["inputs"], told["outputs"], {"x": [[1, 1], [8, 4], [16, 8]]}), told, engine=about)
    return Store(machine.folder / "models"), "toy@1:fp32-rtx"


def test_an_engine_that_was_built_for_another_gpu(machine: Machine) -> None:
    machine.gpu = FakeCuda("7.5")
    store, ref = put(machine, compute_capabilities=["8.9", "12.0"])
    error = refused(MissingPiece, store, ref)
    assert f"{ref} was built for GPUs of compute capability 8.9, 12.0, and" in error.message
    assert error.message.endswith("has 7.5")
    assert error.hint == f"build it for this machine: ml-opt build-trt-engine {ref} --rebuild"


def test_an_engine_that_was_built_by_another_tensorrt(machine: Machine) -> None:
    machine.start("1.8.0.1")
    store, ref = put(machine)
    error = refused(MissingPiece, store, ref)
    assert f"{ref} was built by TensorRT-RTX 1.7.1.116, and 1.8.0.1 is installed here" in error.message
    assert error.hint == f"build it for this machine: ml-opt build-trt-engine {ref} --rebuild"
