"""Judging text generators on held-out text: the original reads it once, and every candidate once beside it.

There is one look, over all documents: an early one at a few of them would say nothing of how documents differ. Half of
the error that is allowed goes to calling a candidate FAIL by it; the others share the confidence, as everywhere.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimizer.benching.candidates import Entrant, candidate_to_json
from optimizer.benching.decoding import configuration
from optimizer.benching.process import CandidateFailed, WorkerProcess
from optimizer.benching.workload import Writing
from optimizer.data.documents import Document
from optimizer.errors import BadInput, GateFailed
from optimizer.evaluate.generation import Score, Sliding
from optimizer.evaluate.remembered import bytes_of
from optimizer.search.contender import Contender, Rules
from optimizer.search.gates import Outcome, same_gate
from optimizer.search.looks import early_confidence, final_confidence
from optimizer.search.texts.scores import TextScores, gates
from optimizer.search.texts.worker import write_documents
from optimizer.stage import Progress

__all__ = ["KEPT", "TextJudge"]

#: Most bytes of the original's probabilities that are kept on disk: by those the divergence is known.
KEPT = 1 << 30
_WORKER = (sys.executable, "-m", "optimizer.search.texts.worker")


class TextJudge:
    """The original's likelihoods, and how candidates are held beside them.

    Args:
        original: reads every document at once.
        documents: three at least.
        sliding: how they are cut into windows.
        rules: what decides; its plan has :class:`Writing` loads.
        scratch: where the documents and what the original said of them are kept.
        progress: told of every document.
        kept: most bytes of probabilities on disk, where half of what is free there is not less.

    Raises:
        BadInput: the original cannot answer.
    """

    def __init__(
        self,
        original: Entrant,
        documents: Sequence[Document],
        sliding: Sliding,
        rules: Rules,
        scratch: Path,
        progress: Progress,
        kept: int = KEPT,
    ) -> None:
        self.original = original
        self.seconds = self._call_s = 0.0
        self._documents, self._rules = list(documents), rules
        self._scratch, self._progress = scratch, progress
        self._file = scratch / "documents.json"
        write_documents(self._file, self._documents, sliding)
        self._left = min(kept, shutil.disk_usage(scratch).free // 2)
        self._vocabulary = 0
        try:
            self.known = TextScores(tuple(self._by_original()))
        except CandidateFailed as failed:
            raise BadInput(f"the original, {original.label}, cannot answer: {failed.message}", failed.hint) from None

    @property
    def rows(self) -> int:
        """Documents."""
        return len(self._documents)

    def call_s(self) -> float:
        """About how long a timed call of the original takes: reading a prompt for one token, and the whole text."""
        return 2 * self._call_s

    def first_look(self, contender: Contender) -> None:
        """Let a candidate that was made read every document.

        Raises:
            CandidateFailed: it died, hung, or said why it cannot.
            GateFailed: its tokens are not the original's, or its likelihoods are not finite.
        """
        assert contender.entrant is not None
        contender.seen = self.rows
        if contender.entrant.label == self.original.label:
            contender.scores, contender.is_original = self.known, True
            contender.gates = tuple(same_gate(name, limit) for name, limit in self._gate_names())
            return
        began = time.monotonic()
        try:
            scores = self._by_candidate(contender.entrant, contender.name)
        finally:
            contender.seconds["answer"] = time.monotonic() - began
        contender.scores = TextScores(tuple(scores))
        contender.gates = gates(scores, self._rules, early_confidence(self._rules.confidence, 2))
        contender.cut = any(gate.outcome is Outcome.FAIL for gate in contender.gates)

    def every_row(self, contender: Contender, rivals: int) -> None:
        """Hold it to bounds that are shared with so many others."""
        if not contender.is_original:
            assert isinstance(contender.scores, TextScores)
            confidence = final_confidence(self._rules.confidence, rivals)
            contender.gates = gates(contender.scores.documents, self._rules, confidence)

    def _gate_names(self) -> list[tuple[str, float]]:
        names = {"max_drop": "perplexity rise", "min_agreement": "agreement"}
        return [(names[key], limit) for key, limit in self._rules.budgets().items()]

    def _by_original(self) -> list[Score]:
        began = time.monotonic()
        process, opened = self._opened(self.original, "original")
        found = []
        try:
            for place, document in enumerate(self._documents):
                size = bytes_of(document, opened["vocabulary"])
                whole = size <= self._left
                self._left -= size if whole else 0
                found.append(self._score(process, self.original.label, place, whole=whole))
            self.seconds = time.monotonic() - began
            self._call_s = self._written(process)
        finally:
            process.kill()
        return found

    def _by_candidate(self, entrant: Entrant, name: str) -> list[Score]:
        process, _ = self._opened(entrant, name)
        found = []
        try:
            for place, known in enumerate(self.known.documents):
                score = self._score(process, name, place, nll=known.candidate)
                if not math.isfinite(score.candidate):
                    raise GateFailed(f"{score.name}: it holds a token for impossible that is there")
                found.append(score)
        finally:
            process.kill()
        return found

    def _opened(self, entrant: Entrant, name: str) -> tuple[WorkerProcess, dict[str, Any]]:
        """Its process, and what it says of itself."""
        plan, candidate = self._rules.plan, entrant.candidate
        process = WorkerProcess.of(candidate, self._scratch / f"{name}.log", plan.threads, _WORKER)
        try:
            asked = {"do": "open", "candidate": candidate_to_json(candidate), "threads": plan.threads}
            facts: dict[str, Any] = process.ask(asked, plan.timeout)["facts"]
            if name != "original" and facts["vocabulary"] != self._vocabulary:
                raise GateFailed(f"the original has {self._vocabulary} tokens, and this has {facts['vocabulary']}")
        except BaseException:
            process.kill()
            raise
        self._vocabulary = facts["vocabulary"]
        return process, facts

    def _score(self, process: WorkerProcess, name: str, place: int, **more: Any) -> Score:
        self._progress(f"{name}: reading held-out text", place, self.rows)
        folder = str(self._scratch / f"said-{place}")
        asked = {"do": "answer", "documents": str(self._file), "place": place, "folder": folder, **more}
        reply = process.ask(asked, self._rules.plan.timeout)
        kl = math.nan if reply["kl"] is None else float(reply["kl"])
        nll = float(reply["nll"])
        return Score(
            self._documents[place].name, reply["tokens"], float(more.get("nll", nll)), nll, kl, int(reply["same"])
        )

    def _written(self, process: WorkerProcess) -> float:
        """Seconds of the original's first call at the load that is timed."""
        load = self._rules.plan.shapes[0]
        assert isinstance(load, Writing)
        below = int(configuration(self.original.candidate.path).get("vocab_size") or self._vocabulary)
        feeds = self._scratch / "texts.json"
        feeds.write_text(json.dumps({**vars(load), "below": below, "text": [], "seed": "0"}), encoding="utf-8")
        asked = {"do": "shape", "shape": str(load), "feeds": str(feeds)}
        return float(process.ask(asked, self._rules.plan.timeout)["first_s"])
