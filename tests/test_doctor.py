"""Every provider is tried, none is believed."""

from __future__ import annotations

import json
import subprocess

import pytest

from optimizer import doctor
from optimizer.doctor import examine


@pytest.fixture(scope="module")
def facts() -> dict:
    return examine()


def test_the_processor_runs_and_the_gpu_says_why_not(facts: dict) -> None:
    providers = {p["name"]: p for p in facts["providers"]}
    assert providers["cpu"]["ok"] is True
    assert "fake" not in providers
    for provider in providers.values():
        assert provider["ok"] or provider["reason"], provider
    assert json.loads(json.dumps(facts)) == facts


def test_extras_say_what_to_type(facts: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(e["ok"] for e in facts["extras"] if e["name"] in ("cpu", "build", "data"))
    monkeypatch.setattr(doctor, "_probe", lambda name: {"name": name, "ok": False})
    monkeypatch.setattr(doctor, "has_module", lambda name: False)
    bare = examine()
    assert {e["name"]: e["hint"] for e in bare["extras"]}["build"] == 'pip install "ml-opt[build]"'
    assert not any(e["ok"] for e in bare["extras"])


@pytest.mark.parametrize(
    ("done", "says"),
    [
        (subprocess.CompletedProcess([], -11, "", "Segmentation fault"), "ended the process (code -11): Segmentation"),
        (subprocess.CompletedProcess([], 1, "", ""), "no message"),
    ],
)
def test_a_provider_that_ends_its_process_does_not_end_the_doctor(
    monkeypatch: pytest.MonkeyPatch, done: subprocess.CompletedProcess, says: str
) -> None:
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: done)
    found = doctor._probe("cpu")
    assert found["ok"] is False
    assert says in found["reason"]


def test_a_provider_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("x", 120)

    monkeypatch.setattr(doctor.subprocess, "run", hangs)
    assert "did not answer" in doctor._probe("cpu")["reason"]


def test_libraries_may_talk_around_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    out = 'banner\n@@{"name": "cpu", "ok": true}\ngoodbye\n'
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], 0, out, ""))
    assert doctor._probe("cpu") == {"name": "cpu", "ok": True}


@pytest.mark.parametrize(
    ("features", "word"),
    [(["amx_bf16", "avx512_vnni"], "bf16"), (["avx512_vnni"], "int8 is likely"), (["avx2"], "no VNNI"), ([], "")],
)
def test_advice_follows_the_processor(features: list[str], word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_facts", lambda: ())
    advice = doctor._advice(features)
    assert (word in advice[0]) if word else advice == []
    monkeypatch.setattr(doctor, "gpu_facts", lambda: ({"name": "x"},))
    assert any("GPU" in line for line in doctor._advice(features))
