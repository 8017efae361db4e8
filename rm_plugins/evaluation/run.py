"""Evaluating rewards: rows are scored, and the scores become the results that a report shows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.plain_values import plain_row
from rm_plugins.data.presets import proposed_mapping
from rm_plugins.data.rows import preference_samples
from rm_plugins.data.score_columns import COLUMN_SPEC, column_scores, columns_called, has_scores
from rm_plugins.data.scored_rows import ScoredRow, scored_batches
from rm_plugins.data.written_mapping import mapping_of
from rm_plugins.errors import DataError
from rm_plugins.evaluation.differences import reward_difference
from rm_plugins.evaluation.findings import findings
from rm_plugins.evaluation.judged_rows import Cluster, JudgedRows, RowCollector
from rm_plugins.evaluation.results import DataSummary, Evaluation, RewardResult
from rm_plugins.evaluation.reward_charts import (
    accuracy_by_length,
    best_of_n_of_lists,
    format_biases,
    length_scatter,
    member_comparison,
    reward_distribution,
    section_results,
)
from rm_plugins.evaluation.reward_figures import BINS, ScoredPairs, reward_figures
from rm_plugins.evaluation.scored_reward import reward_facts, scores_of
from rm_plugins.evaluation.shown_pairs import ShownPairs, worst_pairs
from rm_plugins.groups import RowGroups
from rm_plugins.labels import distinct_labels
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import groupings
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.spec import component
from rm_plugins.statistics.accuracy import PairMetrics, pair_metrics
from rm_plugins.statistics.bias import longer_share
from rm_plugins.statistics.metrics import calibration_curve
from rm_plugins.suites import Suite, SuiteItem, SuiteResult

RESAMPLES = 100
"""The default number of refits of the length control for its interval."""
SHOWN = 20
"""How many mistakes, and flipped pairs of each kind, are shown."""
_PACKAGES = ("rm-plugins", "torch", "transformers", "numpy", "scipy")


def evaluate(
    rewards: Provider | Mapping[str, Provider],
    rows: Iterable[Mapping[str, Any]],
    *,
    mapping: RowMapping | str | None = None,
    suite: Suite | str | None = None,
    section: str | None = None,
    by: str | None = None,
    cluster: Cluster = "prompt",
    source: str = "",
    batch_size: int = 256,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score judged rows with one or several rewards, and measure how good the rewards are.

    All rows are checked before the first one is scored.

    Args:
        rewards: A reward, or several by name; ``column:score`` for scores that the rows already have (`columns_called`).
        rows: Rows in the formats of `rm_plugins.data.judgements`, such as a `datasets.Dataset`; with a suite, the rows of its dataset. They
            are read several times. An iterator is kept in memory.
        mapping: How the columns of the rows become those that we read: a `RowMapping`, or text as ``--map`` takes it, such as ``"arena"``.
        suite: A benchmark or its name. Its own rule is applied too.
        section: The column that names a row's section; ``section`` or ``subset`` by default.
        by: The attribute that rated samples are compared by; the mean of all by default.
        cluster: The unit that intervals and tests take as independent: rows with different prompts, or each ``row``. In
            transcripts, the common beginning of a row's answers is the prompt. Where all rows have the same prompt or none, each row is
            independent.
        source: The name of the data in reports.
        batch_size: Rows scored at a time.
        resamples: How often prompts are resampled, and the length control fitted, for the interval of the accuracy without length.
        seed: Of the resampling.
        progress: Called with the number of rows after each batch of each reward.

    Raises:
        DataError: A row is in no format, or there is none.
        SpecError: The mapping is invalid.
        UnknownNameError: There is no suite of that name.
        ScoringError: A reward failed.
    """
    benchmark = component("suite", suite) if isinstance(suite, str) else suite
    named = (
        {rewards: rewards}
        if isinstance(rewards, str)
        else {rewards.label: rewards}
        if isinstance(rewards, Provider)
        else rewards
    )
    recorded = [reward for reward in named.values() if isinstance(reward, str)]
    if isinstance(rows, Iterator):
        rows = list(rows)

    mapped = mapping_of([mapping]) if isinstance(mapping, str) else mapping

    def again() -> Iterator[Mapping[str, Any]]:
        plain = map(plain_row if mapped is None else mapped, rows)
        return plain if benchmark is None else benchmark.checked_rows(plain)

    run = EvaluationRun(again, RowCollector(section=section, by=by, cluster=cluster, recorded=recorded), benchmark)
    run.check_rows(source, "" if mapped is not None else " In Python: evaluate(..., mapping={!r}).")
    for name, reward in named.items():
        if isinstance(reward, str):
            run.add(None, run.recorded(reward.removeprefix(COLUMN_SPEC)), name=name, source=reward)
        else:
            run.add(reward, _scored(reward, again(), run.samples, batch_size, progress), name=name)
    return run.evaluation(source=source, resamples=resamples, seed=seed)


