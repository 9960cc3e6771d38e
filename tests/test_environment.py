"""What the machine is, read without importing anything heavy and without failing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from optimizer import environment


@pytest.fixture(autouse=True)
def _fresh() -> None:
    for cached in (environment.version_of, environment.cpu_facts, environment.gpu_facts):
        cached.cache_clear()


def test_versions_are_those_that_pip_knows() -> None:
    import onnx

    assert environment.version_of("onnx") == onnx.__version__
    assert environment.version_of("no-such-distribution") is None
    assert environment.versions(("onnx", "no-such-distribution")) == {"onnx": onnx.__version__}


def test_modules_are_looked_for_and_not_imported() -> None:
    assert environment.has_module("json")
    assert not environment.has_module("no_such_module")
    assert not environment.has_module("")


def test_threads_are_physical_cores_of_this_process() -> None:
    cores = environment.cpu_threads()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    physical = psutil.cpu_count(logical=False)
    assert physical is None or cores <= physical


def test_a_process_that_may_use_one_core_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    first = min(os.sched_getaffinity(0))
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: {first})
    assert environment.cpu_threads() == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8), ("what", 8)]
)
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **how: quota)
    assert environment._quota(8) == cores


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < environment.memory_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(Path, "read_text", lambda self, **how: str(2**30))
    assert environment.memory_bytes() == 2**30


def test_the_processor_is_that_of_proc_cpuinfo() -> None:
    facts = environment.cpu_facts()
    text = Path("/proc/cpuinfo").read_text()
    assert facts["model"] in text
    assert f"vendor_id\t: {facts['vendor']}\n" in text or "vendor_id" not in text
    flags = set(next(line for line in text.splitlines() if line.startswith(("flags", "Features"))).split())
    assert facts["features"] == [f for f in environment._FEATURES if f in flags]


def test_a_machine_that_says_nothing_has_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: Path, **how: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    assert environment.cpu_facts()["features"] == []
    assert environment.memory_bytes() > 0


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        ("NVIDIA H200, 570.1, 143771, 9.0\n", [("NVIDIA H200", "9.0")]),
        ("A, with a comma, 570.1, 1000, 8.9\nB, 570.1, 1000, 7.5\n", [("A, with a comma", "8.9"), ("B", "7.5")]),
        ("No devices were found\n", []),
        ("\n", []),
    ],
)
def test_gpus_as_nvidia_smi_tells_them(
    monkeypatch: pytest.MonkeyPatch, answer: str, gpus: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, answer, ""))
    assert [(g["name"], g["compute_capability"]) for g in environment.gpu_facts()] == gpus


@pytest.mark.parametrize(
    "error", [OSError("x"), subprocess.TimeoutExpired("x", 20), subprocess.CalledProcessError(9, "x")]
)
def test_a_broken_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(environment.subprocess, "run", broken)
    assert environment.gpu_facts() == ()


def test_the_whole_is_json() -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert set(described) == {"python", "platform", "cpu", "memory_bytes", "gpus", "versions"}
