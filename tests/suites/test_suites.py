"""Benchmarks score as their own programs do: published numbers come out of published scores, and the rest is worked out by hand.

In the rows that are made up here, every answer is the text of its own reward.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins import hookimpl
from rm_plugins.data.judgements import judgement
from rm_plugins.data.row_files import write_rows
from rm_plugins.errors import DataError, DuplicateNameError
from rm_plugins.evaluation import evaluate
from rm_plugins.suites import Suite, SuiteItem, SuiteResult, SuiteSection, mean, overall_score
from rm_plugins.suites.judge_bench import JudgeBench
from rm_plugins.suites.ppe import Ppe
from rm_plugins.suites.reward_bench import RewardBench
from rm_plugins.suites.reward_bench_2 import RewardBench2
from rm_plugins.suites.rm_bench import RmBench
from rm_plugins.testing import check_suite
from tests.suites.conftest import JUDGE_BENCH_ROW, ROWS, TIES, RawRows, best_of, items_of, scored, section, styles

SCORES = Path(__file__).parent / "judgebench_scores.csv"


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


DECISIONS = ["A>B", "B>A", "A=B", None, "A<B", "no idea"]


def test_judge_bench_counts_the_verdicts_of_both_orders_as_its_program_does() -> None:
    chance = random.Random(5)
    rows: list[dict[str, Any]] = [
        {
            **JUDGE_BENCH_ROW,
            "pair_id": str(number),
            "source": chance.choice(
                ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
            ),
            "label": chance.choice(["A>B", "B>A"]),
            "judge_name": "arena_hard",
            "judgments": [judgment(chance) for _ in range(2 if number % 5 else 1)],
        }
        for number in range(300)
    ]
    verdicts: Any = "column:judgments"
    found = evaluate(verdicts, rows, suite="judge-bench").rewards[0].suite
    assert found is not None
    assert found.score == pytest.approx(mean(of_their_program(row) for row in rows))
    prefixes = {"Knowledge": "mmlu", "Reasoning": "livebench-r", "Math": "livebench-m", "Coding": "livecode"}
    for part in found.sections:
        of_section = [of_their_program(row) for row in rows if row["source"].startswith(prefixes[part.name])]
        assert part.score == pytest.approx(mean(of_section))
        assert part.items == len(of_section)
    silent = [row for row in rows if all((one or {}).get("decision") not in DECISIONS[:3] for one in row["judgments"])]
    assert found.abstained == len(silent) > 0


def judgment(chance: random.Random) -> dict[str, Any] | None:
    """What a judge said: its verdict beside its words, or null where asking it failed."""
    decision = chance.choice(DECISIONS)
    return None if chance.random() < 0.1 else {"judgment": {"judge_model": "m", "response": "[[..]]"}, "decision": decision}


def of_their_program(row: dict[str, Any]) -> bool:
    """The rule of compute_final_metrics in utils/metrics.py of github.com/ScalerLab/JudgeBench, told in its own way."""
    other: dict[str | None, str] = {"A>B": "B>A", "B>A": "A>B"}
    first, *second = ((one or {}).get("decision") for one in row["judgments"])
    if not second:
        return bool(first == row["label"])
    of_first_order = [first, other.get(second[0], second[0])]
    return of_first_order.count(row["label"]) > of_first_order.count(other[row["label"]])


def test_what_is_not_a_judgement_is_refused() -> None:
    for judgments, told in (
        ("A>B", "a list of one judgement"),
        ([], "a list of one"),
        ([None] * 3, "a list"),
        ([{"decision": 1}], "null or a mapping"),
        ([{"verdict": "A>B"}], "null or a mapping"),
    ):
        with pytest.raises(DataError, match=f"judge-bench, row 1: 'judgments'.*{told}"):
            list(JudgeBench().rows([{**JUDGE_BENCH_ROW, "judgments": judgments}]))


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

    with pytest.raises(AssertionError, match="abstains on all 3 rows is counted as abstaining on 0"):
        check_suite(Capitals(), ANSWERS)
    with pytest.raises(AssertionError, match=r"always wrong has the score 1\.0, and one that is always right 0\.0"):
        check_suite(Upside(), ANSWERS)
    with pytest.raises(AssertionError, match="abstains on all 3 rows is counted as abstaining on 0"):
        check_suite(Lenient(), ANSWERS)


def test_what_a_suite_raises_becomes_an_error_that_names_it() -> None:
    class Careless(Capitals):
        def rows(self, raw: RawRows) -> Iterator[dict[str, Any]]:
            for row in raw:
                yield {"section": "capitals", "prompt": "Q", "chosen": row["capital"], "rejected": "?"}

    with pytest.raises(DataError, match="The suite 'capitals' could not read the raw row after its row 1: KeyError: 'capital'"):
        list(Careless().checked_rows([{"capital": "Rome."}, {"country": "Italy"}]))
