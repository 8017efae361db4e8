"""The style of pages of reports: light and dark, on a phone, on a desk and on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1d21; --muted: #5a6170; --line: #dcdfe4; --soft: #f5f6f8;
  --link: #1d5fa8; --alarm: #b3261e; --alarm-soft: #fdefee; --warn: #8f5200; --warn-soft: #fff6e6; --good: #0f6b3c;
  --heat: #3b82c4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #121316; --ink: #e8e9ec; --muted: #a4abb7; --line: #33363d; --soft: #1b1d22; --link: #8ab8ee;
    --alarm: #ff9c94; --alarm-soft: #33191a; --warn: #f2b655; --warn-soft: #2b2213; --good: #6fd09b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1.25rem 1rem 3rem; background: var(--page); color: var(--ink); overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 1.625rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1.25rem; margin: 2.25rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: .875rem; margin: .75rem 0 .25rem; }
p { margin: .5rem 0; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem;
  margin-top: 1rem; }
figure { margin: 0; min-width: 0; max-width: 36rem; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .25rem; }
svg { width: 100%; height: auto; display: block; overflow: visible; }
svg * { stroke-linejoin: round; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif !important; }
.warning { border-left: 4px solid #d97706; padding: .25rem .75rem; margin: .75rem 0; }
.table { overflow-x: auto; max-width: 100%; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { vertical-align: bottom; color: var(--muted); font-weight: 600; font-size: .8125rem; }
th:first-child { position: sticky; left: 0; background: var(--page); text-align: left; overflow-wrap: anywhere;
  min-width: 7.5rem; }
tbody th { font-weight: 500; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: 0 .75rem; }
details[open] { padding-bottom: .5rem; }
summary { cursor: pointer; padding: .5rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: .25rem 0; padding: .6rem .75rem;
  background: var(--soft); border-radius: .375rem; }
.prompt { color: var(--muted); }
@media (max-width: 40rem) {
  th:first-child { max-width: 9rem; }
  h1 { font-size: 1.375rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --muted: #444; --line: #bbb; --soft: #f5f6f8; --link: #000;
    --alarm: #b3261e; --alarm-soft: #fdefee; --warn: #8f5200; --warn-soft: #fff6e6; --good: #0f6b3c; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  @page { margin: 14mm; }
  .table { overflow: visible; }
  table { font-size: .8rem; }
  th:first-child { position: static; }
  thead { display: table-header-group; }
  h2, h3, h4, summary, figcaption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  details { break-inside: auto; }
  details::details-content { content-visibility: visible; display: block; block-size: auto; }
  svg { max-height: 22cm; }
}
"""
"""Of all pages."""

