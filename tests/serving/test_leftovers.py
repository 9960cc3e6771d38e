"""Servers that are killed: the next one has their port at once, and nothing of them is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from processes import alive
from serving.conftest import ROOT, Process
from serving.test_workers import BODY, ask, eventually

from optimizer.files import Lock
from optimizer.serving import leftovers
from optimizer.serving.leftovers import after_the_dying, clear, counts_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of these servers alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def folders(temporary: Path) -> set[str]:
    return {each.name for each in temporary.iterdir() if "ml-opt-serve" in each.name}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def stuck(server: Process) -> None:
    """Ask for what never comes, until the server is gone, which it may still say."""
    connection = http.client.HTTPConnection(server.address, timeout=60)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v2/models/stuck/infer", BODY)
        assert connection.getresponse().status in (200, 503)  # answered before it hangs; given up at the end


def test_a_parent_that_is_killed_leaves_neither_port_nor_workers_nor_files(temporary: Path) -> None:
    """Three times, with requests under way, one of which never ends."""
    for name, planted in (("quick", {}), ("stuck", {"hang_after": 4})):  # the golden replay is less than that
        (temporary / f"{name}.json").write_text(json.dumps(planted))
    words = [*(f"fake:{temporary / name}.json" for name in ("quick", "stuck")), "--workers", "2", "--quiet"]
    server = Process(words, port=free_port())
    try:
        for _ in range(3):
            assert ask(server)[0] == 200
            first, left = server.ready["workers"], folders(temporary)
            assert len(left) == 1
            hanging = [threading.Thread(target=stuck, args=(server,)) for _ in range(12)]
            for each in hanging:
                each.start()
            server.process.kill()
            server.process.wait(30)
            server = Process(words, port=int(server.address.rpartition(":")[2]))
            assert server.ready, "the port was not free"
            assert ask(server)[0] == 200
            eventually(lambda gone=first: not any(map(alive, gone)))
            assert not left & folders(temporary)
            for each in hanging:
                each.join(30)
        assert server.end() == 0
        assert folders(temporary) == set()
    finally:
        server.process.kill()


def test_two_servers_leave_each_other_alone(temporary: Path) -> None:
    (temporary / "quick.json").write_text("{}")
    words = [f"fake:{temporary / 'quick.json'}", "--workers", "2", "--quiet"]
    one = Process(words)
    try:
        (kept,) = folders(temporary)
        two = Process(words)
        try:
            assert two.ready
            assert kept in folders(temporary)
            refused = Process(words, port=int(one.address.rpartition(":")[2]))
            assert refused.process.wait(30) == 4
            assert two.end() == 0
        finally:
            two.process.kill()
        assert folders(temporary) == {kept}
        assert ask(one)[0] == 200
        assert ask(one, "GET", "/metrics", None)[0] == 200
        assert one.end() == 0
        assert folders(temporary) == set()
    finally:
        one.process.kill()


KILLED = """
import os, sys
from optimizer.serving.leftovers import counts_folder
with counts_folder(*map(int, sys.argv[1:])) as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""


def killed(*ports: int) -> Path:
    """What a server that answered on these ports left."""
    command = [sys.executable, "-c", KILLED, *map(str, ports)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    return Path(done.stdout.strip())


def test_only_what_a_dead_server_of_this_user_left_is_removed(temporary: Path, tmp_path: Path) -> None:
    left = killed(8000)
    (left / "counter_1.db").write_text("1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (elsewhere / "ports").write_text("8001")
    link = temporary / "ml-opt-serve-link"
    link.symlink_to(elsewhere)
    unlocked = temporary / "ml-opt-serve-older"
    unlocked.mkdir()
    file = temporary / "ml-opt-serve-file"
    file.touch()
    with counts_folder(8000) as living:
        clear()
        assert not left.exists()
        assert leftovers._given_up() == set()
        assert sorted(temporary.iterdir()) == sorted([link, unlocked, file, living])
        assert (elsewhere / "lock").exists()
    assert not living.exists()


def test_what_belongs_to_another_user_is_left(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed(8000)
    monkeypatch.setattr(leftovers.os, "getuid", lambda: os.stat(left).st_uid + 1)
    clear()
    assert left.is_dir()


def test_a_folder_is_locked_before_it_can_be_found(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that starts at the same moment would take it for one of the dead."""
    seen: list[bool] = []

    class Watched(Lock):
        def try_acquire(self) -> bool:
            seen.append(any(each.name.startswith("ml-opt-serve-") for each in temporary.iterdir()))
            return super().try_acquire()

    monkeypatch.setattr(leftovers, "Lock", Watched)
    with counts_folder(1) as folder:
        assert seen == [False]
        assert not Lock(folder / "lock").try_acquire()


def test_a_port_is_waited_for_where_a_dead_server_had_it_and_no_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(leftovers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(leftovers.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))

    def taken_until(when: float) -> None:
        if now[0] < when:
            raise OSError("taken")

    with counts_folder(8000), pytest.raises(OSError, match="taken"):  # by a server that lives
        after_the_dying(lambda: taken_until(1.0), 8000)
    assert now == [0.0]
    killed(8000, 8001)
    after_the_dying(lambda: taken_until(1.0), 8001)
    assert 1.0 <= now[0] < 1.1
    with pytest.raises(OSError, match="taken"):
        after_the_dying(lambda: taken_until(100.0), 8000)
    assert now[0] < 7
