"""``kill -9`` at any moment leaves a readable store, and ``gc`` clears the rest; gentler signals leave nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys as toybox

from optimizer import upkeep
from optimizer.store import Store

RECIPE = """
[recipe]
model = "source"
name = "toy"
[[step]]
run = "toy-make"
id = "fp32"
size = 4_000_000
seed = {seed}
[[step]]
run = "toy-derive"
id = "int8"
from = "fp32"
size = 2_000_000
[[step]]
run = "toy-derive"
id = "int4"
from = "int8"
size = 1_000_000
seed = 2
"""
PRIVATE = (".ml-opt",)


def ready(process: subprocess.Popen[str], store: Path) -> float:
    """Wait until the work has begun (its scratch folder is there); kills before that hit only Python's own start."""
    began = time.monotonic()
    while process.poll() is None and not list((store / ".ml-opt" / "scratch").glob("*")):
        time.sleep(0.001)
    return time.monotonic() - began


def everything_listed_is_whole(store: Store) -> list[str]:
    refs = store.refs()
    assert set(upkeep.check(store).values()) <= {""}
    assert [a.ref for a in store.artifacts()] == refs
    assert len(store.versions("toy")) == len(
        {str(store.version_source("toy", v)["digest"]) for v in store.versions("toy")}
    )
    return refs


def aged(root: Path) -> None:
    """As if an hour had gone by: ``gc`` gives a folder that was just made a moment to be locked by its maker."""
    for path in [*root.rglob("*")]:
        if not path.is_symlink():
            os.utime(path, (time.time() - 3600, time.time() - 3600))


def clean(store: Store) -> None:
    """What is left after gc: artifacts, their versions and aliases, the last version number, and one cache."""
    names = {p.name for p in (store.root / ".ml-opt").rglob("*")}
    assert names <= {"scratch", "trash", "locks", "digests.json", "versions", "toy.json"}, names
    for model in store.root.iterdir():
        if model.name not in PRIVATE:
            assert store.versions(model.name) == sorted(int(p.name) for p in model.iterdir() if p.is_dir()) != []
            assert not list(model.rglob(".*"))


def test_kill_9_at_thirty_moments(tmp_path: Path) -> None:
    random.seed(20261124)
    toybox.make_source(tmp_path / "source")
    store = Store(tmp_path / "models")
    hit_while_working = 0
    for turn in range(32):
        (tmp_path / "chain.toml").write_text(RECIPE.format(seed=turn))
        process = toybox.start("run", "chain.toml", "--store", store.root, "--quiet", cwd=tmp_path)
        ready(process, store.root)
        time.sleep(random.uniform(0, 0.12))
        process.kill()
        process.communicate()
        hit_while_working += process.returncode == -signal.SIGKILL
        everything_listed_is_whole(store)
        if turn % 2:  # every other time the next run starts in what the killed one left
            aged(store.root / ".ml-opt" / "scratch")
            kept = store.refs()
            upkeep.gc(store)
            assert store.refs() == kept
            assert not list((store.root / ".ml-opt" / "scratch").iterdir())
    assert hit_while_working >= 24, "most of the kills came after the work was done"
    done = toybox.run("run", "chain.toml", "--store", store.root, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["steps"]) == 3
    everything_listed_is_whole(store)
    aged(store.root)
    upkeep.gc(store)
    clean(store)
    again = toybox.run("run", "chain.toml", "--store", store.root, "--json", cwd=tmp_path)
    assert all(step["cached"] for step in json.loads(again.stdout)["steps"])


CHAIN = """
import os, signal, sys
import toys; toys.install()
from pathlib import Path
from optimizer import upkeep
from optimizer.stage import get_stage
from optimizer.store import Store
from optimizer.pipeline import apply

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
count = 0

def hook(event, args):
    # Counts the changes to the store, and ends the process just before the one that was asked for.
    global count
    opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (opened or event in CHANGES) and ("models" in str(args[0]) or event == "os.rmdir"):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

def chain():
    make, derive, store = get_stage("toy-make"), get_stage("toy-derive"), Store("models")
    one = apply(make, "source", make.options(), store, name="toy").artifact
    store.set_alias("prod", one.ref)
    two = apply(derive, one.ref, derive.options(), store).artifact
    upkeep.remove(store, two.ref)
    upkeep.gc(store)

at = 0
while True:
    at += 1
    toys.make_source(Path(str(at)) / "source")
    child = os.fork()
    if child == 0:
        os.chdir(str(at))
        sys.addaudithook(hook)
        try:
            chain()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        print(at, status)
        break
"""


def test_kill_9_before_every_single_change_of_the_disk(tmp_path: Path) -> None:
    """The same, exhaustively: a chain ends itself at its first, second, third … change, until none is left."""
    script = [sys.executable, "-c", CHAIN]
    done = subprocess.run(script, cwd=tmp_path, env=toybox.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last, status = map(int, done.stdout.split())
    assert status == 0, done.stderr
    assert last > 50
    seen = set()
    for at in range(1, last + 1):
        root = tmp_path / str(at)
        store = Store(root / "models")
        before = everything_listed_is_whole(store)
        seen.add((tuple(before), store.aliases("toy").get("prod", "")))
        aged(root)
        upkeep.gc(store)
        assert everything_listed_is_whole(store) == before
        if (store.root / ".ml-opt").exists():
            clean(store)
    one, two = "toy@1:fp32", "toy@1:int8"
    assert seen == {((), ""), ((one,), ""), ((one,), "1:fp32"), ((one, two), "1:fp32")}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_gentler_signals_leave_no_scratch(tmp_path: Path, signum: int, code: int) -> None:
    random.seed(7)
    toybox.make_source(tmp_path / "source")
    store = Store(tmp_path / "models")
    for turn in range(4):
        words = ("toy", "make", "source", "--seed", turn, "--pause", 20, "--store", store.root, "--json")
        process = toybox.start(*words, cwd=tmp_path)
        ready(process, store.root)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code, err
        assert json.loads(out)["error"]["exit_code"] == code
        assert "the store is as it was" in err
        assert list((store.root / ".ml-opt" / "scratch").iterdir()) == []
        assert store.refs() == []
