"""``ml-opt run RECIPE.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimizer.check import Report
from optimizer.cli.generate import Common, common
from optimizer.pipeline import Result
from optimizer.recipe import Step, read_recipe, run_recipe

__all__ = ["run_recipe_file"]


def _run(
    ctx: Common,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The chain to run.")],
    model: Annotated[str | None, typer.Option("--model", help="Run the chain on this model instead.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the store.")] = None,
) -> int:
    """Run a recipe: a chain of stages and checks in TOML; what is in the store already is not made again."""
    from optimizer.cli.render import render_report, render_result

    chain = read_recipe(recipe, model=model, name=name)
    finished: list[tuple[Step, Result | Report]] = []

    with ctx.output.work() as progress:
        steps = len(chain.steps)

        def told(doing: str, done: float | None = None, total: float | None = None) -> None:
            number = min(len(finished) + 1, steps)
            progress(f"[{number}/{steps}] {chain.steps[number - 1].id}: {doing}", done, total)

        def seen(step: Step, outcome: Result | Report) -> None:
            finished.append((step, outcome))

        report = run_recipe(chain, store=ctx.store, progress=told, seen=seen)
    if ctx.output.json:
        ctx.output.result(report.to_json())
    else:
        for _, outcome in finished:
            if isinstance(outcome, Result):
                render_result(outcome, ctx.output)
            else:
                render_report(outcome, ctx.output)
    return report.exit_code


run_recipe_file = common(_run)
