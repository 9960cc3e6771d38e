"""The measuring itself: every candidate in a process of its own, one of them running at a time, rounds interleaved.

    open each → make inputs → first call and warm-up of each at every shape → rounds → answers to compare → close

Within a round, each shape is measured by all candidates right after each other, so that what the machine does
meanwhile falls on all of them. The order is shuffled, and run forwards and then backwards (ABBA), half of the calls
each time, so that a steady drift cancels within the round. What is called a shape here may be a pass over rows of a
data file too (:mod:`optimizer.benching.workload`), in batches of each candidate's own; it is long, so that every second
round runs backwards instead. While it is not decided what the rounds say, more are added.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from optimizer.benching.busy import Others
from optimizer.benching.candidates import candidate_to_json
from optimizer.benching.openloop import Served
from optimizer.benching.process import CandidateFailed, WorkerProcess
from optimizer.benching.scenario import Scenario
from optimizer.benching.shape import Shape
from optimizer.benching.vram import vram_of
from optimizer.benching.workload import Load, Workload, Writing, name_of
from optimizer.runtime import Candidate
from optimizer.stage import Progress
from optimizer.types import JSON, TensorSpec

__all__ = ["Feeds", "Lane", "Plan", "measure", "opening", "orders"]

#: Seconds in which calls with and without copies take turns.
_COPYING_S = 0.2


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        shapes: what is timed.
        threads: of every candidate.
        rounds: how often every candidate is measured at every shape.
        max_rounds: how often at most, while it is not decided what the rounds say; 0 for no more than ``rounds``.
        seconds: least time that a candidate is measured at a shape, over all rounds.
        samples: fewest calls of a candidate at a shape, over all rounds.
        seed: of the order.
        timeout: seconds after which one request to a worker counts as hung, beside the time asked for.
        warm_limit_s: longest warm-up of one candidate at one shape.
        roofline: whether this machine's peaks are measured as well, and operations counted.
        scenario: how queries come. Single-stream and offline are measured alike, one call after the other, and
            differ in what is made of it.
        qps: of the server scenario: queries a second that each candidate is sent.
        streams: of the server scenario: queries that a candidate answers at once.
    """

    shapes: tuple[Load, ...]
    threads: int
    rounds: int = 8
    seconds: float = 2.0
    samples: int = 64
    seed: int = 0
    timeout: float = 300.0
    warm_limit_s: float = 3.0
    roofline: bool = False
    scenario: Scenario = Scenario.SINGLE_STREAM
    qps: float = 0.0
    streams: int = 1
    max_rounds: int = 0

    @property
    def queries(self) -> int:
        """Of the server scenario: queries of a round, enough of them for both the seconds and the samples."""
        return math.ceil(max(self.qps * self.seconds, self.samples) / self.rounds)

    @property
    def slots(self) -> int:
        """The most texts of a call; 0 where no texts are timed."""
        return max((shape.batch for shape in self.shapes if isinstance(shape, Writing)), default=0)

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rounds it is asked whether they will do: 8, 16 and 32, say."""
        found = [self.rounds]
        while found[-1] < self.max_rounds:
            found.append(min(2 * found[-1], self.max_rounds))
        return tuple(found)


@dataclass(frozen=True)
class Feeds:
    """Input files: one a shape to be timed, as many as batches a pass; and batches whose answers are compared."""

    timed: dict[Load, list[Path]]
    compared: list[Path]


@dataclass
class Lane:
    """One candidate while it is measured, and all that was learnt of it.

    Attributes:
        candidate: what it is.
        loads: what it is timed at, for each shape of the plan: that, or passes in batches of its own.
        error: why it failed; empty while it has not.
        hint: what to do about that.
        opened: the worker's answer to ``open``.
        first_s: seconds of the first call, by shape.
        warm: medians of the warm-up's windows in nanoseconds, by shape.
        unstable: shapes whose warm-up never became stable.
        rounds: samples in nanoseconds, by shape, one list a round.
        served: of the server scenario: how each round's queries went, by shape.
        answers: files with the answers to the compared inputs.
        peak_rss: bytes, after the last round.
        peak_vram: bytes, after the last round; None where it uses no GPU.
        copy_ns: nanoseconds that copying inputs and outputs adds to a call, by shape.
        parts: of texts: what the worker says of each call, by load, one list a round.
    """

    candidate: Candidate
    loads: Sequence[Sequence[Load]] = ()
    error: str = ""
    hint: str = ""
    opened: dict[str, Any] = field(default_factory=dict)
    first_s: dict[Load, float] = field(default_factory=dict)
    warm: dict[Load, list[int]] = field(default_factory=dict)
    unstable: list[Load] = field(default_factory=list)
    rounds: dict[Load, list[list[int]]] = field(default_factory=dict)
    served: dict[Load, list[Served]] = field(default_factory=dict)
    answers: list[Path] = field(default_factory=list)
    peak_rss: int = 0
    peak_vram: int | None = None
    copy_ns: dict[Load, float] = field(default_factory=dict)
    parts: dict[Load, list[list[dict[str, Any]]]] = field(default_factory=dict)
    process: WorkerProcess | None = None

    @property
    def alive(self) -> bool:
        return not self.error

    @property
    def pids(self) -> tuple[int, ...]:
        """Of its process, while it has one."""
        return (self.process.pid,) if self.process is not None else ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it must be fed, as it said itself."""
        return tuple(TensorSpec.from_json(spec) for spec in self.opened["inputs"])

    @contextmanager
    def trying(self) -> Iterator[Callable[..., dict[str, Any]]]:
        """Let the process run, and end this lane (and no other) when it fails inside the block."""
        assert self.process is not None
        process = self.process

        def ask(doing: str, timeout: float, **values: JSON) -> dict[str, Any]:
            reply = process.ask({"do": doing, **values}, timeout)
            self.peak_rss = int(reply.get("peak_rss", 0))
            return reply

        try:
            with process.turn():
                yield ask
        except CandidateFailed as failed:
            self.fail(failed.message, failed.hint)

    def fail(self, error: str, hint: str = "") -> None:
        """Take the lane out of the race; the first reason is kept."""
        self.error = self.error or error
        self.hint = self.hint or hint
        if self.process is not None:
            self.process.kill()


def orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """In which order candidates take their turns: shuffled, and every second round the one before backwards.

    More rounds begin with the same ones.
    """
    shuffler = random.Random(seed)
    found: list[list[int]] = []
    for number in range(rounds):
        if number % 2:
            found.append(found[-1][::-1])
        else:
            order = list(range(count))
            shuffler.shuffle(order)
            found.append(order)
    return found


def measure(
    candidates: Sequence[Candidate],
    plan: Plan,
    feeds_for: Callable[[tuple[TensorSpec, ...]], Feeds],
    scratch: Path,
    progress: Progress,
    loads: Sequence[Sequence[Sequence[Load]]] | None = None,
    undecided: Callable[[Sequence[Lane]], bool] | None = None,
    others: Others | None = None,
) -> list[Lane]:
    """Measure candidates against each other.

    Args:
        candidates: at least one; each gets a process of its own, started by its own command where it has one.
        plan: how.
        feeds_for: makes the input files, from every input that some candidate takes.
        scratch: an empty folder for logs and answers.
        progress: told of every step.
        loads: what each candidate is timed at, for each shape of the plan [that shape alone].
        undecided: whether more rounds are wanted, asked at :attr:`Plan.looks` [never].
        others: counts what others use of the machine during the rounds.

    Returns:
        one lane a candidate, in their order; those that failed say why and have no rounds.
    """
    plain = [[shape] for shape in plan.shapes]
    lanes = [Lane(candidate, loads[place] if loads else plain) for place, candidate in enumerate(candidates)]
    try:
        _open(lanes, plan, scratch, progress)
        if not (living := [lane for lane in lanes if lane.alive]):
            return lanes
        feeds = feeds_for(_all_inputs(living))
        _prepare(living, plan, feeds, progress)
        _race(lanes, plan, progress, undecided or (lambda lanes: False), others or Others())
        for lane in lanes:
            if lane.alive and lane.process is not None:
                lane.peak_vram = vram_of(lane.process.pid)
        _copies(lanes, plan, progress)
        _compare(lanes, plan, feeds, scratch, progress)
        for lane in lanes:
            if lane.alive:
                with lane.trying() as ask:
                    ask("close", plan.timeout)
        return lanes
    finally:
        for lane in lanes:
            if lane.process is not None:
                lane.process.kill()


