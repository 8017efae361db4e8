"""Evaluating rewards: from scored rows to everything that a report shows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from typing import Any

import numpy as np

from rm_plugins.errors import DataError
from rm_plugins.evaluation.differences import reward_difference
from rm_plugins.evaluation.findings import findings
from rm_plugins.evaluation.judged_rows import Cluster, JudgedRows, RowCollector
from rm_plugins.evaluation.results import DataSummary, Evaluation, RewardResult
from rm_plugins.evaluation.reward_charts import (
    accuracy_by_length,
    best_of_n_curve,
    format_biases,
    length_scatter,
    longer_share,
    member_comparison,
    reward_distribution,
    section_results,
)
from rm_plugins.evaluation.reward_figures import BINS, ScoredPairs, reward_figures
from rm_plugins.evaluation.scored_reward import RewardColumns, RewardFacts, reward_facts
from rm_plugins.evaluation.shown_pairs import ShownPairs, worst_pairs
from rm_plugins.provider import Provider
from rm_plugins.scores import FloatArray, Scores
from rm_plugins.spec import component
from rm_plugins.statistics.metrics import calibration_curve
from rm_plugins.suites import Suite, SuiteItem, SuiteResult

__all__ = ["RESAMPLES", "SHOWN", "evaluate", "evaluation_of"]

RESAMPLES = 1_000
"""Of the bootstrap, if nothing else is said."""
SHOWN = 20
"""How many mistakes, and flipped pairs of each sort, are shown."""
_PACKAGES = ("rm-plugins", "torch", "transformers", "numpy", "scipy")


def evaluate(
    rewards: Provider | Mapping[str, Provider],
    rows: Iterable[Mapping[str, Any]],
    *,
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
    """Score judged rows with one or several rewards, and say how good these are.

    Args:
        rewards: A reward, or several by name.
        rows: Rows in the formats of `rm_plugins.data.judgements`, such as a `datasets.Dataset`; with a suite, the rows of its dataset. They
            are gone through several times: what can be gone through once is kept in memory.
        suite: A benchmark, or its name, whose own rule is applied too.
        section: The column that names a row's section; ``section`` or ``subset`` by default.
        by: The attribute that rated samples are compared by; the mean of all by default.
        cluster: What intervals and tests take for independent: rows with different prompts, or each ``row``. Where all rows have the same
            prompt or none, each row is.
        source: What the data is called in reports.
        batch_size: Rows scored at a time.
        resamples: Of the bootstrap of the intervals.
        seed: Of the bootstrap.
        progress: Called with the number of rows after each batch of each reward.

    Raises:
        DataError: A row is in no format, or there is none.
        UnknownNameError: There is no suite of that name.
        ScoringError: A reward failed.
    """
    found = component("suite", suite) if isinstance(suite, str) else suite
    named = {rewards.label: rewards} if isinstance(rewards, Provider) else rewards
    if isinstance(rows, Iterator):
        rows = list(rows)

    def again() -> Iterator[Mapping[str, Any]]:
        return iter(rows) if found is None else found.checked_rows(rows)

    collector = RowCollector(section=section, by=by, cluster=cluster)
    columns = {name: RewardColumns() for name in named}
    facts: dict[str, RewardFacts] = {}
    for place, (name, provider) in enumerate(named.items()):
        remaining, number = again(), 0
        while batch := list(islice(remaining, batch_size)):
            judged = [collector.judged(row, f"row {number + offset}") for offset, row in enumerate(batch, start=1)]
            if place == 0:
                for row, judgement_ in zip(batch, judged, strict=True):
                    collector.add(row, judgement_)
            samples = [sample for judgement_ in judged for sample in judgement_.samples]
            if name not in facts:
                facts[name] = reward_facts(provider, name=name, sample=samples[0])
            _take(columns[name], provider.score(samples))
            number += len(batch)
            if progress is not None:
                progress(len(batch))
    return evaluation_of(
        collector.collected(),
        [(facts[name], column) for name, column in columns.items() if name in facts],
        again,
        suite=found,
        source=source,
        resamples=resamples,
        seed=seed,
    )


def _take(columns: RewardColumns, scores: Scores) -> None:
    columns.add(scores.values.tolist(), {name: column.tolist() for name, column in scores.columns.items()})


@np.errstate(over="ignore", invalid="ignore")  # of rewards near the largest floats, figures are infinite and left out
def evaluation_of(
    rows: JudgedRows,
    rewards: Sequence[tuple[RewardFacts, RewardColumns]],
    again: Callable[[], Iterable[Mapping[str, Any]]],
    *,
    suite: Suite | None = None,
    source: str = "",
    split: str = "",
    shown: int = SHOWN,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """What scored rows say of rewards; nothing is scored here.

    Args:
        rows: What is known of the rows.
        rewards: Each reward with its scores.
        again: Goes through the rows once more, for the texts that are shown.
        suite: The benchmark that the rows are of.
        source: What the data is called.
        split: The split of the dataset.
        shown: How many mistakes, and flipped pairs of each sort, are shown.
        resamples: Of the intervals.
        seed: Of the intervals and of what is drawn at random.

    Raises:
        DataError: There is no row.
    """
    if not len(rows.cluster):
        raise DataError(f"There is no row to evaluate{f' in {source}' if source else ''}.")
    arrays = [np.array(columns.values, dtype=np.float64) for _, columns in rewards]
    settings = {"resamples": resamples, "seed": seed}
    summary = _summary(rows, source, split, suite)
    show = ShownPairs(rows)
    results = []
    for (facts, columns), values in zip(rewards, arrays, strict=True):
        scored = ScoredPairs(rows, values)
        members = columns.members
        result = RewardResult(
            **{name: getattr(facts, name) for name in RewardFacts.__slots__},
            samples=len(values),
            abstained=int(np.isnan(values).sum()),
            pairs=len(scored),
            figures=reward_figures(rows, scored, values, members, **settings),
            sections=section_results(rows, scored, **settings),
            by_length=accuracy_by_length(scored, **settings),
            distribution=reward_distribution(scored, values),
            calibration=tuple(calibration_curve(scored.delta, BINS)) if len(scored) else (),
            length_scatter=length_scatter(rows, values, seed=seed),
            formats=format_biases(rows, scored, **settings),
            members=member_comparison(rows, values, members),
            best_of_n=best_of_n_curve(rows, values, **settings),
            mistakes=tuple(show.pair(number, values) for number in worst_pairs(rows, scored, shown)),
            suite=None if suite is None else _suite_result(suite, rows, values),
        )
        results.append(replace(result, findings=findings(result, summary)))
    differences = []
    for place in range(1, len(results)):
        names = (results[0].name, results[place].name)
        found = reward_difference(rows, names, (arrays[0], arrays[place]), show.pair, shown=shown, **settings)
        differences += [found] if found is not None else []
    texts = show.texts(again())
    return Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": sys.version.partition(" ")[0], **{name: version(name) for name in _PACKAGES}},
        settings={**settings, "cluster": rows.clustered_by, "confidence": 0.95, "calibration_bins": BINS},
        data=summary,
        rewards=tuple(replace(result, mistakes=tuple(map(texts, result.mistakes))) for result in results),
        differences=tuple(
            replace(
                found,
                won=tuple(replace(flip, pair=texts(flip.pair)) for flip in found.won),
                lost=tuple(replace(flip, pair=texts(flip.pair)) for flip in found.lost),
            )
            for found in differences
        ),
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
            raise DataError(f"row {row + 1}: a sample has no label; {suite.name} needs to know of each whether it is right.")
        labels = np.array([1.0, 0.0]) if np.isnan(gold).any() else gold
        items.append(SuiteItem(rows.ids[row], rows.section_of(row), values[samples], labels, rows.compared.get(row, ())))
    return suite.checked_result(items)
