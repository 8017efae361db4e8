"""Rewards on judged rows: what is measured, what stands out, what is shown, and that all of it is in the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import brier_score_loss, roc_auc_score

import rm_plugins as rm
from rm_plugins.data.row_files import read_rows
from rm_plugins.errors import DataError, UnknownNameError
from rm_plugins.evaluation import evaluate, pair_metrics
from rm_plugins.evaluation.figures import figures_of
from rm_plugins.evaluation.results import Evaluation, RewardResult
from rm_plugins.identity import shown_spec

Row = dict[str, Any]


def text(sample: rm.Sample) -> str:
    return str(sample.completion if isinstance(sample.completion, str) else sample.completion[-1]["content"])


def reward(score: Callable[[str], float | None], *, details: Mapping[str, Callable[[str], float]] | None = None) -> rm.Provider:
    class Made(rm.Provider):
        name = "made"

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            texts = [text(sample) for sample in samples]
            values = np.array([np.nan if (found := score(one)) is None else found for one in texts])
            return rm.Scores(values, {name: np.array(list(map(of, texts))) for name, of in (details or {}).items()})

    return Made()


LENGTH = reward(lambda found: float(len(found)))


def pair(chosen: str, rejected: str, **columns: Any) -> Row:
    return {"prompt": f"Q {columns.get('id', 0)}", "chosen": chosen, "rejected": rejected, **columns}


def made_pairs(count: int, longer: float, seed: int = 0) -> list[Row]:
    """Pairs whose chosen answer is the better by its digit, and the longer one with this probability."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        long, short = rng.integers(60, 120), rng.integers(5, 50)
        sizes = (long, short) if rng.random() < longer else (short, long)
        rows.append(pair("9" + "x" * sizes[0], "1" + "y" * sizes[1], id=number))
    return rows


def only(evaluation: Evaluation) -> RewardResult:
    (found,) = evaluation.rewards
    return found


def value(result: RewardResult, name: str) -> float:
    return result.figures[name].value


