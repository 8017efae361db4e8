"""The parts of an evaluation with a chart: each a function of the evaluation that is empty where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rm_plugins.evaluation.results import BestOfN, Evaluation, Members, RewardResult
from rm_plugins.reports.evaluation_charts import (
    DotRow,
    best_of_n_svg,
    calibration_svg,
    can_be_drawn,
    distribution_svg,
    dots_svg,
    scatter_svg,
)
from rm_plugins.reports.looks import Look, legend, looked, named
from rm_plugins.reports.numbers import count, interval, number, p_value, points, share, signed
from rm_plugins.reports.page import cells, text, unfolding
from rm_plugins.reports.verdicts import outcome_html, with_interval
from rm_plugins.statistics.bias import FeatureBias
from rm_plugins.statistics.intervals import Estimate

__all__ = [
    "best_of_n_parts",
    "by_length",
    "by_section",
    "calibrations",
    "comparisons",
    "differences_by_section",
    "distributions",
    "formats",
    "length_scatters",
    "member_tables",
]

_LONGER = "the longer answer"
_TOO_LARGE = "<p>Its rewards are too large to be drawn.</p>"


def by_section(evaluation: Evaluation) -> str:
    """Accuracy by section, all rewards in one chart."""
    shown = [(reward, look) for reward, look in looked(evaluation) if reward.sections]
    found = [{section.name: section for section in reward.sections} for reward, _ in shown]
    names = list(dict.fromkeys(name for sections in found for name in sections))
    if not names:
        return ""
    looks, zeros = [look for _, look in shown], [_chance(reward) for reward, _ in shown]
    rows, lines = [], []
    for name in names:
        known = [sections.get(name) for sections in found]
        first = next(section for section in known if section is not None)
        dots = [None if section is None else section.accuracy for section in known]
        rows.append(DotRow(name, dots, first.longer_chosen))
        pairs = evaluation.data.sections.get(name, first.pairs)
        lines.append([named(name), count(pairs), share(first.longer_chosen), *map(with_interval, dots)])
    chart = dots_svg(rows, looks, label="Accuracy by section", axis_label="accuracy", zeros=zeros)
    numbers = cells(
        "Accuracy by section", ["Section", "Pairs", "Longer is better", *(look.html for look in looks)], lines, kind="names"
    )
    return _beside(legend(looks, mark=_LONGER), chart, numbers)


def by_length(evaluation: Evaluation) -> str:
    """Accuracy by how much longer the better answer is; rewards whose pairs fall into other bins have a chart of their own."""
    parts = []
    alike: dict[tuple[tuple[float, float], ...], list[int]] = {}
    shown = [(reward, look) for reward, look in looked(evaluation) if reward.by_length]
    for place, (reward, _) in enumerate(shown):
        alike.setdefault(tuple((part.low, part.high) for part in reward.by_length), []).append(place)
    for edges, places in alike.items():
        looks, zeros = [shown[place][1] for place in places], [_chance(shown[place][0]) for place in places]
        rows, lines = [], []
        for number_of_bin, (low, high) in enumerate(edges):
            bins = [shown[place][0].by_length[number_of_bin] for place in places]
            name = f"{signed(low)} to {signed(high)}"
            rows.append(DotRow(name, [part.accuracy for part in bins]))
            lines.append([name, count(bins[0].pairs), *(with_interval(part.accuracy) for part in bins)])
        label = "Accuracy by how many characters longer the better answer is"
        chart = dots_svg(rows, looks, label=label, axis_label="accuracy", zeros=zeros)
        numbers = cells(label, ["Characters longer", "Pairs", *(look.html for look in looks)], lines)
        parts.append(_beside(legend(looks), chart, numbers))
    return "\n".join(parts)


def distributions(evaluation: Evaluation) -> str:
    """The rewards of better and worse samples."""
    return _charts(
        (look, distribution_svg(found, look) if can_be_drawn(found.edges) else _TOO_LARGE, "")
        for reward, look in looked(evaluation)
        if (found := reward.distribution) is not None
    )


def calibrations(evaluation: Evaluation) -> str:
    """Calibration curves."""
    found = []
    for reward, look in looked(evaluation):
        if reward.calibration:
            lines = [
                [f"{share(part.low)} to {share(part.high)}", count(part.pairs), share(part.predicted), share(part.observed)]
                for part in reward.calibration
            ]
            numbers = cells("Calibration", ["Win probability", "Entries", "Mean", "Comes true"], lines)
            found.append((look, calibration_svg(reward.calibration, look), unfolding("Numbers", numbers)))
    return _charts(found)


def length_scatters(evaluation: Evaluation) -> str:
    """Rewards against lengths."""
    return _charts(
        (look, scatter_svg(found, look) if can_be_drawn(found.rewards, found.curve) else _TOO_LARGE, "")
        for reward, look in looked(evaluation)
        if (found := reward.length_scatter) is not None
    )


def formats(evaluation: Evaluation) -> str:
    """What rewards prefer, beside what people do, for each feature of format."""
    shown = [(reward, look) for reward, look in looked(evaluation) if reward.formats]
    found = [{bias.feature: bias for bias in reward.formats} for reward, _ in shown]
    names = list(dict.fromkeys(name for biases in found for name in biases))
    if not names:
        return ""
    looks = [look for _, look in shown]
    rows, lines = [], []
    for name in names:
        known = [biases.get(name) for biases in found]
        first = next(bias for bias in known if bias is not None)
        title = name.replace("_", " ")
        dots = [None if bias is None else Estimate(bias.preferred, math.nan, math.nan) for bias in known]
        rows.append(DotRow(title, dots, first.chosen))
        lines.append([named(title), count(first.pairs), share(first.chosen), *map(_bias_cell, known)])
    label = "Preference for features of format"
    chart = dots_svg(rows, looks, label=label, axis_label="prefers the answer with more of it", zeros=[0.5] * len(looks))
    numbers = cells(label, ["Feature", "Pairs", "More is better", *(look.html for look in looks)], lines, kind="names")
    return _beside(legend(looks, mark="how often more of it is better"), chart, numbers)


def member_tables(evaluation: Evaluation) -> str:
    """How the members of ensembles agree."""
    return "\n".join(
        f"<h3>{look.html}</h3>\n{_members(reward.members)}" for reward, look in looked(evaluation) if reward.members is not None
    )


def best_of_n_parts(evaluation: Evaluation) -> str:
    """Best-of-n curves, those against the same gold reward in one chart."""
    by_gold: dict[tuple[str, tuple[int, ...]], list[tuple[BestOfN, Look]]] = {}
    for reward, look in looked(evaluation):
        if reward.best_of_n is not None:
            by_gold.setdefault((reward.best_of_n.gold, reward.best_of_n.n), []).append((reward.best_of_n, look))
    parts = []
    for (gold, counts), curves in by_gold.items():
        looks = [look for _, look in curves]
        first = curves[0][0]
        lines = [
            [
                count(n),
                number(first.kl[place]),
                *(with_interval(found.mean[place], number) for found, _ in curves),
                number(first.best[place]),
            ]
            for place, n in enumerate(counts)
        ]
        numbers = cells("Best of n", ["n", "KL in nats", *(look.html for look in looks), "Best possible"], lines)
        prompts = ", ".join(dict.fromkeys(count(found.prompts) for found, _ in curves))
        said = f"<p>Gold reward: {named(gold)}. Prompts: {prompts}.</p>"
        values = [found.best for found, _ in curves] + [[mean.low, mean.high] for found, _ in curves for mean in found.mean]
        chart = best_of_n_svg(curves) if can_be_drawn(*values) else "<p>The gold rewards are too large to be drawn.</p>"
        parts.append(said + _beside(legend(looks), chart, numbers))
    return "\n".join(parts)


def comparisons(evaluation: Evaluation) -> str:
    """Each further reward against the first, as a table."""
    by_name = {look.name: look for _, look in looked(evaluation)}
    lines = []
    for found in evaluation.differences:
        a, b = (by_name[name].html if name in by_name else text(name) for name in (found.a, found.b))
        lines.append(
            [
                f"{b} against {a}",
                with_interval(found.accuracy, points),
                p_value(found.p_value),
                f'<td class="words">{outcome_html(found)}</td>',
                count(found.only_b),
                count(found.only_a),
                count(found.pairs),
            ]
        )
    heads = ["Comparison", "Points of accuracy", "p", '<span class="words">Outcome</span>']
    heads += ["It alone is right", "The other alone is right", "Pairs"]
    return cells("Comparisons of rewards", heads, lines) if lines else ""


def differences_by_section(evaluation: Evaluation) -> str:
    """In which sections each further reward differs from the first."""
    by_name = {look.name: look for _, look in looked(evaluation)}
    found = [difference for difference in evaluation.differences if difference.sections and difference.b in by_name]
    names = list(dict.fromkeys(name for difference in found for name in difference.sections))
    if not names:
        return ""
    looks = [by_name[difference.b] for difference in found]
    rows = [DotRow(name, [difference.sections.get(name) for difference in found]) for name in names]
    lines = [[named(row.name), *(with_interval(dot, points) for dot in row.dots)] for row in rows]
    label = "Difference in accuracy by section"
    first = by_name.get(found[0].a)
    against = first.html if first is not None else text(found[0].a)
    chart = dots_svg(rows, looks, label=label, axis_label="points of accuracy", zeros=[0.0] * len(looks), in_points=True)
    numbers = cells(label, ["Section", *(look.html for look in looks)], lines, kind="names")
    return f"<p>Against {against}, which is the dashed line.</p>" + _beside(legend(looks), chart, numbers)


def _chance(reward: RewardResult) -> float:
    """How often a reward is right by chance: in half of the pairs whose rewards differ, since ties are wrong."""
    ties = reward.figures.get("ties")
    return 0.5 if ties is None or not math.isfinite(ties.value) else (1 - ties.value) / 2


def _bias_cell(found: FeatureBias | None) -> str:
    """How often a reward prefers more of a feature, and how often it is right where more of it is better and where less is."""
    if found is None:
        return ""
    right = [("more", found.accuracy_more), ("less", found.accuracy_less)]
    shown = [
        f"<small>{word} {share(accuracy.value)} {interval(accuracy, share)}</small>"
        for word, accuracy in right
        if accuracy is not None
    ]
    return f"<b>{share(found.preferred)}</b>{''.join(shown)}"


def _members(found: Members) -> str:
    facts = {
        "All agree": found.unanimous,
        "Accuracy where all agree": found.accuracy_unanimous,
        "Accuracy where they do not": found.accuracy_divided,
    }
    shown = "".join(f"<div><dt>{name}</dt><dd>{share(value)}</dd></div>" for name, value in facts.items())
    rows = [
        [named(name), share(accuracy), *map(_heat, agreement)]
        for name, accuracy, agreement in zip(found.names, found.accuracy, found.agreement, strict=True)
    ]
    heads = ["Member", "Accuracy", *map(named, found.names)]
    return f'<dl class="large">{shown}</dl>\n{cells("Agreement of members", heads, rows, kind="matrix")}'


def _heat(agreement: float) -> str:
    """A cell that is darker the more two members agree; what chance would give has no colour."""
    heat = max(0.0, 2 * agreement - 1) if math.isfinite(agreement) else 0.0
    return f'<td class="heat" style="--warmth:{50 * heat:.0f}%">{share(agreement)}</td>'


def _charts(found: Iterable[tuple[Look, str, str]]) -> str:
    """A chart for each reward."""
    shown = "\n".join(f"<figure><figcaption>{look.html}</figcaption>{chart}{below}</figure>" for look, chart, below in found)
    return f'<div class="charts">\n{shown}\n</div>' if shown else ""


def _beside(key: str, chart: str, numbers: str) -> str:
    """A chart of all rewards and its numbers."""
    return f'<div class="beside"><figure>{key}{chart}</figure>\n{numbers}</div>'
