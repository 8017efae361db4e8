"""Rows that are no judgements, and what is said of them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from rm_plugins.data.judgements import attribute_names, judgement
from rm_plugins.errors import DataError
from tests.judgements.conftest import FOUR, NAN, PAIR, USER, completions

LISTED = "one value for each of the 3 completions, not 2, is allowed"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {},
            "there is nothing judged; the row has the columns none. A row to train on or to evaluate has one of these: 'chosen'",
        ),
        ({"chosen": "a"}, "there is no 'rejected'; the row has the columns 'chosen'."),
        ({"prompt": "Q", "chosen": None, "rejected": "a"}, "there is no 'chosen'; the row has"),
        ({"prompt": "Q", "completion": "a"}, "there is nothing judged; the row has the columns 'prompt', 'completion'."),
        ({"prompt": "Q", "ranks": [1, 2]}, "there is nothing judged"),
        ({"prompt": "Q", "messages": [USER, FOUR], "label": 1}, "there is nothing judged"),
        (completions(is_correct=[1, 0, 1]), "the row has the columns 'prompt', 'completions', 'is_correct'."),
        (completions(ranks=[1, 2, 3], scores=[1, 2, 3]), "there are both 'ranks' and 'scores'"),
        (completions(best=0, labels=[1, 0, 0]), "there are both 'best' and 'labels'"),
        ({"completion": "a", "score": 1, "label": 1}, "there are both 'score' and 'label'"),
        ({"completion": "a", "completions": ["b"], "best": 0}, "there are both 'completion' and 'completions'"),
        (completions(score=1), "there is 'score'; completions must be judged by 'scores'. Rename it."),
        (completions(label=[1, 0, 0]), "there is 'label'; completions must be judged by 'labels'. Rename it."),
        ({"completion": "a", "labels": [1]}, "there is 'labels'; one completion must be judged by 'label'. Rename it."),
        ({"completion": "a", "ranks": [1]}, "there is 'ranks', which needs a list of 'completions'"),
        ({"messages": [USER, FOUR], "best": 0}, "there is 'best', which needs a list of 'completions'"),
        ({"completions": [], "ranks": []}, "'completions' is empty; a list of at least one"),
        ({"completions": "abc", "ranks": [1, 2, 3]}, "'completions' must be a list, not 'abc'"),
        (completions(ranks=[1, 2]), f"'ranks' is [1, 2]; {LISTED}"),
        (completions(ranks="123"), "'ranks' is '123'; a list with one value for each completion is allowed"),
        (completions(ranks={"a": 1}), "'ranks' is {'a': 1}; a list with one value"),
        (completions(ranks=[1, "2", 3]), "'ranks'[1] is '2'; a finite number, or null where it is unknown, is allowed"),
        (completions(ranks=[1, 2, math.inf]), "'ranks'[2] is inf; a finite number"),
        (completions(ranks=[1, 2, 10**400]), "'ranks'[2] is 1000000"),
        (completions(ranks=[1, True, 3]), "'ranks'[1] is True; a finite number"),
        (completions(scores=[1, 2]), f"'scores' is [1, 2]; {LISTED}"),
        (completions(scores=3), "'scores' is 3; a list with one value"),
        (completions(scores=[1, 2, [3]]), "'scores'[2] is [3]; a finite number, or null where it is missing, is allowed"),
        (completions(scores=[1, {"a": 1}, 2]), "'scores'[0] is 1; a mapping of attribute to number, as the others are, is"),
        (completions(scores=[{"a": 1}, {"a": "x"}, {}]), "'scores'[1]['a'] is 'x'; a finite number, or null"),
        (completions(scores=[{"a": 1}, {"a": 2}]), "one value for each of the 3 completions, not 2, is allowed"),
        (completions(scores=[{}, None, {}]), "at least one attribute, named by text, is allowed"),
        (completions(scores={"a": [1, 2]}), f"'scores'['a'] is [1, 2]; {LISTED}"),
        (completions(scores={"a": [1, 2, -math.inf]}), "'scores'['a'][2] is -inf; a finite number"),
        (completions(scores={"a": 1}), "'scores'['a'] is 1; a list with one value"),
        ({"completion": "a", "scores": {1: 2}}, "'scores' is {1: 2}; at least one attribute, named by text, is allowed"),
        ({"completion": "a", "scores": [3]}, "'scores' is [3]; a mapping of attribute to number, or a number as 'score', is"),
        ({"completion": "a", "scores": {"a": [1]}}, "'scores'['a'] is [1]; a finite number, or null"),
        ({"completion": "a", "score": {"a": 1}}, "'score' is {'a': 1}; a finite number is allowed"),
        ({"completion": "a", "score": "good"}, "'score' is 'good'; a finite number is allowed"),
        (completions(best=3), "'best' is 3; the position of a completion, a whole number from 0 to 2, is allowed"),
        (completions(best=-1), "'best' is -1; the position"),
        (completions(best=0.5), "'best' is 0.5; the position"),
        (completions(best=NAN), "'best' is nan; the position"),
        (completions(best=True), "'best' is True; the position"),
        (completions(best="a"), "'best' is 'a'; the position"),
        (completions(labels=[1, 0]), f"'labels' is [1, 0]; {LISTED}"),
        (completions(labels=[1, 0, 2]), "'labels'[2] is 2; true or false (1 or 0) is allowed"),
        (completions(labels=["yes", 0, 1]), "'labels'[0] is 'yes'; true or false"),
        ({"completion": "a", "label": 0.5}, "'label' is 0.5; true or false (1 or 0) is allowed"),
        ({"completion": "a", "label": NAN}, "'label' is nan; true or false (1 or 0) is allowed"),
        ({**PAIR, "margin": "big"}, "'margin' is 'big'; a finite number is allowed"),
        ({**PAIR, "margin": NAN}, "'margin' is nan; a finite number is allowed"),
        ({**PAIR, "margin": [1.0, 2.0]}, "'margin' is [1.0, 2.0]; a finite number is allowed"),
        ({**PAIR, "margin": np.array([1.0, 2.0])}, "'margin' is [1.0, 2.0]; a finite number is allowed"),
        ({**PAIR, "margin": []}, "'margin' is []; a finite number is allowed"),
        ({**PAIR, "weight": [1, 2]}, "'weight' is [1, 2]; a finite number of at least 0 is allowed"),
        ({"completion": "a", "score": [1, 2]}, "'score' is [1, 2]; a finite number is allowed"),
        ({"completion": "a", "label": [1, 0]}, "'label' is [1, 0]; true or false (1 or 0) is allowed"),
        ({**PAIR, "margin": math.inf}, "'margin' is inf; a finite number is allowed"),
        ({**PAIR, "weight": -1}, "'weight' is -1; a finite number of at least 0 is allowed"),
        ({**PAIR, "weight": NAN}, "'weight' is nan; a finite number of at least 0 is allowed"),
        (completions(best=0, weight=True), "'weight' is True; a finite number of at least 0 is allowed"),
        ({**PAIR, "tie": "yes"}, "'tie' is 'yes'; true or false (1 or 0) is allowed"),
        ({**PAIR, "tie": True, "margin": 1}, "'tie' is true and 'margin' is 1.0"),
        ({"chosen": 3, "rejected": 4}, "A sample's completion must be text or a list of messages, not int: 3"),
        ({"chosen": {"a": 1}, "rejected": {"a": 1}}, "A sample's completion must be text or a list of messages, not dict"),
        ({"chosen": "a", "rejected": [FOUR]}, "prompt is text but its completion is a list of messages"),
        ({"messages": [USER], "label": 1}, "'messages' must end with a turn of the assistant"),
        ({"completions": ["a", 3], "best": 0}, "A sample's completion must be text or a list of messages, not int: 3"),
    ],
)
def test_what_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        judgement(row)


SCORED = (
    "Without a judgement, `rm-plugins score` scores completions, and `rm-plugins rank` compares those of a prompt by a reward."
)
RENAMED = "Rename columns with --map OLD=NEW, where NEW is one of these names."


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"prompt": "Q", "completion": "a"}, SCORED),
        ({"id": 7, "prompt": "Q", "completions": ["a", "b"]}, SCORED),
        ({"messages": [USER, FOUR]}, SCORED),
        (completions(is_correct=[1, 0, 1]), f"{RENAMED} {SCORED}"),
        ({"prompt": "Q", "chosen": "a"}, RENAMED),
        ({"prompt": "Q"}, RENAMED),
    ],
)
def test_the_advice_fits_the_columns_that_the_row_has(row: dict[str, Any], advice: str) -> None:
    with pytest.raises(DataError) as refused:
        judgement(row)
    assert str(refused.value).endswith(f"or 'label'. {advice}")


def test_a_refused_value_is_quoted_in_short() -> None:
    with pytest.raises(DataError) as refused:
        judgement({"completion": "a", "score": "x" * 10_000})
    assert len(str(refused.value)) < 200


def test_names_are_refused_as_ratings_are() -> None:
    with pytest.raises(DataError, match="as the others are"):
        attribute_names(completions(scores=[1, {"a": 1}, 2]))
    with pytest.raises(DataError, match="nothing judged"):
        attribute_names({"prompt": "Q"})
