"""From an idea to what can be run: whatever answers, rows or texts, is made the same way."""

from __future__ import annotations

from pathlib import Path

from optimizer.artifact import Artifact
from optimizer.benching.candidates import Entrant, parse
from optimizer.benching.process import CandidateFailed
from optimizer.ref import is_name
from optimizer.search.build import build
from optimizer.search.candidates import Idea
from optimizer.search.contender import Rules
from optimizer.stage import Progress
from optimizer.store import Store

__all__ = ["is_reference", "make", "patience"]


def is_reference(model: str, store: Store) -> bool:
    """Whether what was typed names an artifact: nothing of that name lies in this folder, and the store knows it."""
    if Path(model).exists() or model.endswith(".onnx"):
        return False
    head = model.partition("@")[0].partition(":")[0]
    return is_name(head) and (head != model or head in store.names())


def patience(rules: Rules) -> float:
    """Seconds that making something may take."""
    return rules.plan.timeout if rules.budget_s is None else min(rules.plan.timeout, max(1.0, rules.left()))


def make(idea: Idea, artifact: Artifact, store: Store, rules: Rules, logs: Path, progress: Progress) -> Entrant:
    """Build one candidate, or find it in the store."""

    def told(doing: str, done: float | None = None, total: float | None = None) -> None:
        if rules.left() <= 0:
            raise CandidateFailed(
                "the time budget was spent while it was made",
                "a training that was stopped goes on where it was when the same is asked again",
            )
        progress(f"{idea.name}: {doing}", done, total)

    log = logs / f"{idea.name}.log"
    made = build(artifact, idea.steps, store, log, rules.plan.threads, patience(rules), told)
    provider = "" if str(idea.provider) == "cpu" else f"+{idea.provider}"
    return parse(made.ref + provider, store)
