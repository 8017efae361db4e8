"""``rm-plugins report``."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Column, Table

from rm_plugins.cli.printed import Console, echo
from rm_plugins.files import check_output, write_atomically
from rm_plugins.reports.training_page import FIGURES, training_page
from rm_plugins.training.journal import read_journal
from rm_plugins.training.journal_summary import RewardSummary, summarize


@click.command("report")
@click.argument("journal", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page; JOURNAL/report.html by default.")
@click.option("--last", type=click.IntRange(min=1), help="Look at the last N steps alone, as if the training began there.")
@click.option(
    "--window", default=50, show_default=True, help="How many steps to compare with as many; as RewardWatch was given."
)
def command(journal: Path, output: Path | None, last: int | None, window: int) -> None:
    """Say how a reward did in a training, from the JOURNAL that RewardWatch wrote.

    Prints a summary and the signs that the policy exploits the reward, and writes a page with curves and completions.
    """
    steps = read_journal(journal)
    summary = summarize(steps if last is None else deque(steps, last), window=window)
    out = output or journal / "report.html"
    check_output(out)
    for reward in summary.rewards:
        _print(reward)
    write_atomically(out, training_page(summary, f"Rewards in {journal}"))
    echo(f"Wrote {out}.", err=True)


def _print(summary: RewardSummary) -> None:
    compared = (Column(f"{part} {summary.compared} steps", justify="right") for part in ("first", "last"))
    table = Table(Column(f"[bold]{escape(summary.reward)}[/bold]", overflow="fold"), *compared, box=None, pad_edge=False)
    for name, title in FIGURES.items():
        if name in summary.early and name in summary.recent:
            table.add_row(title, f"{summary.early[name]:.4g}", f"{summary.recent[name]:.4g}")
    Console().print(table)
    echo(f"{summary.steps:,} steps, {summary.samples:,} samples")
    for sign in summary.evidence:
        echo(f"warning, step {sign.step}: {sign.message}")
    if not summary.evidence:
        echo("No sign that the policy exploits this reward.")
    echo()
