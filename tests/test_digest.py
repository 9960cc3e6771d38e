"""Content has one name."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import digest
from optimizer.digest import DigestCache, canonical_json, digest_file, digest_json, digest_tree

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: shuffled(v) for k, v in reversed(value.items())}
    return [shuffled(v) for v in value] if isinstance(value, list) else value


@given(JSONS)
def test_the_order_of_keys_is_no_content(value: Any) -> None:
    assert canonical_json(shuffled(value)) == canonical_json(value)


@given(JSONS, JSONS)
def test_two_values_share_a_digest_only_when_they_are_the_same_json(a: Any, b: Any) -> None:
    assert (digest_json(a) == digest_json(b)) == (canonical_json(a) == canonical_json(b))
    assert json.loads(canonical_json(a)) == a


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_the_spelling_is_pinned() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'
    assert digest_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()
    files = [tmp_path / "a", tmp_path / "b"]
    before = digest_tree(tmp_path, files)
    assert before == digest_tree(tmp_path, reversed(files))
    (tmp_path / "b").rename(tmp_path / "c")
    assert before != digest_tree(tmp_path, [tmp_path / "a", tmp_path / "c"])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is really read."""
    seen: list[Path] = []
    real = digest.digest_file
    monkeypatch.setattr(digest, "digest_file", lambda path: (seen.append(path), real(path))[1])
    return seen


def old(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    time.sleep(0.06)  # past the tick in which the cache trusts no file
    return path


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    file = old(tmp_path / "weights", b"1")
    cache = DigestCache(tmp_path / "private" / "digests.json")
    assert cache(file) == cache(file) == digest_file(file)
    cache.save()
    assert DigestCache(tmp_path / "private" / "digests.json")(file) == cache(file)
    assert len(reads) == 1


def test_a_renamed_folder_keeps_its_digests(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "scratch").mkdir()
    cache = DigestCache(None)
    before = cache(old(tmp_path / "scratch" / "weights", b"1"))
    (tmp_path / "scratch").rename(tmp_path / "final")
    assert cache(tmp_path / "final" / "weights") == before
    assert len(reads) == 1


def test_an_edited_file_is_read_again_whatever_its_times_say(tmp_path: Path) -> None:
    file = old(tmp_path / "weights", b"1111")
    cache = DigestCache(None)
    before, stat = cache(file), file.stat()
    file.write_bytes(b"2222")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert cache(file) == digest_file(file) != before


def test_a_file_that_was_just_written_is_not_trusted_yet(tmp_path: Path, reads: list[Path]) -> None:
    """Two writes of the same size within one tick of the kernel's clock can leave all times equal."""
    cache = DigestCache(None)
    file = tmp_path / "weights"
    for round_ in range(200):
        file.write_bytes(b"%04d" % round_)
        assert cache(file) == digest_file(file)
    reads.clear()
    cache(file)
    assert reads == [file]
    time.sleep(0.06)
    cache(file)
    cache(file)
    assert reads == [file, file]


def test_a_lost_broken_or_unwritable_cache_costs_time_only(tmp_path: Path) -> None:
    file = old(tmp_path / "weights", b"1")
    for content in (b"", b"{", b"[1]", b"\xff", b'{"a": 1}'):
        (tmp_path / "digests.json").write_bytes(content)
        assert DigestCache(tmp_path / "digests.json")(file) == digest_file(file)
    cache = DigestCache(file / "below" / "a" / "file")
    cache(file)
    cache.save()
    assert file.read_bytes() == b"1"


def test_a_full_disk_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old(tmp_path / "weights", b"1")
    cache = DigestCache(tmp_path / "private" / "digests.json")
    cache(file)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    cache.save()
    assert list((tmp_path / "private").iterdir()) == []


def test_an_answer_is_worked_out_once(tmp_path: Path) -> None:
    asked: list[int] = []
    cache = DigestCache(tmp_path / "digests.json")
    for _ in range(3):
        assert cache.recall("what of 123", lambda: (asked.append(1), "this")[1]) == "this"
    cache.save()
    assert DigestCache(tmp_path / "digests.json").recall("what of 123", lambda: "that") == "this"
    assert len(asked) == 1
