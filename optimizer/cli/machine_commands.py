"""``ml-opt doctor``: what this machine is, what runs on it, and what is missing."""

from __future__ import annotations

from optimizer.cli.generate import Common, common

__all__ = ["doctor"]


def _doctor(ctx: Common) -> int:
    """Tell what this machine has: processor features, memory, GPUs, providers that load and why others do not."""
    from optimizer.cli.render import render_doctor
    from optimizer.doctor import examine

    with ctx.output.work() as progress:
        progress("trying every provider")
        facts = examine()
    if ctx.output.json:
        ctx.output.result(facts)
    else:
        render_doctor(facts, ctx.output)
    return 0


doctor = common(_doctor)
