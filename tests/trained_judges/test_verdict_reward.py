"""The reward of a judge in training: what each part says of an answer, and which rows it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.judges import verdict_of
from rm_plugins.providers.combinators.parts import groupings
from rm_plugins.testing import FixedProvider, check_provider

LABELS = ["A", "B", "tie"]
ANSWERS = {
    "[[A]]": (1.0, 1.0),
    "A": (1.0, 1.0),
    "Both are short.\n\nVerdict: A": (1.0, 1.0),
    "Both are short. **[[A]]**.": (1.0, 1.0),
    r"Both are short. \boxed{A}": (1.0, 1.0),
    "<think>[[B]] at first sight,\n[[A]] now</think>\n[[A]]": (1.0, 1.0),
    "A\nThe first one is short.\n[[A]]": (1.0, 0.0),
    "[[A]], because B is long": (1.0, 0.0),
    "Verdict: A\nVerdict: A": (1.0, 0.0),
    "[[A]] [[A]]": (1.0, 0.0),
    "Verdict: A, that is [[A]]": (1.0, 1.0),
    "[[B]]": (0.0, 1.0),
    "[[tie]]": (0.0, 1.0),
    "[[A]] or [[B]]": (0.0, 0.0),
    "[[C]]": (0.0, 0.0),
    "<think>[[A]]</think>": (0.0, 0.0),
    "<think>[[A]]": (0.0, 0.0),
    "A is better than B.": (0.0, 0.0),
    "La respuesta A es mejor.": (0.0, 0.0),
    "": (0.0, 0.0),
}
"""Answers where A is right, with their scores for ``right`` and ``format``."""


def asked(answer: str, verdict: str = "A", pair: str = "p", order: int = 0, **columns: Any) -> rm.Sample:
    question = [{"role": "user", "content": f"Which is better, in the order {order} of {pair}?"}]
    return rm.Sample(question, answer, {"verdict": verdict, "pair": pair, "order": order, **columns})


def parts(scores: rm.Scores) -> dict[str, list[float]]:
    return {name: part.values.tolist() for name, part in scores.parts.items()}


def test_right_and_format() -> None:
    scores = rm.load("verdict", labels=LABELS).score([asked(answer) for answer in ANSWERS])
    assert dict(zip(ANSWERS, zip(*parts(scores).values(), strict=True), strict=True)) == ANSWERS
    np.testing.assert_allclose(scores.values, [right + 0.2 * form for right, form in ANSWERS.values()])


def test_an_answer_without_a_verdict_has_the_reward_that_the_spec_states() -> None:
    reward = rm.load("verdict", no_verdict=-1, labels=LABELS)
    scores = reward.score([asked(answer) for answer in ANSWERS])
    silent = [not verdict_of(answer, LABELS).label for answer in ANSWERS]
    assert (scores.values == -1).tolist() == silent
    assert scores.errors == {}
    assert reward.counts["no_verdict"] == sum(silent)
    assert scores.metadata["no_verdict"] == pytest.approx(sum(silent) / len(silent))


def test_the_share_of_the_first_answer_is_reported() -> None:
    scores = rm.load("verdict", labels=LABELS).score(
        [asked(answer) for answer in ("[[A]]", "[[A]]", "[[B]]", "[[A]]", "[[tie]]", "?")]
    )
    assert scores.metadata["first_preferred"] == 0.75
    assert "first_preferred" not in rm.load("verdict").score([asked("?")]).metadata


def test_text_and_messages_are_read_alike() -> None:
    columns = {"verdict": "B"}
    samples = [rm.Sample("Q", "I prefer [[B]]", columns), rm.Sample([], "I prefer [[B]]", columns)]
    assert rm.load("verdict").score(samples).values.tolist() == [1.2, 1.2]


def test_a_tie_is_right_where_it_is_the_verdict() -> None:
    scores = rm.load("verdict", weights={"right": 1}, labels=LABELS).score([asked("[[Tie]]", "tie"), asked("[[A]]", "tie")])
    assert scores.values.tolist() == [1, 0]
    unoffered = rm.load("verdict").score([asked("[[tie]]")])
    assert (unoffered.values.tolist(), unoffered.metadata["no_verdict"]) == ([0], 1)


def test_other_labels() -> None:
    reward = rm.load("verdict", labels=["Yes", "No"], weights={"right": 1})
    assert reward.score([asked("Yes.", "Yes"), asked("[[No]]", "Yes"), asked("Maybe", "No")]).values.tolist() == [1, 0, 0]


class TestAgreement:
    WEIGHTS: ClassVar[Mapping[str, float]] = {"right": 1.0, "agreement": 0.5}

    def test_the_orders_of_a_pair_are_compared(self) -> None:
        samples = [
            *(asked("[[A]]", "A", "p", 0), asked("[[B]]", "A", "p", 0), asked("?", "A", "p", 0)),
            *(asked("[[B]]", "B", "p", 1), asked("[[A]]", "B", "p", 1), asked("[[B]]", "B", "p", 1), asked("?", "B", "p", 1)),
            *(asked("[[tie]]", "A", "q", 0), asked("[[tie]]", "B", "q", 1)),
        ]
        scores = rm.load("verdict", weights=self.WEIGHTS, labels=LABELS).score(samples)
        # Half of the other order's answers prefer the answer that A names in the order 0; an answer without a verdict prefers neither.
        assert parts(scores)["agreement"] == pytest.approx([0.5, 0.25, 0, 1 / 3, 1 / 3, 1 / 3, 0, 1, 1])
        assert scores.values.tolist() == pytest.approx([1.25, 0.125, 0, 7 / 6, 1 / 6, 7 / 6, 0, 0.5, 0.5])

    def test_a_pair_with_one_order_is_an_error_that_says_what_to_do(self) -> None:
        reward = rm.load("verdict", weights=self.WEIGHTS, labels=LABELS, on_error="abstain")
        samples = [asked("[[A]]"), asked("[[A]]"), asked("[[A]]", pair="q"), asked("[[B]]", "B", pair="q", order=1)]
        scores = reward.score(samples)
        assert scores.values.tolist()[2:] == [1.5, 1.5]
        assert scores.abstained.tolist() == [True, True, False, False]
        assert "the pair 'p' has 2 in the order 0 and 0 in the other one" in str(scores.errors[0])
        assert "--shuffle_dataset false" in str(scores.errors[1])
        with pytest.raises(ScoringError, match="both orders"):
            rm.load("verdict", weights=self.WEIGHTS).score(samples)

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            ("pair", None, "needs the column 'pair'"),
            ("order", None, "needs the column 'order'"),
            ("order", 2, "0 or 1 is allowed"),
        ],
    )
    def test_columns(self, column: str, value: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            rm.load("verdict", weights=self.WEIGHTS).score([asked("[[A]]", **{column: value})])
        assert rm.load("verdict").score([asked("[[A]]", **{column: value})]).values.tolist() == [1.2]

    @settings(max_examples=50)
    @given(
        st.lists(
            st.tuples(st.sampled_from("pqr"), st.sampled_from([0, 1]), st.sampled_from(["[[A]]", "[[B]]", "[[tie]]", "?"])),
            min_size=1,
            max_size=12,
        ),
        st.randoms(use_true_random=False),
    )
    def test_scores_do_not_depend_on_the_order_of_samples(self, rows: list[tuple[str, int, str]], chance: Any) -> None:
        samples = [asked(text, "BA"[order], pair, order) for pair, order, text in rows]
        numbers = list(range(len(samples)))
        chance.shuffle(numbers)
        reward = rm.load("verdict", weights=self.WEIGHTS, labels=LABELS, on_error="abstain")
        straight, mixed = reward.score(samples), reward.score([samples[number] for number in numbers])
        np.testing.assert_array_equal(mixed.values, straight.values[numbers])
        orders = {pair: {order for other, order, _ in rows if other == pair} for pair, *_ in rows}
        assert straight.abstained.tolist() == [len(orders[pair]) < 2 for pair, *_ in rows]

    def test_it_is_grouped_by_the_pair_and_only_where_it_counts(self) -> None:
        compares = rm.load("verdict", weights=self.WEIGHTS)
        assert (compares.depends_on_batch, compares.group) == (True, "pair")
        assert groupings(compares) == ("pair",)
        assert not rm.load("verdict").depends_on_batch

    def test_a_job_keeps_a_pair_in_one_batch(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": f"{pair}{order}?", "completion": "[[A]]", "verdict": "AB"[order], "pair": pair, "order": order}
            for pair in "pqr"
            for order in (0, 1)
        ]
        write_rows(rows, tmp_path / "answers.jsonl")
        (tmp_path / "verdict.yaml").write_text("{provider: verdict, weights: {right: 1, agreement: 0.5}}", encoding="utf-8")
        arguments = ["score", str(tmp_path / "verdict.yaml"), str(tmp_path / "answers.jsonl"), "--batch-size", "1"]
        told = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "scored.jsonl")])
        assert told.exit_code == 0, told.output
        assert [row["score"] for row in read_rows(str(tmp_path / "scored.jsonl"))] == [1, 0] * 3


class TestReasoning:
    SPEC: ClassVar[Mapping[str, Any]] = {
        "provider": "verdict",
        "weights": {"right": 1.0, "reasoning": 0.5},
        "reasoning": {"provider": "length-window", "unit": "words", "low": 3, "high": 6, "soft": 3},
    }

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("The first is short. [[A]]", 1.0),
            ("<think>The first\nis short.</think>\n[[A]]", 1.0),
            ("<think>The first is short.</think> A", 1.0),
            ("Of both, the first is short.\nVerdict: A", 1.0),
            ("[[A]]", 0.0),
            ("Short: [[A]]", 1 / 3),
            ("one two three four five six seven [[A]]", 2 / 3),
            ("The first is so short.", 0.0),
        ],
    )
    def test_the_text_before_the_verdict_is_scored(self, answer: str, expected: float) -> None:
        assert parts(rm.load(dict(self.SPEC)).score([asked(answer)]))["reasoning"] == pytest.approx([expected])

    def test_its_failures_are_failures(self) -> None:
        spec = {**self.SPEC, "reasoning": {"provider": "format", "pattern": "a", "max_characters": 10}, "on_error": "abstain"}
        reward = rm.load(spec)
        scores = reward.score([asked("a [[A]]"), asked("a very long reasoning [[A]]"), asked("a very long text")])
        assert scores.values.tolist()[::2] == [1.5, 0]
        assert list(scores.errors) == [1]
        reward.close()

    def test_what_abstains_leaves_the_whole_out(self) -> None:
        silent = FixedProvider(scores=lambda sample: None)
        reward = rm.load({**self.SPEC, "reasoning": silent})
        scores = reward.score([asked("a [[A]]"), asked("?")])
        assert (scores.abstained.tolist(), scores.errors) == ([True, False], {})


def test_keeps_the_contract() -> None:
    scores = check_provider(rm.load("verdict"), [asked(answer) for answer in ANSWERS])
    assert not scores.abstained.any()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "There is no column 'verdict' with the right verdict; the sample has no columns"),
        ({"verdict": None, "x": 1}, "the sample has 'verdict', 'x'"),
        ({"verdict": "C"}, "'C', which is not one of the labels 'A', 'B'"),
        ({"verdict": 1}, "is 1, which is not one of the labels"),
    ],
)
def test_a_row_without_the_right_verdict_is_an_error(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        rm.load("verdict").score([rm.Sample("Q", "[[A]]", columns)])
    reward = rm.load("verdict", on_error="abstain")
    assert list(reward.score([asked("[[A]]"), rm.Sample("Q", "[[A]]", columns)]).errors) == [1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"weights": {"correct": 1}}, "there is no part 'correct'"),
        ({"weights": {"right": 0, "format": 0}}, "all weights are 0"),
        ({"weights": {}}, "all weights are 0"),
        ({"weights": {"right": float("nan")}}, "weights: input should be a finite number"),
        ({"weights": {"reasoning": 1}}, "Give both"),
        ({"reasoning": {"provider": "repetition"}}, "Give both"),
        ({"labels": ["A"]}, "at least two different texts"),
        ({"labels": ["A", "a "]}, "at least two different texts"),
        ({"labels": ["A", "B", "C", "D"], "weights": {"right": 1, "agreement": 1}}, "two or three labels"),
        ({"no_verdict": float("inf")}, "no_verdict"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        rm.load({"provider": "verdict", **keys})
