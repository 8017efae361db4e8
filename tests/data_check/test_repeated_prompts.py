"""Completions that begin with their prompt."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.repeated_prompts import RepeatedPrompts, split_prompt
from rm_plugins.data.rows import preference_samples
from tests.data_check.conftest import FIVE, FOUR, USER

SYSTEM = {"role": "system", "content": "Be brief."}
SPLIT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts": (
        {"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5"},
        {"prompt": "2+2?", "chosen": " 4", "rejected": " 5"},
    ),
    "conversations": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, FOUR], "rejected": [SYSTEM, USER, FIVE]},
        {"prompt": [SYSTEM, USER], "chosen": [FOUR], "rejected": [FIVE]},
    ),
    "a text and conversations": (
        {"prompt": "2+2?", "chosen": [USER, FOUR], "rejected": [USER, FIVE], "id": 7},
        {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE], "id": 7},
    ),
    "a list": (
        {"prompt": "Q ", "completions": ["Q a", "Q b"], "best": 0},
        {"prompt": "Q ", "completions": ["a", "b"], "best": 0},
    ),
    "one": ({"prompt": "Q ", "completion": "Q a", "label": 1}, {"prompt": "Q ", "completion": "a", "label": 1}),
    "parts": (
        {"prompt": [USER], "completion": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, FOUR]},
        {"prompt": [USER], "completion": [FOUR]},
    ),
}
WHOLE: dict[str, dict[str, Any]] = {
    "no prompt": {"chosen": [USER, FOUR], "rejected": [USER, FIVE]},
    "an empty one": {"prompt": "", "chosen": "4", "rejected": "5"},
    "blank": {"prompt": " ", "chosen": " 4", "rejected": " 5"},
    "one completion alone": {"prompt": "Say it.", "chosen": "It.", "rejected": "Say it. It."},
    "answers": {"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]},
    "another question": {"prompt": "3+3?", "chosen": [USER, FOUR], "rejected": [USER, FIVE]},
    "nothing behind it": {"prompt": [USER], "chosen": [USER], "rejected": [USER]},
    "what is no row": {"prompt": 3, "chosen": [4], "rejected": None},
}


def repeated_prompts(rows: Iterable[dict[str, Any]]) -> RepeatedPrompts:
    counted = RepeatedPrompts()
    for row in rows:
        counted.add(row)
    return counted


@pytest.mark.parametrize("name", SPLIT)
def test_a_repeated_prompt_is_taken_off(name: str) -> None:
    row, split = SPLIT[name]
    before = copy.deepcopy(row)
    assert split_prompt(row) == split
    assert row == before
    counted = repeated_prompts([row])
    assert (counted.rows, counted.texts + counted.conversations) == (1, 1)
    assert counted.is_suspicious
    again = split_prompt(split)
    assert again is split


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_left_as_it_is(name: str) -> None:
    assert split_prompt(WHOLE[name]) is WHOLE[name]
    assert not repeated_prompts([WHOLE[name]]).is_suspicious


def test_a_few_texts_that_begin_like_their_prompt_are_a_coincidence() -> None:
    restating = {"prompt": "def f():", "chosen": "def f(): return 4", "rejected": "def f(): return 5"}
    others = [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}] * 9
    counted = repeated_prompts([*others, restating])
    assert (counted.rows, counted.texts, counted.is_suspicious) == (10, 1, False)
    assert repeated_prompts([restating, *others[:1]]).is_suspicious


def test_one_conversation_is_enough() -> None:
    """No answer begins with the user's own turns."""
    counted = repeated_prompts([*[WHOLE["answers"]] * 9, SPLIT["conversations"][0]])
    assert counted.is_suspicious
    assert counted.warning.startswith("1 of 10 rows with a prompt have completions that begin with it")


TURNS = st.lists(st.sampled_from([SYSTEM, USER]), min_size=1, max_size=3)


@given(TURNS, st.booleans())
def test_what_is_rendered_afterwards_is_what_was_in_the_completions(prompt: list[dict[str, str]], is_text: bool) -> None:
    row: dict[str, Any]
    if is_text:
        text = " ".join(turn["content"] for turn in prompt)
        row = {"prompt": text, "chosen": f"{text} 4", "rejected": f"{text} 5"}
        split = preference_samples(split_prompt(row))
        assert [f"{sample.prompt}{sample.completion}" for sample in split] == [row["chosen"], row["rejected"]]
    else:
        row = {"prompt": prompt, "chosen": [*prompt, FOUR], "rejected": [*prompt, FIVE]}
        split = preference_samples(split_prompt(row))
        assert [sample.messages for sample in split] == [row["chosen"], row["rejected"]]
