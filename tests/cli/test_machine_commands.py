"""``ml-opt doctor``."""

from __future__ import annotations

import json

import pytest

from optimizer.cli.main import run
from optimizer.runtime import Availability


def test_doctor(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer import doctor

    monkeypatch.setattr(
        doctor.runtimes,
        "probe",
        lambda name: Availability(name, name == "cpu", "no [brackets] here", 'pip install "x[y]"'),
    )
    monkeypatch.setenv("COLUMNS", "160")
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["report"] == "doctor"
    assert run(["doctor"]) == 0
    out = capfd.readouterr().out
    assert document["environment"]["cpu"]["model"] in out
    assert 'pip install "x[y]"' in out
    assert "no [brackets] here" in out
