"""What the own rule of a benchmark makes of rewards, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rm_plugins.evaluation.results import Evaluation
from rm_plugins.reports.numbers import count, number
from rm_plugins.reports.page import cells, preview, text, unfolding
from rm_plugins.reports.reward_styles import RewardStyle, named, side_by_side, styled
from rm_plugins.suites import SuiteResult


def suite_tables(evaluation: Evaluation) -> str:
    """The scores of a benchmark, its sections with their parts, and its further tables; empty where there is none."""
    scored = [(reward.suite, style) for reward, style in styled(evaluation) if reward.suite is not None]
    if not scored:
        return ""
    first = scored[0][0]
    parts = [f"<p><b>{text(first.name)}.</b> {text(first.rule)}</p>", _scores(scored), _parts(scored)]
    extras = []
    for suite, style in scored:
        for extra in suite.tables:
            rows = [
                [named(name), *(number(value) for value in row)] for name, row in zip(extra.rows, extra.values, strict=True)
            ]
            shown = cells(extra.title, ["", *map(text, extra.columns)], rows)
            extras.append(f"<figure><figcaption>{style.html}: {text(extra.title)}</figcaption>{shown}</figure>")
    if extras:
        parts.append(f'<div class="extras">{"".join(extras)}</div>')
    return "\n".join(part for part in parts if part)


def _scores(scored: list[tuple[SuiteResult, RewardStyle]]) -> str:
    suites = [suite for suite, _ in scored]
    rows = [["<b>Score</b>", *(f"<b>{number(suite.score)}</b>" for suite in suites), "", ""]]
    for name, sections in side_by_side([{section.name: section for section in suite.sections} for suite in suites]).items():
        known = next(section for section in sections if section is not None)
        scores = _numbers(None if section is None else section.score for section in sections)
        rows.append([named(name), *scores, count(known.items), number(known.weight) if known.weight else "shown only"])
    for name, values in side_by_side([suite.figures for suite in suites]).items():
        rows.append([named(name), *_numbers(values), "", ""])
    if any(suite.abstained for suite in suites):
        rows.append(["Without a reward (wrong)", *(count(suite.abstained) for suite in suites), "", ""])
    heads = ["Section", *(style.html for _, style in scored), "Rows", "Weight"]
    return cells(f"Scores of {suites[0].name}", heads, rows, kind="names")


def _parts(scored: list[tuple[SuiteResult, RewardStyle]]) -> str:
    scores = side_by_side(
        [
            {(section.name, part): score for section in suite.sections for part, score in section.parts.items()}
            for suite, _ in scored
        ]
    )
    if not scores:
        return ""
    rows = [
        [named(part), f'<td class="words">{named(section)}</td>', *_numbers(values)]
        for (section, part), values in scores.items()
    ]
    heads = ["Part", '<span class="words">Section</span>', *(style.html for _, style in scored)]
    names = preview(", ".join(dict.fromkeys(part for _, part in scores)))
    return unfolding(f"The parts of the sections{names}", cells("Parts of the sections", heads, rows, kind="names"))


def _numbers(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else number(value) for value in values]
