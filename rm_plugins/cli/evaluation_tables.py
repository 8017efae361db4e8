"""An evaluation as tables in the terminal."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from rm_plugins.cli.printed import Console, counted, echo
from rm_plugins.evaluation.figures import figures_of
from rm_plugins.evaluation.results import Difference, Evaluation, FlippedPair
from rm_plugins.reports.reward_styles import side_by_side
from rm_plugins.statistics.intervals import Estimate

_MOST_SECTIONS = 30


def print_evaluation(evaluation: Evaluation) -> None:
    """Print what an evaluation found: figures side by side, sections, the benchmark's own score, and what stands out."""
    data = evaluation.data
    console = Console()
    what = f"{data.source or 'The data'}: {counted(data.rows, 'row')}, {counted(data.pairs, 'pair')}, {counted(data.prompts, 'prompt')}"
    if not math.isnan(data.longer_chosen):
        what += f"; the longer answer is the better in {data.longer_chosen:.1%} of pairs"
    console.print(escape(what) + ".", highlight=False)
    names = [result.name for result in evaluation.rewards]
    table = _table("", names)
    figures = figures_of(evaluation.data.attributes)
    for name in dict.fromkeys(name for result in evaluation.rewards for name in result.figures):
        cells = [_cell(result.figures.get(name), figures[name].is_share) for result in evaluation.rewards]
        table.add_row(escape(figures[name].title), *cells)
    console.print(table)
    _print_sections(console, evaluation, names)
    _print_suite(console, evaluation, names)
    for difference in evaluation.differences:
        console.print(escape(_in_words(difference)), highlight=False)
    for result in evaluation.rewards:
        for finding in result.findings:
            console.print(f"[bold]{finding.severity}[/bold], {escape(result.name)}: {escape(finding.message)}", highlight=False)


def print_difference(difference: Difference) -> None:
    """Print how two rewards differ: in words, and by section."""
    console = Console()
    console.print(escape(_in_words(difference)), highlight=False)
    if difference.sections:
        table = _table("section", ["difference in accuracy"])
        for name, estimate in difference.sections.items():
            table.add_row(escape(name), f"{estimate:+.1%}")
        console.print(table)


def print_flips(title: str, flips: tuple[FlippedPair, ...], most: int) -> None:
    """Print pairs that one of two rewards has right and the other wrong."""
    console = Console()
    if flips and most:
        console.print(f"\n[bold]{escape(title)}[/bold]")
    for flip in flips[:most]:
        pair = flip.pair
        where = f"row {pair.row}" + (f", {pair.section}" if pair.section else "")
        rewards = (
            f"chosen {flip.chosen_reward_a:.3g} -> {pair.chosen_reward:.3g}, "
            f"rejected {flip.rejected_reward_a:.3g} -> {pair.rejected_reward:.3g}"
        )
        console.print(f"\n[bold]{escape(where)}[/bold] ({rewards})", highlight=False)
        for name, text in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
            shown = " ".join(text.split())
            console.print(f"  {name:<8} {escape(shown[:300])}{'...' if len(shown) > 300 else ''}", highlight=False)


def _print_sections(console: Console, evaluation: Evaluation, names: list[str]) -> None:
    sections = side_by_side([{section.name: section for section in result.sections} for result in evaluation.rewards])
    if not sections:
        return
    table = _table("accuracy by section", ["pairs", "ties", *names])
    for name, results in list(sections.items())[:_MOST_SECTIONS]:
        scored = [section for section in results if section is not None]
        pairs = ", ".join(dict.fromkeys(f"{section.pairs:,}" for section in scored))
        ties = ", ".join(dict.fromkeys(_share(section.ties.value) for section in scored if section.ties is not None))
        cells = [_cell(None if section is None else section.accuracy, True) for section in results]
        table.add_row(escape(name), pairs, ties, *cells)
    console.print(table)
    if len(sections) > _MOST_SECTIONS:
        echo(f"({len(sections) - _MOST_SECTIONS} more sections are in the report and in the JSON.)")


def _print_suite(console: Console, evaluation: Evaluation, names: list[str]) -> None:
    suites = [result.suite for result in evaluation.rewards]
    first = next((suite for suite in suites if suite is not None), None)
    if first is None:
        return
    table = _table(first.name, ["weight", *names])
    for place, section in enumerate(first.sections):
        cells = [_share(suite.sections[place].score) if suite is not None else "-" for suite in suites]
        table.add_row(escape(section.name), f"{section.weight:g}", *cells)
    for name in first.figures:
        table.add_row(escape(name), "", *(_share(suite.figures[name]) if suite is not None else "-" for suite in suites))
    table.add_row("[bold]score[/bold]", "", *(_share(suite.score) if suite is not None else "-" for suite in suites))
    console.print(table)
    console.print(escape(first.rule), highlight=False)


def _in_words(difference: Difference) -> str:
    numbers = (
        f"{difference.accuracy:+.1%} in accuracy on {difference.pairs:,} pairs, p = "
        f"{difference.p_value:.3g}; {difference.only_b:,} pairs that {difference.a} has wrong are right with {difference.b}, and "
        f"{difference.only_a:,} the other way round"
    )
    if difference.outcome == "unclear":
        return f"{difference.b} and {difference.a} cannot be told apart ({numbers})."
    return f"{difference.b} is {difference.outcome} than {difference.a} ({numbers})."


def _table(title: str, heads: list[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"[bold]{escape(title)}[/bold]", overflow="fold")
    for head in heads:
        table.add_column(escape(head), justify="right", overflow="fold")
    return table


def _cell(estimate: Estimate | None, is_share: bool) -> str:
    return "-" if estimate is None else escape(f"{estimate:{'.1%' if is_share else '.4g'}}")


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
