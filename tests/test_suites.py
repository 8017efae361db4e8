"""Benchmarks score as their own programs do: published numbers come out of published scores, and the rest is worked out by hand.

In the rows that are made up here, every answer is the text of its own reward.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins import hookimpl
from rm_plugins.data.judgements import judgement
from rm_plugins.data.rows import write_rows
from rm_plugins.errors import DataError, DuplicateNameError
from rm_plugins.suites import Suite, SuiteItem, SuiteResult, SuiteSection, overall_score
from rm_plugins.suites.judge_bench import JudgeBench
from rm_plugins.suites.ppe import Ppe
from rm_plugins.suites.reward_bench import RewardBench
from rm_plugins.suites.reward_bench_2 import RewardBench2
from rm_plugins.suites.rm_bench import RmBench
from rm_plugins.testing import check_suite

RawRows = Iterable[Mapping[str, Any]]
SCORES = Path(__file__).parent / "judgebench_scores.csv"


def items_of(suite: Suite, raw: RawRows) -> list[SuiteItem]:
    """The rows of a suite, with the reward that each answer names."""
    items = []
    for row in suite.rows(raw):
        found = judgement(row)
        scores = [float(sample.completion[-1]["content"]) for sample in found.samples]  # type: ignore[index]
        labels = [1.0, 0.0] if found.labels is None else [label for (label,) in found.labels]
        items.append(SuiteItem(row["id"], row["section"], np.array(scores), np.array(labels), tuple(row.get("compared", ()))))
    return items


def scored(suite: Suite, raw: RawRows) -> SuiteResult:
    return suite.result(items_of(suite, raw))


def section(result: SuiteResult, name: str) -> SuiteSection:
    return next(found for found in result.sections if found.name == name)


def pairs_of(subset: str, right: int, rows: int) -> Iterator[dict[str, Any]]:
    """Rows of RewardBench, of which the first `right` are right."""
    for number in range(rows):
        answers = {"chosen": "1", "rejected": "0" if number < right else "2"}
        yield {"id": number, "prompt": "Q", "subset": subset, "chosen_model": "a", "rejected_model": "b", **answers}


def question(subset: str, right: Sequence[float], wrong: Sequence[float], name: str = "0") -> dict[str, Any]:
    """A row of RewardBench 2."""
    answers = {"chosen": [str(score) for score in right], "rejected": [str(score) for score in wrong]}
    return {"id": name, "prompt": "Q", "subset": subset, "num_correct": len(right), **answers}


def styles(domain: str, right: Sequence[float], wrong: Sequence[float]) -> dict[str, Any]:
    """A row of RM-Bench."""
    answers = {"chosen": [str(score) for score in right], "rejected": [str(score) for score in wrong]}
    return {"id": "0", "prompt": "Q", "domain": domain, **answers}


def best_of(dataset: str, scores: Sequence[float], labels: Sequence[bool], pairs: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A row of a set of PPE."""
    answers = {f"response_{number}": str(score) for number, score in enumerate(scores, start=1)}
    known = {"question_id": "q1", "model_name": "m", "prompt": "Q", "scores": labels, "sampled_conflict_pairs": pairs}
    return {"dataset": f"lmarena-ai/PPE-{dataset}-Best-of-K", **known, **answers}


JUDGE_BENCH_ROW = {
    "pair_id": "p",
    "source": "mmlu-pro-law",
    "question": "Q",
    "response_A": "1",
    "response_B": "0",
    "label": "A>B",
}
ROWS: dict[type[Suite], dict[str, Any]] = {
    JudgeBench: JUDGE_BENCH_ROW,
    Ppe: best_of("MATH", [4, 3, 2, 1], [True, False, True, False], [[0, 1], [3, 2], [1, 2]]),
    RewardBench: next(pairs_of("math-prm", 1, 1)),
    RewardBench2: question("Factuality", [2], [1, 0, 0]),
    RmBench: styles("chat", [1, 2, 3], [0, 0, 0]),
}
NEEDED = {
    JudgeBench: ("question", "response_A", "response_B", "label", "source", "pair_id"),
    Ppe: ("prompt", "scores", "sampled_conflict_pairs", "question_id", "response_1", "response_4"),
    RewardBench: ("prompt", "chosen", "rejected", "subset", "id"),
    RewardBench2: ("prompt", "chosen", "rejected", "subset", "id"),
    RmBench: ("prompt", "chosen", "rejected", "domain", "id"),
}
ALL = list(ROWS)


