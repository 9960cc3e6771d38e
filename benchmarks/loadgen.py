"""MLPerf's LoadGen as a worker of `ml-opt bench`: the same session and inputs, asked and timed by somebody else's code.

    python -m benchmarks.loadgen single-stream|offline|server

speaks the lines of optimizer/benching/worker.py. Opening, inputs and warm-up are ml-opt's; "time" and "serve" are one
run of LoadGen each, and what they answer is read from its log, sample by sample.
"""

from __future__ import annotations

import functools
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.benching.openloop import Served
from optimizer.benching.scenario import Scenario
from optimizer.benching.worker import Worker, main, settle, undisturbed
from optimizer.types import JSON

_NAMES = {Scenario.SINGLE_STREAM: "SingleStream", Scenario.OFFLINE: "Offline", Scenario.SERVER: "Server"}
_SAMPLE = re.compile(
    r'"name":"Sample","cat":"default","ph":"b".*?"ts":(?P<ts>[\d.]+),"args":\{"sample_seq":(?P<place>\d+),'
    r'.*?"issue_start_ns":(?P<issued>-?\d+),"complete_ns":(?P<done>-?\d+)'
)
_RESULT = re.compile(r'"key": "result_(?P<key>[\w.]+)", "value": (?P<value>[\d.]+),')


@dataclass(frozen=True)
class Log:
    """What LoadGen wrote of one run.

    Attributes:
        samples: the sample's scheduled time, when it was sent and when it was answered, in nanoseconds from the first
            scheduled time, in LoadGen's order.
        says: the results that LoadGen made of them itself, by their names in its log without ``result_``.
    """

    samples: list[tuple[int, int, int]]
    says: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Log:
        """The log of a run that wrote a trace."""
        found = sorted(
            (int(m["place"]), round(float(m["ts"]) * 1e3), int(m["issued"]), int(m["done"]))
            for m in _SAMPLE.finditer((folder / "mlperf_log_trace.json").read_text())
        )
        first = min(at for _, at, _, _ in found)
        detail = (folder / "mlperf_log_detail.txt").read_text()
        return cls(
            [(at - first, at - first + issued, at - first + done) for _, at, issued, done in found],
            {m["key"]: float(m["value"]) for m in _RESULT.finditer(detail)},
        )

    @property
    def latency(self) -> list[int]:
        """Nanoseconds from the scheduled time to the answer."""
        return [done - due for due, _, done in self.samples]


def run(scenario: Scenario, call: Callable[[], object], batch: int = 1, **settings: Any) -> Log:
    """One run of LoadGen over a system that answers by a call.

    Args:
        scenario: which; only Server has the call made by a thread of its own, as it must not keep LoadGen waiting.
        call: answers ``batch`` samples.
        batch: samples of a call; Offline sends all of them at once, the others one by one.
        settings: of LoadGen, by the names of its ``TestSettings``.
    """
    import mlperf_loadgen as lg

    waiting: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()

    def answer(samples: Sequence[Any]) -> None:
        for start in range(0, len(samples), batch):
            call()
            lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, 0, 0) for s in samples[start : start + batch]])

    def work() -> None:
        while (samples := waiting.get()) is not None:
            answer(samples)

    wanted = lg.TestSettings()
    wanted.mode, wanted.scenario = lg.TestMode.PerformanceOnly, getattr(lg.TestScenario, _NAMES[scenario])
    for name, value in settings.items():
        setattr(wanted, name, value)
    worker = threading.Thread(target=work)
    worker.start()
    # What LoadGen sends is a number of its sample library; here every one is the same input.
    sut = lg.ConstructSUT(waiting.put if scenario is Scenario.SERVER else answer, lambda: None)
    library = lg.ConstructQSL(1, 1, lambda _: None, lambda _: None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            logs = lg.LogSettings()
            logs.enable_trace, logs.log_output.outdir = True, folder
            logs.log_output.copy_summary_to_stdout = False
            lg.StartTestWithLogSettings(sut, library, wanted, logs, "")
            return Log.read(Path(folder))
    finally:
        waiting.put(None)
        worker.join()
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)


def single_stream(call: Callable[[], object], seconds: float, samples: int) -> Log:
    """One after another, for so many seconds and so often at least."""
    return run(
        Scenario.SINGLE_STREAM,
        call,
        min_duration_ms=max(1, round(seconds * 1e3)),
        min_query_count=samples,
        single_stream_expected_latency_ns=50_000,
    )


def offline(call: Callable[[], object], batch: int, calls: int) -> Log:
    """All at once, answered in batches."""
    return run(Scenario.OFFLINE, call, batch, min_duration_ms=1, offline_expected_qps=1, min_query_count=batch * calls)


def server(call: Callable[[], object], qps: float, queries: int, seed: int) -> Log:
    """At LoadGen's own random times."""
    return run(
        Scenario.SERVER,
        call,
        min_duration_ms=1,
        min_query_count=queries,
        max_query_count=queries,
        server_target_qps=qps,
        server_target_latency_ns=10**12,
        schedule_rng_seed=seed,
    )


def served(log: Log) -> Served:
    """A run of Server as ml-opt's own open loop would tell it.

    LoadGen's first query is scheduled for the beginning and not for one gap after it, which the mean gap puts right.
    """
    scheduled, issued, done = (list(times) for times in zip(*log.samples, strict=True))
    gap = scheduled[-1] // max(1, len(scheduled) - 1)
    lag = [sent - due for due, sent in zip(scheduled, issued, strict=True)]
    return Served(*([at + gap for at in times] for times in (scheduled, issued, done)), lag)


class LoadGenWorker(Worker):
    """Opens and warms up as ml-opt does, and leaves the timing to LoadGen."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__()
        self._scenario = scenario

    def _time(self, request: dict[str, JSON]) -> dict[str, JSON]:
        call, seconds, samples = self._calls[request["shape"]], request["seconds"], request["samples"]
        with undisturbed():
            took = settle(call)
            if self._scenario is Scenario.SINGLE_STREAM:
                return {"ns": single_stream(call, seconds, samples).latency}
            batch = int(request["shape"].partition("x")[0])
            calls = max(samples, round(seconds * 1e9 / took))
            # All begin together, so that a batch took from the answer of the one before to its own.
            ends = sorted(offline(call, batch, calls).latency)[batch - 1 :: batch]
            return {"ns": [after - before for before, after in zip([0, *ends], ends, strict=False)]}

    def _serve(self, request: dict[str, JSON]) -> dict[str, JSON]:
        call = self._calls[request["shape"]]
        with undisturbed():
            settle(call)
            number = int(str(request["seed"]).rpartition(":")[2])
            return served(server(call, request["qps"], request["queries"], number)).to_json()


if __name__ == "__main__":
    main(worker=functools.partial(LoadGenWorker, Scenario(sys.argv[1])))
