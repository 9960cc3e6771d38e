"""Removing, collecting garbage, and reading everything again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys as toybox
from stores import leftovers, put, tree

from optimizer import upkeep
from optimizer.errors import BadInput
from optimizer.store import Store

# ---------------------------------------------------------------- removal


@pytest.mark.parametrize(
    ("typed", "gone"),
    [
        ("toy@1:int8", ["toy@1:int8"]),
        ("toy@1", ["toy@1:fp32", "toy@1:int8"]),
        ("toy:fp32", ["toy@2:fp32"]),
        ("toy", ["toy@1:fp32", "toy@1:int8", "toy@2:fp32"]),
    ],
)
def test_a_reference_removes_what_it_names(stocked: Store, typed: str, gone: list[str]) -> None:
    before = stocked.refs()
    assert upkeep.remove(stocked, typed) == gone
    assert stocked.refs() == [r for r in before if r not in gone]
    assert leftovers(stocked) == []


def test_names_that_begin_alike_are_not_removed_together(store: Store) -> None:
    put(store, name="toy")
    put(store, name="toy2", key="b" * 64)
    for number in range(2, 12):
        put(store, name="toy", source=f"v{number}", key=f"{number:064}")
    assert upkeep.remove(store, "toy@1") == ["toy@1:fp32"]
    assert "toy@11:fp32" in store.refs()
    upkeep.remove(store, "toy")
    assert store.refs() == ["toy2@1:fp32"]


@pytest.mark.parametrize(
    ("target", "removed", "guarded"),
    [
        ("toy@1:int8", "toy@1:int8", True),
        ("toy@1:int8", "toy@1:fp32", False),
        ("toy@1:int8", "toy@1", True),
        ("toy@1:int8", "toy", True),
        ("toy@1", "toy@1:int8", False),
        ("toy@1", "toy@1", True),
        ("toy@1", "toy@2", False),
        ("toy@2", "toy@2:fp32", True),
    ],
)
def test_what_an_alias_points_at_is_guarded(stocked: Store, target: str, removed: str, guarded: bool) -> None:
    stocked.set_alias("prod", target)
    before = stocked.refs()
    if guarded:
        with pytest.raises(BadInput, match="toy@prod points at what would be removed"):
            upkeep.remove(stocked, removed)
        assert stocked.refs() == before
        assert "prod" in stocked.aliases("toy")
        upkeep.remove(stocked, removed, force=True)
        assert "prod" not in stocked.aliases("toy")
    else:
        upkeep.remove(stocked, removed)
        assert stocked.aliases("toy")["prod"]
    assert len(stocked.refs()) < len(before)


def test_an_alias_that_dangles_already_guards_nothing(stocked: Store) -> None:
    stocked.set_alias("prod", "toy@1:int8")
    shutil.rmtree(stocked.root / "toy" / "1" / "int8")
    assert upkeep.remove(stocked, "toy@1:fp32") == ["toy@1:fp32"]


def test_several_at_once_are_removed_all_or_none(stocked: Store) -> None:
    stocked.set_alias("prod", "other@1:fp32")
    before = stocked.refs()
    for wrong in ("other", "toy@9", "nothing"):
        with pytest.raises(BadInput):
            upkeep.remove(stocked, "toy@1:fp32", wrong)
    assert stocked.refs() == before
    assert upkeep.remove(stocked, "toy@1:fp32", "toy@1", "toy@1:fp32", "other", force=True) == [
        "other@1:fp32", "toy@1:fp32", "toy@1:int8",
    ]  # fmt: skip
    assert stocked.refs() == ["toy@2:fp32"]


def test_an_unreadable_artifact_can_be_removed(stocked: Store) -> None:
    (stocked.root / "toy" / "1" / "int8" / "manifest.json").unlink()
    assert upkeep.remove(stocked, "toy@1:int8") == ["toy@1:int8"]


def test_removed_by_another_process_meanwhile(stocked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stocked.aliases

    def slow(name: str) -> dict[str, str]:
        shutil.rmtree(stocked.root / "toy" / "1" / "int8", ignore_errors=True)
        return real(name)

    monkeypatch.setattr(stocked, "aliases", slow)
    assert upkeep.remove(stocked, "toy@1:int8") == ["toy@1:int8"]


def test_the_number_of_an_emptied_version_is_not_given_to_another_source(stocked: Store) -> None:
    upkeep.remove(stocked, "toy@2:fp32")
    assert put(stocked, source="s3", key="5" * 64).ref == "toy@3:fp32"
    upkeep.remove(stocked, "toy@3")
    upkeep.gc(stocked)
    assert put(stocked, source="s4", key="6" * 64).ref == "toy@4:fp32"
    upkeep.remove(stocked, "toy", force=True)
    assert put(stocked, source="s5", key="7" * 64).ref == "toy@1:fp32"


# ---------------------------------------------------------------- garbage


def aged(path: Path, seconds: float = 3600) -> Path:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path


def test_gc_leaves_finished_and_living_work_alone(stocked: Store) -> None:
    before = {k: v for k, v in tree(stocked.root).items() if not k.startswith(".ml-opt")}
    with stocked.scratch() as scratch:
        (scratch.path / "half").write_text("work")
        upkeep.gc(stocked)
        assert (scratch.path / "half").exists()
    assert {k: v for k, v in tree(stocked.root).items() if not k.startswith(".ml-opt")} == before
    assert leftovers(stocked) == []


def test_gc_leaves_another_process_its_work(store: Store) -> None:
    code = (
        "from optimizer.store import Store; import sys, time\n"
        "with Store(sys.argv[1]).scratch() as s:\n"
        "    (s.path / 'half').write_text('x'); print(s.path, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True, env=toybox.environment()
    )
    assert child.stdout is not None
    path = Path(child.stdout.readline().strip())
    assert upkeep.gc(store).removed == []
    assert (path / "half").exists()
    child.kill()
    child.wait()
    garbage = upkeep.gc(store)
    assert [Path(p).name for p in garbage.removed] == [path.parent.name]
    assert garbage.bytes >= 1
    assert leftovers(store) == []


def test_gc_takes_only_what_is_its_own(stocked: Store) -> None:
    """A store may be a folder with other things in it."""
    kept = [
        "data/2023/raw.csv",
        "data/2024/sub/raw.csv",
        "src/a/b.py",
        "toy/notes.txt",
        "toy/1/fp32/model.onnx",
        ".x.json-1",
    ]
    for name in kept:
        (stocked.root / name).parent.mkdir(parents=True, exist_ok=True)
        if not (stocked.root / name).exists():
            (stocked.root / name).write_text("mine")
    home = stocked.root / ".ml-opt" / "scratch"
    (home / "dead" / "artifact").mkdir(parents=True)
    (home / "dead" / "owner.lock").touch()
    (home / "dead" / "artifact" / "half").write_bytes(b"12345")
    (home / "old-and-empty").mkdir()
    aged(home / "old-and-empty")
    (home / "just-made").mkdir()
    (stocked.root / ".ml-opt" / "trash" / "x").mkdir(parents=True)
    stray = stocked.root / "toy" / ".aliases.json-abc"
    stray.write_text("{")
    aged(stray)
    (stocked.root / ".ml-opt" / ".digests.json-abc").write_text("{")
    aged(stocked.root / ".ml-opt" / ".digests.json-abc")
    for name in (".verdict.json-abc", ".best.toml-abc"):
        (stocked.root / "toy" / "1" / name).write_text("{")
        aged(stocked.root / "toy" / "1" / name)
    (stocked.root / "toy" / "7").mkdir()
    (stocked.root / "toy" / "7" / "version.json").write_text("{}")
    garbage = upkeep.gc(stocked)
    assert sorted(garbage.removed) == sorted(
        [
            ".ml-opt/scratch/dead",
            ".ml-opt/scratch/old-and-empty",
            ".ml-opt/trash/x",
            ".ml-opt/.digests.json-abc",
            "toy/.aliases.json-abc",
            "toy/1/.verdict.json-abc",
            "toy/1/.best.toml-abc",
            "toy/7",
        ]
    )
    assert garbage.bytes >= 5
    assert garbage.broken == []
    assert all((stocked.root / name).exists() for name in kept)
    assert [p.name for p in home.iterdir()] == ["just-made"]
    assert list((stocked.root / ".ml-opt" / "locks").iterdir()) == []
    assert upkeep.gc(stocked).removed == []


def test_gc_reports_what_is_broken_and_keeps_it(stocked: Store) -> None:
    (stocked.root / "toy" / "1" / "int8" / "manifest.json").write_text("{")
    assert upkeep.gc(stocked).broken == ["toy@1:int8"]
    assert "toy@1:int8" in stocked.refs()


def test_gc_keeps_locks_that_are_held(store: Store) -> None:
    put(store)
    with store.key_lock("abc"):
        upkeep.gc(store)
        assert not store.key_lock("abc").try_acquire()


# ---------------------------------------------------------------- check


def test_check_reads_every_file_again(stocked: Store) -> None:
    assert set(upkeep.check(stocked).values()) == {""}
    file = stocked.root / "toy" / "1" / "int8" / "model.onnx"
    stat = file.stat()
    file.write_bytes(b"MODEL")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    wrong = {k: v for k, v in upkeep.check(stocked).items() if v}
    assert list(wrong) == ["toy@1:int8"]
    assert "content of model.onnx" in wrong["toy@1:int8"]
    assert set(upkeep.check(stocked, "toy@1")) == {"toy@1:fp32", "toy@1:int8"}
    assert upkeep.check(stocked, "toy@2") == {"toy@2:fp32": ""}
    (stocked.root / "toy" / "2" / "fp32" / "manifest.json").unlink()
    assert "has no manifest.json" in upkeep.check(stocked, "toy@2:fp32")["toy@2:fp32"]
