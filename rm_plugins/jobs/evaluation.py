"""Scoring judged rows with several rewards, resumably, and evaluating the scores: what ``evaluate`` and ``diff`` share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import is_data_file, json_line
from rm_plugins.data.score_columns import COLUMN_SPEC
from rm_plugins.errors import OutputError
from rm_plugins.evaluation.judged_rows import Cluster, RowCollector
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import RESAMPLES, SHOWN, EvaluationRun
from rm_plugins.files import check_output, scratch_folder
from rm_plugins.jobs.crew import Crew
from rm_plugins.jobs.interruption import JobInterrupted
from rm_plugins.jobs.kept_rows import check_outside
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import RowScoring, RowSource, loaded_reward
from rm_plugins.spec import component
from rm_plugins.suites import Suite

HUB = "hub"
"""In the place of a file: a benchmark's own dataset."""


@contextmanager
def evaluated(
    specs: Sequence[str],
    data: str,
    *,
    suite: str | None = None,
    split: str | None = None,
    section: str | None = None,
    by: str | None = None,
    cluster: Cluster = "prompt",
    mapping: RowMapping | None = None,
    limit: int | None = None,
    scores: Path | None = None,
    overwrite: bool = False,
    batch_size: int = 512,
    shown: int = SHOWN,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: JobProgress | None = None,
    crew: Crew | None = None,
) -> Iterator[Evaluation]:
    """Score DATA with each spec, continuing where an interrupted evaluation stopped, and evaluate the scores.

    The scores are deleted when the block ends, unless `scores` names a folder for them. Where the block fails they are kept, and the next
    run resumes from them.

    Args:
        specs: The rewards; ``column:score`` for scores that the rows already have (`rm_plugins.data.score_columns`).
        data: A file, ``-``, the name of a dataset, or ``hub`` for a benchmark's own.
        suite: The name of the benchmark that the data belongs to; None for none.
        split: The dataset's split; train, or the benchmark's own, by default.
        section: As in `rm_plugins.evaluation.evaluate`.
        by: As in `rm_plugins.evaluation.evaluate`.
        cluster: As in `rm_plugins.evaluation.evaluate`.
        mapping: How the columns of the data become those that are read.
        limit: How many rows are read; all by default.
        scores: The folder in which scores are kept.
        overwrite: Whether to score again what is already scored.
        batch_size: Samples scored at a time.
        shown: How many mistakes, and flipped pairs of each sort, are shown.
        resamples: See there.
        seed: See there.
        progress: Is told how far the job is.
        crew: The processes that score; by default this one does.

    Raises:
        JobInterrupted: It was interrupted with Ctrl-C while scoring.
        DataError: The data cannot be read or judged.
        OutputError: The folder `scores` cannot be written, or is in the folder that is read.
        RmPluginsError: A reward cannot be loaded, or fails.
    """
    progress = progress or JobProgress()
    benchmark: Suite | None = None if suite is None else component("suite", suite)
    if scores is not None:
        check_outside(data, scores / "scores.jsonl")
    with _scores_folder(scores, progress) as folder:
        jobs: list[RowScoring] = []
        source = _source(data, benchmark, split, mapping, limit)
        recorded = [spec for spec in specs if spec.startswith(COLUMN_SPEC)]
        collector = RowCollector(section=section, by=by, cluster=cluster, recorded=recorded)
        run = EvaluationRun(source.rows, collector, benchmark)
        run.check_rows(source.name)  # before a model is loaded
        try:
            for spec in specs:
                if spec in recorded:
                    run.add(None, run.recorded(spec.removeprefix(COLUMN_SPEC)), name=spec, source=spec)
                    continue
                provider, identity = loaded_reward(spec, crew)
                label = provider.facts.label if isinstance(provider, Crew) else provider.label
                progress.note(f"Evaluating {label}.")
                note = {
                    "fingerprint": identity,
                    "columns": {} if mapping is None else mapping.settings,
                    "limit": limit,
                    "suite": suite,
                }
                part = _scores_file(folder, label, source, note)
                jobs.append(RowScoring(provider, source, part, note, run.samples, judged=True))
                if overwrite:
                    jobs[-1].discard()
                scored = jobs[-1].run(batch_size, progress)
                described = provider.describe if isinstance(provider, Crew) else provider
                run.add(described, scored, name=label, source=spec, identity=identity)
                if not isinstance(provider, Crew):
                    provider.close()
            split = "" if is_data_file(data) else source.split
            yield run.evaluation(source=source.name, split=split, shown=shown, resamples=resamples, seed=seed)
        except BaseException:
            for job in jobs:
                job.close()
            raise
        for job in jobs:
            if scores is None:
                job.discard()
            else:
                job.close()


def _source(data: str, suite: Suite | None, split: str | None, mapping: RowMapping | None, limit: int | None) -> RowSource:
    split = split or (suite.split if suite is not None else "train")
    if suite is not None and data == HUB:
        raw = RowSource(suite.name, split, partial(suite.published, split, mapping))
    else:
        raw = RowSource.of(data, split, mapping)

    def rows() -> Iterator[dict[str, Any]]:
        judged = raw.rows() if suite is None else suite.checked_rows(raw.rows())
        return (dict(row) for row in islice(judged, limit))

    return RowSource(raw.name, split, rows)


@contextmanager
def _scores_folder(named: Path | None, progress: JobProgress) -> Iterator[Path]:
    """The folder in which scores are kept: the one that is named, else the user's cache, else a temporary one."""
    with ExitStack() as stack:
        is_temporary = False
        try:
            folder = named or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm-plugins" / "scores"
            check_output(folder, is_folder=True)
        except (OutputError, RuntimeError) as error:  # there may be no home at all
            if named is not None:
                raise
            folder = stack.enter_context(scratch_folder(Path(gettempdir()), "scores"))
            progress.note(f"If this is interrupted, scores are not kept: {error} --scores FOLDER keeps them elsewhere.")
            is_temporary = True
        try:
            yield folder
        except JobInterrupted as interruption:
            if is_temporary:
                raise JobInterrupted(interruption.work, 0, None) from interruption
            raise


def _scores_file(folder: Path, label: str, source: RowSource, note: Mapping[str, Any]) -> Path:
    """Where the scores of a reward are kept."""
    place = [os.path.abspath(source.name), source.split, note]
    digest = hashlib.sha256(json_line(place).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "-", label)[:60]
    return folder / f"{name}-{digest}.jsonl"
