"""ls, show, diff, alias, rm, gc, check: as people see them and as programs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimizer.cli.main import run

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def ml_opt(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line on a store of its own: exit code, stdout, stderr."""
    monkeypatch.setenv("ML_OPT_STORE", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(w) for w in words])
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def stocked(ml_opt: Run, toy_source: Path) -> Run:
    assert ml_opt("toy", "make", toy_source, "--name", "toy")[0] == 0
    assert ml_opt("toy-derive", "toy")[0] == 0
    (toy_source / "model.safetensors").write_bytes(b"changed")
    assert ml_opt("toy", "make", toy_source, "--name", "toy", "--label", "x")[0] == 0
    assert ml_opt("toy", "make", toy_source, "--name", "other")[0] == 0
    return ml_opt


def document(answer: tuple[int, str, str]) -> Any:
    assert answer[0] == 0, answer
    return json.loads(answer[1])


def test_ls(stocked: Run) -> None:
    every = ["other@1:fp32", "toy@1:fp32", "toy@1:int8", "toy@2:fp32"]

    def listed(*words: str) -> list[str]:
        return [a["ref"] for a in document(stocked("ls", *words, "--json"))["artifacts"]]

    assert listed() == every
    assert listed("toy") == every[1:]
    assert listed("toy@1") == ["toy@1:fp32", "toy@1:int8"]
    assert listed("toy@1:int8") == ["toy@1:int8"]
    stocked("alias", "toy@1", "old")
    stocked("alias", "toy@1:int8", "small")
    assert listed("toy@old") == ["toy@1:fp32", "toy@1:int8"]
    assert listed("toy@small") == ["toy@1:int8"]
    row = document(stocked("ls", "toy@2", "--json"))["artifacts"][0]
    assert row["kind"] == "onnx"
    assert row["stage"] == "toy-make"
    assert Path(row["path"]).is_dir()
    out = stocked("ls")[1]
    assert all(ref in out for ref in every)
    assert "toy@small → toy@1:int8" in out


def test_ls_of_what_is_not_there(ml_opt: Run, tmp_path: Path) -> None:
    code, out, _ = ml_opt("ls")
    assert code == 0
    assert "is empty" in out
    assert ml_opt("ls", "toy")[0] == 2
    assert not (tmp_path / "models").exists()


def test_ls_says_what_it_cannot_read(stocked: Run, tmp_path: Path) -> None:
    (tmp_path / "models" / "toy" / "1" / "int8" / "manifest.json").write_text("{")
    code, out, err = stocked("ls")
    assert code == 0
    assert "toy@1:fp32" in out
    assert "1 artifact(s) cannot be read; run: ml-opt check" in err
    code, out, _ = stocked("check")
    assert code == 5
    assert "DAMAGED toy@1:int8" in out


def test_show(stocked: Run) -> None:
    shown = document(stocked("show", "toy@1:int8", "--json"))
    assert shown["ref"] == "toy@1:int8"
    assert json.loads((Path(shown["path"]) / "manifest.json").read_text()) == shown["manifest"]
    out = stocked("show", "toy@1:int8")[1]
    for part in (
        "toy@1:int8",
        "toy-derive",
        "ml-opt toy-derive toy@1:fp32",
        "model.onnx",
        "input_ids int64[batch, sequence]",
    ):
        assert part in out
    code, out, err = stocked("show", "toy@1")
    assert (code, out) == (2, "")
    assert "toy@1:fp32, toy@1:int8" in err


def test_diff(stocked: Run) -> None:
    found = document(stocked("diff", "toy@1:fp32", "toy@2", "--json"))
    fields = {d["field"]: (d["first"], d["second"]) for d in found["differences"]}
    assert fields["options.label"] == (None, "x")
    assert "source.digest" in fields
    assert (found["first"], found["second"]) == ("toy@1:fp32", "toy@2:fp32")
    assert "options.label" in stocked("diff", "toy@1:fp32", "toy@2")[1]
    assert "are the same" in stocked("diff", "toy@2", "toy@2")[1]


def test_alias(stocked: Run) -> None:
    assert document(stocked("alias", "toy@1:int8", "prod", "--json")) == {
        "alias": "toy@prod", "ref": "toy@1:int8", "before": "",
    }  # fmt: skip
    assert document(stocked("show", "toy@prod", "--json"))["ref"] == "toy@1:int8"
    assert document(stocked("alias", "toy@2", "prod", "--json"))["before"] == "1:int8"
    assert document(stocked("alias", "--delete", "toy@prod", "--json")) == {"alias": "toy@prod", "removed": True}
    assert stocked("show", "toy@prod")[0] == 2
    assert "ml-opt alias toy@1 production" in stocked("alias", "toy@1")[2]
    for wrong in (["--delete", "toy"], ["--delete", "toy@1"], ["--delete", "toy@x", "y"], ["--delete", "toy@x"]):
        assert stocked("alias", *wrong)[0] == 2


def test_rm(stocked: Run) -> None:
    code, _, err = stocked("rm", "toy@1")
    assert code == 2
    assert "ml-opt rm --yes toy@1" in err
    assert "all 2 version(s) of toy" in stocked("rm", "toy")[2]
    assert stocked("rm", "toy@1:int8")[1] == "removed toy@1:int8\n"
    stocked("alias", "toy@2", "prod")
    code, _, err = stocked("rm", "--yes", "toy")
    assert code == 2
    assert "--force" in err
    assert document(stocked("rm", "--yes", "--force", "toy", "--json")) == {"removed": ["toy@1:fp32", "toy@2:fp32"]}
    assert stocked("rm", "toy:fp32")[0] == 2


def test_rm_of_several_removes_all_or_none(stocked: Run) -> None:
    assert stocked("rm", "toy@1:fp32", "toy@9:fp32")[0] == 2
    stocked("alias", "other@1:fp32", "prod")
    assert stocked("rm", "toy@1:fp32", "other@1:fp32")[0] == 2
    assert len(document(stocked("ls", "--json"))["artifacts"]) == 4
    assert document(stocked("rm", "toy@1:fp32", "toy@1:fp32", "toy@1:int8", "--json"))["removed"] == [
        "toy@1:fp32", "toy@1:int8",
    ]  # fmt: skip


def test_gc(stocked: Run, tmp_path: Path) -> None:
    dead = tmp_path / "models" / ".ml-opt" / "scratch" / "dead"
    dead.mkdir()
    (dead / "owner.lock").touch()
    (dead / "half").write_bytes(b"x" * 2**20)
    (tmp_path / "models" / "toy" / "1" / "int8" / "manifest.json").write_text("{")
    found = document(stocked("gc", "--json"))
    assert found == {"removed": [".ml-opt/scratch/dead"], "bytes": 2**20, "broken": ["toy@1:int8"]}
    code, out, err = stocked("gc")
    assert (code, out) == (0, "0 leftover(s) removed, 0.0 MiB freed\n")
    assert "ml-opt rm toy@1:int8" in err


def test_check(stocked: Run, tmp_path: Path, ml_opt: Run) -> None:
    assert document(stocked("check", "--json")) == {"checked": 4, "damaged": {}}
    (tmp_path / "models" / "toy" / "1" / "int8" / "evil.py").write_text("x")
    code, out, _ = stocked("check", "--json")
    assert code == 5
    assert json.loads(out) == {
        "checked": 4, "damaged": {"toy@1:int8": "toy@1:int8 is damaged: evil.py is not in its manifest"},
    }  # fmt: skip
    code, out, _ = stocked("check", "toy@2")
    assert (code, out) == (0, "ok      toy@2:fp32\n")
    assert stocked("check", "toy@7")[0] == 2
