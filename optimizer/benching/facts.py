"""What stands beside the numbers in every format: the machine, the versions and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from optimizer.benching.report import BenchReport
from optimizer.benching.scenario import Scenario
from optimizer.types import JSON

if TYPE_CHECKING:
    from optimizer.benching.comparison import Side

__all__ = ["doubts", "machine_facts", "machine_name", "scenario_name", "setting_facts", "unit_of", "version_text"]


def machine_facts(environment: Mapping[str, JSON]) -> dict[str, str]:
    """The machine in words by name, in the order in which it is read; what is not known is an empty text.

    Args:
        environment: as :func:`optimizer.environment.describe` gave it.
    """
    cpu = environment["cpu"]
    return {
        "cpu": cpu["model"],
        "cores": str(cpu["cores"]),
        "cpu_features": " ".join(cpu["features"]),
        "governor": cpu.get("governor") or "",
        "memory": f"{environment.get('memory_bytes', 0) / 2**30:.1f} GiB",
        "gpu": "; ".join(gpu["name"] for gpu in environment["gpus"]),
        "gpu_driver": "; ".join(dict.fromkeys(str(gpu.get("driver", "")) for gpu in environment["gpus"])),
        "platform": environment["platform"],
        "python": environment["python"],
        "versions": version_text(environment),
    }


def machine_name(report: BenchReport) -> str:
    """Processor, cores, GPUs and threads: what times of two reports must have in common to be put side by side."""
    cpu = report.environment["cpu"]
    gpus = "".join(f", {gpu['name']}" for gpu in report.environment["gpus"])
    return f"{cpu['model']}, {cpu['cores']} cores{gpus}, {report.settings['threads']} threads"


def scenario_name(report: BenchReport) -> str:
    """The scenario, and of an open loop how many queries came a second: times of others do not compare."""
    qps = report.settings.get("qps")
    return f"{report.scenario} at {qps:g}/s" if qps else report.scenario


def version_text(environment: Mapping[str, JSON]) -> str:
    """Every library with its version, in one line."""
    return ", ".join(f"{name} {version}" for name, version in environment["versions"].items())


def setting_facts(report: BenchReport | Side) -> dict[str, str]:
    """How it was measured, in words by name; what is not known is left out."""
    settings = {
        "created": report.created,
        "scenario": report.scenario,
        "baseline": report.baseline,
        "inputs": str(report.inputs.get("timed", "")),
        "compared_on": str(report.inputs.get("compared", "")),
    }
    settings |= {
        name: _said(value)
        for name, value in report.settings.items()
        if name != "scenario" and value not in (None, "", [], {})
    }
    return {name: said for name, said in settings.items() if said}


def _said(value: JSON) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_said(each)}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def doubts(report: BenchReport) -> list[tuple[str, str]]:
    """Each doubt with its advice and everything that raised it."""
    found = []
    for doubt in dict.fromkeys(caution.doubt for caution in report.cautions):
        raised = [", ".join(filter(None, (c.about, c.detail))) for c in report.cautions if c.doubt is doubt]
        named = "; ".join(filter(None, raised))
        found.append((doubt.value, doubt.advice + (f" ({named})" if named else "")))
    return found


def unit_of(report: BenchReport) -> str:
    """What the figures of a table are."""
    if any(cell.workload for row in report.rows for cell in row.cells):
        return "Rows a second of a pass over the data"
    return Scenario(report.scenario).unit
