"""``rm-plugins report``."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.evaluation_outputs import check_drawing
from rm_plugins.cli.job_options import check_separate
from rm_plugins.cli.printed import Console, echo, say
from rm_plugins.files import check_output, write_atomically
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.training.journal_summary import RewardSummary


@click.command("report", cls=Command)
@click.argument("journal", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The page; by default JOURNAL/report.html.")
@click.option("--last", type=click.IntRange(min=1), help="Use only the last N steps, as if the training began there.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Compare the first and the last N steps; as RewardWatch was given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(journal: Path, output: Path | None, last: int | None, window: int, as_json: bool) -> None:
    """Summarize how a reward behaved in a training, from the JOURNAL that RewardWatch wrote.

    Prints figures and signs that the policy exploits the reward, and writes a page with curves and completions.
    """
    from rm_plugins.reports.training_page import training_page
    from rm_plugins.training.journal import read_journal
    from rm_plugins.training.journal_summary import summarize

    steps = read_journal(journal)
    summary = summarize(steps if last is None else deque(steps, last), window=window)
    out = output or journal / "report.html"
    check_separate([("a file of JOURNAL", str(file)) for file in journal.glob("*.parquet")], [("--output", out)])
    check_output(out)
    check_drawing()
    if as_json:
        echo(json.dumps([_facts(reward) for reward in summary.rewards], indent=2))
    else:
        for reward in summary.rewards:
            _print(reward)
    write_atomically(out, training_page(summary, f"Rewards in {journal}"))
    say(f"Wrote {out}.")


def _facts(summary: RewardSummary) -> dict[str, Any]:
    return {
        "reward": summary.reward,
        "steps": summary.steps,
        "samples": summary.samples,
        "compared_steps": summary.compared,
        "first": dict(summary.early),
        "last": dict(summary.recent),
        "warnings": [{"step": sign.step, "message": sign.message} for sign in summary.evidence],
    }


def _print(summary: RewardSummary) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    from rm_plugins.reports.training_page import FIGURES

    compared = (Column(f"{part} {summary.compared} steps", justify="right") for part in ("first", "last"))
    table = Table(Column(f"[bold]{escape(summary.reward)}[/bold]", overflow="fold"), *compared, box=None, pad_edge=False)
    for name, title in FIGURES.items():
        if name in summary.early and name in summary.recent:
            table.add_row(title, f"{summary.early[name]:.4g}", f"{summary.recent[name]:.4g}")
    Console().print(table)
    echo(f"{counted(summary.steps, 'step')}, {counted(summary.samples, 'sample')}")
    for sign in summary.evidence:
        echo(f"warning, step {sign.step}: {sign.message}")
    if not summary.evidence:
        echo("No sign that the policy exploits this reward.")
    echo()
