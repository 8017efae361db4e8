"""The results of an evaluation as data. Everything that a table, a page or a model card shows is in here, and so in its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from rm_plugins.evaluation.figure_tables import estimate_columns, figure_rows
from rm_plugins.evaluation.finding import Finding
from rm_plugins.files import in_utf8
from rm_plugins.labels import counted
from rm_plugins.result_table import ResultTable, ShownAsTable
from rm_plugins.statistics.best_of_n import BestOfN
from rm_plugins.statistics.bias import FeatureBias
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.statistics.metrics import CalibrationBin
from rm_plugins.suites import SuiteResult

SIGNIFICANT = 0.05
"""A difference with a smaller p-value is called significant."""


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The data of an evaluation.

    Args:
        source: The file or dataset, as the user named it.
        split: The dataset's split; empty for a file.
        suite: The benchmark, empty for none.
        digest: SHA-256 of the rows, in their order.
        rows: The number of rows.
        samples: The number of samples in them.
        pairs: The number of pairs of a better and a worse sample.
        prompts: The number of different prompts.
        formats: The number of rows in each format of `rm_plugins.data.judgements`.
        sections: The number of pairs in each section, empty if the rows name none.
        attributes: The names of the ratings or labels.
        longer_chosen: The share of pairs with different lengths whose better sample is the longer: the accuracy of a reward that
            only looks at length.
        length_chosen: The mean length of the better answers of pairs, in characters.
        length_rejected: That of the worse answers.
        conversations: The number of samples that are conversations and not text.
    """

    source: str
    split: str
    suite: str
    digest: str
    rows: int
    samples: int
    pairs: int
    prompts: int
    formats: Mapping[str, int]
    sections: Mapping[str, int]
    attributes: tuple[str, ...]
    longer_chosen: float
    length_chosen: float
    length_rejected: float
    conversations: int = 0

    @property
    def counts(self) -> str:
        """The numbers of rows, pairs and prompts in words."""
        return ", ".join((counted(self.rows, "row"), counted(self.pairs, "pair"), counted(self.prompts, "prompt")))


@dataclass(frozen=True, slots=True)
class SectionResult:
    """The pairs of one section.

    Args:
        name: The section.
        pairs: The number of its pairs that were scored.
        accuracy: The share whose better sample scores strictly higher.
        longer_chosen: As in `DataSummary`, of this section.
        ties: The share with equal rewards, which count as wrong; None if unknown.
    """

    name: str
    pairs: int
    accuracy: Estimate
    longer_chosen: float
    ties: Estimate | None = None

    @property
    def chance(self) -> float:
        """The accuracy of chance: half of the pairs without a tie."""
        return (1 - (0.0 if self.ties is None else self.ties.value)) / 2


