"""Every finding and every advice fits the sign of what was measured: longer or shorter, more or fewer, too sure or too careful."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rm_plugins.evaluation import evaluate
from rm_plugins.evaluation.finding import Finding
from rm_plugins.evaluation.results import RewardResult
from rm_plugins.training.exploitation import Evidence, WatchedStep, length_takes_over, phrase_takes_over
from rm_plugins.training.phrases import ScoredText

Row = dict[str, Any]


def result_of(rows: list[Row]) -> RewardResult:
    (result,) = evaluate({"recorded": "column:reward"}, rows, resamples=2).rewards  # type: ignore[dict-item]
    return result


def found_in(result: RewardResult, kind: str) -> Finding | None:
    return next((finding for finding in result.findings if finding.kind == kind), None)


def pairs_of(slope: float, noise: float, base: float, count: int, seed: int, *, feature: str = "x", unit: int = 1) -> list[Row]:
    """Pairs whose rewards rise by `slope` with each repetition of a feature, of which the better answer has more in a share `base`."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        few, many = sorted(rng.choice(np.arange(1, 40), 2, replace=False).tolist())
        chosen, rejected = (many, few) if rng.random() < base else (few, many)
        texts = {"chosen": feature * chosen * unit, "rejected": feature * rejected * unit}
        rewards = {
            f"{side}_reward": slope * size + noise * float(rng.normal())
            for side, size in (("chosen", chosen), ("rejected", rejected))
        }
        rows.append({"prompt": f"Question {number}", **texts, **rewards})
    return rows


@settings(max_examples=25, deadline=None)
@given(
    slope=st.sampled_from([-1.0, -0.1, 0.0, 0.1, 1.0]),
    noise=st.sampled_from([0.0, 0.5, 5.0]),
    base=st.floats(0, 1),
    count=st.sampled_from([1, 2, 40, 200]),
    seed=st.integers(0, 99),
)
@example(slope=-1.0, noise=0.0, base=0.5, count=200, seed=0)
@example(slope=1.0, noise=0.0, base=0.5, count=200, seed=0)
def test_the_advice_on_length_fits_the_direction(slope: float, noise: float, base: float, count: int, seed: int) -> None:
    result = result_of(pairs_of(slope, noise, base, count, seed))
    finding = found_in(result, "length")
    if finding is None:
        return
    longer, shorter = (result.figures[name].value for name in ("accuracy_longer", "accuracy_shorter"))
    liked, other = ("longer", "shorter") if longer > shorter else ("shorter", "longer")
    assert f"it prefers the {liked} answer in" in finding.text
    assert f"penalty on {liked} answers" in finding.text
    assert other not in finding.text
    assert finding.numbers["preferred"] >= 0.25


@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_a_reward_of_length_alone_is_an_alarm_in_both_directions(slope: float) -> None:
    finding = found_in(result_of(pairs_of(slope, 0.0, 0.5, 200, 0)), "length")
    assert finding is not None and finding.severity == "alarm"


@pytest.mark.parametrize(("feature", "kind"), [("- a\n", "list items"), ("# a\n", "headings"), ("**a** ", "bold parts")])
def test_the_advice_on_format_fits_the_direction(feature: str, kind: str) -> None:
    likes, dislikes = (
        found_in(result_of(pairs_of(slope, 0.5, 0.5, 80, 0, feature=feature)), "format") for slope in (1.0, -1.0)
    )
    assert likes is not None and dislikes is not None
    assert (likes.lead, dislikes.lead) == ("It rewards format", "It penalizes format")
    assert f"right where the better answer has more {kind}" in likes.text
    assert f"Add training pairs whose better answer has fewer {kind}" in likes.text
    assert f"right where the better answer has fewer {kind}" in dislikes.text
    assert f"Add training pairs whose better answer has more {kind}" in dislikes.text
    assert likes.numbers["accuracy_more"] > likes.numbers["accuracy_less"]
    assert dislikes.numbers["accuracy_more"] < dislikes.numbers["accuracy_less"]


@settings(max_examples=15, deadline=None)
@given(scale=st.sampled_from([0.05, 0.2, 1.0, 5.0, 20.0]), share=st.floats(0.05, 0.95), ties=st.sampled_from([0, 300]))
@example(scale=0.2, share=0.72, ties=300)
def test_a_scale_is_too_sure_where_it_promises_more_than_comes_true(scale: float, share: float, ties: int) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"{n}",
            "chosen": "a",
            "rejected": "b",
            "chosen_reward": float(rng.choice([scale, -scale], p=[share, 1 - share])),
        }
        for n in range(700)
    ]
    rows += [{"prompt": f"t{n}", "chosen": "a", "rejected": "b", "chosen_reward": 0.0} for n in range(ties)]
    result = result_of([{**row, "rejected_reward": 0.0} for row in rows])
    finding = found_in(result, "calibration")
    if finding is not None:
        promised, came_true = 1 / (1 + math.exp(-scale)), share
        assert finding.lead == f"Its scale is {'too sure' if promised > came_true else 'too careful'}", (promised, came_true)


def test_a_constant_reward_is_an_alarm_and_is_blamed_for_nothing_else() -> None:
    result = result_of(pairs_of(0.0, 0.0, 0.7, 200, 0))
    assert [(finding.kind, finding.severity) for finding in result.findings] == [("ties", "alarm")]


