"""The open loop, on a clock that a test turns."""

import json
import math
import threading

import numpy as np
import pytest
import scipy.stats

from optimizer.benching.openloop import OpenLoop, Served, SystemClock, arrivals, drive, judge, queue_max

MS = 1_000_000


class TurnedClock:
    """Time that passes only when something takes it, and a timer that is late by so much."""

    def __init__(self, late=0):
        self.time = 5_000 * MS
        self.late = late

    def now(self):
        return self.time

    def wait_until(self, when):
        if when > self.time:
            self.time = when + self.late


def answered_by(clock, *took):
    """A call whose durations are these, in order and again from the beginning."""
    left = list(took)

    def call():
        clock.time += left[0]
        left.append(left.pop(0))

    return call


def at(qps, count, service, **clock):
    """A round of arrivals at this rate on a server with this constant time of service."""
    turned = TurnedClock(**clock)
    return drive(arrivals(qps, count, seed=3), [answered_by(turned, service)], turned)


def test_gaps_are_exponential_and_independent():
    times = np.array([0, *arrivals(200.0, 5000, seed=1)]) / 1e9
    gaps = np.diff(times)
    assert scipy.stats.kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 3 / math.sqrt(5000)
    # Counts in a window are Poisson: their variance is their mean.
    counts = np.histogram(times, bins=np.arange(0, times[-1], 0.1))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.3)


def test_a_seed_is_a_schedule():
    assert arrivals(50.0, 20, seed="0:1") == arrivals(50.0, 20, seed="0:1") != arrivals(50.0, 20, seed="0:2")
    assert arrivals(50.0, 30, seed=7)[:20] == arrivals(50.0, 20, seed=7)
    slow, fast = arrivals(10.0, 20, seed=7), arrivals(20.0, 20, seed=7)
    assert slow == pytest.approx([2 * t for t in fast], abs=2)


def test_latency_counts_from_the_scheduled_time():
    """A stall of 100 ms is paid by everyone who arrived meanwhile, and not by one sample."""
    clock = TurnedClock()
    served = drive([0, 10 * MS, 20 * MS, 30 * MS, 200 * MS], [answered_by(clock, 100 * MS, MS, MS, MS, MS)], clock)
    assert served.latency == [100 * MS, 91 * MS, 82 * MS, 73 * MS, MS]
    assert served.issued == [0, 100 * MS, 101 * MS, 102 * MS, 200 * MS]
    assert served.lag == [0, 0, 0, 0, 0]
    assert queue_max(served.scheduled, served.issued) == 3
    assert served.busy == 104 * MS
    assert queue_max([0, 10, 20], [0, 10, 20]) == 0


def test_the_queue_is_that_of_theory():
    """Poisson arrivals, constant service: the mean wait of M/D/1 is ρ / (2 (1 - ρ)) services (Pollaczek, Khinchin)."""
    served = at(70.0, 60_000, 10 * MS)
    wait = np.mean(served.latency) / (10 * MS) - 1
    assert wait == pytest.approx(0.7 / (2 * 0.3), rel=0.06)


def test_the_timers_lag_is_told_from_waiting():
    served = at(50.0, 400, 5 * MS, late=MS)
    busy_before = [False, *(due <= done for due, done in zip(served.scheduled[1:], served.done[:-1], strict=True))]
    assert {lag for lag, busy in zip(served.lag, busy_before, strict=True) if not busy} == {MS}
    assert {lag for lag, busy in zip(served.lag, busy_before, strict=True) if busy} == {0}
    assert any(busy_before)


def test_valid_at_a_load_that_it_can_answer():
    found = judge([at(50.0, 500, 10 * MS)], 50.0, 1)
    assert found.valid
    assert found.load == pytest.approx(0.5)
    assert found.achieved_qps == pytest.approx(found.scheduled_qps, rel=0.01)
    assert found.scheduled_qps == pytest.approx(50, rel=3 / math.sqrt(500))
    assert (found.queries, found.lag_ms) == (500, {"p50": 0, "p99": 0, "max": 0})
    assert OpenLoop.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("streams", [1, None])
@pytest.mark.parametrize("qps", [110.0, 150.0])
def test_overloaded_with_its_streams_in_sight_and_without(streams, qps):
    found = judge([at(qps, 2000, 10 * MS)], qps, streams)
    assert not found.valid
    assert found.reason.startswith("overloaded")
    assert found.achieved_qps == pytest.approx(100, rel=0.01)
    assert found.queue_max > 150


def test_short_rounds_are_judged_as_rounds():
    """Of 10 ms services at 90 a second nothing is overloaded, in one long round as in many short ones."""
    for count in (40, 4000):
        runs = []
        for seed in range(8):
            clock = TurnedClock()
            runs.append(drive(arrivals(90.0, count, seed), [answered_by(clock, 10 * MS)], clock))
        assert judge(runs, 90.0, None).valid
        assert judge(runs, 90.0, 1).valid


def test_a_slow_answer_is_no_overload():
    """Where nothing is known of what answers: three seconds for each of 100 queries in parallel are no falling
    behind."""
    due = arrivals(20.0, 100, seed=0)
    served = Served(due, list(due), [t + 3000 * MS for t in due], [0] * 100)
    assert judge([served], 20.0, None).valid


@pytest.mark.parametrize(("behind", "valid"), [(0.1, True), (0.3, False)])
def test_how_far_behind_is_overloaded_depends_on_how_many_there_were(behind, valid):
    """Of 100 queries, answers may fall behind by 2/√100 of the time."""
    due = [k * 10 * MS for k in range(1, 101)]
    served = Served(due, list(due), [round(t * (1 + behind)) + MS for t in due], [0] * 100)
    assert judge([served], 100.0, None).valid is valid


@pytest.mark.parametrize(("late", "valid"), [(0, True), (2, True), (3, False)])
def test_the_generators_own_lateness_is_no_latency(late, valid):
    """Of 200 queries, 1 in 100 may be issued later than a tenth of the median latency."""
    due = [k * 100 * MS for k in range(200)]
    lag = [2 * MS if place < late else MS // 2 for place in range(200)]
    issued = [t + over for t, over in zip(due, lag, strict=True)]
    served = Served(due, issued, [t + 10 * MS for t in issued], lag)
    found = judge([served], 10.0, 1)
    assert found.valid is valid
    assert valid or found.reason == "the generator was late: 3 of 200 queries by more than 10% of the median latency"


def test_streams_share_one_queue():
    """One stream is held until the other has answered all the rest: dealt out beforehand, they would never end."""
    rest_is_done, turn = threading.Event(), threading.Lock()
    answered = []

    def call():
        with turn:
            answered.append(1)
            place = len(answered)
        if place == 1:
            assert rest_is_done.wait(20)
        elif place == 4:
            rest_is_done.set()

    served = drive([0, 0, 0, 0], [call, call], SystemClock(0))
    assert all(done >= issued > 0 for issued, done in zip(served.issued, served.done, strict=True))
    assert max(served.done) == served.done[0]


def test_a_call_that_fails_ends_the_run():
    def fails():
        raise IndexError("of the model's own")

    for calls in ([fails], [fails, fails]):
        with pytest.raises(IndexError, match="of the model's own"):
            drive([0] * 50, calls, SystemClock(0))


def test_the_system_clock_is_never_early():
    clock = SystemClock()
    for wait in (0, 50_000, 2 * MS):
        when = clock.now() + wait
        clock.wait_until(when)
        assert clock.now() >= when
