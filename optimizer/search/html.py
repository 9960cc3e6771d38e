"""The report as one HTML file that loads nothing: for a browser, a phone and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.drawing.page import bullets, document, escape, machine, number_cell, prose, section
from optimizer.drawing.page import facts as boxes
from optimizer.drawing.svg import bars, histogram
from optimizer.search.columns import Column, filled
from optimizer.search.plot import pareto
from optimizer.types import JSON

__all__ = ["to_html"]


def to_html(report: Mapping[str, JSON]) -> str:
    """The report that :meth:`OptimizeReport.to_json` gave, as a page."""
    title = f"{report['verdict']}: {report['best'] or report['model']}"
    body = [
        _head(report),
        section(
            f"{_judged_by(report)} against time",
            pareto(report) + _legend(report),
        ),
        section("Every candidate", _table(report)),
        section("What to know", bullets([_shared(report), *report["notes"]])),
        section("Not tried", bullets(f"{e['name']}: {e['reason']}" for e in report["left_out"]))
        if report["left_out"]
        else "",
        section("What int8 costs each node", _sensitivity(report["sensitivity"])) if report["sensitivity"] else "",
        section("The data", _data(report)),
        section("The machine", _machine(report)),
        section("Where the time went", _seconds(report)),
        section("Commands", _commands(report)),
    ]
    return document(title, body)


def _judged_by(report: Mapping[str, JSON]) -> str:
    if report["metric"] == "perplexity":
        return "Rise of perplexity" if "max_drop" in report["budgets"] else "Agreement"
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
        facts += _right(report, accuracy)
    if agreement := report["agreement"]:
        what = "likeliest tokens" if report["metric"] == "perplexity" else "decisions"
        facts.append((f"{agreement['value']:.2%}", f"of {what} are the original's, at least {agreement['low']:.2%}"))
    if report["cosine"] and (report["metric"] == "fidelity" or "min_cosine" in report["budgets"]):
        facts.append((f"{report['cosine']['worst']:.5f}", "worst cosine to the original"))
    budgets = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in report["budgets"].items())
    return (
        f'<h1><span class="verdict {escape(verdict)}">{escape(verdict)}</span> {escape(name)}</h1>\n'
        f'<p class="dim">{escape(called)}budget: {escape(budgets)}; objective: {escape(report["objective"])}; '
        f"judged by {escape(report['metric'])}; {escape(report['created'][:16].replace('T', ' '))} UTC</p>\n"
        f"{boxes(facts)}"
    )


def _right(report: Mapping[str, JSON], accuracy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How right the winner is, and what is lost of that at most."""
    with_it = f"with {report['confidence']:.0%} confidence"
    if report["metric"] == "perplexity":
        found = [(f"{accuracy['value']:.4g}", f"perplexity; the original has {accuracy['original']['value']:.4g}")]
        return found + ([(f"{d['high']:+.2%}", f"at most, {with_it}")] if (d := accuracy["drop"]) else [])
    found = [(f"{accuracy['value']:.2%}", f"{report['metric']}; the original has {accuracy['original']['value']:.2%}")]
    return found + ([(f"{100 * d['high']:.2f} points", f"at most lost, {with_it}")] if (d := accuracy["drop"]) else [])


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
    head = "<th>candidate</th>" + "".join(f'<th class="n">{escape(column.head)}</th>' for column in columns)
    rows = [_row(report["original"], 0, columns, "")]
    for number, each in enumerate(report["candidates"], 1):
        rows.append(_row(each, number, columns, "best" if each is _winner(report) else ""))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'


def _row(each: Mapping[str, Any], number: int, columns: Sequence[Column], kind: str) -> str:
    """Two lines that stay together: the numbers, and why it won or lost."""
    cells = f'<th class="name" scope="row"><i>{number}</i>{escape(each["name"])}</th>'
    for column in columns:
        cells += number_cell(column.head, column.cell(each) or "")
    outcome = each["outcome"]
    said = f'<b class="{escape(outcome)}">{escape(outcome)}</b> ' if outcome else ""
    said += prose(each["reason"] + (f" ({each['hint']})" if each["hint"] else ""))
    return (
        f'<tbody class="{kind}"><tr class="of">{cells}</tr>'
        f'<tr><td class="why" colspan="{1 + len(columns)}">{said}</td></tr></tbody>'
    )


def _data(report: Mapping[str, JSON]) -> str:
    rows = report["data"]["eval"]
    text = f"<p>{rows['rows']:,} rows of {escape(rows['file'])}, sha256 {escape(rows['sha256'][:16])}…"
    if rows["labels"]:
        text += "; labels: " + escape(", ".join(f"{name} {count}" for name, count in rows["labels"].items()))
    for kind, done in (("calib", "calibrated"), ("train", "may be trained")):
        if other := report["data"].get(kind):
            text += f"; {done} on {escape(other['file'])}, sha256 {escape(other['sha256'][:16])}…"
    return text + "</p>" + (histogram(rows["histogram"]) if rows["histogram"] else "")


def _sensitivity(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The worst nodes of the ranking, each with its noise as a bar."""
    said = (
        f'<p class="dim">Each node in int8 by itself: the power of the error over the power of its answer, the worst '
        f"{len(nodes)} of those that can be quantized. Mixed precision leaves the first of them in float.</p>"
    )
    return said + bars([(f"{n['node']} ({n['op_type']})", n["noise"], f"{n['noise']:.2e}") for n in nodes])


def _machine(report: Mapping[str, JSON]) -> str:
    timing = report["bench"]["settings"]
    threads = f"{timing['threads']} thread{'' if timing['threads'] == 1 else 's'}"
    return machine(report["environment"], f"{threads}, {timing['rounds']} interleaved rounds")


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
    return f"<p>{escape(line)}</p>{bars(phases)}" + (f"<p>Of it, by candidate:</p>{bars(dearest)}" if dearest else "")


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
    return f"<pre>{escape(chr(10).join(chr(10).join([*part, '']) for part in parts).rstrip())}</pre>"
