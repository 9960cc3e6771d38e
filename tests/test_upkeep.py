"""Removing, collecting garbage, and reading everything again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import toys as toybox
from stores import leftovers, put, tree

from optimizer import upkeep
from optimizer.engines.flavors import FLAVORS
from optimizer.engines.kernels import CompiledKernels
from optimizer.engines.timing import TimingCache
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ml-opt"


def kernels(version: str, key: str, name: str = "RTX 4090") -> CompiledKernels:
    gpu = {"compute_capability": "8.9", "driver": "13.0", "name": name}
    found = CompiledKernels.of(FLAVORS["rtx"], version, gpu, key)
    assert found is not None
    return found


def test_gc_clears_what_a_machine_kept_and_nothing_used_for_long(cache: Path, stocked: Store) -> None:
    used, unused, other = kernels("1.6", "a"), kernels("1.6", "b"), kernels("1.6", "a", "RTX 5090")
    gone = [kernels("1.5", "a"), kernels("1.5", "c")]
    for each in (used, unused, other, *gone):
        assert each.write(b"12345")
    for each in (used, unused, *gone):
        aged(each.path, 31 * 86400)
    aged(other.path, 29 * 86400)
    aged(gone[0].path.parent, 31 * 86400)
    assert used.read() == b"12345"  # a session that opens the engine again
    garbage = upkeep.gc(stocked)
    assert sorted(garbage.removed) == sorted([str(unused.path), str(gone[0].path.parent)])
    assert garbage.bytes == 15
    assert [each.read() for each in (used, other, unused)] == [b"12345", b"12345", b""]
    assert not gone[0].path.parent.exists()
    assert upkeep.gc(stocked).removed == []


def test_gc_clears_the_users_cache_without_a_store_too(cache: Path, store: Store) -> None:
    old = kernels("1.6", "a")
    old.write(b"1")
    aged(old.path, 31 * 86400)
    assert upkeep.gc(store).removed == [str(old.path)]
    assert not store.root.exists()


def test_gc_leaves_a_lock_with_what_it_guards_and_a_folder_that_was_just_made(cache: Path, store: Store) -> None:
    timings = TimingCache.of(None, FLAVORS["tensorrt"], "11.0")
    assert timings is not None
    timings.write(b"1")
    lock = aged(timings.path.with_suffix(".lock"), 31 * 86400)
    compiled = cache / "ort" / "tensorrt-ort1.32" / "c0ffee"
    compiled.mkdir(parents=True)
    (compiled / "model.engine").write_bytes(b"123")
    aged(compiled, 31 * 86400)
    (cache / "kernels" / "rtx-1.7").mkdir(parents=True)
    assert upkeep.gc(store) == upkeep.Garbage([str(compiled)], 3)
    assert lock.exists()
    assert (cache / "kernels" / "rtx-1.7").is_dir()
    for path in (lock, timings.path, timings.path.parent):
        aged(path, 31 * 86400)
    assert upkeep.gc(store).removed == [str(timings.path.parent)]


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its own user, which only root can")
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["may not be read", "may not be removed"])
def test_gc_leaves_what_somebody_else_keeps_without_a_word(mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; from optimizer import upkeep; from optimizer.store import Store; os.seteuid(65534)\n"
        "print(upkeep.gc(Store(sys.argv[1])).removed)"
    )
    with tempfile.TemporaryDirectory() as home:  # pytest's folders are private
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        old = kernels("1.6", "a")
        old.write(b"1")
        for path in (old.path, old.path.parent):
            aged(path, 31 * 86400)
        Path(home).chmod(mode)
        words = [sys.executable, "-c", code, "/nowhere"]
        done = subprocess.run(words, capture_output=True, text=True, env=toybox.environment())
        assert done.stdout == "[]\n", done.stderr
        assert old.path.exists()


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


def test_gc_forgets_trainings_that_nobody_went_on_with(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put(store)
    old, new = (store.layout.training / name / "checkpoint-3" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
    week = time.time() - 8 * 24 * 3600
    for path in (old / "model.safetensors", old, old.parent):
        os.utime(path, (week, week))
    found = upkeep.gc(store)
    assert not old.parent.exists()
    assert new.exists()
    assert found.removed == [".ml-opt/training/old"]
    assert found.bytes >= len(b"weights")
