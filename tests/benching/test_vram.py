"""GPU memory of a process, from a driver whose answers are planted; the real one is asked on a machine with a GPU."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from optimizer.benching import vram
from optimizer.benching.vram import vram_of
from optimizer.environment import gpu_facts


class NVMLError(Exception):
    """The library's own error."""


@pytest.fixture
def driver(monkeypatch):
    """Plant what NVML says: GPUs as lists of (process, bytes), or an error in the place of one."""

    def plant(*gpus, starts=True):
        module = ModuleType("pynvml")

        def begin():
            if not starts:
                raise NVMLError("Driver Not Loaded")

        def running(gpu):
            if gpu is NVMLError:
                raise NVMLError("Not Supported")
            return [SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in gpu]

        module.NVMLError = NVMLError
        module.nvmlInit = begin
        module.nvmlDeviceGetCount = lambda: len(gpus)
        module.nvmlDeviceGetHandleByIndex = lambda place: gpus[place]
        module.nvmlDeviceGetComputeRunningProcesses = running
        monkeypatch.setitem(sys.modules, "pynvml", module)
        vram._devices.cache_clear()

    yield plant
    vram._devices.cache_clear()


def test_a_process_is_counted_on_every_gpu_and_its_neighbours_are_not(driver):
    driver([(7, 100), (8, 5000)], [(7, 20)], [])
    assert vram_of(7) == 120
    assert vram_of(8) == 5000
    assert vram_of(9) is None


def test_what_the_driver_does_not_tell_is_unknown_and_not_zero(driver):
    driver([(7, None)])
    assert vram_of(7) is None


def test_a_gpu_that_cannot_be_asked_is_passed_over(driver):
    driver(NVMLError, [(7, 3)])
    assert vram_of(7) == 3


def test_without_a_driver_nothing_is_known(driver):
    driver([(7, 100)], starts=False)
    assert vram_of(7) is None


def test_without_the_package_nothing_is_known(driver, monkeypatch):
    driver([(7, 100)])
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert vram_of(7) is None


@pytest.mark.skipif(bool(gpu_facts()), reason="this machine has a GPU")
def test_the_real_library_finds_no_gpu_here():
    vram._devices.cache_clear()
    assert vram_of(os.getpid()) is None


@pytest.mark.gpu
def test_a_session_on_a_gpu_holds_its_memory(small_store):
    from optimizer.check import get_check
    from optimizer.checks.bench import Bench
    from optimizer.stage import silent

    if not gpu_facts():
        pytest.skip("needs an NVIDIA GPU")
    options = Bench(shape=("1x4",), provider=("cuda", "cpu"), duration=0.1, rounds=3, roofline=False)
    on_gpu, on_cpu = get_check("bench").run(("small:fp32",), options, small_store, silent).rows
    assert on_gpu.error == ""
    assert on_gpu.peak_vram > 50_000_000  # a CUDA context alone is more
    assert on_cpu.peak_vram is None
