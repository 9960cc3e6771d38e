"""wrk and hey against a server that runs: is every request answered with 200, and do both sides count the same?

Both send the same body of JSON again and again, to V2's infer and to OpenAI's embeddings, over connections that are
kept and over one connection a request. Used by ``make conformance``, and by the tests for a moment.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Missing", "Target", "Told", "compared", "hey", "hey_told", "targets", "wrk", "wrk_told"]

#: Seconds in which the server has counted what it answered.
_LONG = 30.0
#: The status of a request whose client went away before its answer.
_HUNG_UP = 499
#: wrk asks by what this says, and ends with one line of JSON. One thread: what a thread counts is its own.
_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
others = 0
local file = io.open(os.getenv("ML_OPT_BODY"), "r")
wrk.body = file:read("*a")
file:close()
if os.getenv("ML_OPT_KEEP") == "0" then wrk.headers["Connection"] = "close" end
local threads = {}
function setup(thread) table.insert(threads, thread) end
function response(status) if status ~= 200 then others = others + 1 end end
function done(summary)
  local lost = summary.errors
  io.write(string.format(
    '{"requests": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d, "others": %d}\\n',
    summary.requests, lost.connect, lost.read, lost.write, lost.timeout, lost.status, threads[1]:get("others")))
end
"""


class Missing(Exception):
    """This judge is not here; its words say how it is installed."""


@dataclass(frozen=True)
class Target:
    """What is asked.

    Attributes:
        path: of the request.
        endpoint: the path's name in the server's metrics.
        model: that answers.
        body: of each request.
    """

    path: str
    endpoint: str
    model: str
    body: str


@dataclass(frozen=True)
class Told:
    """What a tool says of a run.

    Attributes:
        answered: answers that it got.
        faults: connections that were refused or reset, late answers and statuses other than 200, by their names.
    """

    answered: int
    faults: dict[str, int]


def targets(url: str, model: str) -> tuple[Target, Target]:
    """V2's infer and OpenAI's embeddings of a model of texts: a row of four tokens, and a text."""
    with urllib.request.urlopen(f"{url}/v2/models/{model}", timeout=_LONG) as answer:
        inputs = json.load(answer)["inputs"]
    row = {"datatype": "INT64", "shape": [1, 4], "data": [1, 1, 1, 1]}
    tensors = {"inputs": [{"name": each["name"], **row} for each in inputs]}
    return (
        Target(f"/v2/models/{model}/infer", "/v2/models/{name}/infer", model, json.dumps(tensors)),
        Target("/v1/embeddings", "/v1/embeddings", model, json.dumps({"model": model, "input": "a film"})),
    )


def hey(url: str, model: str, *, requests: int = 1000, clients: int = 8) -> str:
    """So many requests by hey, four times: each target over kept connections and over new ones.

    Raises:
        Missing: hey is not installed.
        AssertionError: a request was not answered with 200, or the server counted other than as many.
    """
    command, said = _found("hey"), []
    for target, keep in _ways(url, model):
        words = [
            command, "-n", f"{requests}", "-c", f"{clients}", "-m", "POST", "-T", "application/json",
            "-d", target.body, *([] if keep else ["-disable-keepalive"]), url + target.path,
        ]  # fmt: skip
        before = _counted(url, target)
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        told = hey_told(done.stdout)
        assert told.answered == requests, f"{told.answered} of {requests} were answered: {told.faults}"
        said.append(compared(told, _settled(url, target, before, told.answered), 0))
    return _line(said)


def wrk(url: str, model: str, *, seconds: int = 3, clients: int = 8) -> str:
    """As many requests as wrk sends in so many seconds, four times; arguments and errors as of :func:`hey`."""
    command, said = _found("wrk"), []
    with tempfile.TemporaryDirectory() as folder:
        script, body = Path(folder) / "post.lua", Path(folder) / "body.json"
        script.write_text(_LUA)
        for target, keep in _ways(url, model):
            body.write_text(target.body)
            environment = {"ML_OPT_BODY": str(body), "ML_OPT_KEEP": str(int(keep))}
            words = [command, "-t", "1", "-c", f"{clients}", "-d", f"{seconds}s", "-s", str(script), url + target.path]
            before = _counted(url, target)
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            told = wrk_told(done.stdout)
            # When its time is over wrk closes its connections, whatever is under way on them.
            said.append(compared(told, _settled(url, target, before, told.answered), clients))
    return _line(said)


def hey_told(text: str) -> Told:
    """What hey printed: how many answers of each status, and errors."""
    statuses = {status: int(count) for status, count in re.findall(r"^\s*\[(\d{3})\]\s+(\d+) responses", text, re.M)}
    errors = text.partition("Error distribution:")[2]
    faults = {words.strip(): int(count) for count, words in re.findall(r"^\s*\[(\d+)\]\s+(.+)$", errors, re.M)}
    faults |= {status: count for status, count in statuses.items() if status != "200"}
    return Told(sum(statuses.values()), faults)


def wrk_told(text: str) -> Told:
    """The line that the script printed at the end."""
    counts: dict[str, int] = json.loads(text.strip().splitlines()[-1])
    answered = counts.pop("requests")
    return Told(answered, {name: count for name, count in counts.items() if count})


def compared(told: Told, counted: Counter[int], under_way: int) -> int:
    """Hold what a tool says against what the server counted meanwhile.

    Args:
        told: by the tool.
        counted: by the server: status → requests.
        under_way: requests that the tool may have left without an answer at its end.

    Returns:
        how many were answered.

    Raises:
        AssertionError: they do not agree, or a request was not answered with 200.
    """
    assert told.answered > 0, "nothing was answered"
    assert not told.faults, f"not every answer was 200: {told.faults}"
    others = {status: count for status, count in counted.items() if status not in (200, _HUNG_UP) and count}
    assert not others, f"the server says that it answered {others}"
    more = counted[200] + counted[_HUNG_UP] - told.answered
    assert counted[200] >= told.answered, f"{told.answered} answers came, and the server counted {counted[200]}"
    assert more <= under_way, f"the server counted {more} more than the {told.answered} whose answers came"
    return told.answered


def _found(tool: str) -> str:
    command = shutil.which(tool)
    if command is None:
        raise Missing(f"apt-get install {tool}")
    return command


def _ways(url: str, model: str) -> Iterator[tuple[Target, bool]]:
    for target in targets(url, model):
        yield from ((target, True), (target, False))


def _counted(url: str, target: Target) -> Counter[int]:
    """Requests that the server has answered at a target so far, by status."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{url}/metrics", timeout=_LONG) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found: Counter[int] = Counter()
    for family in families:
        for sample in family.samples:
            of = (sample.labels.get("endpoint"), sample.labels.get("model"))
            if sample.name == "ml_requests_total" and of == (target.endpoint, target.model):
                found[int(sample.labels["status"])] += int(sample.value)
    return found


def _settled(url: str, target: Target, before: Counter[int], least: int) -> Counter[int]:
    """What was counted since, once it is at least as many as came back: an answer is counted after it was sent."""
    end = time.monotonic() + _LONG
    while True:
        counted = _counted(url, target)
        counted.subtract(before)
        if counted[200] >= least or time.monotonic() > end:
            return counted
        time.sleep(0.05)


def _line(said: list[int]) -> str:
    kept, new = said[0] + said[2], said[1] + said[3]
    return f"{kept} requests over kept connections and {new} over new ones: all 200, as many as the server counted"
