"""``rm-plugins evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rm_plugins.cli.evaluation_options import check_data, evaluation_options
from rm_plugins.cli.evaluation_outputs import check_outputs, write_outputs
from rm_plugins.cli.evaluation_tables import print_evaluation
from rm_plugins.cli.gates import failures, parse_gates
from rm_plugins.cli.job_options import ConsoleProgress
from rm_plugins.cli.printed import echo
from rm_plugins.errors import DataError
from rm_plugins.evaluation.model_card import CARD_NAME, write_model_card
from rm_plugins.files import check_output
from rm_plugins.jobs.evaluation import evaluated
from rm_plugins.reports import evaluation_page


@click.command("evaluate")
@click.argument("specs", nargs=-1, required=True, metavar="SPEC [SPEC ...] DATA")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write everything that was found as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON in place of the tables.")
@click.option("--report", type=click.Path(path_type=Path), help="Write a page with figures and charts (.html).")
@click.option("--card", is_flag=True, help="Write the figures into README.md of each SPEC that is a model folder.")
@click.option(
    "--fail-under",
    metavar="FIGURE=NUMBER",
    multiple=True,
    help="Exit with 1 where a reward's figure is lower, such as accuracy=0.8; FIGURE.low asks it of the interval's lower end.",
)
@click.option("--fail-over", metavar="FIGURE=NUMBER", multiple=True, help="Exit with 1 where it is higher, such as ece=0.1.")
@evaluation_options
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
    """Say how good rewards are: score judged answers with each SPEC, and print figures with 95% intervals.

    DATA is a file or folder, as `rm-plugins score` takes them, the name of a dataset, or - for standard input. Its rows are
    preference pairs (`chosen`, `rejected`), or `completions` with `ranks`, `scores`, `best` or `labels`. With --suite it is the
    benchmark's dataset, or `hub` to fetch that.

    As a SPEC, column:NAME evaluates scores that the rows have already: NAME, NAMEs, or chosen_NAME and rejected_NAME.

    An interrupted evaluation goes on where it stopped. With several rewards, each further one is compared with the first.
    """
    if len(specs) < 2:
        raise click.UsageError("Both a SPEC and DATA are needed: rm-plugins evaluate ./Qwen2.5-Reward pairs.jsonl")
    *rewards, data = specs
    check_data(data, options["suite"])
    gates = parse_gates(fail_under, fail_over)
    check_outputs(output, report)
    folders = [_card_folder(spec) for spec in rewards] if card else []
    with evaluated(rewards, data, progress=ConsoleProgress(), **options) as evaluation:
        missed = failures(evaluation, gates)
        write_outputs([(output, evaluation.to_json), (report, lambda: evaluation_page(evaluation))])
        for place, folder in enumerate(folders):
            echo(f"Wrote {write_model_card(folder, evaluation, reward=place)}.", err=True)
    if as_json:
        echo(evaluation.to_json(), nl=False)
    else:
        print_evaluation(evaluation)
    for message in missed:
        echo(f"failed: {message}", err=True)
    if missed:
        raise click.exceptions.Exit(1)


def _card_folder(spec: str) -> Path:
    folder = Path(spec)
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise DataError(f"--card writes into the folder of a model, and {spec!r} is none. Leave it out, or name the folder.")
    check_output(folder / CARD_NAME)
    return folder