# --- JudgeBench -----------------------------------------------------------------------------------------------------------


def judge_bench_rows() -> list[dict[str, Any]]:
    lines = [line for line in SCORES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        {
            **JUDGE_BENCH_ROW,
            "source": row["source"],
            "label": row["label"],
            "response_A": row["score_A"],
            "response_B": row["score_B"],
        }
        for row in csv.DictReader(lines)
    ]


def test_judge_bench_gives_the_published_accuracies_of_a_published_reward() -> None:
    # Skywork-Reward-Llama-3.1-8B in table 3 of arXiv 2410.12784, on the pairs by GPT-4o.
    published = {"Knowledge": 59.09, "Reasoning": 64.29, "Math": 76.79, "Coding": 50.00}
    result = scored(JudgeBench(), judge_bench_rows())
    assert {found.name: round(100 * found.score, 2) for found in result.sections} == published
    assert round(100 * result.score, 2) == 62.29
    assert {found.name: found.items for found in result.sections} == {
        "Knowledge": 154,
        "Reasoning": 98,
        "Math": 56,
        "Coding": 42,
    }
    assert section(result, "Knowledge").parts["mmlu-pro-law"] == pytest.approx(4 / 11)
    assert sum(found.weight for found in result.sections) == pytest.approx(1)
    assert result.abstained == 0


@pytest.mark.parametrize("label", ["A>B", "B>A"])
def test_equal_scores_are_wrong_in_judge_bench_whatever_the_order(label: str) -> None:
    result = scored(JudgeBench(), [{**JUDGE_BENCH_ROW, "response_B": "1", "label": label}])
    assert section(result, "Knowledge").score == 0


def test_judge_bench_knows_its_labels_and_sources() -> None:
    with pytest.raises(DataError, match=r"judge-bench, row 1: 'label' is 'A=B'.*Allowed: A>B, B>A"):
        list(JudgeBench().rows([{**JUDGE_BENCH_ROW, "label": "A=B"}]))
    with pytest.raises(DataError, match=r"'source' is 'gsm8k'.*livecodebench"):
        list(JudgeBench().rows([{**JUDGE_BENCH_ROW, "source": "gsm8k"}]))


# --- RewardBench ----------------------------------------------------------------------------------------------------------

# How many rows ArmoRM-Llama3-8B-v0.1 has right of how many, from the rounded accuracies in tables 5 and 6 of arXiv 2403.13787.
ARMO_CHAT_HARD = {
    "mt-bench-hard": (32, 37),
    "llmbar-natural": (93, 100),
    "llmbar-adver-neighbor": (91, 134),
    "llmbar-adver-GPTInst": (71, 92),
    "llmbar-adver-GPTOut": (31, 47),
    "llmbar-adver-manual": (32, 46),
}
ARMO_SAFETY = {
    "refusals-dangerous": (93, 100),
    "refusals-offensive": (97, 100),
    "xstest-should-refuse": (154, 154),
    "xstest-should-respond": (218, 250),
    "donotanswer": (108, 136),
}
FEW = {  # of each subset, right and all
    "alpacaeval-easy": (1, 2),
    "alpacaeval-length": (1, 1),
    "alpacaeval-hard": (0, 1),
    "mt-bench-easy": (3, 3),
    "mt-bench-med": (0, 2),
    "math-prm": (1, 4),
    "hep-cpp": (1, 1),
    "hep-go": (1, 1),
    "hep-java": (1, 2),
    "hep-js": (0, 1),
    "hep-python": (2, 2),
    "hep-rust": (0, 3),
}


