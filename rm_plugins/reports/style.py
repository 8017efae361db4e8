"""The style of all pages of reports: light and dark, on a phone, on a desk and on paper."""

from __future__ import annotations

__all__ = ["CSS"]

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