def test_one_pair_gets_a_note_in_the_singular() -> None:
    result = result_of(pairs_of(1.0, 0.0, 1.0, 1, 0))
    assert [(finding.kind, finding.lead) for finding in result.findings] == [("few", "Only 1 pair")]


def few_prompts(rows: list[Row], **settings: Any) -> Finding | None:
    (result,) = evaluate({"recorded": "column:reward"}, rows, resamples=2, **settings).rewards  # type: ignore[dict-item]
    return found_in(result, "few_prompts")


@pytest.mark.parametrize(
    ("prompts", "cluster", "message"),
    [
        (
            1,
            "prompt",
            "All 200 rows share one prompt: the intervals take the rows as independent and hold for this prompt only.",
        ),
        (1, "row", "All 200 rows share one prompt: the intervals take the rows as independent and hold for this prompt only."),
        (
            2,
            "prompt",
            "Only 2 prompts for 200 rows: the intervals take the prompts as independent, and with so few they are rough.",
        ),
        (3, "row", "Only 3 prompts for 200 rows: the intervals take the rows as independent. They are too narrow if"),
    ],
)
def test_a_note_tells_how_the_intervals_of_so_few_prompts_were_made(prompts: int, cluster: str, message: str) -> None:
    rows = [{**row, "prompt": str(number % prompts)} for number, row in enumerate(pairs_of(0.1, 1.0, 0.5, 200, 0))]
    finding = few_prompts(rows, cluster=cluster)
    assert finding is not None and finding.severity == "note"
    assert finding.message.startswith(message)


def test_a_single_row_is_said_to_have_no_intervals() -> None:
    texts = ["a" * number for number in range(1, 9)]
    result = result_of([{"prompt": "Q", "completions": texts, "ranks": [*range(8)], "rewards": [*range(8)]}])
    told = {finding.kind: finding.message for finding in result.findings}
    assert told["few_prompts"].startswith("All 28 pairs are from one row: the figures have no intervals")
    assert told["few"] == "Only 28 pairs: they are too few to judge the reward by."


def test_many_prompts_and_rows_without_any_are_told_nothing_of_few_prompts() -> None:
    rows = pairs_of(0.1, 1.0, 0.5, 40, 0)
    assert few_prompts([{**row, "prompt": str(number % 10)} for number, row in enumerate(rows)]) is None
    assert few_prompts([{name: value for name, value in row.items() if name != "prompt"} for row in rows[:5]]) is None
    assert few_prompts(rows[:5]) is None


def test_a_reward_without_a_bias_is_told_nothing_of_length_or_format() -> None:
    rows = pairs_of(0.0, 1.0, 0.5, 300, 3, feature="- a\n")
    assert not {finding.kind for finding in result_of(rows).findings} & {"length", "format"}


def test_rewards_that_are_all_missing_are_no_figures() -> None:
    rows = [{**row, "chosen_reward": None, "rejected_reward": None} for row in pairs_of(1.0, 0.0, 0.5, 40, 0)]
    rows[0] |= {"chosen_reward": 1.0}
    result = result_of(rows)
    assert {finding.kind for finding in result.findings} == {"abstained", "few"}
    assert "nan" not in " ".join(finding.message for finding in result.findings).lower()


def of_correlation(values: np.ndarray) -> list[WatchedStep]:
    return [
        WatchedStep(step, {"length_correlation": float(r), "length_correlation_df": 12.0, "length": 100.0 + step})
        for step, r in enumerate(values)
    ]


@pytest.mark.parametrize("word", ["long", "short"])
def test_the_advice_of_a_training_on_length_fits_the_direction(word: str) -> None:
    sign = 1 if word == "long" else -1
    rng = np.random.default_rng(0)
    early, recent = (of_correlation(sign * (mean + 0.05 * rng.standard_normal(50))) for mean in (0.1, 0.7))
    evidence = length_takes_over("mine", early, recent)
    assert isinstance(evidence, Evidence)
    assert f"it prefers {word} completions" in evidence.message
    assert f"a penalty on {word} completions" in evidence.message
    assert ("short" if word == "long" else "long") not in evidence.message
    assert length_takes_over("mine", recent, early) is None, "the correlation has moved to 0"


def texts(share: float, seed: int, *, bonus: float) -> list[ScoredText]:
    """Completions of which a share has a phrase, which changes the reward by `bonus`."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(40):
        has = rng.random() < share
        words = " ".join(f"word{one}" for one in rng.integers(0, 40, 20))
        made.append(
            ScoredText(f"prompt {number}", f"as an expert i know {words}" if has else words, rng.random() + bonus * has)
        )
    return made


def phrase_evidence(*, bonus: float, share: float) -> Evidence | None:
    early = [WatchedStep(step, {}, texts(0.02, step, bonus=bonus)) for step in range(20)]
    recent = [WatchedStep(step, {}, texts(share, step, bonus=bonus)) for step in range(100, 120)]
    return phrase_takes_over("mine", early, recent)


def test_a_phrase_is_only_blamed_where_the_reward_does_not_avoid_it() -> None:
    """A phrase that the other completions have more often than the best ones is not what the reward pays for."""
    paid_for = phrase_evidence(bonus=0.5, share=0.5)
    assert paid_for is not None and paid_for.numbers["share_top"] > paid_for.numbers["share_rest"]
    assert phrase_evidence(bonus=-0.3, share=0.6) is None
    everywhere = phrase_evidence(bonus=0.0, share=1.0)
    assert everywhere is not None, "all completions have it: the policy has learned it"