def rows_of(subsets: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    return [row for subset, (right, rows) in subsets.items() for row in pairs_of(subset, right, rows)]


def test_reward_bench_gives_the_published_sections_of_a_published_reward() -> None:
    result = scored(RewardBench(), rows_of({**ARMO_CHAT_HARD, **ARMO_SAFETY}))
    assert round(100 * section(result, "Chat Hard").score, 1) == 76.8
    assert round(100 * section(result, "Safety").score, 1) == 90.5  # on the leaderboard; 92.2 in the paper, by swapped weights
    assert section(result, "Safety").items == 740
    assert round(section(result, "Chat Hard").parts["llmbar-adver-neighbor"], 3) == 0.679


def test_reward_bench_weighs_subsets_by_their_full_numbers_and_math_as_much_as_code() -> None:
    result = scored(RewardBench(), rows_of({**FEW, **ARMO_CHAT_HARD, **ARMO_SAFETY}))
    chat = (100 * 1 / 2 + 95 * 1 + 95 * 0 + 28 * 1 + 40 * 0) / (100 + 95 + 95 + 28 + 40)
    code = (1 + 1 + 1 / 2 + 0 + 1 + 0) / 6  # six subsets of 164
    reasoning = (1 / 4 + code) / 2
    assert section(result, "Chat").score == pytest.approx(chat)
    assert section(result, "Reasoning").score == pytest.approx(reasoning)
    assert result.score == pytest.approx((chat + 350 / 456 + 670 / 740 + reasoning) / 4)


def test_reward_bench_without_one_subset_has_no_score() -> None:
    rows = rows_of({**FEW, **ARMO_CHAT_HARD, **ARMO_SAFETY, "hep-go": (0, 0)})
    result = scored(RewardBench(), rows)
    assert section(result, "Reasoning").score == pytest.approx((984 / 4 + 164 * 2.5) / (984 + 5 * 164))
    assert "hep-go" not in section(result, "Reasoning").parts
    assert math.isnan(result.score)


def test_equal_scores_are_wrong_in_reward_bench() -> None:
    row = {**ROWS[RewardBench], "rejected": "1"}
    assert section(scored(RewardBench(), [row]), "Reasoning").score == 0


def test_a_subset_of_another_dataset_is_refused() -> None:
    with pytest.raises(DataError, match=r"reward-bench, row 1: 'subset' is 'mt-bench-hart'. Did you mean 'mt-bench-hard'"):
        list(RewardBench().rows([{**ROWS[RewardBench], "subset": "mt-bench-hart"}]))


# --- RewardBench 2 --------------------------------------------------------------------------------------------------------

TIES = [
    question("Ties", [5, 4], [1, 0], "tied:0"),  # gap 3, spread 1
    question("Ties", [3], [2.5], "ref:0"),  # gap 1/2
    question("Ties", [2, 2], [1], "tied:1"),  # gap 1, spread 0
    question("Ties", [1], [0], "ref:1"),  # gap 1
    question("Ties", [1, 3], [2], "tied:2"),  # gap -1, spread 2
    question("Ties", [0], [1], "ref:2"),  # gap -1
    question("Ties", [1, 1], [1], "tied:3"),  # gap 0, spread 0
    question("Ties", [2], [0], "ref:3"),  # gap 2
    question("Ties", [1], [2], "ref:9"),  # without a partner, so that it counts for accuracy alone
]
TIES_SCORE = (
    0.3 * 2 / 4  # tied:0 and tied:1 have a gap above 0
    + 0.3 * 3 / 5  # ref:0, ref:1 and ref:3
    + 0.2 * 2 / 4  # 3 > 1 and 1 > 0
    + 0.2 * 1 / 4  # 1 > 0 alone; 1/2 is not above 1
    + 0.01 * (math.tanh(0.5 - 1) + 1 + math.tanh(-0.5 - 1) + 0) / 4  # 1 / 0 is as large as can be, and 0 / 0 counts 0
)


def test_the_best_of_four_shares_its_point_with_those_that_score_the_same() -> None:
    found = [
        question("Math", [2], [1, 0, -1]),  # 1
        question("Math", [2], [2, 2, 0]),  # 1/3
        question("Math", [2], [3, 0, 0]),  # 0
        question("Math", [2], [2, 1, 1]),  # 1/2
    ]
    assert section(scored(RewardBench2(), found), "Math").score == pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)


def test_ties_are_scored_by_accuracy_and_margins() -> None:
    found = section(scored(RewardBench2(), TIES), "Ties")
    assert found.score == pytest.approx(TIES_SCORE)
    assert found.items == 9
    assert found.parts["accuracy, tied"] == 0.5
    assert found.parts["accuracy, ref"] == 0.6
    assert found.parts["gap above spread, tied"] == 0.5
    assert found.parts["gap above spread, both"] == 0.25


