"""``rm-plugins diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from rm_plugins.cli.evaluation_options import check_data, evaluation_options
from rm_plugins.cli.evaluation_outputs import check_outputs, write_outputs
from rm_plugins.cli.evaluation_tables import print_difference, print_flips
from rm_plugins.cli.job_options import ConsoleProgress
from rm_plugins.cli.printed import echo
from rm_plugins.errors import DataError
from rm_plugins.evaluation.run import SHOWN
from rm_plugins.jobs.evaluation import evaluated
from rm_plugins.reports import comparison_page


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.argument("data")
@click.option(
    "--show", type=click.IntRange(min=0), default=5, show_default=True, help="How many flipped pairs of each sort are printed."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write everything that was found as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON in place of words.")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write a page with the differences and the flipped pairs (.html)."
)
@click.option(
    "--fail-if",
    type=click.Choice(["worse", "not-better"]),
    help="Exit with 1 where B is worse than A, or is not better, at p < 0.05.",
)
@evaluation_options
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
    """Say whether the reward B is better than the reward A on DATA, where, and on which pairs they differ.

    A and B are specs; DATA is what `rm-plugins evaluate` takes. Both score all of DATA; an interrupted run goes on where it
    stopped, and with --scores what `evaluate` has scored is not scored again.
    """
    check_data(data, options["suite"])
    check_outputs(output, report)
    with evaluated([a, b], data, shown=max(show, SHOWN), progress=ConsoleProgress(), **options) as evaluation:
        if not evaluation.differences:
            raise DataError(
                f"There is no pair in {data} of which both rewards scored both answers, so that nothing can be compared."
            )
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
