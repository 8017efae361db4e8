"""``rm-plugins diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.evaluation_options import (
    ADVANCED_OPTIONS,
    check_data,
    evaluation_options,
    how_to_resume_evaluation,
    json_options,
    output_and_json,
)
from rm_plugins.cli.evaluation_outputs import check_outputs, write_outputs
from rm_plugins.cli.job_options import ConsoleProgress, check_separate
from rm_plugins.cli.printed import echo
from rm_plugins.cli.processes import shared_by_processes
from rm_plugins.errors import DataError

_GROUPS = {
    "Output": ("show", "output", "as_json", "report", "fail_if"),
    "Data": ("suite", "split", "mapping", "limit"),
    "Scoring": ("scores", "overwrite"),
}


@click.command("diff", cls=Command, groups=_GROUPS, advanced=ADVANCED_OPTIONS, resuming=how_to_resume_evaluation)
@click.argument("a")
@click.argument("b")
@click.argument("data")
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="How many pairs to print on which only B is right, and on which only A is.",
)
@json_options
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write a page with the differences and the pairs on which only A or only B is right (.html).",
)
@click.option(
    "--fail-if",
    type=click.Choice(["worse", "not-better"]),
    help="Exit with 1 if B is worse than A, or is not better, at p < 0.05.",
)
@evaluation_options
@shared_by_processes
def command(
    a: str,
    b: str,
    data: str,
    show: int,
    output: Path | None,
    as_json: bool,
    report: Path | None,
    fail_if: Literal["worse", "not-better"] | None,
    **options: Any,
) -> None:
    """Compare the rewards A and B on DATA: is B better, in which sections, and on which pairs do they disagree?

    A and B are specs; DATA is as for `rm-plugins evaluate`. Both score all of DATA. An interrupted run resumes where it stopped, and
    with --scores it reuses what `rm-plugins evaluate` has scored.
    """
    from rm_plugins.cli.evaluation_tables import print_difference, print_flips
    from rm_plugins.evaluation.run import SHOWN
    from rm_plugins.jobs.evaluation import evaluated
    from rm_plugins.reports import comparison_page

    check_data(data, options["suite"])
    output, as_json = output_and_json(output, as_json)
    check_separate([("DATA", data), ("A", a), ("B", b)], [("--output", output), ("--report", report)])
    check_outputs(output, report)
    with evaluated([a, b], data, shown=max(show, SHOWN), progress=ConsoleProgress(), **options) as evaluation:
        if not evaluation.differences:
            raise DataError(f"Nothing can be compared: {data} has no pair whose two answers were scored by both rewards.")
        (difference,) = evaluation.differences
        write_outputs([(output, evaluation.to_json), (report, lambda: comparison_page(evaluation))])
    if as_json:
        echo(evaluation.to_json(), nl=False)
    else:
        print_difference(difference)
        print_flips(f"Right with {difference.b} only", difference.won, show)
        print_flips(f"Right with {difference.a} only", difference.lost, show)
    outcome = difference.outcome
    if (fail_if == "worse" and outcome == "worse") or (fail_if == "not-better" and outcome != "better"):
        word = "worse" if outcome == "worse" else "not better"
        echo(f"failed: {difference.b} is {word} than {difference.a}.", err=True)
        raise click.exceptions.Exit(1)