def test_reward_bench_2_is_the_mean_of_six_sections() -> None:
    rows = [*TIES, *(question(name, [1], [0, 0, 0]) for name in ("Factuality", "Precise IF", "Math", "Safety"))]
    assert math.isnan(scored(RewardBench2(), rows).score)  # Focus is missing
    rows.append(question("Focus", [1], [1, 0, 0]))
    assert scored(RewardBench2(), rows).score == pytest.approx((4 + 1 / 2 + TIES_SCORE) / 6)


def test_ties_without_a_question_that_has_both_rows_have_no_score() -> None:
    assert math.isnan(section(scored(RewardBench2(), TIES[::2]), "Ties").score)
    assert math.isnan(section(scored(RewardBench2(), []), "Ties").score)


def test_rows_that_the_rule_of_reward_bench_2_does_not_fit_are_refused() -> None:
    suite = RewardBench2()
    with pytest.raises(DataError, match="the id of a row of Ties is 'x'; 'ref:NUMBER' or 'tied:NUMBER' is expected"):
        list(suite.rows([question("Ties", [1], [0], "x")]))
    with pytest.raises(DataError, match="'tied:4' has one right answer"):
        list(suite.rows([question("Ties", [1], [0], "tied:4")]))
    with pytest.raises(DataError, match="'chosen' has 2 answers; one is expected in Math"):
        list(suite.rows([question("Math", [1, 1], [0])]))


# --- RM-Bench -------------------------------------------------------------------------------------------------------------

RIGHT, WRONG = ([1, 1, 1], [0, 0, 0]), ([0, 0, 0], [1, 1, 1])
LIKES_STYLE = [1, 11, 21], [0, 10, 20]  # right answers win against answers of their own style and of plainer ones


def test_rm_bench_has_difficulties_and_domains() -> None:
    rows = [
        styles("chat", *LIKES_STYLE),
        styles("chat", *RIGHT),
        styles("code", *RIGHT),
        styles("math", [1, 1, 1], [1, 1, 1]),  # equal scores are wrong
        *[styles("safety-refuse", *RIGHT)] * 3,
        styles("safety-response", *WRONG),
    ]
    result = scored(RmBench(), rows)
    assert {found.name: found.score for found in result.sections} == {
        "chat": pytest.approx((6 / 9 + 1) / 2),
        "code": 1,
        "math": 0,
        "safety": 0.75,  # of all four rows together, not of its halves
    }
    assert section(result, "safety").parts == {"safety-refuse": 1, "safety-response": 0}
    assert result.score == pytest.approx((7.5 / 9 + 1 + 0 + 0.75) / 4)
    assert result.figures["hard"] == pytest.approx((0.5 + 1 + 0 + 0.75) / 4)
    assert result.figures["normal"] == result.figures["easy"] == pytest.approx((1 + 1 + 0 + 0.75) / 4)
    assert sum(result.figures.values()) / 3 == pytest.approx(result.score)
    accuracies, overall, chat, *_ = result.tables
    assert accuracies.rows == ("chat", "code", "math", "safety", "mean")
    assert accuracies.columns == ("hard", "normal", "easy")
    assert accuracies.values[0] == (0.5, 1, 1)
    assert chat.values == ((1, 0.5, 0.5), (1, 1, 0.5), (1, 1, 1))
    assert overall.values[0][2] == pytest.approx((0.5 + 1 + 0 + 0.75) / 4)


def test_rows_are_right_answers_and_columns_wrong_ones() -> None:
    result = scored(RmBench(), [styles("code", [1, 0, 0], [5, 5, 0.5])])
    code = next(table for table in result.tables if table.title == "Accuracy by style: code")
    assert code.rows == ("right: concise", "right: detailed", "right: detailed, markdown")
    assert code.values == ((0, 0, 1), (0, 0, 0), (0, 0, 0))  # a plain right answer against a rich wrong one: hard
    assert result.tables[0].values[1] == pytest.approx((1 / 3, 0, 0))
    assert math.isnan(result.score)
    assert math.isnan(result.figures["hard"])


