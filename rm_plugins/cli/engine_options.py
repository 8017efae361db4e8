"""Options of commands that a plug-in's engine can run elsewhere, such as on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.job_options import ConsoleProgress, check_separate, output_path
from rm_plugins.cli.printed import STANDARD_OUTPUT
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.jobs.job_engine import JobEngine


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--engine``, ``--address`` and ``--workers``, which reach the command as its argument `engine`: None, or a `JobEngine`."""

    @wraps(command)
    def with_engine(*, engine: str | None, address: str | None, workers: int | None, **arguments: Any) -> None:
        command(engine=_engine(engine, address, workers), **arguments)

    made: Callable[..., None] = with_engine
    for option in (
        click.option(
            "--workers", type=click.IntRange(min=1), help="Copies of the reward on the engine; by default all that fit."
        ),
        click.option(
            "--address", metavar="HOST:PORT|auto", help="The cluster; by default, ray takes RAY_ADDRESS or this machine alone."
        ),
        click.option("--engine", metavar="NAME", help="Score on a cluster: ray, or the engine of a plug-in."),
    ):
        made = option(made)
    return made


def _engine(name: str | None, address: str | None, workers: int | None) -> JobEngine | None:
    if name is None:
        if given := [option for option, value in (("--address", address), ("--workers", workers)) if value is not None]:
            raise click.UsageError(f"{given[0]} belongs to --engine, which is missing: --engine ray.")
        return None
    from rm_plugins.registry import default_registry

    made: JobEngine = default_registry().get("engine", name)(address, workers)
    return made


def scored_by(engine: JobEngine, *, spec: str, file: str, output: str | None, split: str, **settings: Any) -> str:
    """Score a file or folder with an engine; returns what was done, as a sentence.

    Args:
        engine: Where it is scored.
        spec: The reward.
        file: The file or folder.
        output: The output; a folder if it has no ending and `file` is a folder too.
        split: The split of a folder.
        settings: The other arguments of `ScoringRequest`.

    Raises:
        click.UsageError: The output is standard output, or replaces an input.
    """
    from rm_plugins.jobs.job_engine import ScoringRequest

    if STANDARD_OUTPUT in (file, output):
        raise click.UsageError("With --engine, FILE and the output are files or folders that all workers see; - is neither.")
    is_folder = output is not None and Path(file).is_dir() and not Path(output).suffix
    out = Path(str(output)) if is_folder else output_path(file, split, output, "scored")
    check_separate([("FILE", file), ("SPEC", spec)], [("the output", out)])
    scored = engine.score(ScoringRequest(spec, file, split, out, **settings), ConsoleProgress())
    speed = f" ({scored.throughput})" if scored.throughput else ""
    return (
        f"Wrote {counted(scored.rows, 'row')} to {out}: {counted(scored.counts['samples'], 'sample')} scored now{speed}, "
        f"{scored.counts['abstained']} abstained."
    )
