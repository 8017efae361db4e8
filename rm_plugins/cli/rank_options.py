"""The options of ``rank``: which go together, and what they name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rm_plugins.cli.job_options import check_separate
from rm_plugins.errors import MissingDependencyError
from rm_plugins.files import check_output

if TYPE_CHECKING:
    from rm_plugins.jobs.scored_rows import RowSource

PAIRS = ("best-worst", "best-random", "all")
"""As in `rm_plugins.jobs.ranking`, whose import takes longer than a help should."""
ENGINES = ("transformers", "vllm")
"""As in `rm_plugins.generation`."""

_CURVE_ENDINGS = (".html", ".json", ".svg")

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


def check_options(context: click.Context, form: str, options: Mapping[str, Any]) -> None:
    """Refuse options that do not go together.

    Args:
        context: The command's, which knows what was given.
        form: The format of the output.
        options: The command's options.

    Raises:
        UsageError: An option does not fit; the message names it and the remedy.
    """
    given = [name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    for name, forms in _FORMS.items():
        if name in given and form not in forms:
            allowed = " or ".join(f"--format {name}" for name in forms)
            raise click.UsageError(f"{_flag(name)} goes with {allowed}, not with --format {form}.")
    if options["generate"] is None:
        if astray := [name for name in OF_GENERATE if name in given]:
            raise click.UsageError(f"{_flag(astray[0])} is about writing completions; it needs --generate MODEL.")
    elif options["n"] is None:
        raise click.UsageError("--generate needs the number of completions for each prompt: --n N.")
    keep = options["keep_completions"]
    if keep is not None and not keep.endswith(".jsonl"):
        raise click.UsageError(f"--keep-completions writes .jsonl; {keep!r} does not end in it.")
    low, high = options["min_margin"], options["max_margin"]
    if low is not None and high is not None and low > high:
        raise click.UsageError(f"No margin is at least {low:g} (--min-margin) and at most {high:g} (--max-margin).")


def check_files(spec: str, file: str, out: Path, on_the_way: Iterable[Path], options: Mapping[str, Any]) -> None:
    """Refuse files that cannot be written, or of which one would replace another, before anything is done for them.

    Args:
        spec: The reward's spec.
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
    inputs = {"FILE": file, "SPEC": spec, "--gold": options["gold"], "--generate": options["generate"]}
    check_separate([(name, text) for name, text in inputs.items() if text is not None], written.items())
    places = {path.resolve(): name for name, path in written.items()}
    if file != "-":
        places[Path(file).resolve()] = "FILE"
    for path in on_the_way:
        other = places.get(path.resolve(), "--keep-completions")
        if other != "--keep-completions":
            raise click.UsageError(f"{other} is {str(path)!r}, a temporary file of the output {out}. Name another file.")
    from rm_plugins.jobs.kept_rows import check_outside

    for path in (*written.values(), *on_the_way):
        check_outside(file, path)
        check_output(path)


def engine_options(written: str | None) -> dict[str, Any]:
    """The value of ``--engine-options``.

    Raises:
        UsageError: It is not a JSON mapping.
    """
    try:
        options = json.loads(written or "{}")
    except json.JSONDecodeError as error:
        raise click.UsageError(
            f'--engine-options is not valid JSON: {error}. Write it as \'{{"dtype": "bfloat16"}}\'.'
        ) from error
    if not isinstance(options, dict):
        raise click.UsageError(f"--engine-options must be a JSON mapping of names to values, not {written}.")
    return options


def gold_column(gold: str | None, source: RowSource, generate: str | None) -> str | None:
    """The column that `gold` names; None where it is a spec, or nothing.

    Raises:
        UsageError: It names a column, which generated completions do not have.
        DataError: The file cannot be read.
    """
    if gold is None or not any(gold in row for row in islice(source.rows(), _LOOKED_AT)):
        return None
    if generate is not None:
        raise click.UsageError(
            f"--gold {gold} is a column of {source.name}, which has no values for the completions that --generate writes. Give a spec."
        )
    return gold


def check_curve_file(name: str | None) -> Path | None:
    """The file of the curve, checked before anything is computed.

    Raises:
        UsageError: Its ending is unknown.
        MissingDependencyError: matplotlib is needed and absent.
    """
    if name is None:
        return None
    path = Path(name)
    if path.suffix not in _CURVE_ENDINGS:
        raise click.UsageError(f"--curve writes {', '.join(_CURVE_ENDINGS)}; {name!r} has another ending.")
    if path.suffix != ".json" and find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "Drawing the curve needs matplotlib: pip install 'rm-plugins[report]', or write --curve FILE.json."
        )
    return path


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
