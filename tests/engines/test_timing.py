"""Timings of kernels lie in a folder for each version, GPU and driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optimizer.engines import timing
from optimizer.engines.flavors import FLAVORS
from optimizer.engines.timing import TimingCache

GPU = {"name": "NVIDIA RTX 4090", "driver": "580.1", "compute_capability": "8.9"}


def test_another_version_gpu_or_driver_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for gpu in (GPU, {**GPU, "driver": "590.2"}, {**GPU, "compute_capability": "12.0"}, None):
        monkeypatch.setattr(timing, "gpu_facts", lambda gpu=gpu: (gpu,) if gpu else ())
        for version in ("10.13.3", "11.4.0"):
            cache = TimingCache.of(tmp_path, FLAVORS["tensorrt"], version)
            assert cache is not None
            found.add(cache.path)
    assert len(found) == 8
    assert all(path.is_relative_to(tmp_path) and path.name == "timing.cache" for path in found)


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    cache = TimingCache.of(tmp_path, FLAVORS["tensorrt"], "10.13")
    assert cache is not None
    assert cache.read() == b""
    cache.write(b"first")
    cache.write(b"second")
    assert cache.read() == b"second"
    assert not list(tmp_path.rglob("*.new"))


def test_what_is_read_is_used(tmp_path: Path) -> None:
    cache = TimingCache.of(tmp_path, FLAVORS["tensorrt"], "10.13")
    assert cache is not None
    cache.write(b"timings")
    os.utime(cache.path, (0, 0))
    assert cache.read() == b"timings"
    assert cache.path.stat().st_mtime > 0, "`gc` goes by it"


def test_the_users_cache_folder_is_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = TimingCache.of(None, FLAVORS["tensorrt"], "10.13")
    assert cache is not None
    assert cache.path.is_relative_to(tmp_path / "ml-opt" / "timing")


def test_a_flavor_that_times_nothing_keeps_nothing() -> None:
    assert TimingCache.of(None, FLAVORS["rtx"], "1.7") is None
