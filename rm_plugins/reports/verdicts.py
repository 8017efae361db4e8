"""The top of an evaluation's page: the findings on each reward, and the rewards side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rm_plugins.evaluation.figures import Figure, figures_of
from rm_plugins.evaluation.finding import Finding
from rm_plugins.evaluation.results import Difference, Evaluation, RewardResult
from rm_plugins.labels import counted
from rm_plugins.reports.numbers import interval, number, p_value, points, share
from rm_plugins.reports.page import cells, preview, text, unfolding
from rm_plugins.reports.reward_styles import RewardStyle, named, styled
from rm_plugins.statistics.intervals import Estimate

_KEY_FIGURES = (
    *("accuracy", "accuracy_shorter", "accuracy_corrected", "length_preference", "ece", "top_1", "top_1_random", "kendall"),
    *("auc", "member_agreement"),
)
_MOST_COLUMNS = 6


def evaluated_line(evaluation: Evaluation) -> str:
    """What was evaluated, in a line."""
    data = evaluation.data
    named = ", ".join(part for part in (data.source, f"split {data.split}" if data.split else "") if part)
    facts = [f"<bdi>{text(named)}</bdi>"] if named else []
    if data.suite:
        facts.append(f"benchmark <bdi>{text(data.suite)}</bdi>")
    for name in ("rows", "pairs", "prompts"):
        if getattr(data, name):
            facts.append(counted(getattr(data, name), name.removesuffix("s")))
    return f'<p class="evaluated">{" · ".join(facts)}</p>'


def verdicts(evaluation: Evaluation) -> str:
    """A card for each reward, the most alarming first."""
    cards = sorted(styled(evaluation), key=lambda shown: min((finding.rank for finding in shown[0].findings), default=3))
    return f'<div class="verdicts">\n{"".join(_card(reward, style) for reward, style in cards)}</div>'


def summary_table(evaluation: Evaluation) -> str:
    """The key figures, one row per reward, and the accuracy of always choosing the longer answer."""
    shown = styled(evaluation)
    names = _key_figures(evaluation.rewards)
    against = {difference.b: difference for difference in evaluation.differences if difference.a == evaluation.rewards[0].name}
    figures = _named_figures(evaluation)
    heads = ["", *(_title(figures[name]) for name in names)]
    if against:
        heads.append(f"Against {shown[0][1].html}")
    rows = []
    for place, (reward, style) in enumerate(shown):
        best = '<span class="best">best</span> ' if _is_best(evaluation, place) else ""
        row = [style.html]
        for name in names:
            row.append(_figure_cell(figures[name], reward.figures.get(name), best if name == "accuracy" else ""))
        if against:
            row.append(_against(against.get(reward.name)))
        rows.append(row)
    if "accuracy" in names and math.isfinite(evaluation.data.longer_chosen):
        base = f"<td><b>{share(evaluation.data.longer_chosen)}</b></td>"
        blank = [""] * (len(heads) - 2)
        rows.append(['<span class="baseline">The longer answer</span>', base, *blank])
    return cells("Rewards side by side", heads, rows, kind="summary") if names else ""


def figures_table(evaluation: Evaluation) -> str:
    """All figures of all rewards, and how to read them."""
    shown = styled(evaluation)
    figures = _named_figures(evaluation)
    rows = [
        [
            _title(figure),
            *(_figure_cell(figure, reward.figures.get(name)) for reward, _ in shown),
            f'<td class="meaning">{text(figure.meaning)}</td>',
        ]
        for name, figure in figures.items()
    ]
    heads = ["Figure", *(style.html for _, style in shown), '<span class="meaning">How to read it</span>']
    return cells("All figures", heads, rows, kind="figures") if rows else ""


def _named_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """The figures that any reward has. A figure of a plug-in has no title or meaning."""
    known = figures_of(evaluation.data.attributes)
    names = dict.fromkeys(name for reward in evaluation.rewards for name in reward.figures)
    return {name: known.get(name, Figure(name, "")) for name in names}


def _title(figure: Figure) -> str:
    """The title of a figure as HTML, with an arrow for the direction in which it gets better."""
    arrow = {"higher": ("↑", "higher is better"), "lower": ("↓", "lower is better")}.get(figure.better)
    if arrow is None:
        return named(figure.title)
    return f'{named(figure.title)}&nbsp;<span class="arrow" role="img" aria-label="{arrow[1]}" title="{arrow[1]}">{arrow[0]}</span>'


def with_interval(
    estimate: Estimate | None, form: Callable[[float], str] = share, *, mark: str = "", is_below: bool = False
) -> str:
    """A cell with an estimate and its interval, beside it or below it."""
    if estimate is None:
        return f"<td>{number(math.nan)}</td>"
    kind = "" if is_below else ' class="line"'
    return f"<td{kind}>{mark}<b>{form(estimate.value)}</b>{_small(interval(estimate, form))}</td>"


def _figure_cell(figure: Figure, estimate: Estimate | None, mark: str = "") -> str:
    return with_interval(estimate, share if figure.is_share else number, mark=mark, is_below=True)


def outcome_html(difference: Difference) -> str:
    """Whether b is better than a, as HTML in a colour of its own."""
    return f'<span class="outcome {difference.outcome}">{difference.outcome}</span>'


def _card(reward: RewardResult, style: RewardStyle) -> str:
    findings = sorted(reward.findings, key=lambda finding: finding.rank)
    kind = f" {findings[0].severity}" if findings else ""
    shown = "".join(_finding(finding, is_folded=place > 0) for place, finding in enumerate(findings))
    calm = "" if findings else '<p class="calm">Nothing stands out.</p>'
    return f'<article class="verdict{kind}"><p class="who">{style.html}</p>{shown}{calm}</article>\n'


def _finding(finding: Finding, *, is_folded: bool) -> str:
    """A finding; what follows its lead can be folded, so that all rewards are seen at once."""
    kind = f"finding {finding.severity}"
    badge = f'<b class="badge">{finding.severity}</b> '
    if not finding.lead:
        return f'<p class="{kind}">{badge}{text(finding.text)}</p>'
    if is_folded:
        whole = finding.text[:1].upper() + finding.text[1:]
        return unfolding(f"{badge}<b>{text(finding.lead)}</b>{preview(whole)}", f"<p>{text(whole)}</p>", kind=kind)
    return f'<p class="{kind}">{badge}<b>{text(finding.lead)}:</b> {text(finding.text)}</p>'


def _key_figures(rewards: Sequence[RewardResult]) -> list[str]:
    known = list(dict.fromkeys(name for reward in rewards for name in reward.figures))
    key = [name for name in _KEY_FIGURES if name in known]
    others = [name for name in known if name not in key]
    return [*key, *others][:_MOST_COLUMNS] if len(key) < 3 else key[:_MOST_COLUMNS]


def _is_best(evaluation: Evaluation, place: int) -> bool:
    """Whether the accuracy of a reward is higher than that of every other, as far as the comparisons with the first one show.

    Two rewards that were each compared only with the first one differ if their intervals do not overlap.
    """
    names = [reward.name for reward in evaluation.rewards]
    by_name = {difference.b: difference for difference in evaluation.differences if difference.a == names[0]}
    others = names[1:]
    if not others or any(name not in by_name for name in others):
        return False
    if place == 0:
        return all(by_name[name].outcome == "worse" for name in others)
    mine = by_name[names[place]]
    rivals = [by_name[name] for name in others if name != names[place]]
    return mine.outcome == "better" and all(mine.accuracy.low > rival.accuracy.high for rival in rivals)


def _against(difference: Difference | None) -> str:
    if difference is None:
        return "<td></td>"
    p = f"p = {p_value(difference.p_value)}"
    small = ", ".join(part for part in (interval(difference.accuracy, points), p) if part)
    return f"<td><b>{points(difference.accuracy.value)}</b> points, {outcome_html(difference)}{_small(small)}</td>"


def _small(shown: str) -> str:
    return f"<small>{shown}</small>" if shown else ""
