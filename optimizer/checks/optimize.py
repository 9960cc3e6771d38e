"""optimize: the fastest artifact that keeps your accuracy, with its proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.check import Check
from optimizer.errors import BadInput
from optimizer.search.options import Optimize

if TYPE_CHECKING:
    from optimizer.search.report import OptimizeReport, PlanReport
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK"]


def _run(refs: tuple[str, ...], options: Optimize, store: Store, progress: Progress) -> OptimizeReport | PlanReport:
    from optimizer.benching.forkserver import fork_server
    from optimizer.search.run import optimize
    from optimizer.search.texts.run import optimize_texts, writes_text

    if len(refs) != 1:
        raise BadInput(f"optimize takes one model, and {len(refs)} were given")
    run = optimize_texts if writes_text(refs[0], options, store) else optimize
    with fork_server():
        return run(refs[0], options, store, progress)


CHECK = Check(
    name="optimize",
    help="Try what is worth trying on this machine, and name the best artifact that keeps your budgets, with proof.",
    details="Exit code 0 when a candidate keeps every budget with its bounds, 1 when none does, 3 when there is too "
    "little data to tell. The verdict is kept beside the version, the alias `best` names the winner, and best.toml "
    "makes it again.",
    options=Optimize,
    run=_run,
    model=True,
    modules=("numpy", "onnxruntime", "onnx_ir"),
)