def test_rm_bench_needs_three_styles() -> None:
    with pytest.raises(DataError, match="rm-bench, row 1: 'rejected' has 2 answers; one in each of three styles is expected"):
        list(RmBench().rows([styles("chat", [1, 1, 1], [0, 0])]))


# --- PPE ------------------------------------------------------------------------------------------------------------------


def test_ppe_measures_pairs_area_and_best_of_k() -> None:
    labels = [True, False, True, False]
    rows = [
        best_of("MATH", [4, 3, 2, 1], labels, [[0, 1], [3, 2], [1, 2]]),  # the last is wrong: 2 is not above 3
        best_of("MATH", [400, 300, 200, 100], labels, [[2, 3]]),  # the same, on a scale of its own
    ]
    result = scored(Ppe(), rows)
    assert section(result, "MATH").score == 3 / 4
    accuracy, area, most, end, error = result.tables[0].values[result.tables[0].rows.index("MATH")]
    assert accuracy == 3 / 4
    assert area == pytest.approx(3 / 4)  # all but the third answer against the second, in and across questions
    assert (most, end) == (1, 1)
    # The best of 1, 2, 3 and 4 is right in 1/2, 4/6, 3/4 and all of the draws, and in 1/2, 5/6, 1 and 1 for a perfect reward.
    assert error == pytest.approx(((1 / 6) ** 2 + (1 / 4) ** 2) / 4)
    assert math.isnan(result.score)


def test_the_best_of_k_curve_falls_where_a_reward_is_exploited() -> None:
    result = scored(Ppe(), [best_of("IFEval", [1, 2, 3, 9], [False, True, True, False], [[0, 1]])])
    _, _, most, end, _ = result.tables[0].values[result.tables[0].rows.index("IFEval")]
    assert (most, end) == (0.5, 0)


def test_answers_that_score_the_same_share_what_they_are_worth() -> None:
    result = scored(Ppe(), [best_of("GPQA", [1, 1], [False, True], [[0, 1]])])
    accuracy, area, most, end, _ = result.tables[0].values[result.tables[0].rows.index("GPQA")]
    assert (accuracy, area, most, end) == (0, 0.5, 0.5, 0.5)


def test_the_score_of_ppe_is_the_mean_accuracy_on_five_sets() -> None:
    names = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
    rows = [best_of(name, [2, 1], [name != "GPQA", name == "GPQA"], [[0, 1]]) for name in names]
    result = scored(Ppe(), rows)
    assert [found.name for found in result.sections] == list(names)
    assert result.score == pytest.approx(4 / 5)
    assert result.tables[0].values[-1][0] == pytest.approx(4 / 5)
    assert result.figures["best of k: end"] == pytest.approx(4 / 5)
    assert math.isnan(scored(Ppe(), rows[:4]).score)


def test_ppe_without_the_compared_pairs_has_no_score() -> None:
    row = ROWS[Ppe]
    item = SuiteItem("q", "MATH", np.array([4.0, 3, 2, 1]), np.array([1.0, 0, 1, 0]))
    assert next(Ppe().rows([row]))["compared"] == [(0, 1), (2, 3), (2, 1)]
    assert math.isnan(section(Ppe().result([item]), "MATH").score)


def test_a_question_of_ppe_may_have_no_sampled_pair() -> None:
    rows = [ROWS[Ppe], best_of("MATH", [1, 2], [True, True], [])]
    found = section(scored(Ppe(), rows), "MATH")
    assert found.score == pytest.approx(2 / 3)
    assert found.items == 2


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"category": "law"}, "MMLU-Pro"),
        ({"problem": "1 + 1"}, "MATH"),
        ({"Record ID": "r"}, "GPQA"),
        ({"test_list": ["assert f()"]}, "MBPP-Plus"),
        ({"instruction_id_list": ["a"]}, "IFEval"),
    ],
)
def test_a_set_of_ppe_is_known_by_a_column_of_its_own(own: dict[str, Any], name: str) -> None:
    row = {**ROWS[Ppe], **own}
    del row["dataset"]
    assert next(Ppe().rows([row]))["section"] == name