@dataclass(frozen=True, slots=True)
class LengthBin:
    """The pairs whose better sample is longer than the worse by `low` to `high` characters; negative where it is shorter."""

    low: float
    high: float
    pairs: int
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Distribution:
    """Histograms of the rewards of the better and the worse samples of pairs.

    Args:
        edges: [B + 1], ascending.
        chosen: [B] counts.
        rejected: [B] counts.
    """

    edges: tuple[float, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LengthScatter:
    """Reward against length.

    Args:
        lengths: Of samples, in characters; at most 600 of them, chosen at random.
        rewards: Their rewards.
        curve_lengths: Where the curve is drawn, ascending.
        curve: The LOWESS estimate of the reward there.
    """

    lengths: tuple[float, ...]
    rewards: tuple[float, ...]
    curve_lengths: tuple[float, ...]
    curve: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """How the K members of an ensemble compare.

    Args:
        names: [K], such as ``member/0``.
        accuracy: [K], each member's own.
        agreement: [K, K], the share of pairs on which two prefer the same sample.
        unanimous: The share of pairs on which all do.
        accuracy_unanimous: The accuracy of the reward on those.
        accuracy_divided: The accuracy of the reward on the others.
    """

    names: tuple[str, ...]
    accuracy: tuple[float, ...]
    agreement: tuple[tuple[float, ...], ...]
    unanimous: float
    accuracy_unanimous: float
    accuracy_divided: float


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair to show, with its texts.

    Args:
        row: The number of its row in the data, from 1.
        section: The row's section, empty where it has none.
        prompt: The prompt as one text, like the samples below; long texts are cut in the middle, which ``[...]`` shows.
        chosen: The better sample.
        rejected: The worse one.
        chosen_reward: Its reward.
        rejected_reward: Its reward.
        chosen_length: Of its answer in characters, before any cut and without what transcripts begin with in common.
        rejected_length: Likewise.
    """

    row: int
    section: str
    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    chosen_length: int
    rejected_length: int


@dataclass(frozen=True, slots=True, repr=False)
class RewardResult(ShownAsTable):
    """The results of one reward.

    Args:
        name: Its name.
        source: The spec as it was given.
        spec: The spec with all nested specs; None if the reward was made in Python.
        fingerprint: Of its settings, weights and rendering; empty if the reward was made in Python.
        rendering: A sample as the model sees it, empty if the reward is not a model.
        manifest: The training entries of the models' manifests, by their path in the spec.
        samples: The number of samples.
        abstained: The number of samples without a reward.
        pairs: The number of pairs with rewards for both samples.
        figures: The figures, by name, in the order in which they are shown; see `rm_plugins.evaluation.figures.FIGURES`.
        findings: What the reader should know first, the most severe first.
        sections: The data's sections.
        by_length: Accuracy by difference in length, ascending.
        distribution: None where there are no pairs.
        calibration: Predicted win probabilities and how often they come true, in ascending bins without empty ones.
        length_scatter: None if all lengths or all rewards are the same.
        formats: The reward's preference for features of format.
        members: None without members.
        best_of_n: None if the data has no lists with known quality.
        mistakes: The pairs with the largest errors, largest first.
        suite: The result by the benchmark's own rule.
    """

    name: str
    source: str
    spec: Mapping[str, Any] | None
    fingerprint: str
    rendering: str
    manifest: Mapping[str, Any]
    samples: int
    abstained: int
    pairs: int
    figures: Mapping[str, Estimate]
    findings: tuple[Finding, ...] = ()
    sections: tuple[SectionResult, ...] = ()
    by_length: tuple[LengthBin, ...] = ()
    distribution: Distribution | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    length_scatter: LengthScatter | None = None
    formats: tuple[FeatureBias, ...] = ()
    members: Members | None = None
    best_of_n: BestOfN | None = None
    mistakes: tuple[JudgedPair, ...] = ()
    suite: SuiteResult | None = None

    def _table(self) -> ResultTable:
        caption = f"{self.name}: {counted(self.samples, 'sample')}, {counted(self.pairs, 'pair')}"
        notes = [finding.sentence for finding in self.findings]
        return ResultTable(caption, ("Figure", "Value"), figure_rows([self.figures]), notes)

    def _columns(self) -> dict[str, list[object]]:
        return estimate_columns("figure", self.figures)


@dataclass(frozen=True, slots=True, repr=False)
class Difference(ShownAsTable):
    """How reward b differs from reward a on the pairs that both scored.

    Args:
        a: The name of reward a.
        b: The name of reward b.
        pairs: The number of those pairs.
        accuracy: The accuracy of b minus that of a.
        p_value: Of the two-sided sign-flip test over prompts: the probability of such a difference if both are equally good.
        only_a: The number of pairs on which only a is right.
        only_b: The number on which only b is right.
        sections: By section, the same accuracy difference.
        won: Pairs on which only b is right, the clearest first: by both rewards' differences in units of their spread.
        lost: Pairs on which only a is right, likewise.
    """

    a: str
    b: str
    pairs: int
    accuracy: Estimate
    p_value: float
    only_a: int
    only_b: int
    sections: Mapping[str, Estimate] = field(default_factory=dict)
    won: tuple[FlippedPair, ...] = ()
    lost: tuple[FlippedPair, ...] = ()

    @property
    def outcome(self) -> Literal["better", "worse", "unclear"]:
        """Whether b is better or worse than a, by the p-value."""
        if self.p_value < SIGNIFICANT and self.accuracy.value:  # NaN is not smaller
            return "better" if self.accuracy.value > 0 else "worse"
        return "unclear"

    @property
    def sentence(self) -> str:
        """The outcome with its numbers."""
        said = {"better": "is better than", "worse": "is worse than", "unclear": "does not clearly differ from"}[self.outcome]
        points = f"{100 * self.accuracy.value:+.1f} points of accuracy"
        return f"{self.b} {said} {self.a}: {points}, p = {self.p_value:.2g}, on {counted(self.pairs, 'pair')}."

    def _table(self) -> ResultTable:
        rows = [(name, f"{part:+.1%}") for name, part in {"all": self.accuracy, **self.sections}.items()]
        return ResultTable(self.sentence, ("Section", "Difference in accuracy"), rows)

    def _columns(self) -> dict[str, list[object]]:
        return estimate_columns("section", {"all": self.accuracy, **self.sections})

    def with_pairs(self, complete: Callable[[JudgedPair], JudgedPair]) -> Difference:
        """The same difference with each shown pair replaced by `complete`."""
        won, lost = (tuple(replace(flip, pair=complete(flip.pair)) for flip in flips) for flips in (self.won, self.lost))
        return replace(self, won=won, lost=lost)


@dataclass(frozen=True, slots=True)
class FlippedPair:
    """A pair on which only one of two rewards is right, with the rewards of both.

    Args:
        pair: The pair with the rewards of b.
        chosen_reward_a: What a gave the better sample.
        rejected_reward_a: What a gave the worse one.
    """

    pair: JudgedPair
    chosen_reward_a: float
    rejected_reward_a: float


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(ShownAsTable):
    """Several rewards on the same data.

    Args:
        created: When, in ISO 8601 and UTC.
        versions: Of the packages that matter.
        settings: The settings of the evaluation: resamples of the length control, seed, bins.
        data: The data.
        rewards: The rewards, in the order in which they were given.
        differences: Each further reward against the first.
    """

    created: str
    versions: Mapping[str, str]
    settings: Mapping[str, float | int | str]
    data: DataSummary
    rewards: tuple[RewardResult, ...]
    differences: tuple[Difference, ...] = ()

    def _table(self) -> ResultTable:
        data = self.data
        notes = [difference.sentence for difference in self.differences]
        notes += [f"{reward.name}: {finding.sentence}" for reward in self.rewards for finding in reward.findings]
        return ResultTable(
            f"{data.suite or data.source or 'Evaluation'}: {data.counts}",
            ("Figure", *(reward.name for reward in self.rewards)),
            figure_rows([reward.figures for reward in self.rewards]),
            notes,
        )

    def _columns(self) -> dict[str, list[object]]:
        parts = [(reward.name, estimate_columns("figure", reward.figures)) for reward in self.rewards]
        columns: dict[str, list[object]] = {"reward": [name for name, part in parts for _ in part["figure"]]}
        return columns | {
            name: [value for _, part in parts for value in part[name]] for name in ("figure", "value", "low", "high")
        }

    def as_json(self) -> dict[str, Any]:
        """All results as JSON values: null for what could not be computed."""
        return {"format": "rm-plugins evaluation", "version": 1, **as_json(self)}

    def to_json(self) -> str:
        """The same as text."""
        return in_utf8(json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False, default=str)) + "\n"


def as_json(value: Any) -> Any:
    """Results, mappings and lists as JSON values: null for numbers that are not finite."""
    if isinstance(value, Finding):
        value = {name: getattr(value, name) for name in ("kind", "severity", "message", "numbers")}
    if is_dataclass(value):
        value = {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value
