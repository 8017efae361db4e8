"""The page that ``rm-plugins report`` writes, in a single file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from rm_plugins.labels import counted
from rm_plugins.reports.page import page, preview, shown_text, table, unfolding
from rm_plugins.reports.training_charts import curves_svg
from rm_plugins.samples import text_of
from rm_plugins.training.exploitation import Evidence
from rm_plugins.training.journal import JournalSample
from rm_plugins.training.journal_summary import Curve, JournalSummary, RewardSummary
from rm_plugins.training.phrases import Phrase
from rm_plugins.training.reward_history import LEAST_STEPS

FIGURES = {
    "reward": "Reward",
    "reward_std": "Standard deviation of the reward",
    "disagreement": "Members' spread",
    "rank_disagreement": "Rank disagreement",
    "length": "Length (characters)",
    "length_correlation": "Correlation of reward and length",
    "abstained": "Abstained (share)",
    "kl": "KL divergence",
    "completion_tokens": "Length (tokens)",
}
"""The titles of figures, in the order in which they are shown."""

_LEAST_SHARE = 0.05  # of a phrase in the table


def training_page(summary: JournalSummary, title: str) -> str:
    """The whole page.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    body = "\n".join(_reward(reward, summary.trainer) for reward in summary.rewards)
    return page(title, body)


def _reward(summary: RewardSummary, trainer: Mapping[str, Curve]) -> str:
    curves = {**trainer, **{name: curve for name, curve in summary.curves.items() if name != "kl"}}
    parts = [
        f"<h2>{escape(summary.reward)}</h2>",
        f"<p>{counted(summary.steps, 'step')}, {counted(summary.samples, 'sample')}. A vertical dashed line marks a warning.</p>",
        _warnings(summary),
        '<div class="charts">',
        *_charts(curves, summary.members, [evidence.step for evidence in summary.evidence]),
        "</div>",
        _changes(summary),
        _phrases(summary.phrases),
        _samples("Highest rewards", summary.best, open_first=True),
        _samples("Largest disagreement of the members", summary.disputed),
    ]
    return "\n".join(part for part in parts if part)


def _warnings(summary: RewardSummary) -> str:
    if not summary.evidence and summary.compared < LEAST_STEPS:
        return (
            f"<p>Too few steps to look for signs that the policy exploits this reward: {counted(summary.steps, 'step')}; "
            f"{2 * LEAST_STEPS} are needed.</p>"
        )
    if not summary.evidence:
        return (
            f"<p>No sign that the policy exploits this reward: the last {summary.compared} steps were compared with the first "
            f"{summary.compared}.</p>"
        )
    return "\n".join(map(_warning, summary.evidence))


def _warning(evidence: Evidence) -> str:
    examples = "".join(f"<pre>{shown_text(example)}</pre>" for example in evidence.examples)
    shown = unfolding(f"Examples{preview(evidence.examples[0])}", examples) if examples else ""
    return f'<div class="warning"><b>Step {evidence.step}.</b> {escape(evidence.message)}{shown}</div>'


def _charts(curves: Mapping[str, Curve], names: Sequence[str], marks: Sequence[int]) -> Iterable[str]:
    members = {name.replace("/", " "): curves[name] for name in names if name in curves}
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
    return table("First and last steps", ["mean over", f"first {count} steps", f"last {count} steps"], rows)


def _phrases(phrases: Sequence[Phrase]) -> str:
    rows = [
        [f"{phrase.text}{' ⚠' if phrase.has_taken_over else ''}", *map(_share, (phrase.top, phrase.rest, phrase.early))]
        for phrase in phrases
        if phrase.top >= _LEAST_SHARE
    ]
    return table("Phrases of the best-scored completions", ["phrase", "best quarter", "others", "first steps"], rows)


def _samples(title: str, rows: Sequence[JournalSample], *, open_first: bool = False) -> str:
    shown = "\n".join(_sample(row, is_open=open_first and place == 0) for place, row in enumerate(rows))
    return f"<h3>{escape(title)}</h3>\n{shown}" if rows else ""


def _sample(row: JournalSample, *, is_open: bool) -> str:
    spread = row.details.get("std", math.nan)
    members = ", ".join(_number(row.details[name]) for name in row.members)
    facts = [f"reward {_number(row.score)}", f"step {row.step}", f"{row.length:,} characters"]
    if members:
        facts.insert(1, f"members {members}")
    if not math.isnan(spread):
        facts.insert(1, f"spread {_number(spread)}")
    texts = f'<pre class="prompt">{shown_text(text_of(row.sample.prompt))}</pre><pre>{shown_text(text_of(row.sample.completion))}</pre>'
    return unfolding(escape(", ".join(facts)) + preview(text_of(row.sample.completion)), texts, is_open=is_open)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
