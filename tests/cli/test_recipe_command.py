"""``ml-opt run``: the chain, step by step, cached the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.cli.main import run

pytestmark = pytest.mark.usefixtures("toys", "toy_source")

CHAIN = """[recipe]
model = "source"
[[step]]
run = "toy-make"
[[step]]
run = "toy-derive"
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "chain.toml").write_text(CHAIN)
    return ["run", str(tmp_path / "chain.toml"), "--store", str(tmp_path / "models")]


def test_a_chain_for_people(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    out, err = capfd.readouterr()
    assert "source@1:fp32" in out
    assert "source@1:int8" in out
    assert "[1/2] toy-make: writing bytes" in err
    assert run(words) == 0
    assert capfd.readouterr().out.count("cached") == 2


def test_a_chain_for_programs(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [s["ref"] for s in document["steps"]] == ["source@1:fp32", "source@1:int8"]
    assert all({"id", "run", "path", "cached", "facts", "seconds"} <= set(s) for s in document["steps"])


def test_a_failed_gate_is_the_chains_exit_code(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with open(words[1], "a") as handle:
        handle.write('[[step]]\nrun = "toy-judge"\nverdict = 1\n')
    assert run([*words, "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["exit_code"] == 1


def test_an_error_ends_it_at_its_step(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with open(words[1], "a") as handle:
        handle.write('[[step]]\nrun = "toy-make"\nid = "again"\nseed = 1\ntrouble = "gate"\n')
    assert run([*words, "--json"]) == 1
    out, _ = capfd.readouterr()
    assert "step 3 (again): asked for one thing" in json.loads(out)["error"]["message"]
    assert run(["run", "no.toml"]) == 2
