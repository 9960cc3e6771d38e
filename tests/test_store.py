"""Versions, variants, aliases, references; removal, garbage, and what a disk can do to all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import toys as toybox
from stores import KEY, leftovers, put, tree

from optimizer import store as store_module
from optimizer import upkeep
from optimizer.errors import BadInput, Damaged, MissingPiece, UnknownName
from optimizer.files import Lock
from optimizer.ref import Ref
from optimizer.store import Store, spellings

# ---------------------------------------------------------------- where it is


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ML_OPT_STORE", raising=False)
    assert Store().root == Path("models")
    monkeypatch.setenv("ML_OPT_STORE", str(tmp_path))
    assert Store().root == tmp_path
    assert Store("here").root == Path("here")
    monkeypatch.setenv("ML_OPT_STORE", "")
    assert Store().root == Path("models")


def test_reading_a_store_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.names() == store.refs() == list(store.artifacts()) == store.complete("") == []
    assert upkeep.check(store) == {}
    assert upkeep.gc(store).removed == []
    for refused in (
        lambda: store.get("toy"),
        lambda: upkeep.remove(store, "toy"),
        lambda: store.set_alias("prod", "toy"),
        lambda: store.drop_alias("toy", "prod"),
    ):
        with pytest.raises(UnknownName):
            refused()
    assert not store.root.exists()


def test_the_layout_on_disk(store: Store) -> None:
    made = put(store)
    assert made.path == store.root / "toy" / "1" / "fp32"
    assert made.ref == "toy@1:fp32"
    assert sorted(p.name for p in made.path.iterdir()) == ["manifest.json", "model.onnx"]
    assert json.loads((store.root / "toy" / "1" / "version.json").read_text()) == {
        "schema": 1,
        "source": {"digest": "s1"},
    }
    assert leftovers(store) == []


# ---------------------------------------------------------------- versions and variants


def test_a_version_is_a_source(store: Store) -> None:
    assert put(store, source="s1").ref == "toy@1:fp32"
    assert put(store, source="s2", key="b" * 64).ref == "toy@2:fp32"
    assert put(store, source="s1", variant="int8", key="c" * 64).ref == "toy@1:int8"
    assert put(store, name="other", source="s2", key="d" * 64).ref == "other@1:fp32"
    assert store.versions("toy") == [1, 2]
    assert store.version_of("toy", "s2") == 2
    assert store.version_of("toy", "s3") is None
    assert store.version_source("toy", 2) == {"digest": "s2"}


def test_versions_count_on_beyond_nine(store: Store) -> None:
    for number in range(1, 12):
        put(store, source=f"s{number}", key=f"{number:064}")
    assert store.versions("toy") == list(range(1, 12))
    assert store.get("toy").ref == "toy@11:fp32"


def test_the_same_key_is_the_same_artifact(store: Store) -> None:
    first = put(store, content=b"first")
    again = put(store, content=b"second")
    assert again.path == first.path
    assert (again.path / "model.onnx").read_bytes() == b"first"
    assert leftovers(store) == []


def test_two_option_sets_never_collide(store: Store) -> None:
    keys = ["aaaaaa" + "0" * 58, "bbbbbb" + "0" * 58, "bbbbbb" + "1" * 58]
    names = [put(store, key=key).variant for key in keys]
    assert names == ["fp32", "fp32-bbbbbb", "fp32-bbbbbb1"]
    assert [store.find_key("toy", 1, key).variant for key in keys] == names  # type: ignore[union-attr]


def test_names_for_a_variant_go_on_until_the_whole_key() -> None:
    every = list(spellings("fp32", KEY))
    assert every[:3] == ["fp32", f"fp32-{KEY[:6]}", f"fp32-{KEY[:7]}"]
    assert every[-1] == f"fp32-{KEY}"
    assert len(set(every)) == len(every)


def test_a_broken_neighbour_is_no_obstacle(store: Store) -> None:
    """An artifact whose manifest was lost cannot be found by its key; its place is not overwritten."""
    for _ in range(3):
        (put(store).path / "manifest.json").write_text("{")
    assert len(store.variants("toy", 1)) == 3
    assert list(store.artifacts()) == []
    assert len(upkeep.gc(store).broken) == 3


@pytest.mark.parametrize(
    ("name", "variant"), [("a b", "x"), ("../up", "x"), ("toy", "a/b"), ("toy", "reports"), ("", "x")]
)
def test_names_that_would_leave_their_folder_are_refused(store: Store, name: str, variant: str) -> None:
    with pytest.raises(BadInput):
        put(store, name=name, variant=variant)
    assert store.refs() == []
    assert leftovers(store) == []


def test_stray_folders_are_not_artifacts(store: Store) -> None:
    put(store)
    for stray in (
        "toy/notes/x",
        "toy/²/x",
        "toy/01/x",
        "toy/0/x",
        "my model/1/x",
        "toy/1/reports",
        "toy/1/my variant",
        ".git/1/x",
    ):
        (store.root / stray).mkdir(parents=True)
    (store.root / "README.md").write_text("hello")
    assert store.refs() == ["toy@1:fp32"]
    assert upkeep.check(store) == {"toy@1:fp32": ""}
    assert put(store, source="s2", key="b" * 64).ref == "toy@2:fp32"


def test_a_lost_version_record_is_damage_and_no_crash(store: Store) -> None:
    put(store)
    for content in ("", "[]", '{"source": 3}', '{"source": {}}'):
        (store.root / "toy" / "1" / "version.json").write_text(content)
        with pytest.raises(Damaged, match=r"version\.json cannot be read"):
            store.version_source("toy", 1)
        assert store.version_of("toy", "s1") is None
    assert put(store, key="b" * 64).ref == "toy@2:fp32"


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("toy", "toy@2:fp32"),
        ("toy:fp32", "toy@2:fp32"),
        ("toy@2", "toy@2:fp32"),
        ("toy@1:int8", "toy@1:int8"),
        ("other", "other@1:fp32"),
    ],
)
def test_what_is_left_out_is_the_newest_and_the_only(stocked: Store, typed: str, found: str) -> None:
    assert stocked.get(typed).ref == found
    assert stocked.get(Ref.parse(typed)).ref == found


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("tyo", "unknown artifact: 'tyo'; did you mean toy?"),
        ("toy@3", "unknown version of toy: '3'; known: 1, 2"),
        ("toy@prod", "unknown version or alias of toy: 'prod'"),
        ("toy@1:int9", "unknown variant of toy@1: 'int9'; did you mean int8"),
        ("toy:int8", "unknown variant of toy@2: 'int8'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(stocked: Store, typed: str, says: str) -> None:
    with pytest.raises(UnknownName) as caught:
        stocked.get(typed)
    assert says in str(caught.value)


def test_an_ambiguous_reference_lists_its_meanings(stocked: Store) -> None:
    with pytest.raises(BadInput, match=r"toy@1 is ambiguous.*\n.*toy@1:fp32, toy@1:int8"):
        stocked.get("toy@1")


def test_an_empty_store_says_so(store: Store) -> None:
    with pytest.raises(UnknownName, match=r"is empty.*\n.*ml-opt export-onnx MODEL"):
        store.get("toy")


def test_completion(stocked: Store) -> None:
    stocked.set_alias("prod", "toy@1:int8")
    assert stocked.complete("toy@1") == ["toy@1:fp32", "toy@1:int8"]
    assert "toy@prod" in stocked.complete("toy@p")
    assert "toy:fp32" in stocked.complete("toy")
    assert stocked.complete("x") == []


# ---------------------------------------------------------------- aliases


def test_an_alias_is_set_moved_and_dropped(stocked: Store) -> None:
    assert stocked.set_alias("prod", "toy@1:int8") == ""
    assert stocked.get("toy@prod").ref == "toy@1:int8"
    assert stocked.get("toy@prod:fp32").ref == "toy@1:fp32"
    assert stocked.set_alias("prod", "toy@2") == "1:int8"
    assert stocked.get("toy@prod").ref == "toy@2:fp32"
    assert stocked.set_alias("old", "toy@prod") == ""
    assert stocked.aliases("toy") == {"prod": "2", "old": "2"}
    stocked.drop_alias("toy", "prod")
    assert stocked.aliases("toy") == {"old": "2"}
    with pytest.raises(UnknownName, match="alias of toy: 'prod'"):
        stocked.drop_alias("toy", "prod")


@pytest.mark.parametrize("alias", ["3", "a b", "", "a@b"])
def test_an_alias_that_could_not_be_typed_is_refused(stocked: Store, alias: str) -> None:
    with pytest.raises(BadInput):
        stocked.set_alias(alias, "toy@1")
    assert stocked.aliases("toy") == {}


def test_an_alias_of_nothing_is_refused(stocked: Store) -> None:
    with pytest.raises(UnknownName):
        stocked.set_alias("prod", "toy@7")
    with pytest.raises(UnknownName):
        stocked.set_alias("prod", "toy@1:bf16")


def test_a_dangling_alias_is_said_to_dangle(stocked: Store) -> None:
    stocked.set_alias("prod", "toy@1:int8")
    shutil.rmtree(stocked.root / "toy" / "1" / "int8")
    with pytest.raises(UnknownName, match="variant of toy@1: 'int8'"):
        stocked.get("toy@prod")
    shutil.rmtree(stocked.root / "toy" / "1")
    with pytest.raises(UnknownName, match="alias prod dangles"):
        stocked.get("toy@prod")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2, "aliases": {}}', '{"schema": 1}'])
def test_a_broken_alias_file_is_damage_where_an_alias_is_asked_for(stocked: Store, content: str) -> None:
    (stocked.root / "toy" / "aliases.json").write_text(content)
    with pytest.raises(Damaged, match=r"aliases.json"):
        stocked.get("toy@prod")
    assert stocked.get("toy@2").ref == "toy@2:fp32"


# ---------------------------------------------------------------- what a disk can do


def test_an_error_while_working_leaves_nothing(store: Store) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), store.scratch() as scratch:
            (scratch.path / "half").write_text("x")
            raise error
        assert leftovers(store) == []
    assert store.refs() == []


def test_an_interrupt_during_the_clean_up_does_not_stop_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.rmtree

    def interrupted(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(store_module.shutil, "rmtree", real)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.scratch():
        monkeypatch.setattr(store_module.shutil, "rmtree", interrupted)
    assert leftovers(store) == []


@pytest.mark.parametrize("call", ["rename", "fsync", "mkdir"])
@pytest.mark.parametrize("errno", [28, 13, 30])
def test_a_refusal_at_any_step_leaves_the_store_as_it_was(
    stocked: Store, monkeypatch: pytest.MonkeyPatch, call: str, errno: int
) -> None:
    """Every rename, flush and new folder of a commit is refused in turn: first, second, …, until none is left."""
    before = {k: v for k, v in tree(stocked.root).items() if not k.startswith(".ml-opt")}
    real = getattr(os, call)
    for turn in range(30):
        calls = 0

        def refuse(*args: Any, turn: int = turn, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == turn + 1:
                raise OSError(errno, os.strerror(errno), str(args[0]))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            try:
                put(stocked, name="new", source="fresh", key="9" * 64)
            except MissingPiece as refused:
                assert refused.exit_code == 4
            else:
                break
        after = {k: v for k, v in tree(stocked.root).items() if not k.startswith(".ml-opt")}
        # A refusal may have used up a number: those of a model's versions only ever rise.
        if versions := stocked.versions("new"):  # refused after the rename: it is there, and whole
            assert upkeep.check(stocked, "new") == {f"new@{versions[0]}:fp32": ""}
            upkeep.remove(stocked, "new")
            shutil.rmtree(stocked.root / "new", ignore_errors=True)
        else:
            assert after == before
            assert not (stocked.root / "new").exists()
        assert leftovers(stocked) == []
    else:
        raise AssertionError("it never got through")
    assert turn >= 1, f"a commit makes no {call}?"


def test_everything_is_on_the_disk_before_it_is_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a name must not lead to an empty file."""
    put(store, variant="first", key="f" * 64)
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flush(fd: int) -> None:
        events.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def move(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", move)
    put(store)
    assert events.count("rename") == 1
    place = events.index("rename")
    assert {"model.onnx", "manifest.json", "artifact"} <= set(events[:place])
    assert events[place + 1 :] == ["1"]  # the version's folder, which holds the new name


def test_a_store_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingPiece, match=r"file is a file where a folder is needed"):
        put(Store(tmp_path / "file" / "models"))
    with pytest.raises(MissingPiece, match=r"file is a file where a folder is needed"):
        put(Store(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its own user, which only root can")
def test_a_store_that_somebody_else_owns(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put(store)
    before = tree(store.root)
    script = (
        "import os, sys\n"
        "import uuid\n"
        "from optimizer.errors import MissingPiece\n"
        "from optimizer import upkeep\n"
        "from optimizer.store import Store\n"
        "os.seteuid(65534)\n"
        "store = Store(sys.argv[1])\n"
        "assert store.get('toy').ref == 'toy@1:fp32'\n"
        "assert upkeep.check(store) == {'toy@1:fp32': ''}\n"
        "def scratch():\n"
        "    with store.scratch(): pass\n"
        "tries = [scratch, lambda: store.set_alias('a', 'toy')]\n"
        "tries += [lambda: upkeep.remove(store, 'toy'), lambda: upkeep.gc(store)]\n"
        "for attempt in tries:\n"
        "    try: attempt()\n"
        "    except MissingPiece as e: assert 'permission' in e.message and e.exit_code == 4, e\n"
        "    else: raise SystemExit(f'{attempt} worked')\n"
        "print('refused', len(tries))\n"
    )
    for parent in (tmp_path, *tmp_path.parents):  # pytest's folders are private
        if (
            parent.stat().st_uid == os.geteuid() and parent.name.startswith(("pytest-", "popen-"))
        ) or parent == tmp_path:
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], capture_output=True, text=True, env=toybox.environment()
    )
    assert done.stdout == "refused 4\n", done.stderr
    assert tree(store.root) == before


# ---------------------------------------------------------------- at the same time


def test_many_threads_with_one_variant_name(store: Store) -> None:
    """Different keys, one wanted name, one new source: every artifact is there, under one version."""
    made: list[str] = []

    def work(number: int) -> None:
        made.append(put(Store(store.root), key=f"{number:06}" + "0" * 58, content=b"%d" % number).ref)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == store.refs()
    assert len(set(made)) == 8
    assert store.versions("toy") == [1]
    assert set(upkeep.check(store).values()) == {""}


def test_a_reader_never_sees_half_an_artifact(store: Store) -> None:
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            for ref in store.refs():
                seen.append(upkeep.check(store, ref)[ref])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(25):
        put(Store(store.root), source=f"s{number % 3}", key=f"{number:064}", content=b"x" * 10_000)
    stop.set()
    reader.join()
    assert set(seen) == {""}


def test_the_lock_of_a_name_is_taken_for_every_change(stocked: Store) -> None:
    """What changes a model waits for whoever is changing it."""
    lock = Lock(stocked.root / ".ml-opt" / "locks" / "name-toy")
    lock.acquire()
    done: list[str] = []
    for change in (
        lambda: put(stocked, key="7" * 64),
        lambda: stocked.set_alias("prod", "toy@1"),
        lambda: upkeep.remove(stocked, "toy@1:int8"),
    ):
        threading.Thread(target=lambda change=change: done.append(str(change())), daemon=True).start()
    time.sleep(0.3)
    assert done == []
    lock.release()
    deadline = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(done) == 3
