"""The page that ``rm-plugins report`` writes: HTML that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from rm_plugins.cli.report_charts import curves_svg
from rm_plugins.evaluation.exploitation import Evidence
from rm_plugins.evaluation.journal_summary import Curve, JournalSummary, NotedSample, RewardSummary
from rm_plugins.evaluation.phrases import Phrase
from rm_plugins.evaluation.reward_history import is_member
from rm_plugins.journal import text_of

__all__ = ["FIGURES", "report_page"]

FIGURES = {
    "reward": "Reward",
    "reward_std": "Its standard deviation",
    "disagreement": "Members' spread",
    "rank_disagreement": "Rank disagreement",
    "length": "Length (characters)",
    "length_correlation": "Correlation of reward and length",
    "abstained": "Abstained (share)",
    "kl": "KL divergence",
    "completion_tokens": "Length (tokens)",
}
"""Figures in the order in which they are shown, and what they are called."""

_SHOWN = 1_500  # characters of a text
_LEAST_SHARE = 0.05  # of a phrase in the table
_CSS = """
:root { color-scheme: light dark; --line: #8884; --warn: #d97706; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .95rem; } svg { width: 100%; height: auto; display: block; }
.warning { border-left: 4px solid var(--warn); padding: .25rem .75rem; margin: .75rem 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .7rem; margin: .5rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; margin: .5rem 0; }
.prompt { opacity: .7; }
"""


def report_page(summary: JournalSummary, title: str) -> str:
    """The whole page.

    Args:
        summary: What the journal says.
        title: What it is about.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    body = "\n".join(_reward(reward, summary.trainer) for reward in summary.rewards)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def _reward(summary: RewardSummary, trainer: Mapping[str, Curve]) -> str:
    marks = [found.step for found in summary.evidence]
    parts = [
        f"<h2>{escape(summary.reward)}</h2>",
        f"<p>{summary.steps:,} steps, {summary.samples:,} samples. The curves are over the steps; a dashed line is a warning.</p>",
        _warnings(summary),
        '<div class="charts">',
        *_charts({**trainer, **{name: curve for name, curve in summary.curves.items() if name != "kl"}}, marks),
        "</div>",
        _changes(summary),
        _phrases(summary.phrases),
        _samples("Highest rewards", summary.best, open_first=True),
        _samples("Most disagreement among the members", summary.disputed),
    ]
    return "\n".join(part for part in parts if part)


def _warnings(summary: RewardSummary) -> str:
    if not summary.evidence:
        return (
            f"<p>No sign that the policy exploits this reward, in {summary.compared} steps compared with the first as many.</p>"
        )
    return "\n".join(map(_warning, summary.evidence))


def _warning(found: Evidence) -> str:
    examples = "".join(f"<pre>{_cut(example)}</pre>" for example in found.examples)
    shown = f"<details><summary>Examples</summary>{examples}</details>" if examples else ""
    return f'<div class="warning"><b>Step {found.step}.</b> {escape(found.message)}{shown}</div>'


def _charts(curves: Mapping[str, Curve], marks: Sequence[int]) -> Iterable[str]:
    members = {name.replace("/", " "): curve for name, curve in curves.items() if is_member(name)}
    for name, title in FIGURES.items():
        if name not in curves or name == "reward_std" or (name == "abstained" and not curves[name].values.any()):
            continue
        if name == "reward":
            title = "Reward and its members" if members else "Reward"
            title += "; band: one standard deviation"
            drawn = curves_svg({"reward": curves[name], **members}, spread=curves.get("reward_std"), marks=marks)
        else:
            drawn = curves_svg({title: curves[name]}, marks=marks)
        yield f'<figure role="img" aria-label="{escape(title)}"><figcaption>{escape(title)}</figcaption>{drawn}</figure>'


def _changes(summary: RewardSummary) -> str:
    rows = [
        [title, _number(summary.early[name]), _number(summary.recent[name])]
        for name, title in FIGURES.items()
        if name in summary.early and name in summary.recent
    ]
    count = summary.compared
    return _table("First and last", ["mean over the", f"first {count} steps", f"last {count} steps"], rows)


def _phrases(phrases: Sequence[Phrase]) -> str:
    rows = [
        [f"{phrase.text}{' ⚠' if phrase.has_taken_over else ''}", *map(_share, (phrase.top, phrase.rest, phrase.early))]
        for phrase in phrases
        if phrase.top >= _LEAST_SHARE
    ]
    return _table("Phrases of the best-scored completions", ["phrase", "best quarter", "others", "first steps"], rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<h3>{escape(title)}</h3>\n<div class="table"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _samples(title: str, noted: Sequence[NotedSample], *, open_first: bool = False) -> str:
    shown = "\n".join(_sample(found, is_open=open_first and place == 0) for place, found in enumerate(noted))
    return f"<h3>{escape(title)}</h3>\n{shown}" if noted else ""


def _sample(found: NotedSample, *, is_open: bool) -> str:
    row = found.row
    spread = row.details.get("std", math.nan)
    members = ", ".join(_number(value) for name, value in row.details.items() if is_member(name))
    facts = [f"reward {_number(row.score)}", f"step {found.step}", f"{row.length:,} characters"]
    if members:
        facts.insert(1, f"members {members}")
    if not math.isnan(spread):
        facts.insert(1, f"spread {_number(spread)}")
    texts = f'<pre class="prompt">{_cut(text_of(row.sample.prompt))}</pre><pre>{_cut(text_of(row.sample.completion))}</pre>'
    return f"<details{' open' if is_open else ''}><summary>{escape(', '.join(facts))}</summary>{texts}</details>"


def _cut(text: str) -> str:
    more = f" … ({len(text) - _SHOWN:,} characters more)" if len(text) > _SHOWN else ""
    return escape(text[:_SHOWN].encode("utf-8", "backslashreplace").decode() + more)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