def evaluate_pairs(
    provider: Provider,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> PairMetrics:
    """Score preference pairs and say how often the chosen answer wins.

    Args:
        provider: The reward.
        rows: Rows in TRL's preference format, such as a `datasets.Dataset`.
        batch_size: Pairs scored at a time.
        progress: Called with the number of pairs after each batch.

    Raises:
        DataError: A row is not a preference pair, or there are no rows.
        ScoringError: The provider failed.
    """
    values, _ = scores_of(_scored(provider, rows, _pair_samples, batch_size, progress))
    if not len(values):
        raise DataError("There are no rows to evaluate.")
    return pair_metrics(values[0::2], values[1::2])


def _pair_samples(row: Mapping[str, Any], where: str) -> tuple[Sample, ...]:
    try:
        return preference_samples(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _scored(
    provider: Provider,
    rows: Iterable[Mapping[str, Any]],
    samples_of: Callable[[Mapping[str, Any], str], tuple[Sample, ...]],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> Iterator[ScoredRow]:
    groups = RowGroups(groupings(provider), each_row=True)
    for batch, _ in scored_batches(provider, rows, samples_of, batch_size, unit="rows", groups=groups):
        yield from batch
        if progress is not None:
            progress(len(batch))


class EvaluationRun:
    """An evaluation in progress: `add` takes the rewards one after the other with the rows they scored, and `evaluation` evaluates them.

    Args:
        again: Reads the rows from the beginning.
        collector: Collects the rows of the first reward.
        suite: The benchmark of the rows.
    """

    def __init__(
        self, again: Callable[[], Iterable[Mapping[str, Any]]], collector: RowCollector, suite: Suite | None = None
    ) -> None:
        self._again = again
        self._collector = collector
        self._suite = suite
        self._rewards: list[tuple[dict[str, Any], FloatArray, dict[str, FloatArray]]] = []  # facts, scores, those of members
        self._sample: Sample | None = None
        self._conversations = 0

    def check_rows(self, source: str = "", hint: str = "") -> None:
        """Read all rows and judge them, before a model is loaded or a row is scored.

        Args:
            source: The name of the data.
            hint: What to add to the error where a known mapping fits the row; the mapping takes the place of ``{}``.

        Raises:
            DataError: There is no row, one has no format, or one lacks the section's column or the attribute that was asked for.
        """
        number = 0
        for number, row in enumerate(self._again(), start=1):
            try:
                self.samples(row, f"row {number}")
            except DataError as error:
                if not hint or not (proposed := proposed_mapping(row)):
                    raise
                raise DataError(f"{error}{hint.format(proposed)}") from error
        if not number:
            raise DataError(f"There are no rows to evaluate{f' in {source}' if source else ''}.")

    def samples(self, row: Mapping[str, Any], where: str) -> tuple[Sample, ...]:
        """The samples of a row; raises what `RowCollector.judged` raises."""
        return self._collector.judged(row, where).samples

    def recorded(self, column: str) -> Iterator[ScoredRow]:
        """The rows with the scores that they already have in `column`.

        Raises:
            DataError: No row has any, or they are not numbers.
        """
        known = number = 0
        for number, row in enumerate(self._again(), start=1):
            known += has_scores(row, column)
            count = len(self.samples(row, f"row {number}"))
            yield ScoredRow(row, column_scores(row, column, count, f"row {number}"), {})
        if number and not known:
            raise DataError(f"No row has scores in {', '.join(map(repr, columns_called(column)))}.")

    def add(
        self,
        provider: Provider | Callable[..., dict[str, Any]] | None,
        rows: Iterable[ScoredRow],
        *,
        name: str,
        source: str = "",
        identity: str = "",
    ) -> None:
        """Add a reward with all rows in their order; `evaluation` makes equal names distinct.

        Args:
            provider: The reward; of one in another process, what returns its `reward_facts`.
            rows: With their scores.
            name: As in `reward_facts`.
            source: See there.
            identity: See there.
        """
        values, members = scores_of(rows if self._rewards else self._collected(rows))
        describe = partial(reward_facts, provider) if provider is None or isinstance(provider, Provider) else provider
        facts = describe(name=name, source=source, sample=self._sample, identity=identity)
        self._rewards.append((facts, values, members))

    def _collected(self, rows: Iterable[ScoredRow]) -> Iterator[ScoredRow]:
        for number, scored in enumerate(rows, start=1):
            judged = self._collector.judged(scored.row, f"row {number}")
            self._collector.add(scored.row, judged)
            self._sample = self._sample or judged.samples[0]
            self._conversations += sum(sample.is_conversational for sample in judged.samples)
            yield scored

    @np.errstate(over="ignore", invalid="ignore")  # of rewards near the largest floats, figures are infinite and left out
    def evaluation(
        self, *, source: str = "", split: str = "", shown: int = SHOWN, resamples: int = RESAMPLES, seed: int = 0
    ) -> Evaluation:
        """Evaluate the scored rows; nothing is scored here.

        Args:
            source: The name of the data.
            split: The split of the dataset.
            shown: How many mistakes, and flipped pairs of each kind, are shown.
            resamples: As in `evaluate`.
            seed: Of the random draws.

        Raises:
            DataError: There is no row.
        """
        rows, suite = self._collector.collected(), self._suite
        if not len(rows.cluster):
            raise DataError(f"There are no rows to evaluate{f' in {source}' if source else ''}.")
        settings = {"resamples": resamples, "seed": seed}
        summary = replace(_summary(rows, source, split, suite), conversations=self._conversations)
        show = ShownPairs(rows)
        known = [facts for facts, _, _ in self._rewards]
        names = distinct_labels([facts["name"] for facts in known], [facts["source"] for facts in known])
        rewards = [
            ({**facts, "name": name}, values, members)
            for name, (facts, values, members) in zip(names, self._rewards, strict=True)
        ]
        results = [_result(*reward, rows, suite, show, shown, settings) for reward in rewards]
        first, *others = ((facts["name"], values) for facts, values, _ in rewards)
        differences = [reward_difference(rows, first, other, show.pair, shown=shown, seed=seed) for other in others]
        texts = show.texts(self._again())
        return Evaluation(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"python": sys.version.partition(" ")[0], **{name: version(name) for name in _PACKAGES}},
            settings={**settings, "cluster": rows.clustered_by, "confidence": 0.95, "calibration_bins": BINS},
            data=summary,
            rewards=tuple(
                replace(
                    result, mistakes=tuple(map(texts, result.mistakes)), findings=findings(result, summary, rows.clustered_by)
                )
                for result in results
            ),
            differences=tuple(difference.with_pairs(texts) for difference in differences if difference is not None),
        )


def _result(
    facts: Mapping[str, Any],
    values: FloatArray,
    members: Mapping[str, FloatArray],
    rows: JudgedRows,
    suite: Suite | None,
    show: ShownPairs,
    shown: int,
    settings: Mapping[str, int],
) -> RewardResult:
    scored = ScoredPairs(rows, values)
    return RewardResult(
        **facts,
        samples=len(values),
        abstained=int(np.isnan(values).sum()),
        pairs=len(scored),
        figures=reward_figures(rows, scored, values, members, **settings),
        sections=section_results(rows, scored),
        by_length=accuracy_by_length(scored),
        distribution=reward_distribution(scored, values),
        calibration=tuple(calibration_curve(scored.delta, BINS)) if len(scored) else (),
        length_scatter=length_scatter(rows, values, seed=settings["seed"]),
        formats=format_biases(rows, scored),
        members=member_comparison(rows, values, members),
        best_of_n=best_of_n_of_lists(rows, values),
        mistakes=tuple(show.pair(number, values) for number in worst_pairs(rows, scored, shown)),
        suite=None if suite is None else _suite_result(suite, rows, values),
    )


def _summary(rows: JudgedRows, source: str, split: str, suite: Suite | None) -> DataSummary:
    lengths = rows.lengths
    section = rows.section[rows.pair_row]
    chosen, rejected = (float(lengths[side].mean()) if len(side) else np.nan for side in rows.pairs.T)
    return DataSummary(
        source=source,
        split=split,
        suite="" if suite is None else suite.name,
        digest=rows.digest,
        rows=len(rows.cluster),
        samples=len(rows.row),
        pairs=len(rows.pairs),
        prompts=rows.prompts,
        formats=rows.formats,
        sections={name: int((section == number).sum()) for number, name in enumerate(rows.sections)},
        attributes=rows.attributes,
        longer_chosen=longer_share(rows.longer),
        length_chosen=chosen,
        length_rejected=rejected,
    )


def _suite_result(suite: Suite, rows: JudgedRows, values: FloatArray) -> SuiteResult:
    items = []
    of_pairs = set(rows.pair_row[np.isnan(rows.gold[rows.pairs[:, 0]])].tolist())
    for row, samples in enumerate(rows.samples()):
        gold = rows.gold[samples]
        if np.isnan(gold).any() and row not in of_pairs:
            raise DataError(
                f"row {row + 1}: a sample has no label; {suite.name} needs a label for each sample, whether it is right."
            )
        labels = np.array([1.0, 0.0]) if np.isnan(gold).any() else gold
        items.append(SuiteItem(rows.ids[row], rows.section_of(row), values[samples], labels, rows.compared.get(row, ())))
    return suite.checked_result(items)
