"""The options of ``rank``: how ``--help`` shows them, and which go together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rm_plugins.files import check_output
from rm_plugins.jobs.scored_rows import RowSource

_LOOKED_AT = 1_000
"""The rows in which a column is looked for."""

OF_GENERATE = (
    "engine",
    "temperature",
    "top_p",
    "max_new_tokens",
    "generation_batch_size",
    "engine_options",
    "keep_completions",
)
"""Options that mean nothing without ``--generate``."""

_FORMS = {
    "best": ("ranked", "best"),
    "pairs": ("pairs",),
    "min_score": ("best", "pairs"),
    "min_margin": ("best", "pairs"),
    "max_margin": ("pairs",),
    "finished_only": ("best", "pairs"),
}
"""Options that shape the output, and the formats that they belong to."""


class GroupedCommand(click.Command):
    """A command whose help has its options under headings.

    Args:
        groups: Headings, each with the names of its parameters; what is in none comes last, as ``Options``.
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: record for option in options if (record := option.get_help_record(ctx)) is not None}
        for title, names in self._groups.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names])
        with formatter.section("Options"):
            formatter.write_dl(list(records.values()))


def check_options(context: click.Context, form: str, options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Args:
        context: The command's, which knows what was given.
        form: The format of the output.
        options: The command's options.

    Raises:
        UsageError: The message says which, and what to do.
    """
    given = [name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for name, forms in _FORMS.items():
        if name in given and form not in forms:
            allowed = " or ".join(f"--format {name}" for name in forms)
            raise click.UsageError(f"{_flag(name)} goes with {allowed}, not with --format {form}.")
    if options["generate"] is None:
        if astray := [name for name in OF_GENERATE if name in given]:
            raise click.UsageError(f"{_flag(astray[0])} says how completions are written; it needs --generate MODEL.")
    elif options["n"] is None:
        raise click.UsageError("--generate needs to know how many completions of a prompt to write: --n N.")
    keep = options["keep_completions"]
    if keep is not None and not keep.endswith(".jsonl"):
        raise click.UsageError(f"--keep-completions writes .jsonl; {keep!r} does not end in it.")
    low, high = options["min_margin"], options["max_margin"]
    if low is not None and high is not None and low > high:
        raise click.UsageError(f"No margin is at least {low:g} (--min-margin) and at most {high:g} (--max-margin).")


def check_files(file: str, out: Path, on_the_way: Iterable[Path], options: Mapping[str, Any]) -> None:
    """Refuse files that cannot be written, or of which one would replace another, before anything is done for them.

    Args:
        file: The source.
        out: The output.
        on_the_way: Files that are made before it.
        options: The command's options.

    Raises:
        UsageError: Two are the same.
        OutputError: A file cannot be written there.
    """
    named = {"--keep-completions": options["keep_completions"], "--curve": options["curve"]}
    written = {"the output": out, **{name: Path(path) for name, path in named.items() if path is not None}}
    places = {} if file == "-" else {Path(file).resolve(): "FILE"}
    for name, path in written.items():
        other = places.setdefault(path.resolve(), name)
        if other != name:
            raise click.UsageError(f"{other} and {name} are the same file, {str(path)!r}. Name different ones.")
    for path in on_the_way:
        other = places.get(path.resolve(), "--keep-completions")
        if other != "--keep-completions":
            raise click.UsageError(f"{other} is {str(path)!r}, where something is kept while {out} is made. Name another file.")
    for path in (*written.values(), *on_the_way):
        check_output(path)


def engine_options(written: str | None) -> dict[str, Any]:
    """The value of ``--engine-options``.

    Raises:
        UsageError: It is no JSON mapping.
    """
    try:
        options = json.loads(written or "{}")
    except json.JSONDecodeError as error:
        raise click.UsageError(f'--engine-options is no JSON: {error}. Write it as \'{{"dtype": "bfloat16"}}\'.') from error
    if not isinstance(options, dict):
        raise click.UsageError(f"--engine-options must be a JSON mapping of names to values, not {written}.")
    return options


def gold_column(gold: str | None, source: RowSource, generate: str | None) -> str | None:
    """The column that `gold` names; None where it is a spec, or nothing.

    Raises:
        UsageError: It names a column, and completions that are written anew have none.
        DataError: The file cannot be read.
    """
    if gold is None or not any(gold in row for row in islice(source.rows(), _LOOKED_AT)):
        return None
    if generate is not None:
        raise click.UsageError(
            f"--gold {gold} is a column of {source.name}, which knows nothing of the completions that --generate writes. Name a spec."
        )
    return gold


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