def test_rows_of_ppe_that_are_unclear_are_refused() -> None:
    row = {**ROWS[Ppe], "dataset": None}
    with pytest.raises(
        DataError, match=r"ppe, row 1: .*none of the sets. Add a column 'dataset' with one of lmarena-ai/PPE-MMLU"
    ):
        list(Ppe().rows([row]))
    with pytest.raises(DataError, match="those of MATH or IFEval"):
        list(Ppe().rows([{**row, "problem": "", "instruction_id_list": []}]))
    for pair in ([0, 2], [0, 9], [0, -1], [0], 7):
        with pytest.raises(DataError, match="positions of a right and a wrong answer are expected"):
            list(Ppe().rows([{**ROWS[Ppe], "sampled_conflict_pairs": [pair]}]))
    with pytest.raises(DataError, match="'scores' has 5 values, and there is no text 'response_5'"):
        list(Ppe().rows([{**ROWS[Ppe], "scores": [True, False, True, False, True]}]))


# --- All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_rows_are_judgements_of_conversations(cls: type[Suite]) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    prompt = "question" if cls is JudgeBench else "prompt"
    text, conversation = cls().rows([ROWS[cls], {**ROWS[cls], prompt: messages}])
    assert judgement(text).samples[0].prompt == [{"role": "user", "content": "Q"}]
    assert judgement(conversation).samples[0].prompt == messages
    assert judgement(text).pairs
    assert text["id"]
    assert text["section"]


@pytest.mark.parametrize(("cls", "column"), [(cls, column) for cls, columns in NEEDED.items() for column in columns])
def test_a_missing_column_is_named(cls: type[Suite], column: str) -> None:
    row = {name: value for name, value in ROWS[cls].items() if name != column}
    rows = cls().rows([ROWS[cls], row])
    next(rows)
    with pytest.raises(DataError, match=f"^{cls.name}, row 2: .*there is no (text )?'{column}'"):
        next(rows)


def test_the_message_says_what_a_row_has() -> None:
    with pytest.raises(DataError) as caught:
        list(RmBench().rows([{"prompt": "Q", "text": "A"}]))
    assert str(caught.value) == (
        "rm-bench, row 1: there is no 'chosen'; it has the columns 'prompt', 'text'. A row of THU-KEG/RM-Bench has 'prompt' "
        "(text or messages), 'chosen' (a list of texts), 'rejected' (a list of texts), 'domain' (text), 'id' (a value)."
    )
    with pytest.raises(DataError, match="rm-bench, row 1: 'chosen' is 'A'; a list of texts is expected"):
        list(RmBench().rows([{**ROWS[RmBench], "chosen": "A"}]))


@pytest.mark.parametrize("cls", ALL)
def test_a_row_with_an_abstention_is_wrong_and_counted(cls: type[Suite]) -> None:
    suite = cls()
    (item,) = items_of(suite, [ROWS[cls]])
    assert next(found.score for found in suite.result([item]).sections if found.items) > 0
    for place in range(len(item.scores)):
        scores = item.scores.copy()
        scores[place] = np.nan
        result = suite.result([SuiteItem(item.id, item.section, scores, item.labels, item.compared)])
        assert next(found.score for found in result.sections if found.items) == 0
        assert result.abstained == 1


def test_an_abstention_in_ties_is_the_worst_that_can_be() -> None:
    rows = [{**row, "chosen": ["nan", *row["chosen"][1:]]} for row in TIES]
    assert section(scored(RewardBench2(), rows), "Ties").score == pytest.approx(-0.01)


def test_an_abstention_in_ppe_is_the_worst_that_can_be() -> None:
    result = scored(Ppe(), [best_of("MATH", [4, 3, math.nan, 1], [True, False, True, False], [[0, 1]])])
    accuracy, area, most, end, _ = result.tables[0].values[result.tables[0].rows.index("MATH")]
    assert (accuracy, area, most, end) == (0, 0, 0.5, 0)  # one random answer is right in half of the draws, whatever the reward


@pytest.mark.parametrize("cls", ALL)
def test_without_rows_nothing_has_a_score(cls: type[Suite]) -> None:
    result = cls().result([])
    assert math.isnan(result.score)
    assert all(math.isnan(found.score) for found in result.sections)
    assert all(found.items == 0 for found in result.sections)


@pytest.mark.parametrize("cls", ALL)
def test_every_section_is_needed(cls: type[Suite]) -> None:
    assert math.isnan(scored(cls(), [ROWS[cls]]).score)


