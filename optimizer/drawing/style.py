"""How the page of a report looks: on a phone, on a wide screen, in the dark and on paper."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --dim: #5c6670; --line: #d9dee3; --paper: #fff; --soft: #f4f6f8;
  --pass: #18794e; --fail: #c62a2f; --inconclusive: #8f5f00; --best: #0b68cb;
  --c0: #5c6670; --c1: #0b68cb; --c2: #c4500b; --c3: #18794e; --c4: #8e3fb8; --c5: #a8741a; --c6: #b8266a;
  --c7: #0a7d8c; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --ink: #e6eaee; --dim: #9aa5b1;
  --line: #343b43; --paper: #14181c; --soft: #1c2127; --pass: #4cc38a; --fail: #ff7b81; --inconclusive: #f1a10d;
  --best: #58a6ff; --c0: #9aa5b1; --c1: #58a6ff; --c2: #ff9b5e; --c3: #4cc38a; --c4: #cf8ef2; --c5: #e3b341;
  --c6: #ff85b3; --c7: #4fd0df; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; break-after: avoid; }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; }
li { margin: .25rem 0; overflow-wrap: anywhere; max-width: 48rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; break-after: avoid; }
.PASS { color: var(--pass); } .FAIL, .REGRESSION { color: var(--fail); } .INCONCLUSIVE { color: var(--inconclusive); }
.dim { color: var(--dim); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div { background: var(--soft); border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.25rem; } .facts span { color: var(--dim); font-size: .85rem; }
.facts div { overflow-wrap: anywhere; }
ul.plain { list-style: none; padding: 0; } ul.plain li { break-inside: avoid; margin: .5rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .45rem .5rem; vertical-align: bottom; font-weight: 400; }
thead th { color: var(--dim); line-height: 1.2; border-bottom: 1px solid var(--line); }
td.n { text-align: right; white-space: nowrap; } td.n:last-child { white-space: normal; }
thead th.n { text-align: right; }
tbody { border-bottom: 1px solid var(--line); break-inside: avoid; } tbody.best { background: var(--soft); }
tr.of td, tr.of th { padding-bottom: .1rem; } th.name { font-weight: 600; white-space: nowrap; }
th.name i { display: inline-block; min-width: 1.6em; color: var(--dim); font-style: normal; font-weight: 400; }
td.why { color: var(--dim); padding: 0 .5rem .5rem 2.4em; overflow-wrap: anywhere; }
.key { margin-top: .8rem; } .key span { display: inline-block; margin-right: 1.2em; color: var(--dim); }
.key .best { color: var(--best); } .key .pass { color: var(--pass); } .key .fail { color: var(--fail); }
.key .inconclusive { color: var(--inconclusive); }
ul.bars { list-style: none; padding: 0; max-width: 48rem; }
ul.bars li { display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; font-size: .9rem; max-width: none;
  margin: .5rem 0; break-inside: avoid; }
ul.bars .n { color: var(--dim); font-variant-numeric: tabular-nums; text-align: right; }
svg { display: block; overflow: visible; } svg text { font: 12px system-ui, sans-serif; fill: var(--dim); }
.plot { padding: 2rem 1rem 3rem 3.75rem; } .plot svg { height: 22rem; width: 100%; }
.lengths { padding: 2rem .5rem 3rem; max-width: 48rem; } .lengths svg { height: 8rem; width: 100%; }
svg.bar { grid-column: 1 / -1; height: .4rem; width: 100%; background: var(--soft); }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--dim); }
svg .front { stroke: var(--dim); stroke-dasharray: 4 4; }
svg line.budget { stroke: var(--fail); stroke-dasharray: 2 3; } svg text.budget { fill: var(--fail); }
svg .bar { fill: var(--best); } svg .bound { stroke: var(--dim); stroke-width: 1.5; }
svg circle { fill: var(--dim); stroke: var(--paper); } svg text.open, svg text.original { fill: var(--ink); }
svg circle.pass { fill: var(--pass); } svg .bound.pass { stroke: var(--pass); } svg text.pass { fill: var(--pass); }
svg circle.fail { fill: var(--fail); } svg .bound.fail { stroke: var(--fail); } svg text.fail { fill: var(--fail); }
svg circle.best { fill: var(--best); } svg .bound.best { stroke: var(--best); }
svg text.best { fill: var(--best); font-weight: 700; }
svg circle.inconclusive { fill: var(--inconclusive); } svg .bound.inconclusive { stroke: var(--inconclusive); }
svg text.inconclusive { fill: var(--inconclusive); }
.lanes { padding: .6rem .5rem 3rem; } .lanes svg { width: 100%; }
svg text .bold { font-weight: 600; }
svg .roof { stroke: var(--dim); stroke-width: 1.5; stroke-dasharray: 6 3; } svg .curve { stroke-width: 2; }
svg polygon { fill-opacity: .3; stroke: none; } svg .mark { stroke-width: 2; }
i.c0.c0, .key .c0 { color: var(--c0); } svg circle.c0, svg text.c0, svg polygon.c0 { fill: var(--c0); }
svg .curve.c0, svg .mark.c0 { stroke: var(--c0); }
i.c1.c1, .key .c1 { color: var(--c1); } svg circle.c1, svg text.c1, svg polygon.c1 { fill: var(--c1); }
svg .curve.c1, svg .mark.c1 { stroke: var(--c1); }
i.c2.c2, .key .c2 { color: var(--c2); } svg circle.c2, svg text.c2, svg polygon.c2 { fill: var(--c2); }
svg .curve.c2, svg .mark.c2 { stroke: var(--c2); }
i.c3.c3, .key .c3 { color: var(--c3); } svg circle.c3, svg text.c3, svg polygon.c3 { fill: var(--c3); }
svg .curve.c3, svg .mark.c3 { stroke: var(--c3); }
i.c4.c4, .key .c4 { color: var(--c4); } svg circle.c4, svg text.c4, svg polygon.c4 { fill: var(--c4); }
svg .curve.c4, svg .mark.c4 { stroke: var(--c4); }
i.c5.c5, .key .c5 { color: var(--c5); } svg circle.c5, svg text.c5, svg polygon.c5 { fill: var(--c5); }
svg .curve.c5, svg .mark.c5 { stroke: var(--c5); }
i.c6.c6, .key .c6 { color: var(--c6); } svg circle.c6, svg text.c6, svg polygon.c6 { fill: var(--c6); }
svg .curve.c6, svg .mark.c6 { stroke: var(--c6); }
i.c7.c7, .key .c7 { color: var(--c7); } svg circle.c7, svg text.c7, svg polygon.c7 { fill: var(--c7); }
svg .curve.c7, svg .mark.c7 { stroke: var(--c7); }
code { font-size: .9em; white-space: nowrap; }
pre { background: var(--soft); padding: .8rem; border-radius: .5rem; font-size: .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media screen and (max-width: 44rem) {
  thead, td.n:empty { display: none; }
  table, tbody, tr, tr.of th, td { display: block; }
  .scroll { overflow: visible; } tbody { margin: 0 -.5rem; padding: .6rem .5rem; }
  tr.of { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 1.2rem; }
  tr.of th.name { grid-column: 1 / -1; padding: 0 0 .2rem; font-size: 1rem; white-space: normal; }
  td.n { display: flex; justify-content: space-between; gap: .5rem; padding: .1rem 0; white-space: normal; }
  td.n::before { content: attr(data-head); color: var(--dim); text-align: left; }
  td.why { padding: .3rem 0 0; font-size: .85rem; } }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; } h1 { font-size: 16pt; } h2 { font-size: 12pt; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .3rem .3rem; }
  svg, .plot, .lengths, .facts div { break-inside: avoid; } .plot svg { height: 16rem; }
  .facts div, tbody.best, pre { background: none; border: 1px solid var(--line); } svg.bar { background: none; } }
"""