class TestFigures:
    def test_they_are_those_of_scikit_learn_and_scipy(self) -> None:
        rng = np.random.default_rng(1)
        scores = {f"{number}": float(found) for number, found in enumerate(rng.normal(size=400))}
        rows = [pair(str(2 * number), str(2 * number + 1), id=number) for number in range(200)]
        found = only(evaluate(reward(scores.__getitem__), rows, resamples=50))
        chosen, rejected = (np.array([scores[row[side]] for row in rows]) for side in ("chosen", "rejected"))
        delta = chosen - rejected
        assert value(found, "accuracy") == pair_metrics(chosen, rejected).accuracy
        assert value(found, "margin") == pytest.approx(delta.mean())
        assert value(found, "brier") == pytest.approx(brier_score_loss(np.ones(200), 1 / (1 + np.exp(-delta))))
        labels = np.repeat([1, 0], 200)
        both = np.concatenate([chosen, rejected])
        assert value(found, "auc") == pytest.approx(roc_auc_score(labels, both))
        lengths = [len(row[side]) for side in ("chosen", "rejected") for row in rows]
        assert value(found, "length_correlation") == pytest.approx(pearsonr(both, lengths).statistic)
        assert value(found, "ece") == pytest.approx(
            sum(one.pairs * abs(one.predicted - one.observed) for one in found.calibration) / 400
        )

    def test_ties_are_wrong_and_abstentions_are_left_out(self) -> None:
        rows = [pair("aa", "bb", id=1), pair("ccc", "d", id=2), pair("?", "e", id=3)]
        found = only(evaluate(reward(lambda one: None if one == "?" else float(len(one))), rows, resamples=50))
        assert (found.pairs, found.samples, found.abstained) == (2, 6, 1)
        assert (value(found, "accuracy"), value(found, "ties")) == (0.5, 0.5)
        assert [finding.severity for finding in found.findings if finding.kind == "abstained"] == ["warning"]

    def test_ties_may_count_half(self) -> None:
        rows = [pair("aa", "bb", id=1), pair("ccc", "d", id=2), pair("e", "ff", id=3), pair("ggg", "h", id=4)]
        found = only(evaluate(LENGTH, rows, resamples=5))
        assert (value(found, "accuracy"), value(found, "accuracy_ties_half")) == (0.5, 0.625)

    def test_what_was_judged_to_tie_is_compared_with_what_the_reward_takes_for_a_tie(self) -> None:
        rows = [pair("a" * 9, "b", id=1), pair("a" * 5, "b", id=2), pair("a", "b" * 9, id=3)]
        rows += [pair("aa", "b", id=4, tie=True), pair("a", "bbb", id=5, tie=True), pair("a", "b" * 9, id=6, tie=True)]
        found = only(evaluate(LENGTH, rows, resamples=5))
        assert [value(found, "agreement"), value(found, "tie_threshold")] == pytest.approx([4 / 6, 2.0])
        assert found.pairs == 3
        assert value(found, "accuracy") == pytest.approx(2 / 3)
        assert "agreement" not in only(evaluate(LENGTH, rows[:3], resamples=5)).figures

    def test_a_reward_that_is_right_at_any_length_is_so_at_equal_length(self) -> None:
        found = only(evaluate(reward(lambda one: float(one[0])), made_pairs(300, longer=0.9), resamples=5))
        assert value(found, "accuracy_equal_length") > 0.98
        found = only(evaluate(LENGTH, made_pairs(300, longer=0.9), resamples=5))
        assert found.figures["accuracy_equal_length"].low < 0.5

    def test_lists_are_ranked_within_their_prompt(self) -> None:
        rows = [
            {"prompt": "1", "completions": ["1", "2", "3"], "scores": [1, 2, 3]},
            {"prompt": "2", "completions": ["1", "2", "3"], "scores": [3, 2, 1]},
        ]
        found = only(evaluate(reward(float), rows, resamples=50))
        assert (value(found, "kendall"), value(found, "top_1")) == (0.0, 0.5)
        assert value(found, "top_1_random") == pytest.approx(1 / 3)
        assert found.best_of_n is not None
        assert found.best_of_n.n == (1, 2, 3)
        assert [one.value for one in found.best_of_n.mean] == pytest.approx([2.0, 2.0, 2.0])
        assert found.best_of_n.best == pytest.approx((2.0, 8 / 3, 3.0))

    def test_prompts_whose_answers_are_all_right_or_wrong_count_in_the_best_of_n(self) -> None:
        rows = [
            {"prompt": "1", "completions": ["1", "2"], "labels": [True, True]},
            {"prompt": "2", "completions": ["1", "2"], "labels": [False, False]},
            {"prompt": "3", "completions": ["1", "2"], "labels": [False, True]},
        ]
        found = only(evaluate(reward(float), rows, resamples=50))
        assert found.best_of_n is not None
        assert found.best_of_n.prompts == 3
        assert [one.value for one in found.best_of_n.mean] == pytest.approx([0.5, 2 / 3])
        assert value(found, "top_1") == 1.0  # of the one prompt with a choice

    def test_one_rating_can_be_the_measure(self) -> None:
        rows = [{"prompt": "1", "completions": ["1", "2"], "scores": {"kind": [5, 1], "true": [1, 2]}}]
        assert value(only(evaluate(reward(float), rows, resamples=50)), "accuracy") == 0.0
        found = only(evaluate(reward(float), rows, by="true", resamples=50))
        assert value(found, "accuracy") == 1.0
        assert value(found, "correlation/kind") == -1.0
        with pytest.raises(DataError, match="row 1: the reward weighs 'tru', which is not an attribute of this row"):
            evaluate(reward(float), rows, by="tru")

    def test_rewards_that_differ_by_their_rounding_or_fill_a_float_have_a_distribution(self) -> None:
        for rewards in ((0.3, 0.1 + 0.2), (1e6, float(np.nextafter(1e6, 2e6))), (-1.7e308, 1.7e308), (1e154, 3e154)):
            scores = dict(zip("ba", rewards, strict=True))
            found = only(evaluate(reward(scores.__getitem__), [pair("a", "b")]))
            assert found.distribution is not None
            assert sum(found.distribution.chosen) == sum(found.distribution.rejected) == 1
            json.dumps(found.distribution.edges, allow_nan=False)

    def test_goodness_of_several_kinds_is_not_averaged(self) -> None:
        rows = [
            {"prompt": "1", "completions": ["1", "2"], "ranks": [2, 1]},
            {"prompt": "2", "completions": ["1", "2"], "scores": [1, 9]},
        ]
        found = only(evaluate(reward(float), rows, resamples=50))
        assert (found.best_of_n, value(found, "top_1")) == (None, 1.0)
        with pytest.raises(DataError, match="No row rates its answers by 'true'"):
            evaluate(LENGTH, [pair("a", "b")], by="true")

    def test_the_interval_is_over_prompts(self) -> None:
        same = [pair("22", "1", id=0) for _ in range(50)] + [pair("1", "22", id=1) for _ in range(50)]
        different = [pair(*(("22", "1") if number % 2 else ("1", "22")), id=number) for number in range(100)]
        wide, narrow = (only(evaluate(LENGTH, rows)).figures["accuracy"] for rows in (same, different))
        assert (wide.value, narrow.value) == (0.5, 0.5)
        assert wide.low < 0.1 and wide.high > 0.9
        assert only(evaluate(LENGTH, same, cluster="row")).figures["accuracy"].low > 0.3
        assert narrow.high - narrow.low < 0.25

    @pytest.mark.parametrize(("prompt", "prompts"), [({"prompt": "Q"}, 1), ({}, 30)])
    def test_rows_that_all_have_one_prompt_or_none_are_taken_for_independent(self, prompt: Row, prompts: int) -> None:
        rows = [{"chosen": "a" * (number % 3 + 1), "rejected": "bb", **prompt} for number in range(30)]
        found = evaluate(LENGTH, rows, resamples=50)
        assert found.data.prompts == prompts
        assert only(found).figures["accuracy"].low < only(found).figures["accuracy"].high

    def test_every_figure_is_explained(self) -> None:
        rows = [{"prompt": str(n), "completions": ["1", "2", "3"], "scores": {"a": [1, 2, n]}} for n in range(5)]
        members = {"member/0": float, "member/1": lambda one: -float(one), "std": float}
        found = only(evaluate(reward(float, details=members), rows, resamples=50))
        for name in found.figures:
            assert figures_of(["a"])[name].meaning.endswith(".")
        assert {"member_agreement", "member_std"} <= set(found.figures)


