"""``rm-plugins evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from rm_plugins.cli.printed import echo, say
from rm_plugins.cli.processes import shared_by_processes
from rm_plugins.errors import DataError
from rm_plugins.files import check_output

_GROUPS = {
    "Output": ("output", "as_json", "report", "card"),
    "Limits for CI": ("fail_under", "fail_over"),
    "Data": ("suite", "split", "mapping", "limit"),
    "Scoring": ("scores", "overwrite"),
}


@click.command("evaluate", cls=Command, groups=_GROUPS, advanced=ADVANCED_OPTIONS, resuming=how_to_resume_evaluation)
@click.argument("specs", nargs=-1, required=True, metavar="SPEC [SPEC ...] DATA")
@json_options
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with figures and charts (.html).")
@click.option("--card", is_flag=True, help="Write the figures into the README.md of each SPEC that is a model folder.")
@click.option(
    "--fail-under",
    metavar="FIGURE=NUMBER",
    multiple=True,
    help="Exit with 1 if a figure is lower, such as accuracy=0.8; FIGURE.low is the lower end of its interval.",
)
@click.option("--fail-over", metavar="FIGURE=NUMBER", multiple=True, help="Exit with 1 if a figure is higher, such as ece=0.1.")
@evaluation_options
@shared_by_processes
def command(
    specs: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    report: Path | None,
    card: bool,
    fail_under: tuple[str, ...],
    fail_over: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure how good rewards are: score judged answers with each SPEC and print figures with 95% intervals.

    DATA is a file or folder as for `rm-plugins score`, the name of a dataset, or - for standard input. Its rows are preference pairs
    (`chosen`, `rejected`), or `completions` with `ranks`, `scores`, `best` or `labels`. With --suite it is the dataset of a benchmark,
    or `hub` to download that.

    The SPEC column:NAME evaluates scores that the rows already have: NAME, NAMEs, or chosen_NAME and rejected_NAME.

    With several rewards, each is compared with the first. An interrupted evaluation resumes where it stopped.
    """
    from rm_plugins.cli.evaluation_tables import print_evaluation
    from rm_plugins.cli.gates import failures, parse_gates
    from rm_plugins.evaluation.model_card import write_model_card
    from rm_plugins.jobs.evaluation import evaluated
    from rm_plugins.reports import evaluation_page

    if len(specs) < 2:
        raise click.UsageError("Give a SPEC and DATA: rm-plugins evaluate ./Qwen2.5-Reward pairs.jsonl")
    *rewards, data = specs
    check_data(data, options["suite"])
    gates = parse_gates(fail_under, fail_over)
    output, as_json = output_and_json(output, as_json)
    inputs = [("DATA", data), *(("SPEC", spec) for spec in rewards)]
    check_separate(inputs, [("--output", output), ("--report", report)])
    check_outputs(output, report)
    folders = [_card_folder(spec) for spec in rewards] if card else []
    with evaluated(rewards, data, progress=ConsoleProgress(), **options) as evaluation:
        missed = failures(evaluation, gates)
        write_outputs([(output, evaluation.to_json), (report, lambda: evaluation_page(evaluation))])
        for place, folder in enumerate(folders):
            say(f"Wrote {write_model_card(folder, evaluation, reward=place)}.")
    if as_json:
        echo(evaluation.to_json(), nl=False)
    else:
        print_evaluation(evaluation)
    for message in missed:
        echo(f"failed: {message}", err=True)
    if missed:
        raise click.exceptions.Exit(1)


def _card_folder(spec: str) -> Path:
    from rm_plugins.evaluation.model_card import CARD_NAME

    folder = Path(spec)
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise DataError(
            f"--card writes into a model folder, and {spec!r} is not one. Leave out --card, or give the folder as SPEC."
        )
    check_output(folder / CARD_NAME)
    return folder
