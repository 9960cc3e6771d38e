"""Accuracy beside the times of a benchmark: candidates answer labelled rows, and are held to the baseline's score."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.benching.candidates import Entrant, with_model_of_first
from optimizer.benching.gates import Accuracy, Gate, Outcome
from optimizer.benching.inputs import save
from optimizer.benching.measure import Plan
from optimizer.benching.process import CandidateFailed
from optimizer.benching.report import BenchReport, Row
from optimizer.data.preprocess import Preprocessor
from optimizer.errors import BadInput, MlOptError
from optimizer.evalset import EvalSet
from optimizer.search.accuracy import Answers, Batches, Scores, answer, score
from optimizer.search.bootstrap import bootstrapped_drop
from optimizer.search.gates import Bounded, drop_outcome, drop_says, paired_drop
from optimizer.search.gates import Outcome as Known
from optimizer.search.looks import final_confidence
from optimizer.stage import Progress
from optimizer.task import Metric, get_task
from optimizer.types import JSON

__all__ = ["Labelled"]

_CONFIDENCE = 0.95
_OUTCOMES = {Known.PASS: Outcome.PASS, Known.FAIL: Outcome.REGRESSION, Known.INCONCLUSIVE: Outcome.INCONCLUSIVE}


@dataclass(frozen=True)
class Labelled:
    """Rows with their right answers.

    Attributes:
        rows: what is answered.
        metric: how right answers are.
        model: the manifest's ``model`` of the first candidate that has one.
    """

    rows: EvalSet
    metric: Metric
    model: Mapping[str, JSON]

    @classmethod
    def open(
        cls, path: Path, taking_part: Sequence[Entrant], metric: str | None, columns: Mapping[str, str], *, insist: bool
    ) -> Labelled | None:
        """Read the rows that candidates are judged on.

        Args:
            path: the data file.
            taking_part: candidates; the first artifact of the store says how rows become inputs.
            metric: its name [the usual one of the task].
            columns: role → column, where the usual names do not fit.
            insist: whether accuracy was asked for; where it was not, rows that have no labels are compared only.

        Raises:
            BadInput: it was asked for, and the rows or the model do not allow it.
        """
        artifact = next((entrant.artifact for entrant in taking_part if entrant.artifact is not None), None)
        try:
            if artifact is None:
                raise BadInput(
                    "accuracy needs an artifact of the store, which knows its task", "name a reference first"
                )
            model = with_model_of_first(taking_part)[0].candidate.model
            chosen = get_task(str(model.get("task") or "generic")).metric(metric, model)
            preprocessor = Preprocessor.open(artifact.path, model, columns=dict(columns))
            return cls(EvalSet.open(path, preprocessor, chosen, model), chosen, model)
        except BadInput:
            if insist:
                raise
            return None

    def judge(
        self, report: BenchReport, taking_part: Sequence[Entrant], limit: float | None, plan: Plan, progress: Progress
    ) -> BenchReport:
        """The report, every row that could be measured with its accuracy, and gates where a limit was given.

        Bounds hold together with 95 %: each alone with more (Bonferroni over candidates). What cannot answer is out,
        with its reason.

        Args:
            report: of the same candidates.
            taking_part: in the order of its rows.
            limit: how much of the metric may be lost.
            plan: threads and timeout.
            progress: told of every batch.
        """
        candidates = [entrant.candidate for entrant in with_model_of_first(taking_part)]
        with tempfile.TemporaryDirectory(prefix="ml-opt-bench-") as name:
            scratch = Path(name)
            made = list(self.rows.batches(self.model.get("max_batch")))
            files = save(scratch, "labelled", [batch.feeds for batch in made])
            batches = Batches(tuple(files), tuple(batch.rows for batch in made))
            answers: dict[str, Answers] = {}
            rows: list[Row] = []
            for number, (row, candidate) in enumerate(zip(report.rows, candidates, strict=True)):
                if not row.error:
                    try:
                        answers[row.label] = answer(
                            candidate,
                            batches,
                            scratch / str(number),
                            threads=plan.threads,
                            timeout=plan.timeout,
                            progress=progress,
                        )
                    except CandidateFailed as failed:
                        row = replace(row, error=failed.message, hint=failed.hint, cells=())
                rows.append(row)
            return self._with(replace(report, rows=tuple(rows)), answers, batches, limit, plan.seed)

    def _with(
        self, report: BenchReport, answers: Mapping[str, Answers], batches: Batches, limit: float | None, seed: int
    ) -> BenchReport:
        known = answers.get(report.baseline)
        base = self._scores(known, known, batches) if known else None
        confidence = final_confidence(_CONFIDENCE, max(1, len(answers) - 1))
        rows, gates = [], []
        for row in report.rows:
            if row.label in answers:
                try:
                    scores = self._scores(known or answers[row.label], answers[row.label], batches)
                    compared = base if row.label != report.baseline else None
                    row = replace(row, accuracy=self._accuracy(scores, compared, confidence, seed))
                except MlOptError as failed:
                    row = replace(row, error=failed.message, hint=failed.hint, cells=())
            if limit is not None and row.label != report.baseline:
                gates.append(self._gate(row, limit, confidence))
            rows.append(row)
        return replace(report, rows=tuple(rows), gates=(*report.gates, *gates))

    def _scores(self, known: Answers, judged: Answers, batches: Batches) -> Scores:
        return score(known, judged, batches, self.model, self.metric, self.rows.truths)

    def _accuracy(self, scores: Scores, base: Scores | None, confidence: float, seed: int) -> Accuracy:
        assert scores.right is not None
        value = self.metric.value(scores.right)
        if base is None:
            return Accuracy(self.metric.name, value, len(scores.right))
        assert base.right is not None
        drop = self._drop(base, scores, confidence, seed)
        return Accuracy(self.metric.name, value, len(scores.right), drop.value, drop.low, drop.high)

    def _drop(self, base: Scores, scores: Scores, confidence: float, seed: int) -> Bounded:
        assert base.right is not None
        assert scores.right is not None
        if not self.metric.binary:
            return bootstrapped_drop(self.metric, base.right, scores.right, confidence, seed).found
        pairs = list(zip(base.right, scores.right, strict=True))
        lost, won = (sum(pair == kind for pair in pairs) for kind in ((1, 0), (0, 1)))
        return paired_drop(lost, won, len(pairs), confidence)

    def _gate(self, row: Row, limit: float, confidence: float) -> Gate:
        about = row.accuracy
        if about is None or about.drop is None or about.low is None or about.high is None:
            says = f"no {self.metric.name} to compare: {row.error or 'the baseline could not answer'}"
            return Gate("worse", row.label, Outcome.INCONCLUSIVE, says, limit)
        drop = Bounded(about.drop, about.low, about.high)
        known = drop_outcome(drop, limit)
        says = drop_says(self.metric.name, drop, limit, confidence, known)
        return Gate("worse", row.label, _OUTCOMES[known], says, limit, drop.value, drop.low, drop.high)
