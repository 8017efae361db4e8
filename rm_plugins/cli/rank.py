"""``rm-plugins rank``."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

import rm_plugins as rm
from rm_plugins.cli.generation_job import GenerationJob
from rm_plugins.cli.option_groups import GroupedCommand
from rm_plugins.cli.rank_curve import best_of_n_curve, check_curve_file, print_curve, write_curve
from rm_plugins.cli.rank_options import OF_GENERATE, check_options, engine_options, gold_column, no_gold
from rm_plugins.cli.rank_outputs import (
    PAIRS,
    Rule,
    ScoredPrompt,
    best_rows,
    column_values,
    first_completions,
    pair_rows,
    ranked_rows,
    scored_prompts,
)
from rm_plugins.cli.scoring_job import ScoredRow, ScoringJob, output_path, scoring_options
from rm_plugins.data import read_rows, write_rows
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.generation import ENGINES, Sampling, default_engine

__all__ = ["command"]

_SHAPING = ("form", "best", "pairs", "min_score", "min_margin", "max_margin", "finished_only")
_GROUPS = {
    "Output": ("output", *_SHAPING, "overwrite"),
    "Completions": ("n", "generate", *OF_GENERATE, "seed"),
    "Best of n": ("gold", "curve"),
}


@click.command("rank", cls=GroupedCommand, groups=_GROUPS)
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Where to write (.jsonl or .parquet); FILE.ranked.jsonl by default.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["ranked", "best", "pairs"]),
    help="ranked: all completions of a prompt in order, the default; best: a completion a row, for SFT; pairs: for DPO.",
)
@click.option("--best", type=click.IntRange(min=1), help="Keep only the N best completions of a prompt.")
@click.option("--pairs", type=click.Choice(PAIRS), help="What makes a pair; best-worst by default. Means --format pairs.")
@click.option("--min-score", type=float, help="The least score of a best or chosen completion.")
@click.option("--min-margin", type=float, help="By how much a best one must beat its prompt's mean, a chosen one the rejected.")
@click.option("--max-margin", type=float, help="By how much a chosen one may beat the rejected one.")
@click.option("--finished-only", is_flag=True, help="Leave aside what the limit on tokens cut off.")
@click.option("--n", type=click.IntRange(min=1), help="Take the first N completions of a prompt, or have N written.")
@click.option("--generate", metavar="MODEL", help="Have this policy (a folder or hub id) write them.")
@click.option(
    "--engine", type=click.Choice(ENGINES), help="What runs it: vllm by default where it and a GPU are, else transformers."
)
@click.option("--temperature", type=click.FloatRange(0, 2, min_open=True), default=1.0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--generation-batch-size", type=click.IntRange(min=1), help="Completions written at a time.")
@click.option("--engine-options", metavar="JSON", help="Settings with which the engine loads MODEL, such as its dtype.")
@click.option("--keep-completions", metavar="FILE", help="Keep what it wrote (.jsonl).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of completions and of random pairs.")
@click.option("--gold", metavar="SPEC|COLUMN", help="Judge the best of n by another reward, or by a column of FILE.")
@click.option("--curve", metavar="FILE", help="Write the curve of the best of n (.html, .json or .svg).")
@scoring_options
@click.pass_context
def command(
    context: click.Context, /, spec: str, file: str, split: str, batch_size: int, overwrite: bool, **options: Any
) -> None:
    """Order the completions of each prompt in FILE by SPEC, best first.

    A prompt's completions are a list (`completions`), or those of all rows with this prompt; or a policy writes them (--generate).
    A row of the output has `prompt`, `completions` and `scores` in the new order, and `order`, their places in the input; with
    --best 1 it has `completion` and `score`. Completions on which the reward abstained come last. An interrupted run goes on
    where it stopped.
    """
    form = options["form"] or ("pairs" if options["pairs"] else "ranked")
    check_options(context, form, file, options)
    out = output_path(file, options["output"], "ranked")
    curve_file = check_curve_file(options["curve"], overwrite)
    if out.exists() and not overwrite:  # before completions are written for it
        raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
    gold, column = options["gold"], gold_column(options["gold"], file, split, options["generate"])

    rows = _Rows(file, split, out, overwrite, options)
    source = rows.prepare([spec] if column is not None else [spec, gold], column)
    jobs = [ScoringJob(spec, source, split, out, overwrite)]
    scored = jobs[0].run(batch_size)
    if column is not None:
        prompts = scored_prompts(scored, partial(_from_column, column))
    elif gold is not None:
        jobs.append(_gold_job(gold, source, split, out, overwrite))
        prompts = scored_prompts(scored, partial(_from_rows, jobs[1].run(batch_size)))
    else:
        prompts = scored_prompts(scored)

    _tell_of_few(prompts, options["n"])
    curve = None
    if gold is not None or curve_file is not None:
        policy = options["generate"] or ""
        curve = best_of_n_curve(prompts, options["n"], proxy=spec, gold=gold or "", source=file, policy=policy)
    left_out: Counter[str] = Counter()
    count = write_rows(_shaped(prompts, form, options, left_out), out)
    _tell(count, prompts, form, out, left_out)
    if curve is not None:
        print_curve(curve)
        if curve_file is not None:
            write_curve(curve, curve_file)
            click.echo(f"Wrote the curve to {curve_file}.", err=True)
    for job in jobs:
        job.discard()
    rows.clear()


class _Rows:
    """The file whose rows are scored: the source itself, the first completions of its prompts, or what a policy writes."""

    def __init__(self, file: str, split: str, out: Path, overwrite: bool, options: dict[str, Any]) -> None:
        self._file, self._split, self._options = file, split, options
        self._first = out.with_name(f"{out.name}.rows.jsonl")
        self._generation: GenerationJob | None = None
        if options["generate"] is not None:
            keep = options["keep_completions"]
            names = ("n", "temperature", "top_p", "max_new_tokens", "seed")
            self._generation = GenerationJob(
                options["generate"],
                options["engine"] or default_engine(),
                engine_options(options["engine_options"]),
                Sampling(**{name: options[name] for name in names}),
                file,
                split,
                Path(keep) if keep else out.with_name(f"{out.name}.completions.jsonl"),
                overwrite,
            )

    def prepare(self, specs: Iterable[str | None], column: str | None) -> str:
        """Make it, unless that was done before; returns its name.

        Args:
            specs: The rewards that will score it, which are tried before hours of generating.
            column: A column with one value a completion.
        """
        if self._generation is not None:
            if not self._generation.file.is_finished:
                _try(specs)
            self._generation.run(self._options["generation_batch_size"])
            return str(self._generation.file.out)
        n = self._options["n"]
        if n is None and not (self._file == "-" and self._options["gold"] is not None):  # which is read twice
            return self._file
        found: Iterator[dict[str, Any]] = read_rows(self._file, self._split)
        if n is not None:
            found = first_completions(found, n, ["finished", *([column] if column is not None else [])])
        write_rows(found, self._first)
        return str(self._first)

    def clear(self) -> None:
        """Delete what was made, or leave it to the user who asked for it."""
        self._first.unlink(missing_ok=True)
        if self._generation is not None:
            if self._options["keep_completions"]:
                self._generation.file.forget()
            else:
                self._generation.file.discard()


def _try(specs: Iterable[str | None]) -> None:
    """Load rewards and give back what they hold."""
    for spec in specs:
        if spec is not None:
            rm.load(spec).close()
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gold_job(gold: str, source: str, split: str, out: Path, overwrite: bool) -> ScoringJob:
    try:
        return ScoringJob(gold, source, split, out.with_name(f"{out.name}.gold"), overwrite)
    except RmPluginsError as error:
        raise no_gold(gold, error) from error


def _from_column(column: str, scored: ScoredRow, number: int) -> list[float | None]:
    return column_values(scored.row, column, len(scored.scores), f"row {number}")


def _from_rows(rows: Iterator[ScoredRow], scored: ScoredRow, number: int) -> list[float | None]:
    return next(rows).scores


def _shaped(
    prompts: list[ScoredPrompt], form: str, options: dict[str, Any], left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    rule = Rule(*(options[name] for name in ("min_score", "min_margin", "max_margin", "finished_only")))
    if form == "best":
        return best_rows(prompts, options["best"] or 1, rule, left_out)
    if form == "pairs":
        return pair_rows(prompts, options["pairs"] or PAIRS[0], rule, options["seed"], left_out)
    return ranked_rows(prompts, options["best"])


def _tell(count: int, prompts: list[ScoredPrompt], form: str, out: Path, left_out: Counter[str]) -> None:
    if form == "ranked":
        click.echo(f"Wrote {count} prompts to {out}.", err=True)
        return
    what = {"best": "completions", "pairs": "pairs"}[form]
    reasons = "; ".join(f"{number} have {reason}" for reason, number in left_out.items())
    dropped = f" {left_out.total()} prompts are left out: {reasons}." if left_out else ""
    click.echo(f"Wrote {count} {what} of {len(prompts) - left_out.total()} prompts to {out}.{dropped}", err=True)
    abstained = sum(found.scores.count(None) for found in prompts)
    if abstained:
        click.echo(f"The reward abstained on {abstained} completions, which are never written.", err=True)


def _tell_of_few(prompts: list[ScoredPrompt], n: int | None) -> None:
    few = sum(len(found.scores) < n for found in prompts) if n is not None else 0
    if few:
        click.echo(
            f"{few} of {len(prompts)} prompts have fewer than {n} completions: all that they have are used, but for a curve.",
            err=True,
        )