class TestFindings:
    def test_a_reward_that_is_right_by_length_alone_is_exposed(self) -> None:
        found = only(evaluate(LENGTH, made_pairs(300, longer=0.8), resamples=20))
        assert value(found, "accuracy") > 0.75
        first = found.findings[0]
        assert (first.kind, first.severity) == ("length", "alarm")
        assert first.message.startswith(
            "Length decides: it prefers the longer answer in 100.0% of pairs (the longer one is the better in"
        )
        assert value(found, "accuracy_corrected") == pytest.approx(0.5, abs=0.02)

    def test_and_so_it_is_on_two_prompts(self) -> None:
        rows = [{**row, "prompt": f"Q{number % 2}"} for number, row in enumerate(made_pairs(300, longer=0.8))]
        first = only(evaluate(LENGTH, rows, resamples=20)).findings[0]
        assert (first.kind, first.severity) == ("length", "alarm")

    def test_a_reward_that_likes_short_answers_is_exposed_too(self) -> None:
        found = only(evaluate(reward(lambda one: -(len(one) ** 0.5)), made_pairs(300, longer=0.2), resamples=20))
        assert found.findings[0].message.startswith("Length decides: it prefers the shorter answer in 100.0% of pairs")

    def test_a_good_reward_is_not_accused_where_the_longer_answer_is_the_better(self) -> None:
        found = only(evaluate(reward(lambda one: float(one[0])), made_pairs(300, longer=0.97), resamples=20))
        assert value(found, "length_preference") > 0.95
        assert [finding.kind for finding in found.findings if finding.severity != "note"] == []

    def test_chance_ties_and_a_turned_sign_are_told(self) -> None:
        rows = made_pairs(200, longer=0.5)
        kinds = {
            name: {finding.kind: finding.message for finding in only(evaluate(provider, rows, resamples=20)).findings}
            for name, provider in {
                "same": reward(lambda one: 1.0),
                "turned": reward(lambda one: -float(one[0])),
                "chance": reward(lambda one: float(hash((len(one), one[0] == "9", 7)) % 1009)),
            }.items()
        }
        assert "equal rewards in 100.0%" in kinds["same"]["ties"]
        assert kinds["turned"]["chance"].startswith("It prefers the worse answer")
        assert kinds["chance"]["chance"].startswith("It is not better than chance here")

    def test_few_pairs_are_no_alarm(self) -> None:
        noisy = reward(lambda one: float(one[0]) * (1 if hash((len(one), 3)) % 10 < 8 else -1))
        found = only(evaluate(noisy, made_pairs(12, longer=0.5), resamples=20)).findings
        assert [(one.kind, one.severity) for one in found if one.severity != "note"] == []

    def test_a_coarse_reward_is_not_said_to_prefer_the_worse_answer(self) -> None:
        coarse = reward(lambda one: float(one[0] == "9" and len(one) % 3 == 0))
        found = only(evaluate(coarse, made_pairs(200, longer=0.5), resamples=20))
        assert value(found, "accuracy") < 0.45
        assert [one.kind for one in found.findings] == ["ties"]

    def test_a_step_of_length_is_exposed_though_most_pairs_tie(self) -> None:
        step = reward(lambda one: float(len(one) > 90))
        first = only(evaluate(step, made_pairs(400, longer=0.5), resamples=20)).findings[0]
        assert (first.kind, first.severity) == ("length", "alarm")
        assert "it prefers the longer answer in" in first.message

    def test_a_reward_that_errs_is_not_said_to_like_a_format(self) -> None:
        rng = np.random.default_rng(0)
        rows = [pair(*((f"**9** {n}", f"1 {n}") if rng.random() < 0.2 else (f"9 {n}", f"**1** {n}")), id=n) for n in range(400)]
        noise = {row[side]: float(rng.normal()) for row in rows for side in ("chosen", "rejected")}
        errs = reward(lambda one: ("9" in one.split(" ")[0]) * 0.6 + noise[one])
        assert "format" not in {one.kind for one in only(evaluate(errs, rows, resamples=20)).findings}

    def test_a_taste_for_lists_is_told(self) -> None:
        rows = [pair("good", "- a\n- b", id=number) for number in range(40)]
        rows += [pair("- good\n- b", "- a", id=number) for number in range(40, 80)]
        found = only(evaluate(reward(lambda one: float(one.count("- ")) + 0.5 * ("good" in one)), rows, resamples=20))
        (bias,) = [finding for finding in found.findings if finding.kind == "format"]
        assert {name: bias.numbers[name] for name in ("pairs", "preferred", "accuracy_more", "accuracy_less")} == {
            "pairs": 80,
            "preferred": 1.0,
            "accuracy_more": 1.0,
            "accuracy_less": 0.0,
        }

    def test_their_numbers_are_in_them(self) -> None:
        for finding in only(evaluate(LENGTH, made_pairs(300, longer=0.8), resamples=20)).findings:
            for number in finding.numbers.values():
                shown = {f"{number:.1%}", f"{number:.3f}", f"{number:,}", f"{1 - number:.1%}"}
                assert any(one in finding.message for one in shown) or finding.kind == "calibration"


