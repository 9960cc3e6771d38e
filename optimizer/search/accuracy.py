"""Every candidate's answers to every row, each candidate in a process of its own, one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.benching.agreement import compare_rows, read_arrays
from optimizer.benching.candidates import candidate_to_json
from optimizer.benching.process import WorkerProcess
from optimizer.runtime import Candidate
from optimizer.search.bootstrap import bounded
from optimizer.search.gates import Bounded, share
from optimizer.stage import Progress
from optimizer.task import Metric
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.search.contender import Rules

__all__ = ["Answers", "Batches", "Measures", "Scores", "answer", "score"]


@dataclass(frozen=True)
class Batches:
    """What every candidate answers.

    Attributes:
        feeds: one ``.npz`` a batch.
        places: of each batch's rows in the data file.
    """

    feeds: tuple[Path, ...]
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Answers:
    """One candidate's answers.

    Attributes:
        files: one ``.npz`` a batch.
        seconds: that it took, opening included.
        runs: what its first batch was computed in (:meth:`~optimizer.runtime.Session.runs`); None where it was not
            asked for, or nobody can say.
    """

    files: tuple[Path, ...]
    seconds: float
    runs: Mapping[str, JSON] | None = None


@dataclass(frozen=True)
class Measures:
    """What the answers to many rows come to; see :class:`optimizer.search.report.CandidateReport`."""

    accuracy: Bounded | None = None
    agreement: Bounded | None = None
    cosine: Mapping[str, float] = field(default_factory=dict)
    kl: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Row by row, in the order of the data file; of a row that is fed as several inputs the worst.

    Attributes:
        cosine: with the original's answer.
        top1: 1 where the decision is the original's; None where the task has none.
        right: what the metric keeps of the answer (:attr:`Metric.score`): 1 where it is right and 0 where it is not, or
            a list of numbers; None where there are no labels.
        kl: KL divergence from the original's answer, in nats; None where the task has no decision.
    """

    cosine: tuple[float, ...]
    top1: tuple[float, ...] | None = None
    right: tuple[Any, ...] | None = None
    kl: tuple[float, ...] | None = None

    def rows(self, own: bool = False) -> dict[str, JSON]:
        """Of each row, every number by which it was judged.

        Args:
            own: these are the original's, whose likeness to itself says nothing.
        """
        named = {"right": self.right} if own else vars(self)
        return {name: list(values) if values else None for name, values in named.items()}

    def measures(self, rules: Rules, whole: bool) -> Measures:
        """What they come to together; bounds only where every row was answered."""
        return Measures(
            accuracy=self._scored(rules) if whole else None,
            agreement=_share(self.top1, rules) if whole else None,
            cosine={"worst": min(self.cosine), **_mean(self.cosine)} if self.cosine else {},
            kl={"worst": max(self.kl), **_mean(self.kl)} if self.kl else {},
        )

    def _scored(self, rules: Rules) -> Bounded | None:
        """The metric over all rows."""
        if self.right is None or rules.metric is None:
            return None
        if rules.metric.binary:
            return _share(self.right, rules)
        return bounded(rules.metric, self.right, rules.confidence, rules.plan.seed)


def _share(values: Sequence[float] | None, rules: Rules) -> Bounded | None:
    return share(min(sum(values), len(values)), len(values), rules.confidence) if values else None


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values)}


def answer(
    candidate: Candidate,
    batches: Batches,
    scratch: Path,
    *,
    threads: int,
    timeout: float,
    progress: Progress,
    watch: bool = False,
) -> Answers:
    """Let a candidate answer every batch.

    Args:
        candidate: opened in a new process, which is ended again.
        batches: what it is fed.
        scratch: a folder of its own, for its log and its answers.
        threads: of its libraries.
        timeout: seconds for opening it, and for each batch.
        progress: told of every batch.
        watch: also find out what it computes in.

    Raises:
        CandidateFailed: it said why, died or hung.
    """
    started = time.monotonic()
    scratch.mkdir()
    process = WorkerProcess.of(candidate, scratch / "log", threads)
    files: list[Path] = []
    runs = None
    opening = {"do": "open", "candidate": candidate_to_json(candidate), "threads": threads, "watch": watch}
    try:
        process.ask(opening, timeout)
        for number, feeds in enumerate(batches.feeds):
            progress(f"{candidate.label}: answering", number, len(batches.feeds))
            out = scratch / f"{number}.npz"
            process.ask({"do": "answer", "feeds": str(feeds), "out": str(out)}, timeout)
            files.append(out)
            if watch and len(files) == 1:
                runs = process.ask({"do": "runs"}, timeout)["runs"]
    finally:
        process.kill()
    return Answers(tuple(files), time.monotonic() - started, runs)


def score(
    original: Answers,
    judged: Answers,
    batches: Batches,
    model: Mapping[str, JSON],
    metric: Metric | None,
    truths: Sequence[Any] | None,
) -> Scores:
    """Compare answers with the original's, and with the labels where there are some.

    Raises:
        GateFailed: answers of another shape, or that are not finite where the original's are.
        BadInput: labels beyond the model's classes.
    """
    order = [place for places in batches.places for place in places]

    def in_order(values: Sequence[Any]) -> tuple[Any, ...]:
        """Batches are sorted by length, data files are not."""
        return tuple(value for _, value in sorted(zip(order, values, strict=True), key=lambda pair: pair[0]))

    def of_rows(name: str, worst: str) -> tuple[float, ...] | None:
        if name not in measures:
            return None
        return in_order(getattr(measures[name].reshape(len(order), -1), worst)(axis=1).tolist())

    measures = compare_rows(original.files, judged.files, batches.feeds, model)
    right = None
    if metric is not None and truths is not None:
        scored: list[Any] = []
        for file, feeds, places in zip(judged.files, batches.feeds, batches.places, strict=True):
            wanted = [truths[place] for place in places]
            scored += metric.score(read_arrays(file), read_arrays(feeds), wanted, model).tolist()
        right = in_order(scored)
    cosine = of_rows("cosine", "min")
    assert cosine is not None, "every task has a cosine"
    return Scores(cosine, of_rows("top1", "min"), right, of_rows("kl", "max"))
