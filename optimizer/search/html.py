"""The report as one HTML file that loads nothing: for a browser, a phone and paper."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.search.columns import Column, filled
from optimizer.search.plot import bars, histogram, pareto
from optimizer.search.style import STYLE
from optimizer.types import JSON

__all__ = ["to_html"]


def to_html(report: Mapping[str, JSON]) -> str:
    """The report that :meth:`OptimizeReport.to_json` gave, as a page."""
    title = f"{report['verdict']}: {report['best'] or report['model']}"
    body = [
        _head(report),
        _section(
            f"{_judged_by(report)} against time",
            pareto(report) + _legend(report),
        ),
        _section("Every candidate", _table(report)),
        _section("What to know", _list([_shared(report), *report["notes"]])),
        _section("Not tried", _list(f"{e['name']}: {e['reason']}" for e in report["left_out"]))
        if report["left_out"]
        else "",
        _section("What int8 costs each node", _sensitivity(report["sensitivity"])) if report["sensitivity"] else "",
        _section("The data", _data(report)),
        _section("The machine", _machine(report)),
        _section("Where the time went", _seconds(report)),
        _section("Commands", _commands(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _e(value: object) -> str:
    return html.escape(str(value))


def _prose(text: str) -> str:
    """A sentence, with `commands` and --flags as such: a line should not end inside of one."""
    said = re.sub(r"`([^`]*)`", r"<code>\1</code>", _e(text))
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)(?![^<]*</code>)", r"<code>\1</code>", said)


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_e(title)}</h2>\n{body}\n</section>"


def _list(items: Any) -> str:
    return "<ul>" + "".join(f"<li>{_prose(item)}</li>" for item in items) + "</ul>"


def _judged_by(report: Mapping[str, JSON]) -> str:
    return "Likeness" if report["metric"] == "fidelity" else str(report["metric"]).capitalize()


def _winner(report: Mapping[str, JSON]) -> Mapping[str, Any] | None:
    """The candidate that the verdict is about."""
    named = (report["best"], report["provider"])
    return next((c for c in report["candidates"] if report["best"] and (c["ref"], c["provider"]) == named), None)


def _head(report: Mapping[str, JSON]) -> str:
    verdict = report["verdict"]
    name, called = report["model"], ""
    if winner := _winner(report):
        name, called = f"{report['best']} on {report['provider']}", f"{winner['name']}; "
    facts = []
    if speedup := report["speedup"]:
        facts.append(
            (
                f"{speedup['value']:.2f} ×",
                f"as fast as {report['original']['name']} at {speedup['shape']}, "
                f"{speedup['low']:.2f} to {speedup['high']:.2f}",
            )
        )
    if accuracy := report["accuracy"]:
        facts.append(
            (f"{accuracy['value']:.2%}", f"{report['metric']}; the original has {accuracy['original']['value']:.2%}")
        )
        if drop := accuracy["drop"]:
            facts.append(
                (f"{100 * drop['high']:.2f} points", f"at most lost, with {report['confidence']:.0%} confidence")
            )
    if agreement := report["agreement"]:
        facts.append((f"{agreement['value']:.2%}", f"of decisions are the original's, at least {agreement['low']:.2%}"))
    if report["cosine"] and (report["metric"] == "fidelity" or "min_cosine" in report["budgets"]):
        facts.append((f"{report['cosine']['worst']:.5f}", "worst cosine to the original"))
    cells = "".join(f"<div><b>{_e(value)}</b><span>{_e(text)}</span></div>" for value, text in facts)
    budgets = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in report["budgets"].items())
    return (
        f'<h1><span class="verdict {_e(verdict)}">{_e(verdict)}</span> {_e(name)}</h1>\n'
        f'<p class="dim">{_e(called)}budget: {_e(budgets)}; objective: {_e(report["objective"])}; '
        f"judged by {_e(report['metric'])}; {_e(report['created'][:16].replace('T', ' '))} UTC</p>\n"
        f'<div class="facts">{cells}</div>'
    )


def _legend(report: Mapping[str, JSON]) -> str:
    return (
        '<p class="dim">Lines through a point are bounds: upwards those that the verdict is reached by, sideways the '
        "95 % interval of the timing. The dashed line joins what nothing beats in both. What was cut before its timing "
        "is in the table only.</p>"
    )


def _shared(report: Mapping[str, JSON]) -> str:
    """The rivals and what they do to the confidence, in one sentence."""
    confidence, rivals = report["confidence"], max(1, report["rivals"])
    share = 100 * (1 - (1 - confidence) / rivals)
    who = "One candidate could" if rivals == 1 else f"{rivals} candidates could"
    return (
        f"{who} win after the first look, so each bound over all rows holds with {share:.6g} % confidence, and no "
        f"candidate that misses a budget wins with more than {100 * (1 - confidence):.4g} % probability."
    )


def _table(report: Mapping[str, JSON]) -> str:
    columns = filled([report["original"], *report["candidates"]], report["metric"])
    head = "<th>candidate</th>" + "".join(f'<th class="n">{_e(column.head)}</th>' for column in columns)
    rows = [_row(report["original"], 0, columns, "")]
    for number, each in enumerate(report["candidates"], 1):
        rows.append(_row(each, number, columns, "best" if each is _winner(report) else ""))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _row(each: Mapping[str, Any], number: int, columns: Sequence[Column], kind: str) -> str:
    """Two lines that stay together: the numbers, and why it won or lost."""
    cells = f'<th class="name" scope="row"><i>{number}</i>{_e(each["name"])}</th>'
    for column in columns:
        text = column.cell(each)
        cells += f'<td class="n" data-head="{_e(column.head)}">{_e(text)}</td>' if text else '<td class="n"></td>'
    outcome = each["outcome"]
    said = f'<b class="{_e(outcome)}">{_e(outcome)}</b> ' if outcome else ""
    said += _prose(each["reason"] + (f" ({each['hint']})" if each["hint"] else ""))
    return (
        f'<tbody class="{kind}"><tr class="of">{cells}</tr>'
        f'<tr><td class="why" colspan="{1 + len(columns)}">{said}</td></tr></tbody>'
    )


def _data(report: Mapping[str, JSON]) -> str:
    rows = report["data"]["eval"]
    text = f"<p>{rows['rows']:,} rows of {_e(rows['file'])}, sha256 {_e(rows['sha256'][:16])}…"
    if rows["labels"]:
        text += "; labels: " + _e(", ".join(f"{name} {count}" for name, count in rows["labels"].items()))
    if calib := report["data"]["calib"]:
        text += f"; calibrated on {_e(calib['file'])}, sha256 {_e(calib['sha256'][:16])}…"
    return text + "</p>" + (histogram(rows["histogram"]) if rows["histogram"] else "")


def _sensitivity(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The worst nodes of the ranking, each with its noise as a bar."""
    said = (
        f'<p class="dim">Each node in int8 by itself: the power of the error over the power of its answer, the worst '
        f"{len(nodes)} of those that can be quantized. Mixed precision leaves the first of them in float.</p>"
    )
    return said + bars([(f"{n['node']} ({n['op_type']})", n["noise"], f"{n['noise']:.2e}") for n in nodes])