class TestDifferences:
    def test_b_is_better_where_a_is_wrong(self) -> None:
        rows = made_pairs(200, longer=0.7)
        right = reward(lambda one: float(one[0]))
        found = evaluate({"length": LENGTH, "right": right}, rows, resamples=20)
        (difference,) = found.differences
        assert (difference.a, difference.b, difference.only_a) == ("length", "right", 0)
        wrong = round((1 - value(found.rewards[0], "accuracy")) * 200)
        assert (difference.only_b, len(difference.won), len(difference.lost)) == (wrong, 20, 0)
        assert difference.accuracy.low > 0
        assert difference.p_value < 1e-6
        flip = difference.won[0]
        row = rows[flip.pair.row - 1]
        assert (flip.pair.prompt, flip.pair.chosen, flip.pair.rejected) == (row["prompt"], row["chosen"], row["rejected"])
        assert (flip.chosen_reward_a, flip.rejected_reward_a) == (len(row["chosen"]), len(row["rejected"]))
        assert (flip.pair.chosen_reward, flip.pair.rejected_reward) == (9.0, 1.0)

    def test_the_same_reward_does_not_differ(self) -> None:
        (found,) = evaluate({"a": LENGTH, "b": LENGTH}, made_pairs(50, longer=0.5), resamples=50).differences
        assert (found.accuracy.value, found.p_value, found.won, found.lost) == (0.0, 1.0, (), ())


class TestMistakes:
    def test_they_are_the_worst_with_their_texts(self) -> None:
        rows = [pair("x" * number, "y" * 10, id=number, section="s") for number in range(1, 10)]
        found = only(evaluate(LENGTH, rows, resamples=50)).mistakes
        assert [(one.row, one.chosen, one.rejected, one.section) for one in found] == [
            (number, "x" * number, "y" * 10, "s") for number in range(1, 10)
        ]
        assert (found[0].chosen_reward, found[0].rejected_reward, found[0].rejected_length) == (1.0, 10.0, 10)

    def test_a_row_is_shown_once(self) -> None:
        rows = [{"prompt": "Q", "completions": ["a", "bb", "ccc"], "ranks": [1, 2, 3]}, pair("a", "bbb", id=2)]
        found = only(evaluate(LENGTH, rows, resamples=50)).mistakes
        assert [(one.row, one.chosen, one.rejected) for one in found] == [(1, "a", "ccc"), (2, "a", "bbb")]

    def test_rows_that_can_be_read_once_are_kept(self) -> None:
        rows = [pair("x" * number, "y" * 10, id=number) for number in range(1, 4)]
        assert len(only(evaluate(LENGTH, iter(rows), resamples=50)).mistakes) == 3


