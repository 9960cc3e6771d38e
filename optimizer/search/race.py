"""Everything before the timing that counts: first looks, milder kin where they may pay, a quick timing, all rows.

docs/verdict.md says why none of it costs confidence that is not accounted for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from optimizer.benching.process import CandidateFailed
from optimizer.benching.report import BenchReport
from optimizer.errors import BadInput, MlOptError
from optimizer.search import timing
from optimizer.search.contender import Contender, Rules
from optimizer.search.gates import Outcome, misses, outcome_of
from optimizer.search.judge import Judging
from optimizer.stage import Progress

__all__ = ["Escalate", "Race", "is_promising", "too_small"]

#: ``escalate(tried members)``: the next, milder member of a family of which none keeps the budgets so far, or None.
Escalate = Callable[[Sequence[Contender]], Contender | None]


class Race:
    """Everything before the timing that counts.

    Args:
        judge: has the original's answers.
        rules: what decides.
        progress: told of every step.
        escalate: by family: what may be tried next while none of its members keeps the budgets.
        resort: the same, for what takes so long that it is tried when ``escalate`` has nothing left for any family.

    Attributes:
        tried: every candidate, in the order in which they came.
        rivals: those that their first look left standing, the best by the objective first. One that is cut later stays
            among them: it had its chance to pass.
        held_back: by family: why its milder kin, or what there is to resort to, were not tried.
        quick: the timing that sorted them; None where there was nothing to sort.
        timing_s: seconds that it took.
    """

    def __init__(
        self,
        judge: Judging,
        rules: Rules,
        progress: Progress,
        escalate: Mapping[str, Escalate],
        resort: Mapping[str, Escalate],
    ) -> None:
        self._judge, self._rules, self._progress = judge, rules, progress
        #: What is left of both, in the order in which it is tried.
        self._escalations = (dict(escalate), dict(resort))
        self.tried: list[Contender] = []
        self.rivals: list[Contender] = []
        self.held_back: dict[str, str] = {}
        self.quick: BenchReport | None = None
        self.timing_s = 0.0

    def run(self, contenders: Sequence[Contender]) -> None:
        """Look at all, escalate where it may pay, sort, and judge on all rows.

        Whether it pays is asked again when the rows have been answered: what looked promising may have failed.
        """
        for contender in contenders:
            self._try(contender)
        if self._promising() is None:
            self._escalate()  # no timing could speak against it
        self._sort(self._probes())
        if self._escalate():
            self._sort()
        self._judge_on_all_rows()
        while self._escalate():
            self._sort()
            self._judge_on_all_rows()

    @property
    def sharing(self) -> int:
        """Those that the confidence is shared among: the original itself cannot pass by luck."""
        return sum(not c.is_original for c in self.rivals)

    def _try(self, contender: Contender) -> None:
        """Make a candidate and look at its first answers, if there is time to time it as well."""
        judge, rules = self._judge, self._rules
        lanes = 2 + sum(c.standing for c in self.tried)
        need = judge.seconds + rules.timing_s(lanes, judge.call_s())
        first = not self.tried
        self.tried.append(contender)
        if rules.left() < need:
            if first:
                raise too_small(rules, rules.budget_s - rules.left() + need if rules.budget_s else need)
            contender.skipped = True
            return
        with _surviving(contender):
            self._progress(f"{contender.name}: making it")
            began = time.monotonic()
            try:
                contender.entrant = contender.make()
            finally:
                contender.seconds["make"] = time.monotonic() - began
            judge.first_look(contender)
        if contender.standing:
            self.rivals.append(contender)

    def _promising(self) -> Contender | None:
        """The best by the objective of those that stand and whose estimates keep every budget so far."""
        promising = [c for c in self.rivals if is_promising(c)]
        return min(promising, key=self._cost, default=None)

    def _cost(self, contender: Contender) -> float:
        return timing.quick_cost(contender, self._rules.objective) or 0.0

    def _in_trouble(self, left: Iterable[str]) -> dict[str, list[Contender]]:
        """The members of each of some families; only families of which no member is promising."""
        families = {name: [c for c in self.tried if c.family == name] for name in left}
        return {name: members for name, members in families.items() if not any(map(is_promising, members))}

    def _probes(self) -> list[Contender]:
        """One member of each family in trouble that is timed although it is out, to know whether its kin would pay."""
        found: list[Contender] = []
        if self._promising() is None:
            return found
        for members in self._in_trouble(name for left in self._escalations for name in left).values():
            ran = [c for c in members if c.scores is not None and not c.error]
            if ran and not any(c.standing for c in ran):
                found.append(ran[0])
        return found

    def _escalate(self) -> bool:
        """Try milder kin of the families in trouble, one after the other until one is promising; whether any was."""
        before = len(self.tried)
        self.held_back = {}
        for left in self._escalations:
            for family, members in self._in_trouble(left).items():
                if reason := self._no_use(members):
                    self.held_back[family] = reason
                    continue
                while family in self._in_trouble(left):
                    more = left[family]([c for c in self.tried if c.family == family])
                    if more is not None:
                        self._try(more)
                    if more is None or more.skipped:
                        del left[family]
        return len(self.tried) > before

    def _no_use(self, members: Sequence[Contender]) -> str:
        """Why the kin of a family in trouble cannot win, as far as is known; empty where they may.

        They would be no faster than the plain members, and no smaller: all that they do is return nodes to float.
        """
        best = self._promising()
        if best is None:
            return ""
        objective = self._rules.objective
        known = [c for c in members if not c.error and timing.quick_cost(c, objective) is not None]
        if not known:
            return f"nothing of the kind could be measured, and there is {best.name}, {_keeps(best)}"
        plain = min(known, key=self._cost)
        if timing.behind(best, plain, objective):
            return ""
        how = f"is not faster than {best.name} beyond the noise of the quick timing"
        if objective == "size" or timing.behind(plain, best, objective):
            how = timing.compared(self._cost(plain) / self._cost(best), objective, best.name)
        return f"{plain.name} itself {how}, {_keeps(best)}"

    def _sort(self, probes: Sequence[Contender] = ()) -> None:
        """Sort the rivals by the objective, from a short timing of those that had none where it takes one."""
        rules = self._rules
        if rules.objective != "size":
            new = [*(c for c in self.rivals if c.standing and c.quick is None), *probes]
            if new and (timing.in_batches(rules) or self.quick is not None or len(new) > 1):
                began = time.monotonic()
                report = timing.timed_quickly(self._judge.original, new, rules, self._progress)
                self.quick = timing.joined(self.quick, report)
                self.timing_s += time.monotonic() - began
        self.rivals.sort(key=self._cost)

    def _judge_on_all_rows(self) -> None:
        """Judge rivals on all rows, the best by the objective first, until one passes and others are known worse.

        How fast a candidate is says nothing of how right it is, so that the order costs no confidence; see
        docs/verdict.md. Those that were judged before are held to bounds that are shared with whoever came since.
        """
        judge, rules = self._judge, self._rules
        leader: Contender | None = None
        for place, contender in enumerate(self.rivals):
            if not contender.standing:
                continue
            is_whole = contender.seen == judge.rows
            contender.unjudged = ""
            # A quick timing is too rough to say that the plain export is beaten: it is timed with those that pass.
            stays = contender.plain and rules.objective != "size"
            if leader is not None and not stays and (behind := timing.behind(contender, leader, rules.objective)):
                if not contender.is_original:
                    lacks = "not timed at length" if is_whole else "not judged on all rows"
                    contender.unjudged = f"{lacks}: {contender.seen} rows do not speak against it, but it {behind}"
                continue
            if place and not is_whole and rules.left() < judge.seconds + rules.timing_s(2, judge.call_s()):
                contender.skipped = True
                continue
            with _surviving(contender):
                judge.every_row(contender, self.sharing)
                if leader is None and contender.standing and outcome_of(contender.gates) is Outcome.PASS:
                    leader = contender


def is_promising(contender: Contender) -> bool:
    """It stands, and so far its estimates keep every budget."""
    return contender.standing and not any(misses(gate) for gate in contender.gates)


def _keeps(contender: Contender) -> str:
    """What is known of a promising one, as a clause."""
    whole = not contender.places and outcome_of(contender.gates) is Outcome.PASS
    return "which keeps the budgets" if whole else "which keeps the budgets so far"


def too_small(rules: Rules, need: float) -> BadInput:
    """The error of a time budget that is not enough for one candidate, which takes ``need`` seconds."""
    return BadInput(
        f"the time budget of {rules.budget_s:g} s is too small for one candidate, which takes about {need:.0f} s",
        f"give it more (--time-budget {need * 2:.0f}s), or time for less (--duration)",
    )


class _surviving:
    """Whatever goes wrong with a candidate inside is its reason, and not the end of the others."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CandidateFailed | MlOptError):
            self._contender.error, self._contender.hint = error.message, error.hint
            return True
        return False
