"""The options of the commands that evaluate rewards, ``evaluate`` and ``diff``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from rm_plugins.cli.job_options import batch_size_option, map_option
from rm_plugins.evaluation.run import RESAMPLES
from rm_plugins.jobs.evaluation import HUB


def evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that evaluates rewards, which are those of `rm_plugins.jobs.evaluation.evaluated`."""
    for option in reversed(
        (
            click.option("--suite", metavar="NAME", help="The benchmark that DATA is of, whose own rule is applied too."),
            click.option("--split", help="The split, where DATA is a dataset; train, or the benchmark's own, by default."),
            click.option(
                "--section", metavar="COLUMN", help="The column that names sections; `section` or `subset` by default."
            ),
            click.option(
                "--by", metavar="RATING", help="The one rating that answers are compared by; the mean of all by default."
            ),
            click.option(
                "--cluster",
                type=click.Choice(["prompt", "row"]),
                default="prompt",
                show_default=True,
                help="What the intervals take for independent: rows with different prompts, or each row.",
            ),
            map_option,
            click.option("--limit", type=click.IntRange(min=1), help="Evaluate the first N rows only."),
            click.option(
                "--scores",
                type=click.Path(path_type=Path, file_okay=False),
                help="Keep the scores in this folder, where another evaluation finds them.",
            ),
            click.option(
                "--overwrite",
                is_flag=True,
                help="Score anew what was scored before; needed where a function's code, or a server's model, has changed.",
            ),
            batch_size_option,
            click.option(
                "--resamples",
                type=click.IntRange(min=1),
                default=RESAMPLES,
                show_default=True,
                help="How often prompts are drawn again for the interval of the accuracy without length.",
            ),
            click.option("--seed", default=0, show_default=True, help="Of what is drawn at random."),
        )
    ):
        command = option(command)
    return command


def check_data(data: str, suite: str | None) -> None:
    """Refuse the dataset of a benchmark where none is named.

    Raises:
        UsageError: The message says what to do.
    """
    if data == HUB and suite is None:
        raise click.UsageError("DATA is `hub`, the dataset of a benchmark: name the benchmark with --suite.")