def opening(candidate: Candidate, plan: Plan) -> dict[str, JSON]:
    """What a worker is told when it shall open a candidate."""
    told: dict[str, JSON] = {"candidate": candidate_to_json(candidate), "threads": plan.threads}
    return {**told, "slots": plan.slots} if plan.slots else told


def _all_inputs(lanes: Sequence[Lane]) -> tuple[TensorSpec, ...]:
    """Every input that some candidate takes; the first one that takes it says its type and shape."""
    found: dict[str, TensorSpec] = {}
    for lane in lanes:
        for spec in lane.inputs:
            found.setdefault(spec.name, spec)
    return tuple(found.values())


def _open(lanes: list[Lane], plan: Plan, scratch: Path, progress: Progress) -> None:
    for number, lane in enumerate(lanes):
        progress(f"opening {lane.candidate.label}", number, len(lanes))
        log = scratch / f"worker-{number}.log"
        lane.process = WorkerProcess.of(lane.candidate, log, plan.threads)
        with lane.trying() as ask:
            lane.opened = ask("open", plan.timeout, **opening(lane.candidate, plan))
            lane.opened["load_s"] += lane.process.imports_s


def _prepare(lanes: list[Lane], plan: Plan, feeds: Feeds, progress: Progress) -> None:
    """First calls and warm-up; inputs that a candidate cannot take end it here."""
    for number, lane in enumerate(lanes):
        for load in (load for loads in lane.loads for load in loads):
            if not lane.alive:
                break
            progress(f"warming up {lane.candidate.label} at {load}", number, len(lanes))
            with lane.trying() as ask:
                shape, files = name_of(load), [str(path) for path in feeds.timed[load]]
                if isinstance(load, Workload):
                    reply = ask("pass", plan.timeout, shape=shape, feeds=files)
                else:
                    reply = ask("shape", plan.timeout, shape=shape, feeds=files[0])
                lane.first_s[load] = float(reply["first_s"])
                lane.opened["facts"] |= reply.get("facts", {})
                reply = ask("warm", plan.timeout + plan.warm_limit_s, shape=shape, limit_s=plan.warm_limit_s)
                lane.warm[load] = list(reply["windows_ns"])
                if not reply["stable"]:
                    lane.unstable.append(load)


def _race(
    lanes: list[Lane],
    plan: Plan,
    progress: Progress,
    undecided: Callable[[Sequence[Lane]], bool],
    others: Others,
) -> None:
    every = orders(len(lanes), plan.looks[-1], plan.seed)
    turns = len(plan.shapes) * len(lanes)
    begun = 0
    for until in plan.looks:
        for number, order in enumerate(every[begun:until], start=begun):
            for place in range(len(plan.shapes)):
                progress(
                    f"measuring, round {number + 1} of {until}", number * turns + place * len(lanes), until * turns
                )
                _turns([lanes[index] for index in order], place, number, plan, others)
        begun = until
        if not undecided(lanes):
            return