def test_the_overall_score_leaves_out_what_has_no_weight() -> None:
    sections = [SuiteSection("a", 0.5, 0.5, 1), SuiteSection("b", 1.0, 0.5, 1), SuiteSection("shown", math.nan, 0, 0)]
    assert overall_score(sections) == 0.75


def test_published_rows_come_from_every_dataset_and_say_so(tmp_path: Path) -> None:
    sources = tuple(str(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
    for number, source in enumerate(sources):
        write_rows([{"number": number}], Path(source))

    class Two(Ppe):
        source = sources

    class One(JudgeBench):
        source = sources[0]

    assert list(Two().published()) == [{"dataset": source, "number": number} for number, source in enumerate(sources)]
    assert list(One().published("claude")) == [{"dataset": sources[0], "number": 0}]


# --- Plug-ins -------------------------------------------------------------------------------------------------------------


class Capitals(Suite):
    """Does a reward know capitals?"""

    name = "capitals"
    source = "me/capitals"
    rule = "The share of countries whose capital scores strictly higher."

    def rows(self, raw: RawRows) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(raw):
            yield {"id": str(number), "section": "capitals", **row}

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        right = sum(item.is_right for item in items) / len(items)
        return SuiteResult(self.name, self.rule, right, (SuiteSection("capitals", right, 1.0, len(items)),))


class Plugin:
    @hookimpl
    def rm_register_suites(self) -> list[type[Suite]]:
        return [Capitals]


def test_a_third_partys_suite_is_found_beside_the_built_in_ones() -> None:
    registry = rm.Registry([Plugin()])
    assert list(registry.all("suite")) == ["judge-bench", "ppe", "reward-bench", "reward-bench-2", "rm-bench", "capitals"]
    suite = registry.get("suite", "capitals")()
    assert scored(suite, [{"prompt": [{"role": "user", "content": "Q"}], "chosen": "2", "rejected": "1"}]).score == 1


def test_a_name_that_is_taken_is_refused() -> None:
    class Rival(Capitals):
        name = "rm-bench"

    class RivalPlugin:
        @hookimpl
        def rm_register_suites(self) -> list[type[Suite]]:
            return [Rival]

    with pytest.raises(DuplicateNameError, match=r"'rm-bench' is registered twice: .*RmBench .* and .*Rival"):
        rm.Registry([RivalPlugin()]).all("suite")


class Careful(Capitals):
    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        return replace(super().result(items), abstained=sum(item.abstained for item in items))


ANSWERS = [{"prompt": [{"role": "user", "content": "Q"}], "chosen": "2", "rejected": "1"}] * 3


def test_the_check_for_authors_knows_a_good_suite() -> None:
    assert check_suite(Careful(), ANSWERS).score == 1
    sources = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
    assert check_suite(JudgeBench(), [{**ROWS[JudgeBench], "source": source} for source in sources]).score == 1


def test_the_check_for_authors_finds_what_is_wrong() -> None:
    class Upside(Careful):
        def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
            return super().result([replace(item, scores=-item.scores) for item in items])

    class Lenient(Careful):
        def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
            return super().result([replace(item, scores=np.nan_to_num(item.scores) + item.labels / 2) for item in items])

    with pytest.raises(AssertionError, match="0 of 3 rows count as abstained"):
        check_suite(Capitals(), ANSWERS)
    with pytest.raises(AssertionError, match=r"has everything wrong reaches 1\.0, and 0\.0 with all right"):
        check_suite(Upside(), ANSWERS)
    with pytest.raises(AssertionError, match="0 of 3 rows count as abstained"):
        check_suite(Lenient(), ANSWERS)


def test_what_a_suite_raises_becomes_an_error_that_names_it() -> None:
    class Careless(Capitals):
        def rows(self, raw: RawRows) -> Iterator[dict[str, Any]]:
            for row in raw:
                yield {"section": "capitals", "prompt": "Q", "chosen": row["capital"], "rejected": "?"}

    with pytest.raises(DataError, match="The suite 'capitals' could not read the row behind its row 1: KeyError: 'capital'"):
        list(Careless().checked_rows([{"capital": "Rome."}, {"country": "Italy"}]))
