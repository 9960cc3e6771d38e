"""A check with a verdict that its options decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optimizer.check import Check
from optimizer.options import Options, opt


class ToyJudge(Options):
    """Options of toy-judge."""

    verdict: int = opt(0, "The exit code.", ge=0, le=3)
    shape: tuple[str, ...] = opt((), "Shapes; repeatable.")


@dataclass(frozen=True)
class Verdict:
    exit_code: int
    refs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"report": "toy-judge", "schema": 1, "refs": list(self.refs), "exit_code": self.exit_code}


def _run(refs: tuple[str, ...], options: ToyJudge, store: Any, progress: Any) -> Verdict:
    return Verdict(options.verdict, tuple(store.get(ref).ref for ref in refs))


CHECK = Check(name="toy-judge", help="Judge toys.", options=ToyJudge, run=_run, many=True)