class TestMembers:
    def test_agreement_is_between_members_and_divides_the_accuracy(self) -> None:
        rows = made_pairs(100, longer=0.5)
        members = {"member/0": lambda one: float(one[0]), "member/1": lambda one: float(len(one)), "std": lambda one: 1.0}
        found = only(evaluate(reward(lambda one: float(one[0]), details=members), rows, resamples=50)).members
        assert found is not None
        assert found.names == ("member/0", "member/1")
        assert found.accuracy[0] == 1.0
        assert found.agreement[0] == (1.0, found.accuracy[1])
        assert (found.unanimous, found.accuracy_unanimous, found.accuracy_divided) == (found.accuracy[1], 1.0, 1.0)

    def test_details_of_members_and_the_parts_of_a_sum_are_no_members(self) -> None:
        rows = made_pairs(4, longer=0.5)
        parts = {"member/0": lambda one: 1.0, "member/1": lambda one: 2.0}
        assert only(evaluate(reward(lambda one: 3.0, details=parts), rows, resamples=50)).members is None
        details = {**parts, "std": lambda one: 1.0, "member/0/raw": lambda one: 5.0, "member/1/member/0": lambda one: 5.0}
        found = only(evaluate(reward(lambda one: 3.0, details=details), rows, resamples=50)).members
        assert found is not None
        assert found.names == ("member/0", "member/1")


class TestData:
    def test_it_is_summed_up(self) -> None:
        rows = [pair("aaaa", "b", id=1), pair("a", "bb", id=1), {"prompt": "L", "completions": ["a", "b"], "best": 1}]
        found = evaluate(LENGTH, rows, source="file.jsonl", resamples=50).data
        assert (found.rows, found.samples, found.pairs, found.prompts) == (3, 6, 3, 2)
        assert found.formats == {"preference": 2, "best-of": 1}
        assert (found.longer_chosen, found.length_chosen, found.source) == (0.5, 2.0, "file.jsonl")

    def test_no_row_and_no_suite_are_errors(self) -> None:
        with pytest.raises(DataError, match="There are no rows to evaluate"):
            evaluate(LENGTH, [])
        with pytest.raises(UnknownNameError, match="There is no suite called 'reward-banch'"):
            evaluate(LENGTH, [pair("a", "b")], suite="reward-banch")

    def test_a_row_that_says_nothing_is_named(self) -> None:
        with pytest.raises(DataError, match="row 2: there is no 'rejected'"):
            evaluate(LENGTH, [pair("a", "b"), {"prompt": "Q", "chosen": "a"}])


class TestJson:
    def test_all_of_it_is_json(self) -> None:
        rows = [*made_pairs(50, longer=0.5), pair("22", "1", id="x", subset="one")]
        members = {"member/0": lambda one: float(len(one)), "member/1": lambda one: float(one[0])}
        both = {"a": reward(lambda one: float(len(one)), details=members), "b": LENGTH}
        found = json.loads(evaluate(both, rows, resamples=50).to_json())
        assert (found["format"], found["version"]) == ("rm-plugins evaluation", 1)
        assert set(found["rewards"][0]["figures"]["accuracy"]) == {"value", "low", "high"}
        assert found["rewards"][0]["figures"]["mean_reward"]["low"] is None
        assert found["differences"][0]["won"] == []

    def test_it_says_what_was_evaluated(self, tiny_decoder: Any) -> None:
        folder = tiny_decoder()
        found = only(evaluate(rm.load(str(folder)), made_pairs(4, longer=0.5), resamples=50))
        assert found.spec is not None
        assert found.spec["model"] == str(folder)
        assert len(found.fingerprint) == 64
        assert "Q 0" in found.rendering

    def test_headers_stay_hidden(self) -> None:
        remote = rm.load(
            {"provider": "remote", "url": "http://127.0.0.1:9", "protocol": "rm-plugins", "headers": {"X-Key": "secret"}}
        )
        assert "secret" not in json.dumps(shown_spec(remote), default=str)
        remote.close()


def test_real_pairs_expose_length(data_folder: Path) -> None:
    rows = list(read_rows(str(data_folder / "ukp_convarg_strict.jsonl.gz")))[:3000]
    found = evaluate({"length": LENGTH, "words": reward(lambda one: float(len(one.split())))}, rows, resamples=20)
    assert all(result.findings[0].message.startswith("Length decides") for result in found.rewards)
    assert found.rewards[0].figures["accuracy"].low > 0.6
    assert not math.isnan(found.data.longer_chosen)
