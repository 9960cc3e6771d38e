"""A provider is tried in a process of its own, whatever that process comes to; and which OpenVINO works here."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer import runtime
from optimizer.runtime import Availability, openvino_here, preferred, probe


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.mark.parametrize(
    ("done", "says"),
    [
        (subprocess.CompletedProcess([], -11, "", "Segmentation fault"), "ended the process (code -11): Segmentation"),
        (subprocess.CompletedProcess([], 1, "", ""), "no message"),
    ],
)
def test_a_provider_that_ends_its_process_does_not_end_this_one(
    monkeypatch: pytest.MonkeyPatch, done: subprocess.CompletedProcess, says: str
) -> None:
    monkeypatch.setattr(runtime.subprocess, "run", lambda *a, **k: done)
    found = probe("cpu")
    assert found.ok is False
    assert says in found.reason


def test_a_provider_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("x", 120)

    monkeypatch.setattr(runtime.subprocess, "run", hangs)
    assert "did not answer" in probe("cpu").reason


def test_libraries_may_talk_around_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    out = 'banner\n@@{"name": "cpu", "ok": true}\ngoodbye\n'
    monkeypatch.setattr(runtime.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], 0, out, ""))
    assert probe("cpu") == Availability("cpu", True)


@pytest.mark.parametrize(
    ("installed", "works", "here", "prefers"),
    [
        ({"onnxruntime_ep_openvino", "openvino"}, {"openvino", "openvino-native"}, "openvino", "openvino:bf16"),
        ({"onnxruntime_ep_openvino", "openvino"}, {"openvino-native"}, "openvino-native", "openvino-native:bf16"),
        ({"openvino"}, {"openvino", "openvino-native"}, "openvino-native", "openvino-native:bf16"),
        ({"onnxruntime_ep_openvino"}, set(), None, "openvino:bf16"),
        (set(), {"openvino", "openvino-native"}, None, "openvino:bf16"),
    ],
)
def test_the_openvino_that_works_here(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], works: set[str], here: str | None, prefers: str
) -> None:
    monkeypatch.setattr(runtime, "has_module", lambda name: name in installed)
    monkeypatch.setattr(runtime, "probe", lambda name: Availability(name, name in works))
    assert openvino_here() == here
    assert str(preferred("openvino:bf16")) == prefers
    assert str(preferred("cuda")) == "cuda"


def test_what_is_said_to_work_here_does() -> None:
    """The package of its own runs on every processor that tests run on."""
    here = openvino_here()
    assert here is not None
    assert probe(here).ok


@pytest.mark.parametrize("provider", runtime._PACKAGES)
def test_what_is_not_installed_is_brought_by_an_extra_that_exists(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(runtime, "has_module", lambda name: False)
    found = runtime.works(provider)
    assert found.ok is False
    extra = re.fullmatch(r'pip install "ml-opt\[(.+)\]"', found.hint)
    assert extra is not None
    assert extra[1] in project["optional-dependencies"]
