"""The run for the owner of a GPU: its commands exist, its failures are lines of the report, and it reads well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from house.test_workflows import parse

from benchmarks import gpu_check
from benchmarks.gpu_check import Chain, Step, added, check, to_markdown
from optimizer.engines.flavors import Flavor
from optimizer.environment import gpu_facts
from optimizer.runtime import Availability

GPU = {"name": "NVIDIA RTX 4090", "driver": "580.1", "compute_capability": "8.9", "memory_mib": "24564"}


def test_every_command_of_the_chain_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[Sequence[str]] = []

    def noted(self: Chain, name: str, words: Sequence[str], shown: str) -> Step:
        if "optimizer" in words:
            typed.append(words[3:])
        return Step(name, shown, 0, 0.0, "")

    monkeypatch.setattr(Chain, "run", noted)
    monkeypatch.setattr(gpu_check, "works", lambda name: Availability(name, True))
    monkeypatch.setattr(Flavor, "installed", property(lambda self: True))
    check(Chain(tmp_path, tmp_path / "model", quick=True))
    assert len(typed) > 20
    for words in typed:
        parse(list(words))
    bench = next(words for words in typed if words[0] == "bench")
    assert {"minilm:fp16-trt", "minilm:int8-rtx", "minilm:fp16+cuda", "source:cuda-compiled-fp16"} <= set(bench)
    assert {words[0] for words in typed} >= {"export-genai", "generate", "verify", "optimize", "quantize", "inspect"}


def test_a_part_can_be_run_alone_and_is_added_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(gpu_check, "PARTS", {name: lambda *_, name=name: ran.append(name) for name in ("one", "two")})
    chain = Chain(tmp_path, tmp_path / "model", quick=True)
    monkeypatch.setattr(chain, "type", lambda *words, **more: ran.append(words[1]))
    check(chain, only=["two"])
    assert ran == ["doctor", "two"]
    before = [{"name": "a", "exit_code": 1}, {"name": "b", "exit_code": 0}]
    assert added(before, [{"name": "a", "exit_code": 0}]) == [before[1], {"name": "a", "exit_code": 0}]


def test_a_step_that_fails_is_noted_and_does_not_end_the_run(tmp_path: Path) -> None:
    chain = Chain(tmp_path, tmp_path / "model", quick=True)
    good = chain.type("what this machine is", "doctor", store=False)
    bad = chain.type("nothing", "inspect", "nothing:fp32")
    assert (good.ok, good.report["report"]) == (True, "doctor")
    assert (bad.ok, bad.exit_code) == (False, 2)
    assert "unknown artifact" in bad.said
    found = {
        "created": "2026-01-01",
        "environment": {"gpus": [GPU], "versions": {"torch": "2.13.0"}},
        "steps": [asdict(step) for step in chain.steps],
    }
    text = to_markdown(found)
    assert text.startswith("# NVIDIA RTX 4090, compute capability 8.9, driver 580.1")
    assert "| what this machine is | ok |" in text
    assert "| nothing | exit code 2 |" in text
    assert "**nothing**: `ml-opt inspect nothing:fp32 --store" in text


@pytest.mark.skipif(bool(gpu_facts()), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 4
    assert "no NVIDIA GPU here" in capsys.readouterr().err