EVALUATION_CSS = """
.evaluated, .how { color: var(--muted); }
.evaluated { margin: 0 0 1rem; font-size: .9375rem; }
.how { max-width: 48rem; font-size: .9375rem; }
.mark { font-family: "DejaVu Sans", "Segoe UI Symbol", "Apple Symbols", sans-serif; margin-right: .35em; }
.verdicts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .75rem;
  align-items: start; }
.verdict { border: 1px solid var(--line); border-radius: .5rem; padding: .625rem .875rem; font-size: .875rem;
  line-height: 1.45; }
.verdict.alarm { border: 2px solid var(--alarm); background: var(--alarm-soft);
  padding: calc(.625rem - 1px) calc(.875rem - 1px); }
.verdict.warning { border-color: var(--warn); margin: 0; }
.verdict .who { font-weight: 650; font-size: 1rem; margin: 0 0 .25rem; }
.calm { color: var(--muted); margin: 0; }
.finding { margin: .375rem 0 0; border: 0; padding: 0; background: none; }
.finding summary { padding: .125rem 0; }
.finding summary b { font-weight: 600; }
.finding p { margin: .125rem 0 .25rem; color: var(--muted); }
.badge { display: inline-block; font-size: .6875rem; font-weight: 700; line-height: 1.25rem; letter-spacing: .04em;
  text-transform: uppercase; padding: 0 .4rem; border-radius: .25rem; border: 1px solid var(--line);
  color: var(--muted); vertical-align: .06em; }
.finding.alarm .badge { background: #b3261e; border-color: #b3261e; color: #fff; }
.finding.alarm .badge::before { content: "✖ "; }
.finding.warning .badge { border-color: var(--warn); color: var(--warn); background: var(--warn-soft); }
td b { font-weight: 600; }
td small, td.line small { color: var(--muted); font-size: .8125rem; white-space: nowrap; }
td small { display: block; }
td.line { white-space: nowrap; }
td.line small { display: inline; margin-left: .4rem; }
th .reward { color: var(--ink); }
.reward { unicode-bidi: isolate; }
.arrow { color: var(--muted); font-weight: 400; }
.words, td.words { text-align: left; }
.baseline { color: var(--muted); }
.brief, .baseline { white-space: nowrap; }
.summary { margin-top: 1rem; }
.summary tbody > tr > * { vertical-align: baseline; }
.summary table { width: 100%; }
.summary td { white-space: nowrap; }
.summary td b { font-size: 1rem; }
.summary tbody tr:last-child > * { border-bottom-width: 0; }
.summary + .how { margin-top: 0; font-size: .8125rem; }
.best { display: inline-block; font-size: .6875rem; font-weight: 600; text-transform: uppercase; letter-spacing: .04em;
  color: var(--good); border: 1px solid currentColor; border-radius: .25rem; padding: 0 .3rem; line-height: 1.15rem;
  vertical-align: .1em; }
.outcome { white-space: nowrap; color: var(--muted); }
.outcome.better { color: var(--good); font-weight: 600; }
.outcome.worse { color: var(--alarm); font-weight: 600; }
nav ul, .legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; margin: .75rem 0 0;
  font-size: .875rem; }
nav a { display: inline-block; padding: .3rem 0; }
.legend { margin: 0 0 .5rem; }
.beside { display: grid; grid-template-columns: minmax(0, 26rem) minmax(0, 1fr); gap: 1rem 2.5rem; margin-top: 1rem;
  align-items: start; }
.beside .table { margin: 0; }
.charts figure { max-width: 27rem; }
.figures th:last-child { text-align: left; }
.figures .meaning { text-align: left; min-width: 18rem; color: var(--muted); font-size: .8125rem; }
td.heat { background: color-mix(in srgb, var(--heat) var(--warmth), var(--page)); padding: .4rem .75rem;
  text-align: center; min-width: 4.5rem; }
.matrix thead th:nth-child(n + 3) { text-align: center; padding: .4rem .75rem; }
dl { margin: .5rem 0; }
dl > div { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 0 1rem; padding: .25rem 0;
  border-bottom: 1px solid var(--line); font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
dl.large { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; }
dl.large > div { display: block; border: 0; padding: 0; }
dl.large dd { font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.large dt { font-size: .8125rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2.5rem; }
.pair { padding: 0 .75rem; }
.pair summary span { color: var(--muted); margin-left: .5rem; }
.mistakes > summary { font-weight: 600; }
.what { font-size: .8125rem; font-weight: 600; color: var(--muted); margin: .5rem 0 .125rem; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .25rem 1rem; }
.sides > div { min-width: 0; }
.headline { margin: .25rem 0 .5rem; font-size: 1.125rem; }
.headline > span { margin-left: .75rem; color: var(--muted); }
.extras { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin-top: 1rem; }
@media (min-width: 64rem) {
  .one { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 2rem; align-items: start; }
  .one > section { grid-column: 1 / -1; min-width: 0; }
  .one > .third { grid-column: auto; }
}
@media (min-width: 56rem) {
  .names th:first-child { min-width: 10.5rem; }
}
@media (max-width: 56rem) {
  .beside { grid-template-columns: minmax(0, 1fr); }
  .beside figure { max-width: 30rem; }
}
@media (max-width: 40rem) {
  nav ul { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; }
  td.line small { display: block; margin: 0; }
  dl > div { grid-template-columns: minmax(0, 1fr); }
}
@media print {
  .verdict, .pair .what { break-inside: avoid; }
  .how, .how + p, .legend { break-after: avoid; }
  nav { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .beside { grid-template-columns: minmax(0, 1fr); }
  figure { max-width: 13cm; }
  .verdicts { grid-template-columns: repeat(2, 1fr); }
}
"""
"""Of the pages of evaluations, beside that of all pages."""
