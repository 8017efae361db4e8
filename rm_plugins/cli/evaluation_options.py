"""The options of the commands that evaluate rewards, ``evaluate`` and ``diff``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from rm_plugins.cli.job_options import batch_size_option, map_option
from rm_plugins.cli.printed import STANDARD_OUTPUT

ADVANCED_OPTIONS = ("section", "by", "cluster", "batch_size", "resamples", "seed")
"""Those that only ``--help-all`` shows."""

RESAMPLES = 100
"""As in `rm_plugins.evaluation.run`, whose import takes seconds."""

HUB = "hub"
"""As in `rm_plugins.jobs.evaluation`."""


def json_options(command: Callable[..., None]) -> Callable[..., None]:
    """``-o`` and ``--json``; ``-o -`` is the same as ``--json``."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print all results as JSON instead of tables."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Write all results as JSON; - prints them, as --json does."
        ),
    ):
        command = option(command)
    return command


def output_and_json(output: Path | None, as_json: bool) -> tuple[Path | None, bool]:
    """The file for the JSON, and whether it is printed; ``-o -`` has it printed."""
    return (None, True) if str(output) == STANDARD_OUTPUT else (output, as_json)


def evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that evaluates rewards, which are those of `rm_plugins.jobs.evaluation.evaluated`."""
    for option in reversed(
        (
            click.option("--suite", metavar="NAME", help="The benchmark that DATA is from; adds its own score."),
            click.option("--split", help="The split, if DATA is a dataset; by default train, or the benchmark's own."),
            click.option("--section", metavar="COLUMN", help="The column of sections; by default `section` or `subset`."),
            click.option("--by", metavar="RATING", help="Compare answers by this rating only; by default by the mean of all."),
            click.option(
                "--cluster",
                type=click.Choice(["prompt", "row"]),
                default="prompt",
                show_default=True,
                help="Whether intervals treat prompts or single rows as independent.",
            ),
            map_option,
            click.option("--limit", type=click.IntRange(min=1), help="Evaluate only the first N rows."),
            click.option(
                "--scores",
                type=click.Path(path_type=Path, file_okay=False),
                help="Keep the scores in this folder, so that later evaluations reuse them.",
            ),
            click.option(
                "--overwrite",
                is_flag=True,
                help="Score everything again; needed if the code of a function, or the model of a server, has changed.",
            ),
            batch_size_option,
            click.option(
                "--resamples",
                type=click.IntRange(min=1),
                default=RESAMPLES,
                show_default=True,
                help="Bootstrap samples for the interval of the accuracy without length.",
            ),
            click.option("--seed", default=0, show_default=True, help="Seed of everything random."),
        )
    ):
        command = option(command)
    return command


def check_data(data: str, suite: str | None) -> None:
    """Refuse the dataset of a benchmark if none is named.

    Raises:
        UsageError: The message says what to do.
    """
    if data == HUB and suite is None:
        raise click.UsageError("DATA is `hub`, the dataset of a benchmark: name the benchmark with --suite.")


def how_to_resume_evaluation(parameters: Mapping[str, Any]) -> str:
    """What to do after an evaluation was interrupted."""
    without = " without --overwrite" if parameters.get("overwrite") else ""
    return f"Run the same command again{without}: it resumes after the last batch that was scored."
