"""The parts of an evaluation with a chart: each a function of the evaluation that is empty where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rm_plugins.evaluation.results import Evaluation, Members, RewardResult
from rm_plugins.reports.evaluation_charts import (
    DotRow,
    best_of_n_svg,
    calibration_svg,
    can_be_drawn,
    distribution_svg,
    dots_svg,
    scatter_svg,
)
from rm_plugins.reports.numbers import count, interval, number, p_value, points, share, signed
from rm_plugins.reports.page import cells, preview, text, unfolding
from rm_plugins.reports.reward_styles import RewardStyle, legend, named, side_by_side, styled
from rm_plugins.reports.verdicts import outcome_html, with_interval
from rm_plugins.statistics.best_of_n import BestOfN
from rm_plugins.statistics.bias import FeatureBias
from rm_plugins.statistics.intervals import Estimate

_TOO_LARGE = "<p>These rewards are too large for a chart.</p>"


def by_section(evaluation: Evaluation) -> str:
    """Accuracy by section, all rewards in one chart."""
    shown = [(reward, style) for reward, style in styled(evaluation) if reward.sections]
    rows, lines = [], []
    for name, results in side_by_side([{section.name: section for section in reward.sections} for reward, _ in shown]).items():
        first = next(section for section in results if section is not None)
        dots = [None if section is None else section.accuracy for section in results]
        rows.append(DotRow(name, dots, first.longer_chosen))
        pairs = ", ".join(dict.fromkeys(count(section.pairs) for section in results if section is not None))
        ties = ", ".join(
            dict.fromkeys(share(section.ties.value) for section in results if section is not None and section.ties)
        )
        lines.append([named(name), pairs, ties, share(first.longer_chosen), *map(with_interval, dots)])
    heads = ["Section", "Pairs", "Ties", "Longer is better"]
    return _dots("Accuracy by section", heads, rows, lines, shown, axis="accuracy", mark="the longer answer")


def by_length(evaluation: Evaluation) -> str:
    """Accuracy by how much longer the better answer is; rewards whose pairs fall into other bins have a chart of their own."""
    alike: dict[tuple[tuple[float, float], ...], list[tuple[RewardResult, RewardStyle]]] = {}
    for reward, style in styled(evaluation):
        if reward.by_length:
            alike.setdefault(tuple((part.low, part.high) for part in reward.by_length), []).append((reward, style))
    charts = []
    for edges, shown in alike.items():
        rows, lines = [], []
        for (low, high), bins in zip(edges, zip(*(reward.by_length for reward, _ in shown), strict=True), strict=True):
            rows.append(DotRow(f"{signed(low)} to {signed(high)}", [part.accuracy for part in bins]))
            lines.append([rows[-1].name, count(bins[0].pairs), *map(with_interval, rows[-1].dots)])
        label = "Accuracy by how many characters longer the better answer is"
        charts.append(_dots(label, ["Characters longer", "Pairs"], rows, lines, shown, axis="accuracy", kind=""))
    return "\n".join(charts)


def distributions(evaluation: Evaluation) -> str:
    """The rewards of better and worse samples."""
    return _charts(
        (style, distribution_svg(histogram, style) if can_be_drawn(histogram.edges) else _TOO_LARGE, "")
        for reward, style in styled(evaluation)
        if (histogram := reward.distribution) is not None
    )


def calibrations(evaluation: Evaluation) -> str:
    """Calibration curves."""
    charts = []
    for reward, style in styled(evaluation):
        if reward.calibration:
            lines = [
                [f"{share(part.low)} to {share(part.high)}", count(part.pairs), share(part.predicted), share(part.observed)]
                for part in reward.calibration
            ]
            numbers = cells("Calibration", ["Win probability", "Entries", "Mean", "Comes true"], lines)
            named_columns = preview("Win probability, entries, mean, comes true")
            charts.append((style, calibration_svg(reward.calibration, style), unfolding(f"Numbers{named_columns}", numbers)))
    return _charts(charts)


def length_scatters(evaluation: Evaluation) -> str:
    """Rewards against lengths."""
    return _charts(
        (style, scatter_svg(scatter, style) if can_be_drawn(scatter.rewards, scatter.curve) else _TOO_LARGE, "")
        for reward, style in styled(evaluation)
        if (scatter := reward.length_scatter) is not None
    )


def formats(evaluation: Evaluation) -> str:
    """What rewards prefer and what the labels prefer, for each feature of format."""
    shown = [(reward, style) for reward, style in styled(evaluation) if reward.formats]
    rows, lines = [], []
    for name, biases in side_by_side([{bias.feature: bias for bias in reward.formats} for reward, _ in shown]).items():
        first = next(bias for bias in biases if bias is not None)
        title = name.replace("_", " ")
        dots = [None if bias is None else Estimate(bias.preferred, math.nan, math.nan) for bias in biases]
        rows.append(DotRow(title, dots, first.chosen))
        lines.append([named(title), count(first.pairs), share(first.chosen), *map(_bias_cell, biases)])
    label, axis = "Preference for features of format", "prefers the answer with more of it"
    mark = "how often more of it is better"
    heads = ["Feature", "Pairs", "More is better"]
    return _dots(label, heads, rows, lines, shown, axis=axis, mark=mark, zero=lambda _: 0.5)


def member_tables(evaluation: Evaluation) -> str:
    """How the members of ensembles agree."""
    return "\n".join(
        f"<h3>{style.html}</h3>\n{_members(reward.members)}"
        for reward, style in styled(evaluation)
        if reward.members is not None
    )


def best_of_n_parts(evaluation: Evaluation) -> str:
    """Best-of-n curves, those against the same gold reward in one chart."""
    by_gold: dict[tuple[str, tuple[int, ...]], list[tuple[BestOfN, RewardStyle]]] = {}
    for reward, style in styled(evaluation):
        if reward.best_of_n is not None:
            by_gold.setdefault((reward.best_of_n.gold, reward.best_of_n.n), []).append((reward.best_of_n, style))
    parts = []
    for (gold, counts), curves in by_gold.items():
        styles = [style for _, style in curves]
        first = curves[0][0]
        means = zip(*([with_interval(mean, number) for mean in curve.mean] for curve, _ in curves), strict=True)
        lines = [
            [count(n), number(kl), *cell, number(best)]
            for n, kl, cell, best in zip(counts, first.kl, means, first.best, strict=True)
        ]
        numbers = cells("Best of n", ["n", "KL in nats", *(style.html for style in styles), "Best possible"], lines)
        prompts = ", ".join(dict.fromkeys(count(curve.prompts) for curve, _ in curves))
        said = f"<p>Gold reward: {named(gold)}. Prompts: {prompts}.</p>"
        values = [curve.best for curve, _ in curves] + [[mean.low, mean.high] for curve, _ in curves for mean in curve.mean]
        chart = best_of_n_svg(curves) if can_be_drawn(*values) else "<p>These gold rewards are too large for a chart.</p>"
        parts.append(said + _beside(legend(styles), chart, numbers))
    return "\n".join(parts)


def comparisons(evaluation: Evaluation) -> str:
    """Each further reward against the first, as a table."""
    by_name = {style.name: style for _, style in styled(evaluation)}
    lines = []
    for difference in evaluation.differences:
        a, b = (by_name[name].html if name in by_name else text(name) for name in (difference.a, difference.b))
        lines.append(
            [
                f"{b} against {a}",
                with_interval(difference.accuracy, points),
                p_value(difference.p_value),
                f'<td class="words">{outcome_html(difference)}</td>',
                count(difference.only_b),
                count(difference.only_a),
                count(difference.pairs),
            ]
        )
    heads = ["Comparison", "Points of accuracy", "p", '<span class="words">Outcome</span>']
    heads += ["Only it is right", "Only the other is right", "Pairs"]
    return cells("Comparisons of rewards", heads, lines) if lines else ""


def differences_by_section(evaluation: Evaluation) -> str:
    """In which sections each further reward differs from the first."""
    by_name = {style.name: (reward, style) for reward, style in styled(evaluation)}
    shown = [difference for difference in evaluation.differences if difference.sections and difference.b in by_name]
    if not shown:
        return ""
    rows = [DotRow(name, dots) for name, dots in side_by_side([difference.sections for difference in shown]).items()]
    lines = [[named(row.name), *(with_interval(dot, points) for dot in row.dots)] for row in rows]
    styles = [by_name[difference.b] for difference in shown]
    label, axis = "Difference in accuracy by section", "points of accuracy"
    chart = _dots(label, ["Section"], rows, lines, styles, axis=axis, zero=lambda _: 0.0, in_points=True)
    first = shown[0].a
    against = by_name[first][1].html if first in by_name else text(first)
    return f"<p>Against {against}, which is the dashed line.</p>{chart}"


def _chance(reward: RewardResult) -> float:
    """The accuracy of chance: half of the pairs with different rewards, since ties are wrong."""
    ties = reward.figures.get("ties")
    return 0.5 if ties is None or not math.isfinite(ties.value) else (1 - ties.value) / 2


def _bias_cell(bias: FeatureBias | None) -> str:
    """How often a reward prefers more of a feature, and how often it is right where more of it is better and where less is."""
    if bias is None:
        return ""
    shown = [
        f"<small>{word} {share(accuracy.value)} {interval(accuracy, share)}</small>"
        for word, accuracy in (("more", bias.accuracy_more), ("less", bias.accuracy_less))
        if accuracy is not None
    ]
    return f"<b>{share(bias.preferred)}</b>{''.join(shown)}"


def _members(members: Members) -> str:
    facts = {
        "All agree": members.unanimous,
        "Accuracy where all agree": members.accuracy_unanimous,
        "Accuracy where they do not": members.accuracy_divided,
    }
    shown = "".join(f"<div><dt>{name}</dt><dd>{share(value)}</dd></div>" for name, value in facts.items())
    rows = [
        [named(name), share(accuracy), *map(_heat, agreement)]
        for name, accuracy, agreement in zip(members.names, members.accuracy, members.agreement, strict=True)
    ]
    heads = ["Member", "Accuracy", *map(named, members.names)]
    return f'<dl class="large">{shown}</dl>\n{cells("Agreement of members", heads, rows, kind="matrix")}'


def _heat(agreement: float) -> str:
    """A cell that is darker the more two members agree; what chance would give has no colour."""
    heat = max(0.0, 2 * agreement - 1) if math.isfinite(agreement) else 0.0
    return f'<td class="heat" style="--warmth:{50 * heat:.0f}%">{share(agreement)}</td>'


def _charts(charts: Iterable[tuple[RewardStyle, str, str]]) -> str:
    shown = "\n".join(f"<figure><figcaption>{style.html}</figcaption>{chart}{below}</figure>" for style, chart, below in charts)
    return f'<div class="charts">\n{shown}\n</div>' if shown else ""


def _dots(
    label: str,
    heads: Sequence[str],
    rows: Sequence[DotRow],
    lines: Sequence[Sequence[str]],
    shown: Sequence[tuple[RewardResult, RewardStyle]],
    *,
    axis: str,
    zero: Callable[[RewardResult], float] = _chance,
    mark: str = "",
    in_points: bool = False,
    kind: str = "names",
) -> str:
    """A chart of dots of all rewards next to a table of the same numbers; empty without rows."""
    if not rows:
        return ""
    styles, zeros = [style for _, style in shown], [zero(reward) for reward, _ in shown]
    chart = dots_svg(rows, styles, label=label, axis_label=axis, zeros=zeros, in_points=in_points)
    return _beside(
        legend(styles, mark=mark), chart, cells(label, [*heads, *(style.html for style in styles)], lines, kind=kind)
    )


def _beside(key: str, chart: str, numbers: str) -> str:
    return f'<div class="beside"><figure>{key}{chart}</figure>\n{numbers}</div>'
