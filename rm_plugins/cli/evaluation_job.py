"""Scoring judged rows with several rewards, resumably: what ``evaluate`` and ``diff`` share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Any

import click

import rm_plugins as rm
from rm_plugins.cli.job_options import ConsoleProgress, batch_size_option
from rm_plugins.data.rows import is_data_file, json_line, read_rows
from rm_plugins.errors import DataError
from rm_plugins.evaluation.judged_rows import Cluster, RowCollector
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import RESAMPLES, SHOWN, evaluation_of
from rm_plugins.evaluation.scored_reward import RewardColumns, RewardFacts, reward_facts
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.scored_rows import RowScoring, RowSource, ScoredRow
from rm_plugins.spec import component
from rm_plugins.suites import Suite

__all__ = ["EvaluationOptions", "evaluated", "evaluation_options"]

HUB = "hub"
"""In the place of a file: a benchmark's own dataset."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What `evaluation_options` adds to a command; each is explained there."""

    suite: str | None
    split: str | None
    section: str | None
    by: str | None
    cluster: Cluster
    rename: tuple[str, ...]
    limit: int | None
    scores: Path | None
    overwrite: bool
    batch_size: int
    resamples: int
    seed: int


def evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that evaluates rewards; the command takes them together, as `options`."""

    @wraps(command)
    def found(**arguments: Any) -> None:
        chosen = {field.name: arguments.pop(field.name) for field in fields(EvaluationOptions)}
        command(options=EvaluationOptions(**chosen), **arguments)

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
            click.option("--rename", metavar="OLD=NEW", multiple=True, help="Read the column OLD as NEW; may be repeated."),
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
                help="Of the bootstrap of the intervals.",
            ),
            click.option("--seed", default=0, show_default=True, help="Of the bootstrap."),
        )
    ):
        found = option(found)
    return found


@contextmanager
def evaluated(specs: Sequence[str], data: str, options: EvaluationOptions, *, shown: int = SHOWN) -> Iterator[Evaluation]:
    """Score DATA with each spec, going on where an interrupted evaluation stopped, and evaluate the scores.

    The scores are deleted when the block ends, unless they are to be kept or it fails: then they are there for the next run.

    Args:
        specs: The rewards.
        data: A file, ``-``, the name of a dataset, or ``hub`` for a benchmark's own.
        options: What the command was told.
        shown: How many mistakes, and flipped pairs of each sort, are shown.

    Raises:
        DataError: The data cannot be read or judged.
        RmPluginsError: A reward cannot be loaded, or fails.
    """
    suite: Suite | None = None if options.suite is None else component("suite", options.suite)
    jobs: list[RowScoring] = []
    with _spooled(data) as file:
        source = _source(data, file, suite, options)
        collector = RowCollector(section=options.section, by=options.by, cluster=options.cluster)
        names: set[str] = set()
        found: list[tuple[RewardFacts, RewardColumns]] = []
        try:
            for spec in specs:
                provider = rm.load(spec)
                name = _unused(provider.label, names)
                click.echo(f"Evaluating {name}.", err=True)
                identity = fingerprint(provider)  # reads every weight
                jobs.append(_job(provider, identity, source, collector, options))
                columns, sample = _scored(
                    jobs[-1].run(options.batch_size, ConsoleProgress()), collector, is_first=len(jobs) == 1
                )
                facts = reward_facts(provider, name=name, source=spec, sample=sample, identity=identity)
                found.append((facts, columns))
                provider.close()
            yield evaluation_of(
                collector.collected(),
                found,
                lambda: (scored.row for scored in jobs[0].scored_rows()),
                suite=suite,
                source=source.name,
                split="" if is_data_file(data) else source.split,
                shown=shown,
                resamples=options.resamples,
                seed=options.seed,
            )
        except BaseException:
            for job in jobs:
                job.close()
            raise
        for job in jobs:
            if options.scores is None:
                job.discard()
            else:
                job.close()


def _job(
    provider: rm.Provider, identity: str, source: RowSource, collector: RowCollector, options: EvaluationOptions
) -> RowScoring:
    note = {"fingerprint": identity, "columns": list(options.rename), "limit": options.limit, "suite": options.suite}
    part = _scores_file(options.scores, provider.label, source, note)
    job = RowScoring(provider, source, part, note, lambda row, where: collector.judged(row, where).samples)
    if options.overwrite:
        job.discard()
    return job


def _scored(rows: Iterator[ScoredRow], collector: RowCollector, *, is_first: bool) -> tuple[RewardColumns, rm.Sample | None]:
    """The scores of a reward, and its first sample; of the first reward, the rows are collected too."""
    columns, sample = RewardColumns(), None
    for number, scored in enumerate(rows, start=1):
        if is_first or sample is None:
            judged = collector.judged(scored.row, f"row {number}")
            sample = sample or judged.samples[0]
            if is_first:
                collector.add(scored.row, judged)
        columns.add(_numbers(scored.scores), {key: _numbers(values) for key, values in scored.details.items()})
    return columns, sample


def _spooled(data: str) -> AbstractContextManager[Any]:
    """A file with what standard input says, which several rewards read one after the other; None for anything else."""
    if data != "-":
        return nullcontext()
    file = tempfile.NamedTemporaryFile("w+", suffix=".jsonl", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    try:
        shutil.copyfileobj(sys.stdin, file)
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is no UTF-8: {error}") from error
    file.flush()
    return file


def _source(data: str, file: Any, suite: Suite | None, options: EvaluationOptions) -> RowSource:
    if data == HUB and suite is None:
        raise click.UsageError("DATA is `hub`, the dataset of a benchmark: name the benchmark with --suite.")
    renamed = dict(_renaming(text) for text in options.rename)
    split = options.split or (suite.split if suite is not None else "train")
    if suite is not None and data == HUB:
        name, read = suite.name, partial(suite.published, split)
    else:
        name, read = data, partial(read_rows, data if file is None else file.name, split)

    def rows() -> Iterator[dict[str, Any]]:
        raw = (_with_names(row, renamed) for row in read())
        judged = raw if suite is None else suite.checked_rows(raw)
        return (dict(row) for row in islice(judged, options.limit))

    return RowSource(name, split, rows)


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise click.UsageError(f"--rename {text!r} is not OLD=NEW, such as is_correct=labels.")
    return old, new


def _with_names(row: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    for old, new in renamed.items():
        if old not in row:
            raise DataError(
                f"There is no column {old!r} to be read as {new!r}; a row has {', '.join(map(repr, row)) or 'none'}."
            )
    taken = set(renamed.values()) - renamed.keys()
    return {renamed.get(name, name): value for name, value in row.items() if name not in taken}


def _unused(name: str, names: set[str]) -> str:
    """A name for a reward that no other has."""
    found, number = name, 2
    while found in names:
        found, number = f"{name} ({number})", number + 1
    names.add(found)
    return found


def _scores_file(folder: Path | None, label: str, source: RowSource, note: Mapping[str, Any]) -> Path:
    """Where the scores of a reward are kept: in the folder that was named, else in the user's cache until all is evaluated."""
    place = [os.path.abspath(source.name), source.split, note]
    digest = hashlib.sha256(json_line(place).encode()).hexdigest()[:12]
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm-plugins" / "scores"
    name = re.sub(r"[^\w.-]+", "-", label)[:60]
    return folder / f"{name}-{digest}.jsonl"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
