"""Judging one candidate, look by look: it answers more rows only while nothing shows that it misses a budget."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from optimizer.benching.candidates import Entrant
from optimizer.benching.process import CandidateFailed
from optimizer.benching.shape import Shape
from optimizer.errors import BadInput
from optimizer.evalset import EvalSet
from optimizer.search.accuracy import Answers, Scores, answer, score
from optimizer.search.bootstrap import bootstrapped_gate
from optimizer.search.contender import Contender, Rules, Scored
from optimizer.search.gates import Gate, Outcome, agreement_gate, cosine_gate, drop_gate, same_gate
from optimizer.search.looks import Looks, early_confidence, final_confidence
from optimizer.stage import Progress
from optimizer.types import JSON

__all__ = ["Judge", "Judging", "gates"]


class Judging(Protocol):
    """What a race asks of whoever judges."""

    @property
    def original(self) -> Entrant:
        """What everything is compared with."""

    @property
    def known(self) -> Scored:
        """The original's own scores."""

    @property
    def rows(self) -> int:
        """That are answered in the end."""

    @property
    def seconds(self) -> float:
        """That the original took for all of them."""

    def call_s(self) -> float:
        """About how long a timed call of the original takes."""

    def first_look(self, contender: Contender) -> None:
        """Let a candidate that was made answer the first rows."""

    def every_row(self, contender: Contender, rivals: int) -> None:
        """Let it answer the rest; its bounds are shared with so many others that may yet win."""


class Judge:
    """The original's answers, and how candidates' answers are held against them.

    Args:
        original: answers every row at once.
        rows: what is answered.
        model: the manifest's ``model``.
        rules: what decides.
        scratch: where inputs and answers are kept; each answer is made once.
        progress: told of every batch.

    Raises:
        BadInput: the original cannot answer.
    """

    def __init__(
        self,
        original: Entrant,
        rows: EvalSet,
        model: Mapping[str, JSON],
        rules: Rules,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.original = original
        self.looks = Looks.of(rows, model.get("max_batch"), scratch)
        self._rows, self._model, self._rules = rows, model, rules
        self._scratch, self._progress = scratch, progress
        try:
            self.first = self._answer(original, "original", len(self.looks.parts))
        except CandidateFailed as failed:
            raise BadInput(f"the original, {original.label}, cannot answer: {failed.message}", failed.hint) from None
        self.known = self._score(self.first, len(self.looks.parts) - 1)

    @property
    def rows(self) -> int:
        return len(self._rows.rows)

    @property
    def seconds(self) -> float:
        """That the original took for every row."""
        return self.first.seconds

    def call_s(self) -> float:
        """About how long a timed call of the original takes, from the time that it took to answer every row."""
        shape = self._rules.plan.shapes[0]
        median = self._rows.median_length
        longer = shape.sequence / median if isinstance(shape, Shape) and shape.sequence and median else 1.0
        return self.seconds / self.rows * shape.batch * longer

    def first_look(self, contender: Contender) -> None:
        """Let a candidate that was made answer the first rows.

        Raises:
            CandidateFailed: it died, hung, or said why it cannot.
            MlOptError: its answers cannot be compared, or none of its products ran in the precision that was asked for.
        """
        assert contender.entrant is not None
        if contender.entrant.label == self.original.label:
            contender.scores, contender.seen = self.known, self.rows
            contender.gates = tuple(same_gate(name, limit) for name, limit in _gate_names(self._rules))
            contender.is_original = True
            contender.runs = self.first.runs
            return
        self._look(contender)

    def every_row(self, contender: Contender, rivals: int) -> None:
        """Let it answer the rest, one look after the other, unless a look shows that it misses a budget.

        Args:
            contender: one that was given its first look.
            rivals: candidates that may yet win, this one among them.
        """
        while contender.seen < self.rows and not contender.cut:
            self._look(contender)
        if not contender.cut and not contender.is_original:
            assert isinstance(contender.scores, Scores)
            confidence = final_confidence(self._rules.confidence, rivals)
            contender.gates = tuple(gates(self.known, contender.scores, self._rules, confidence))

    def _look(self, contender: Contender) -> None:
        """One look more; a look before the last may end it, and no such look can make it pass."""
        assert contender.entrant is not None
        look = len(contender.parts)
        began = time.monotonic()
        try:
            made = self._answer_part(contender.entrant, contender.name, look)
        finally:
            contender.seconds["answer"] = contender.seconds.get("answer", 0.0) + time.monotonic() - began
        contender.parts.append(made)
        if look == 0:
            contender.runs = made.runs
            contender.check_runs()
        together = Answers(tuple(file for part in contender.parts for file in part.files), 0.0)
        scores = contender.scores = self._score(together, look)
        places = sorted(place for places in self.looks.upto(look).places for place in places)
        contender.seen = len(places)
        contender.places = tuple(places) if contender.seen < self.rows else ()
        looks = len(self.looks.parts)
        early = gates(
            self._score(self.looks.of_original(self.first, look), look),
            scores,
            self._rules,
            early_confidence(self._rules.confidence, looks),
        )
        if contender.seen == self.rows:
            contender.gates = tuple(early)  # until every_row knows how many rivals there are
            return
        contender.gates = tuple(
            replace(gate, says=f"after {contender.seen} of {self.rows} rows: {gate.says}") for gate in early
        )
        contender.cut = any(gate.outcome is Outcome.FAIL for gate in early)

    def _answer(self, entrant: Entrant, name: str, looks: int) -> Answers:
        return answer(
            entrant.candidate,
            self.looks.upto(looks - 1),
            self._folder(name),
            threads=self._rules.plan.threads,
            timeout=self._rules.plan.timeout,
            progress=self._progress,
            watch=True,
        )

    def _answer_part(self, entrant: Entrant, name: str, look: int) -> Answers:
        return answer(
            entrant.candidate,
            self.looks.parts[look],
            self._folder(f"{name}-{look}"),
            threads=self._rules.plan.threads,
            timeout=self._rules.plan.timeout,
            progress=self._progress,
            watch=look == 0,
        )

    def _folder(self, name: str) -> Path:
        return self._scratch / f"answers-{name}"

    def _score(self, answers: Answers, look: int) -> Scores:
        batches = self.looks.upto(look)
        reference = self.looks.of_original(self.first, look)
        return score(reference, answers, batches, self._model, self._rules.metric, self._rows.truths)


def _gate_names(rules: Rules) -> list[tuple[str, float]]:
    metric = rules.metric.name if rules.metric else "accuracy"
    names = {"max_drop": f"{metric} drop", "min_agreement": "agreement", "min_cosine": "worst cosine"}
    return [(names[key], limit) for key, limit in rules.budgets().items()]


def gates(known: Scores, scores: Scores, rules: Rules, confidence: float) -> list[Gate]:
    """One gate for each budget, over rows that both have answered."""
    found = []
    if rules.max_drop is not None:
        if known.right is None or scores.right is None or rules.metric is None:
            raise ValueError("a metric without labels")
        if rules.metric.binary:
            found.append(drop_gate(known.right, scores.right, rules.max_drop, confidence, rules.metric.name))
        else:
            found.append(
                bootstrapped_gate(rules.metric, known.right, scores.right, rules.max_drop, confidence, rules.plan.seed)
            )
    if rules.min_agreement is not None:
        if scores.top1 is None:
            raise BadInput("--min-agreement asks for decisions, and this model has none", "use --min-cosine")
        found.append(agreement_gate(scores.top1, rules.min_agreement, confidence))
    if rules.min_cosine is not None:
        found.append(cosine_gate(scores.cosine, rules.min_cosine, confidence))
    return found
