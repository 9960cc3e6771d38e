"""The report as one HTML file that loads nothing: for a browser, a phone and paper."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.search.plot import histogram, pareto
from optimizer.types import JSON

__all__ = ["to_html"]

_STYLE = """
:root { --ink: #1b1f24; --dim: #5c6670; --line: #d9dee3; --paper: #fff; --soft: #f5f7f9;
  --pass: #18794e; --fail: #c62a2f; --inconclusive: #9a6700; --best: #0b68cb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --dim: #9aa5b1; --line: #343b43; --paper: #14181c;
  --soft: #1c2127; --pass: #4cc38a; --fail: #ff6369; --inconclusive: #f1a10d; --best: #58a6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.verdict { font-weight: 700; } .PASS { color: var(--pass); } .FAIL { color: var(--fail); }
.INCONCLUSIVE { color: var(--inconclusive); } .dim { color: var(--dim); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div { background: var(--soft); border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.25rem; } .facts span { color: var(--dim); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.of td { border-bottom: 0; padding-bottom: .1rem; } tr.best td { background: var(--soft); }
td.why { color: var(--dim); padding-top: 0; }
.key span { white-space: nowrap; margin-right: 1em; color: var(--dim); }
.key .best { color: var(--best); font-weight: 700; } .key .pass { color: var(--pass); }
.key .fail { color: var(--fail); }
pre { background: var(--soft); padding: .8rem; border-radius: .5rem; font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
svg .grid { stroke: var(--line); } svg .front { fill: none; stroke: var(--dim); stroke-dasharray: 4 4; }
svg .bar { fill: var(--best); } svg .bound { stroke: var(--dim); stroke-width: 1.5; }
svg circle { fill: var(--dim); } svg circle.pass { fill: var(--pass); } svg circle.fail { fill: var(--fail); }
svg circle.inconclusive { fill: var(--inconclusive); } svg circle.best { fill: var(--best); }
svg text.best { fill: var(--best); font-weight: 700; }
@media (max-width: 40rem) {
  thead, td:empty { display: none !important; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td, td.n { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .15rem .4rem;
    text-align: right; white-space: normal; }
  tr.of { border: 0; padding-bottom: 0; }
  td.why { text-align: left; }
  td[data-head]::before { content: attr(data-head); color: var(--dim); font-weight: 400; }
  svg text { font-size: 22px; } }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } section, tr, svg { break-inside: avoid; }
  pre { white-space: pre-wrap; } }
"""


def to_html(report: Mapping[str, JSON]) -> str:
    """The report that :meth:`OptimizeReport.to_json` gave, as a page."""
    title = f"{report['verdict']}: {report['best'] or report['model']}"
    body = [
        _head(report),
        _section("Accuracy against time", pareto(report) + _legend(report)),
        _section("Every candidate", _table(report)),
        _section("What to know", _list(report["notes"])) if report["notes"] else "",
        _section("Not tried", _list(f"{e['name']}: {e['reason']}" for e in report["left_out"]))
        if report["left_out"]
        else "",
        _section("The data", _data(report)),
        _section("The machine", _machine(report)),
        _section("Where the time went", _seconds(report)),
        _section("Commands", _commands(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _e(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_e(title)}</h2>\n{body}\n</section>"


def _list(items: Any) -> str:
    return "<ul>" + "".join(f"<li>{_e(item)}</li>" for item in items) + "</ul>"


def _head(report: Mapping[str, JSON]) -> str:
    verdict = report["verdict"]
    name = f"{report['best']} on {report['provider']}" if report["best"] else report["model"]
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
        facts.append((f"{accuracy['value']:.2%}", f"accuracy; the original has {accuracy['original']['value']:.2%}"))
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
        f'<p class="dim">{_e(report["created"])}; budget: {_e(budgets)}; objective: {_e(report["objective"])}; '
        f"judged by {_e(report['metric'])}</p>\n"
        f'<div class="facts">{cells}</div>'
    )


def _legend(report: Mapping[str, JSON]) -> str:
    return (
        f'<p class="dim">Lines through a point are its {report["confidence"]:.0%} bounds upwards and the 95 % interval '
        "of the timing sideways; the dashed line joins what nothing beats in both. Whether accuracy <em>falls</em> is "
        "decided on the same rows for both, which is far sharper than the bounds that are drawn.</p>"
    )


_HEADS = (
    "candidate",
    "",
    "accuracy",
    "agreement",
    "worst cosine",
    "ms",
    "speed-up",
    "% of GEMM peak",
    "MiB",
    "memory",
    "load s",
)


def _table(report: Mapping[str, JSON]) -> str:
    head = "".join(f'<th class="{"n" if 2 <= i <= 10 else ""}">{h}</th>' for i, h in enumerate(_HEADS))
    rows = [_row(report["original"], "", "")]
    for each in report["candidates"]:
        best = (each["ref"], each["provider"]) == (report["best"], report["provider"]) and each["speed"]
        rows.append(_row(each, "best" if best else "", each["outcome"] or "not measured"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(each: Mapping[str, Any], kind: str, outcome: str) -> str:
    speed = each["speed"] or {}
    numbers = [
        f"{each['accuracy']['value']:.2%}" if each["accuracy"] else "",
        f"{each['agreement']['value']:.2%}" if each["agreement"] else "",
        f"{each['cosine']['worst']:.5f}" if each["cosine"] else "",
        f"{speed['p50_ms']:.2f}" if speed else "",
        f"{speed['ratio']['value']:.2f} ×" if speed else "",
        f"{speed['peak_share']:.0%}" if speed.get("peak_share") else "",
        f"{speed['bytes'] / 2**20:.1f}" if speed else "",
        f"{speed['peak_rss'] / 2**20:.0f} MiB" if speed else "",
        f"{speed['load_s']:.1f}" if speed else "",
    ]
    why = each["reason"] + (f" ({each['hint']})" if each["hint"] else "")
    cells = f'<td><b>{_e(each["name"])}</b></td><td class="{_e(outcome)}">{_e(outcome)}</td>'
    for name, number in zip(_HEADS[2:], numbers, strict=False):
        if number:
            cells += f'<td class="n" data-head="{_e(name)}">{_e(number)}</td>'
        else:
            cells += '<td class="n"></td>'
    said = f'<tr class="{kind}"><td class="why" colspan="{len(_HEADS)}">{_e(why)}</td></tr>'
    return f'<tr class="of {kind}">{cells}</tr>{said}'


def _data(report: Mapping[str, JSON]) -> str:
    rows = report["data"]["eval"]
    text = f"<p>{rows['rows']:,} rows of {_e(rows['file'])}, sha256 {_e(rows['sha256'][:16])}…"
    if rows["labels"]:
        text += "; labels: " + _e(", ".join(f"{name} {count}" for name, count in rows["labels"].items()))
    if calib := report["data"]["calib"]:
        text += f"; calibrated on {_e(calib['file'])}, sha256 {_e(calib['sha256'][:16])}…"
    return text + "</p>" + (histogram(rows["histogram"]) if rows["histogram"] else "")


def _machine(report: Mapping[str, JSON]) -> str:
    found = report["environment"]
    cpu = found["cpu"]
    items = [
        f"{cpu['model']}, {cpu['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB",
        f"features: {', '.join(cpu['features']) or 'none that matter here'}",
        *(f"{gpu['name']}, driver {gpu['driver']}" for gpu in found["gpus"]),
        f"{found['platform']}, Python {found['python']}",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"{report['bench']['settings']['threads']} threads, {report['bench']['settings']['rounds']} interleaved rounds",
    ]
    return _list(items)


def _seconds(report: Mapping[str, JSON]) -> str:
    names = {
        "export": "export",
        "make": "making candidates",
        "answer": "answering every row",
        "time": "timing",
        "total": "in all",
    }
    return _list(f"{names[name]}: {seconds:.1f} s" for name, seconds in report["seconds"].items())


def _commands(report: Mapping[str, JSON]) -> str:
    lines: list[str] = ["# all of this", report["command"], ""]
    for each in report["candidates"]:
        if each["commands"]:
            lines += [f"# {each['name']}, run on {each['provider']}", *each["commands"], ""]
    if report["recipe"]:
        lines += ["# the winner again", f"ml-opt run {report['recipe']}"]
    return f"<pre>{_e(chr(10).join(_trimmed(lines)))}</pre>"


def _trimmed(lines: Sequence[str]) -> list[str]:
    """Without empty lines at the end."""
    kept = list(lines)
    while kept and not kept[-1]:
        kept.pop()
    return kept