def _turns(lanes: Sequence[Lane], place: int, number: int, plan: Plan, others: Others) -> None:
    """Round ``number`` at one shape."""
    if plan.scenario is Scenario.SERVER:
        for lane in lanes:
            for load in lane.loads[place]:
                _serve(lane, load, plan, number, others)
        return
    if isinstance(plan.shapes[place], Workload | Writing):
        # A pass is many calls by itself, and so is a text.
        for lane in lanes:
            for load in lane.loads[place]:
                _time(lane, load, plan.seconds / plan.rounds, 1, plan, others)
        return
    samples = math.ceil(plan.samples / plan.rounds / 2)
    for again, ordered in enumerate((lanes, lanes[::-1])):
        for lane in ordered:
            for load in lane.loads[place]:
                _time(lane, load, plan.seconds / plan.rounds / 2, samples, plan, others, again=bool(again))


def _time(
    lane: Lane, load: Load, seconds: float, samples: int, plan: Plan, others: Others, *, again: bool = False
) -> None:
    """One turn of one candidate; ``again`` is the second one of a round."""
    if not lane.alive:
        return
    with lane.trying() as ask:
        others.begin(lane.pids)
        reply = ask("time", plan.timeout + seconds, shape=name_of(load), seconds=seconds, samples=samples)
        others.end(lane.pids)
        rounds = lane.rounds.setdefault(load, [])
        if not again:
            rounds.append([])
        rounds[-1] += reply["ns"]
        if "parts" in reply:
            lane.parts.setdefault(load, []).append(reply["parts"])


def _serve(lane: Lane, load: Load, plan: Plan, number: int, others: Others) -> None:
    """One turn of one candidate in an open loop: the same schedule as everyone's in this round."""
    if not lane.alive:
        return
    # What is offered more than it can answer takes as long as answering takes.
    takes = plan.queries * max(1 / plan.qps, 2 * lane.warm[load][-1] / 1e9)
    asked: dict[str, JSON] = {"qps": plan.qps, "queries": plan.queries, "streams": plan.streams}
    with lane.trying() as ask:
        others.begin(lane.pids)
        reply = ask("serve", plan.timeout + takes, shape=name_of(load), seed=f"{plan.seed}:{number}", **asked)
        others.end(lane.pids)
        if "scheduled" not in reply:
            raise CandidateFailed("its process does not know `serve`", "bench it in another --scenario")
        served = Served(reply["scheduled"], reply["issued"], reply["done"], reply["lag"])
        lane.served.setdefault(load, []).append(served)
        lane.rounds.setdefault(load, []).append(served.latency)


def _copies(lanes: list[Lane], plan: Plan, progress: Progress) -> None:
    """What copying inputs and outputs adds to a call; a pass has its copies in it already."""
    for number, lane in enumerate(lanes):
        for load in (load for loads in lane.loads for load in loads if isinstance(load, Shape)):
            if not lane.alive:
                break
            progress(f"copies of {lane.candidate.label} at {load}", number, len(lanes))
            with lane.trying() as ask:
                reply = ask("copies", plan.timeout, shape=name_of(load), seconds=_COPYING_S)
                if "copied_ns" in reply:  # a peer with a worker of its own need not know the question
                    pairs = zip(reply["copied_ns"], reply["bound_ns"], strict=True)
                    lane.copy_ns[load] = median(copied - bound for copied, bound in pairs)


def _compare(lanes: list[Lane], plan: Plan, feeds: Feeds, scratch: Path, progress: Progress) -> None:
    for number, lane in enumerate(lanes):
        peak = lane.peak_rss
        for batch, path in enumerate(feeds.compared):
            if not lane.alive:
                break
            progress(f"comparing answers of {lane.candidate.label}", batch, len(feeds.compared))
            out = scratch / f"answer-{number}-{batch}.npz"
            with lane.trying() as ask:
                ask("answer", plan.timeout, feeds=str(path), out=str(out))
                lane.answers.append(out)
        lane.peak_rss = peak  # comparing may use larger batches than what was measured
