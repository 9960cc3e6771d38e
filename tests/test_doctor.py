"""Every provider is tried, none is believed."""

from __future__ import annotations

import json

import pytest

from optimizer import doctor
from optimizer.doctor import examine
from optimizer.runtime import Availability


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
    monkeypatch.setattr(doctor.runtimes, "probe", lambda name: Availability(name, False))
    monkeypatch.setattr(doctor, "has_module", lambda name: False)
    bare = examine()
    assert {e["name"]: e["hint"] for e in bare["extras"]}["build"] == 'pip install "ml-opt[build]"'
    assert not any(e["ok"] for e in bare["extras"])


@pytest.mark.parametrize(
    ("features", "word"),
    [
        (["amx_bf16", "avx512_bf16", "avx512_vnni"], "openvino-native:bf16 is likely the fastest"),
        (["avx512_bf16", "avx512_vnni"], "openvino-native:bf16 is likely faster than fp32"),
        (["avx512_vnni"], "int8 is likely"),
        (["avx2"], "no VNNI"),
        ([], ""),
    ],
)
def test_advice_follows_the_processor(features: list[str], word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_facts", lambda: ())
    advice = doctor._advice(features, "openvino-native")
    assert (word in advice[0]) if word else advice == []
    monkeypatch.setattr(doctor, "gpu_facts", lambda: ({"name": "x"},))
    assert any("GPU" in line for line in doctor._advice(features, "openvino"))
