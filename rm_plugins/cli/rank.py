"""``rm-plugins rank``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import rm_plugins as rm
from rm_plugins.cli.command import Command
from rm_plugins.cli.job_options import ConsoleProgress, how_to_resume, rows_output, scoring_options, shown_output
from rm_plugins.cli.printed import STANDARD_OUTPUT, say
from rm_plugins.cli.processes import shared_by_processes
from rm_plugins.cli.rank_options import (
    ENGINES,
    OF_GENERATE,
    PAIRS,
    check_curve_file,
    check_files,
    check_options,
    engine_options,
    gold_column,
)
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.files import in_utf8, replacing, would_replace
from rm_plugins.labels import counted

if TYPE_CHECKING:
    from rm_plugins.data.scored_rows import ScoredRow
    from rm_plugins.jobs.crew import Crew
    from rm_plugins.jobs.generation import GenerationJob
    from rm_plugins.jobs.ranking import ScoredPrompt
    from rm_plugins.jobs.scored_rows import RowSource

_SHAPING = ("form", "best", "pairs", "min_score", "min_margin", "max_margin", "finished_only")
_GROUPS = {
    "Output": ("output", *_SHAPING, "overwrite"),
    "Completions": ("n", "generate", *OF_GENERATE, "seed"),
    "Best of n": ("gold", "curve"),
}
_ADVANCED = (
    "top_p",
    "generation_batch_size",
    "engine",
    "engine_options",
    "keep_completions",
    "max_margin",
    "finished_only",
    "batch_size",
    "seed",
)


@click.command("rank", cls=Command, groups=_GROUPS, advanced=_ADVANCED, resuming=how_to_resume)
@click.argument("spec")
@click.argument("file")
@click.option("-o", "--output", help="Output (.jsonl or .parquet), - for standard output; by default FILE.ranked.jsonl.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["ranked", "best", "pairs"]),
    help="ranked (default) has all completions in order, best has one per row for SFT, pairs has preference pairs for DPO.",
)
@click.option("--best", type=click.IntRange(min=1), help="Keep only the N best completions of each prompt.")
@click.option("--pairs", type=click.Choice(PAIRS), help="How pairs are formed; implies --format pairs. By default best-worst.")
@click.option("--min-score", type=float, help="Minimum score of a best or chosen completion.")
@click.option(
    "--min-margin",
    type=float,
    help="Minimum lead of the best completion over the mean of its prompt; with --format pairs, of the chosen one over the rejected one.",
)
@click.option("--max-margin", type=float, help="Maximum lead of a chosen completion over the rejected one.")
@click.option("--finished-only", is_flag=True, help="Leave out completions that the token limit cut off.")
@click.option("--n", type=click.IntRange(min=1), help="Use the first N completions of each prompt, or generate N.")
@click.option("--generate", metavar="MODEL", help="Generate the completions with this policy (a folder or hub id).")
@click.option(
    "--engine", type=click.Choice(ENGINES), help="The generation engine; vllm if available with a GPU, else transformers."
)
@click.option("--temperature", type=click.FloatRange(0, 2, min_open=True), default=1.0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--generation-batch-size", type=click.IntRange(min=1), help="Completions generated at a time.")
@click.option("--engine-options", metavar="JSON", help='Settings for loading MODEL, such as {"dtype": "bfloat16"}.')
@click.option("--keep-completions", metavar="FILE", help="Keep the generated completions (.jsonl).")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of generation and of random pairs."
)
@click.option(
    "--gold", metavar="SPEC|COLUMN", help="Judge the best of n completions, for each n, by another reward or a column of FILE."
)
@click.option("--curve", metavar="FILE", help="Write the best-of-n curve (.html, .json or .svg).")
@scoring_options
@click.pass_context
@shared_by_processes
def command(
    context: click.Context,
    /,
    spec: str,
    file: str,
    split: str,
    batch_size: int,
    overwrite: bool,
    crew: Crew | None,
    **options: Any,
) -> None:
    """Order the completions of each prompt in FILE by the scores of SPEC, best first.

    The completions of a prompt are its list `completions`, those of all rows with the same prompt, or what a policy generates
    (--generate). Each output row has `prompt`, `completions` and `scores`, best first, and `order`, their positions in the input;
    with --best 1, `completion` and `score`. Completions on which the reward abstained come last. An interrupted run resumes where
    it stopped.
    """
    with rows_output(file, split, options["output"], "ranked") as out:
        _rank(context, out, spec, file, split, batch_size, overwrite, crew, options)


def _rank(
    context: click.Context,
    out: Path,
    spec: str,
    file: str,
    split: str,
    batch_size: int,
    overwrite: bool,
    crew: Crew | None,
    options: dict[str, Any],
) -> None:
    from rm_plugins.data.row_files import write_rows
    from rm_plugins.data.score_columns import column_scores
    from rm_plugins.jobs.kept_rows import KeptRows
    from rm_plugins.jobs.ranking import scored_prompts
    from rm_plugins.jobs.scored_rows import RowSource

    form = options["form"] or ("pairs" if options["pairs"] else "ranked")
    check_options(context, form, options)
    curve_file = check_curve_file(options["curve"])
    check_files(spec, file, out, _on_the_way(out, options), options)
    given = RowSource.of(file, split, options["mapping"])
    rows = _Rows(given, out, overwrite, options)
    gold, column = options["gold"], gold_column(options["gold"], given, options["generate"])
    has_gold_spec = gold is not None and column is None
    kept, kept_gold = (KeptRows(out.with_name(f"{out.name}{ending}.part"), {}) for ending in ("", ".gold"))
    if not overwrite:
        _check_free(out, curve_file, begun=rows.is_begun or kept.path.exists())

    if rows.are_to_be_generated:
        _try(spec, crew)
    if has_gold_spec:
        try:
            _try(gold, crew)
        except RmPluginsError as error:
            raise DataError(
                f"--gold {gold!r} is not a column of the first rows, and cannot be loaded as a spec: {error}"
            ) from error
    if overwrite:
        for old in (kept, kept_gold, rows):
            old.discard()
    source = rows.prepare(column)
    scored = _scored(spec, source, kept.path, batch_size, crew)
    if column is not None:
        golds = [column_scores(row.row, column, len(row.scores), f"row {number}") for number, row in enumerate(scored, start=1)]
    elif gold is not None:
        golds = [row.scores for row in _scored(gold, source, kept_gold.path, batch_size, crew)]
    else:
        golds = []
    prompts = scored_prompts(scored, golds)

    _tell_of_few(prompts, options["n"])
    curve = no_curve = None
    if gold is not None or curve_file is not None:
        from rm_plugins.cli.rank_curve import best_of_n_curve, curve_text, print_curve

        policy = options["generate"] or ""
        try:
            curve = best_of_n_curve(prompts, options["n"], proxy=spec, gold=gold or "", source=file, policy=policy)
        except DataError as error:
            no_curve = error
    left_out: Counter[str] = Counter()
    with ExitStack() as stack:
        if curve is not None and curve_file is not None:  # it is put in place after the rows: both are written, or neither
            temporary = stack.enter_context(replacing(curve_file))
            temporary.write_text(in_utf8(curve_text(curve, curve_file.suffix)), encoding="utf-8")
        count = write_rows(_shaped(prompts, form, options, left_out), out)
    name = shown_output(out, options["output"])
    _tell(count, prompts, form, name, left_out)
    if curve is not None:
        print_curve(curve, to_stderr=options["output"] == STANDARD_OUTPUT)
        if curve_file is not None:
            say(f"Wrote the curve to {curve_file}.")
    rows.clear_first()  # the files that mark an interrupted run are deleted last
    for old in (kept_gold, kept):
        old.discard()
    rows.clear()
    if no_curve is not None:
        raise DataError(f"The rows are written to {name}, but there is no curve: {no_curve}") from no_curve


class _Rows:
    """The file whose rows are scored: the source itself, the first completions of its prompts, or generated completions."""

    def __init__(self, source: RowSource, out: Path, overwrite: bool, options: dict[str, Any]) -> None:
        self._source, self._options = source, options
        self._overwrite = overwrite
        self._first, completions = _on_the_way(out, options)
        self._generation: GenerationJob | None = None
        if options["generate"] is not None:
            from rm_plugins.generation import Sampling, default_engine
            from rm_plugins.jobs.generation import GenerationJob

            names = ("n", "temperature", "top_p", "max_new_tokens", "seed")
            self._generation = GenerationJob(
                options["generate"],
                options["engine"] or default_engine(),
                engine_options(options["engine_options"]),
                Sampling(**{name: options[name] for name in names}),
                source,
                completions,
                overwrite,
            )

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run has left completions."""
        return self._generation is not None and self._generation.is_begun

    @property
    def are_to_be_generated(self) -> bool:
        """Whether completions are still to be generated, which may take hours."""
        return self._generation is not None and (self._overwrite or not self._generation.file.is_finished)

    def prepare(self, column: str | None) -> RowSource:
        """Make the file unless an earlier run did; `column` has one value per completion."""
        from rm_plugins.data.row_files import write_rows
        from rm_plugins.jobs.ranking import first_completions
        from rm_plugins.jobs.scored_rows import RowSource

        if self._generation is not None:
            self._generation.run(self._options["generation_batch_size"], ConsoleProgress())
            return RowSource.of(str(self._generation.file.out), self._source.split)
        if self._options["n"] is None:
            return self._source
        beside = ["finished", *([column] if column is not None else [])]
        write_rows(first_completions(self._source.rows(), self._options["n"], beside), self._first)
        return RowSource.of(str(self._first), self._source.split)

    def discard(self) -> None:
        """Delete what an earlier run made."""
        self.clear_first()
        if self._generation is not None:
            self._generation.file.discard()

    def clear_first(self) -> None:
        """Delete the file of the first completions."""
        self._first.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete what was generated, unless the user wants to keep it."""
        if self._generation is None:
            return
        if self._options["keep_completions"]:
            self._generation.file.forget()
        else:
            self._generation.file.discard()


def _on_the_way(out: Path, options: dict[str, Any]) -> tuple[Path, Path]:
    """The files of the first completions, and of the generated ones."""
    keep = options["keep_completions"]
    return out.with_name(f"{out.name}.rows.jsonl"), Path(keep) if keep else out.with_name(f"{out.name}.completions.jsonl")


def _check_free(out: Path, curve_file: Path | None, begun: bool) -> None:
    """Refuse to replace files, unless an interrupted run with ``--overwrite`` was to replace them."""
    if would_replace(out):
        if begun:
            say(f"{out} will be replaced: a run with --overwrite was interrupted.")
            return
        raise DataError(f"{out} exists already. Name another output with -o, or replace it with --overwrite.")
    if curve_file is not None and would_replace(curve_file):
        raise DataError(f"{curve_file} exists already. Name another file for --curve, or replace it with --overwrite.")


def _try(spec: str, crew: Crew | None) -> None:
    """Load a reward before hours of other work, so that an error shows now, and free its memory."""
    from rm_plugins.jobs.crew_member import free_memory

    if crew is None:
        rm.load(spec).close()
        free_memory()
    else:
        crew.load(spec).check_shared()
        crew.unload()


def _scored(spec: str, source: RowSource, part: Path, batch_size: int, crew: Crew | None) -> list[ScoredRow]:
    """The rows with the scores of a reward, whose memory is freed before the next one is loaded."""
    from rm_plugins.jobs.crew_member import free_memory
    from rm_plugins.jobs.scored_rows import RowScoring, loaded_reward

    provider, identity = loaded_reward(spec, crew)
    try:
        note = {"spec": spec, "fingerprint": identity}
        return list(RowScoring(provider, source, part, note).run(batch_size, ConsoleProgress()))
    finally:
        if crew is None:
            provider.close()
            del provider
            free_memory()


def _shaped(
    prompts: list[ScoredPrompt], form: str, options: dict[str, Any], left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    from rm_plugins.jobs.ranking import Rule, best_rows, pair_rows, ranked_rows

    rule = Rule(*(options[name] for name in ("min_score", "min_margin", "max_margin", "finished_only")))
    if form == "best":
        return best_rows(prompts, options["best"] or 1, rule, left_out)
    if form == "pairs":
        return pair_rows(prompts, options["pairs"] or "best-worst", rule, options["seed"], left_out)
    return ranked_rows(prompts, options["best"])


def _tell(count: int, prompts: list[ScoredPrompt], form: str, out: str, left_out: Counter[str]) -> None:
    if form == "ranked":
        say(f"Wrote {counted(count, 'prompt')} to {out}.")
        return
    what = {"best": "completion", "pairs": "pair"}[form]
    reasons = "; ".join(f"{number:,} {'has' if number == 1 else 'have'} {reason}" for reason, number in left_out.items())
    are = "is" if left_out.total() == 1 else "are"
    dropped = f" {counted(left_out.total(), 'prompt')} {are} left out: {reasons}." if left_out else ""
    used = counted(len(prompts) - left_out.total(), "prompt")
    say(f"Wrote {counted(count, what)} of {used} to {out}.{dropped}")
    abstained = sum(prompt.scores.count(None) for prompt in prompts)
    if abstained:
        are = "is" if abstained == 1 else "are"
        say(f"The reward abstained on {counted(abstained, 'completion')}, which {are} not written.")


def _tell_of_few(prompts: list[ScoredPrompt], n: int | None) -> None:
    if n is not None and (few := sum(len(prompt.scores) < n for prompt in prompts)):
        have = "has" if few == 1 else "have"
        say(
            f"{few:,} of {counted(len(prompts), 'prompt')} {have} fewer than {counted(n, 'completion')}: all of them are used, except in a "
            "curve."
        )
