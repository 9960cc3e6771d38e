"""Reports of checks, drawn for a terminal."""

from __future__ import annotations

from typing import Any

from optimizer.cli.output import Output

__all__ = ["render_bench", "render_verify"]


def render_verify(report: Any, output: Output) -> None:
    """Placeholder until verify is written."""
    output.result(report.to_json())


def render_bench(report: Any, output: Output) -> None:
    """Placeholder until bench is written."""
    output.result(report.to_json())
