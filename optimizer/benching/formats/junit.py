"""JUnit XML, which every CI system shows: each gate is a test case.

The shape is the one that Ant wrote first and that Jenkins, GitLab and GitHub's report actions read (testsuites,
testsuite, properties, testcase with failure, error or skipped). It knows no third outcome beside passed and failed, and
``skipped`` is the one that is shown with its message and counts as neither: an undecided gate is that. The exit code of
the command, 3, is what tells it from a gate that held.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from optimizer.benching.comparison import Comparison, Measured
from optimizer.benching.facts import machine_facts, setting_facts
from optimizer.benching.gates import Gate, Outcome
from optimizer.benching.report import BenchReport
from optimizer.benching.writing import Format

__all__ = ["FORMAT", "comparison_to_junit", "gate_case", "suite", "to_junit"]

#: Characters that XML 1.0 forbids even as references: https://www.w3.org/TR/xml/#charsets
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: The gate that says that a candidate could be measured; every candidate has that case.
_MEASURED = "measured"


def to_junit(report: BenchReport) -> str:
    """One suite: for each candidate the case that it was measured, which a failed one errs in, and its gates."""
    cases = [_measured(Measured.of(row)) for row in report.rows]
    cases += [gate_case(gate) for gate in report.gates if gate.name != _MEASURED]
    return suite("ml-opt bench", cases, {**setting_facts(report), **machine_facts(report.environment)}, report.created)


def _measured(candidate: Measured) -> ET.Element:
    case = _case(_MEASURED, candidate.label, candidate.seconds)
    if candidate.error:
        said = ET.SubElement(case, "error", message=_legal(candidate.error), type="BenchError")
        said.text = _legal(candidate.hint)
    return case


def gate_case(gate: Gate) -> ET.Element:
    """A gate as a test case of its candidate."""
    case = _case(gate.title, gate.about)
    if gate.outcome is Outcome.REGRESSION:
        ET.SubElement(case, "failure", message=_legal(gate.says), type=gate.outcome.value)
    elif gate.outcome is Outcome.INCONCLUSIVE:
        ET.SubElement(case, "skipped", message=_legal(f"{gate.outcome.value}: {gate.says}"))
    return case


def _case(name: str, candidate: str, seconds: float = 0.0) -> ET.Element:
    return ET.Element("testcase", name=_legal(name), classname=_legal(candidate), time=f"{seconds:.6f}")


def suite(name: str, cases: list[ET.Element], properties: dict[str, str], created: str) -> str:
    """A document of one suite.

    Args:
        name: of the suite.
        cases: its test cases.
        properties: what is worth knowing beside them; empty ones are left out.
        created: UTC time, ISO 8601.
    """
    heads = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    about = {
        "name": name,
        "tests": str(len(cases)),
        **{head: str(sum(case.find(kind) is not None for case in cases)) for head, kind in heads.items()},
        "time": f"{sum(float(case.get('time', 0)) for case in cases):.6f}",
    }
    root = ET.Element("testsuites", about)
    inside = ET.SubElement(root, "testsuite", {**about, "timestamp": created[:19]})
    known = ET.SubElement(inside, "properties")
    for key, value in properties.items():
        if value:
            ET.SubElement(known, "property", name=key, value=_legal(value))
    inside.extend(cases)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _legal(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)


def comparison_to_junit(report: Comparison) -> str:
    """One suite: the candidates that the second run could not measure, and the gates."""
    cases = [*map(_measured, report.measured)] + [gate_case(gate) for gate in report.gates]
    properties = {"base_created": report.base.created, **setting_facts(report.head)}
    return suite(
        "ml-opt bench compare", cases, {**properties, **machine_facts(report.head.environment)}, report.head.created
    )


FORMAT = Format(".xml", "JUnit: each gate is a test case", to_junit, comparison_to_junit)
