"""From a server's answers to a report: the same one that candidates in processes of their own get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from optimizer.benching.gates import Gate, Outcome
from optimizer.benching.openloop import arrivals, judge
from optimizer.benching.protocols import Query
from optimizer.benching.remote import Sent, errors_of, send_all, served, streaming_of
from optimizer.benching.report import BenchReport, Caution, Cell, Doubt, Row
from optimizer.benching.scenario import Scenario
from optimizer.benching.stats import summarize
from optimizer.environment import cpu_threads, describe

__all__ = ["bench_server", "error_gate", "tail_gate"]

#: One-sided error of a gate: that of one end of a 95 % interval.
_ERROR = 0.025


def bench_server(
    url: str,
    model: str,
    protocol: str,
    queries: Sequence[Query],
    shape: str,
    batch: int,
    *,
    qps: float,
    count: int,
    seed: int,
    timeout: float,
    p99_ms: float | None,
    max_errors: float,
    inputs: str,
) -> BenchReport:
    """Send ``count`` queries at random times, ``qps`` a second in the mean, and say how they were answered.

    Args:
        url: of the server.
        model: its name there, and in the report.
        protocol: what is spoken, for the report.
        queries: sent in turn.
        shape: of a query, for the report.
        batch: rows of a query.
        qps: queries a second.
        count: how many.
        seed: of the schedule.
        timeout: seconds after which a query counts as unanswered.
        p99_ms: milliseconds within which 99 of 100 queries must be answered; None when nothing is asked.
        max_errors: share of queries that may stay without an answer.
        inputs: where the queries come from, for the report.

    Raises:
        BadInput: there is no such server, or it does not answer the first query.
    """
    warm, sent = send_all(url, queries, arrivals(qps, count, seed), timeout)
    row = Row(model, url, protocol, "", 0)
    errors = errors_of(sent)
    cautions: list[Caution] = []
    gates = [error_gate(model, shape, sent, max_errors)]
    if len(errors) and sum(errors.values()) == count:
        row = replace(row, error=f"none of {count} queries was answered: {_listed(errors)}")
    else:
        good = served(sent)
        loop = replace(judge([good], qps, None), queries=count, errors=errors, more=streaming_of(sent))
        latency = good.latency
        cell = Cell(shape, batch, warm[0] / 1e9, warm, [latency], summarize([latency]), open_loop=loop)
        row = replace(row, cells=(cell,))
        if loop.reason:
            cautions.append(Caution(Doubt.INVALID, f"{model} at {shape}", loop.reason))
        if p99_ms is not None:
            gates.append(tail_gate(model, shape, sent, p99_ms, loop.reason))
    settings = {"shapes": [shape], "threads": cpu_threads(), "rounds": 1, "samples": count, "seed": seed, "qps": qps}
    return BenchReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings={**settings, "scenario": Scenario.SERVER.value, "url": url, "protocol": protocol},
        inputs={"timed": inputs, "compared": ""},
        environment=describe(),
        baseline=model,
        rows=(row,),
        cautions=tuple(cautions),
        gates=tuple(gates),
    )


def error_gate(model: str, shape: str, sent: Sequence[Sent], limit: float) -> Gate:
    """REGRESSION when more queries stayed without an answer than may: a count, and no estimate."""
    errors = errors_of(sent)
    share = sum(errors.values()) / len(sent)
    says = f"{sum(errors.values())} of {len(sent)} queries without an answer" + (
        f" ({_listed(errors)})" if errors else ""
    )
    outcome = Outcome.REGRESSION if share > limit else Outcome.PASS
    return Gate("errors", model, outcome, says, limit, share, shape=shape)


def tail_gate(model: str, shape: str, sent: Sequence[Sent], limit_ms: float, invalid: str) -> Gate:
    """Whether 99 of 100 queries are answered in time; one without an answer is not.

    The exact binomial test of "1 in 100 is late": PASS when so few late ones would come by chance at most 1 in 40
    times, REGRESSION when so many would (Clopper and Pearson, *Biometrika* 26, 1934). The fewest queries that can pass
    are 368. INCONCLUSIVE between, and for an open loop that is not valid.
    """
    late = sum(bool(each.error) or each.done - each.scheduled > limit_ms * 1e6 for each in sent)
    says = f"{late} of {len(sent)} queries took over {limit_ms:g} ms"
    few, many = _at_most(late, len(sent), 0.01), 1 - _at_most(late - 1, len(sent), 0.01)
    if invalid:
        outcome, says = Outcome.INCONCLUSIVE, f"{says}, but the run is INVALID: {invalid}"
    elif many <= _ERROR:
        outcome = Outcome.REGRESSION
    elif few <= _ERROR:
        outcome = Outcome.PASS
    else:
        outcome, says = Outcome.INCONCLUSIVE, f"{says}, which does not tell about 1 in 100: raise --duration"
    return Gate("p99", model, outcome, says, limit_ms, late / len(sent), shape=shape)


def _at_most(successes: int, trials: int, chance: float) -> float:
    """The binomial probability of so many or fewer."""
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(successes + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _listed(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in errors.items())