def _machine(report: Mapping[str, JSON]) -> str:
    found = report["environment"]
    cpu, timing = found["cpu"], report["bench"]["settings"]
    items = [
        f"{cpu['model']}, {cpu['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB",
        f"features: {', '.join(cpu['features']) or 'none that matter here'}",
        *(f"{gpu['name']}, driver {gpu['driver']}" for gpu in found["gpus"]),
        f"{found['platform']}, Python {found['python']}",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"{timing['threads']} thread{'' if timing['threads'] == 1 else 's'}, {timing['rounds']} interleaved rounds",
    ]
    return _list(items)


_DOING = {
    "export": "export",
    "make": "making candidates",
    "answer": "judging: the original and every candidate answer rows",
    "time": "timing",
}


def _seconds(report: Mapping[str, JSON]) -> str:
    """Phases, then candidates, each with its seconds; and what knowing the winner beforehand would have saved."""
    spent = report["seconds"]
    line = f"{spent['total']:.0f} s in all."
    if alone := report["winner_s"]:
        times = spent["total"] / alone
        line += f" The winner's chain alone would take {alone:.0f} s: the search took {times:.1f} times that."
    phases = [(words, spent[name], f"{spent[name]:.1f} s") for name, words in _DOING.items() if name in spent]
    each = [(c["name"], sum(c["seconds"].values()), c["seconds"]) for c in report["candidates"] if c["seconds"]]
    dearest = [
        (name, total, f"made in {parts.get('make', 0):.1f} s, judged in {parts.get('answer', 0):.1f} s")
        for name, total, parts in sorted(each, key=lambda entry: -entry[1])
    ]
    return f"<p>{_e(line)}</p>{bars(phases)}" + (f"<p>Of it, by candidate:</p>{bars(dearest)}" if dearest else "")


def _commands(report: Mapping[str, JSON]) -> str:
    """Every command line, each once: a candidate begins where those above it end."""
    parts = [["# all of this", report["command"]]]
    said: set[str] = set()
    for each in report["candidates"]:
        if each["commands"]:
            new = [command for command in each["commands"] if command not in said]
            said.update(new)
            parts.append([f"# {each['name']}: {each['ref']}, run on {each['provider']}", *new])
    if report["recipe"]:
        parts.append(["# the winner again", f"ml-opt run {report['recipe']}"])
    return f"<pre>{_e(chr(10).join(chr(10).join([*part, '']) for part in parts).rstrip())}</pre>"
