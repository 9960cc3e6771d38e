"""What an artifact is made of, drawn for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimizer.cli.output import Output
from optimizer.cli.tables import escape, size, table
from optimizer.engines.profiles import Profile

if TYPE_CHECKING:
    from optimizer.checks.inspect import InspectReport
    from optimizer.types import JSON

__all__ = ["render_inspect"]

_NODES_SHOWN = 2
#: Letters of a layer's name.
_WIDTH = 48


def render_inspect(report: InspectReport, output: Output) -> None:
    """Numbers first, then the layers by sort, or each one with ``--layers``."""
    console = output.console()
    console.print(
        f"[bold]{escape(report.ref)}[/bold]  {report.kind}, {report.precision}, {size(report.bytes)}", soft_wrap=True
    )
    made = table("", "")
    made.show_header = False
    for name, text in _rows(report):
        made.add_row(f"[dim]{name}[/dim]", escape(text))
    console.print(made)
    if report.listed:
        each = table("layer", "sort", "takes", "gives", "does the work of")
        for layer in report.layers:
            nodes = ", ".join(layer.nodes[:_NODES_SHOWN]) + (
                f" and {len(layer.nodes) - _NODES_SHOWN} more" if len(layer.nodes) > _NODES_SHOWN else ""
            )
            each.add_row(
                escape(_cut(layer.name)), layer.type, ", ".join(layer.inputs), ", ".join(layer.outputs), escape(nodes)
            )
        console.print(each)
    else:
        shown = report.engine or report.network
        counts = table("sort of layer", "how many", right=("how many",))
        for sort, count in shown["types"].items():
            counts.add_row(sort, str(count))
        console.print(counts)
    if report.unopened and report.kind == "engine":
        output.talk(f"  note: the engine itself was not asked: {report.unopened}")


def _rows(report: InspectReport) -> list[tuple[str, str]]:
    about = report.about
    rows = []
    if "flavor" in about:
        capabilities = ", ".join(about["compute_capabilities"]) or "of the GPU it was built on"
        rows.append(("built by", f"{about['flavor']} {about['version']} in {about['build_seconds']:.1f} s"))
        rows.append(("for GPUs", capabilities))
    else:
        rows.append(
            ("opset", ", ".join(f"{domain or 'ai.onnx'} {number}" for domain, number in about["opset"].items()))
        )
    rows.append(("weights", ", ".join(f"{name} {size(count)}" for name, count in report.weights.items())))
    if report.memory:
        rows.append(("memory", ", ".join(f"{name} {size(count)}" for name, count in report.memory.items())))
    rows.append(("graph", _numbers(report.network)))
    if report.engine:
        rows.append(("engine", _numbers(report.engine)))
    for number, profile in enumerate(report.profiles):
        text = str(Profile.from_json(profile)).replace(",", ", ")
        rows.append((f"profile {number}", text + (f"  ({about['profiles_why']})" if number == 0 else "")))
    return rows


def _numbers(numbers: dict[str, JSON]) -> str:
    parts = [f"{numbers['layers']} layers"]
    if numbers["products"]:
        parts.append("products " + ", ".join(f"{count} in {name}" for name, count in numbers["products"].items()))
    if numbers["attention"]:
        parts.append(f"{numbers['attention']} fused attentions")
    if numbers["fused"]:
        parts.append(f"{numbers['fused']} fused")
    return "; ".join(parts)


def _cut(name: str) -> str:
    """A name of several, such as a fused kernel has, in a width that leaves room for the rest."""
    return name if len(name) <= _WIDTH else name[: _WIDTH - 1] + "…"
