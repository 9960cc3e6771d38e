"""What others use of the machine, from the kernel's files as they are and as they are planted."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from optimizer.benching import busy
from optimizer.benching.busy import Others, busy_now, cores, is_busy
from optimizer.benching.process import pinned_to


class Machine:
    """A ``/proc`` whose clock and counters are set by hand."""

    def __init__(self, folder):
        self.folder, self.now = folder, 0.0
        (folder / "7").mkdir()
        (folder / str(os.getpid())).mkdir()
        self.set(busy=0.0, worker=0.0)

    def set(self, busy, worker, steal=0.0):
        tick = os.sysconf("SC_CLK_TCK")
        first = min(cores())
        used, stolen = int(busy * tick), int(steal * tick)
        (self.folder / "stat").write_text(
            "cpu 1 2 3 4 5 6 7 8 9 10\n"
            f"cpu{first} {used} 0 0 999 888 0 0 {stolen} 77 66\n"
            "cpu9999 123456 0 0 0 0 0 0 0 0 0\n"
        )
        for pid, seconds in ((7, worker), (os.getpid(), 0.0)):
            ticks = int(seconds * tick)
            (self.folder / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {'0 ' * 10}{ticks} 0 0 0 20 0\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("busy", "steal", "worker", "used"), [(10, 0, 10, 0), (10, 0, 4, 0.6), (10, 5, 10, 0.5), (1, 0, 2, 0)]
)
def test_what_others_use_is_all_that_is_not_ours(machine, busy, steal, worker, used):
    others = Others(machine.folder, lambda: machine.now)
    assert others.used is None
    others.begin([7])
    machine.now = 10.0
    machine.set(busy, worker, steal)
    others.end([7])
    assert others.used == pytest.approx(used)


def test_time_between_turns_does_not_count(machine):
    others = Others(machine.folder, lambda: machine.now)
    others.begin([7])
    machine.now = 1.0
    machine.set(1.0, 1.0)
    others.end([7])
    machine.now = 100.0
    machine.set(99.0, 1.0)
    others.begin([7])
    machine.now = 101.0
    machine.set(100.0, 2.0)
    others.end([7])
    assert others.used == pytest.approx(0.0)


def test_a_system_without_these_files_says_nothing(tmp_path):
    others = Others(tmp_path / "none")
    others.begin([7])
    others.end([7])
    assert others.used is None


def _spin():
    while True:
        pass


def test_a_real_neighbour_is_seen():
    spinning = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(2)]
    for each in spinning:
        each.start()
    try:
        deadline = time.monotonic() + 60
        seen = 0.0
        while seen < 0.5 and time.monotonic() < deadline:
            others = Others()
            others.begin(())
            time.sleep(0.5)
            others.end(())
            seen = others.used
        assert seen >= 0.5
    finally:
        for each in spinning:
            each.kill()


def test_it_is_waited_for_rest_but_not_for_ever(monkeypatch):
    waits = []
    monkeypatch.setattr(busy, "is_busy", lambda used, threads: len(waits) < 3)
    assert busy_now(1, 10.0, waits.append) is None
    assert len(waits) == 3
    monkeypatch.setattr(busy, "is_busy", lambda used, threads: True)
    assert busy_now(1, 1.0, waits.append) is not None


def test_busy_is_when_threads_and_others_do_not_fit():
    here = len(cores())
    assert not is_busy(0.0, here)
    assert is_busy(here * 0.3, here)
    assert not is_busy(0.25, 1) or here == 1


def test_threads_are_pinned_to_one_processor_a_core(tmp_path):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    everyone = frozenset(range(4))
    assert pinned_to(2, tmp_path, everyone) == {0, 1}
    assert pinned_to(1, tmp_path, everyone) == {0}
    assert pinned_to(1, tmp_path, frozenset({2, 3})) == {2}
    assert pinned_to(3, tmp_path, everyone) == everyone
    assert pinned_to(2, tmp_path / "none", everyone) == everyone
