"""Rewards from Python functions: two signatures, sync or async, and no silent mistakes."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.providers.function import FunctionProvider

SAMPLES = [
    rm.Sample(prompt, completion, {"answer": answer, "topic": "x"})
    for prompt, completion, answer in (("p", "a", 1), ("pp", "bb", None), ("", "ccc", 3))
]


def lengths(samples: Sequence[rm.Sample]) -> list[int]:
    return [len(sample.completion) for sample in samples]


def of_trl(prompts: list[str], completions: list[str]) -> list[int]:
    return [10 * len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]


def of_trl_completions(completions: list[str], **kwargs: Any) -> list[int]:
    return [len(completion) + len(kwargs["prompts"]) for completion in completions]


def scaled(samples: Sequence[rm.Sample], factor: float = 1.0) -> list[float]:
    return [factor * len(sample.completion) for sample in samples]


async def later(completions: list[str]) -> list[int]:
    await asyncio.sleep(0)
    return [len(completion) for completion in completions]


class Judge:
    """A callable object, which TRL takes as well."""

    async def __call__(self, prompts: list[str], completions: list[str]) -> list[int]:
        await asyncio.sleep(0)
        return [len(completion) for completion in completions]


def provider(function: Callable[..., Any], **settings: Any) -> FunctionProvider:
    return FunctionProvider(function=function, **settings)


@pytest.mark.parametrize(
    ("function", "values"),
    [(lengths, [1, 2, 3]), (of_trl, [11, 22, 3]), (of_trl_completions, [4, 5, 6]), (later, [1, 2, 3]), (Judge(), [1, 2, 3])],
)
def test_every_form_of_function_scores(function: Callable[..., Any], values: list[float]) -> None:
    assert provider(function).score(SAMPLES).values.tolist() == values


def test_columns_reach_the_parameters_that_name_them() -> None:
    def graded(prompts: list[str], completions: list[str], answer: list[int | None]) -> list[int | None]:
        return answer

    np.testing.assert_array_equal(provider(graded).score(SAMPLES).values, [1, np.nan, 3])


def test_all_columns_reach_keyword_arguments() -> None:
    seen: dict[str, Any] = {}

    def curious(completions: list[str], **kwargs: Any) -> list[int]:
        seen.update(kwargs)
        return [0] * len(completions)

    provider(curious, arguments={"topic": "set"}).score(SAMPLES)
    assert seen == {"prompts": ["p", "pp", ""], "answer": [1, None, 3], "topic": "set"}


def test_a_column_that_is_needed_and_absent_is_an_error() -> None:
    def graded(completions: list[str], grade: list[int]) -> list[int]:
        return grade

    with pytest.raises(ScoringError, match=r"'graded' failed: TypeError: .* 'grade'"):
        provider(graded).score(SAMPLES)


def test_arguments_are_handed_over() -> None:
    assert provider(scaled, arguments={"factor": 0.5}).score(SAMPLES).values.tolist() == [0.5, 1.0, 1.5]


def test_an_argument_that_the_function_does_not_take_is_refused_at_once() -> None:
    with pytest.raises(
        SpecError,
        match=r"arguments\.facto: the function 'scaled' \(.*test_function_provider.py, line \d+\) takes no such argument\. .*'factor'",
    ):
        provider(scaled, arguments={"facto": 0.5})


def test_messages_arrive_as_messages() -> None:
    def turns(prompts: list[list[Any]], completions: list[list[Any]]) -> list[int]:
        return [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]

    assert provider(turns).score([rm.Sample([{"role": "user", "content": "Q"}], "A")]).values.tolist() == [2]


@pytest.mark.parametrize("function", [later, Judge()])
def test_an_async_function_is_awaited_inside_a_running_loop_too(function: Callable[..., Any]) -> None:
    async def notebook() -> list[float]:
        found: list[float] = provider(function).score(SAMPLES).values.tolist()
        return found

    assert asyncio.run(notebook()) == [1, 2, 3]


def test_what_an_async_function_raises_is_translated() -> None:
    async def broken(completions: list[str]) -> list[int]:
        raise KeyError("gone")

    with pytest.raises(ScoringError, match=r"'broken' failed: KeyError: 'gone'"):
        provider(broken).score(SAMPLES)


@pytest.mark.parametrize(
    "answer",
    [
        [0.5, None, 1],
        (0.5, float("nan"), True),
        np.array([0.5, np.nan, 1.0], dtype=np.float32),
        torch.tensor([0.5, torch.nan, 1.0], requires_grad=True),
        rm.Scores(np.array([0.5, np.nan, 1.0])),
    ],
)
def test_numbers_of_every_kind_and_none_are_understood(answer: Any) -> None:
    np.testing.assert_array_equal(provider(lambda samples: answer).score(SAMPLES).values, [0.5, np.nan, 1])


def test_scores_keep_their_details() -> None:
    scores = rm.Scores(np.zeros(3), {"std": np.ones(3)})
    assert list(provider(lambda samples: scores).score(SAMPLES).details) == ["std"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0, 2.0], "returned 2 rewards for 3 samples"),
        ("1.0", "returned '1.0'; a list of one number per sample was expected"),
        (1.0, r"returned 1.0; a list .* It gets the list of all samples: return \[... for sample in samples\]"),
        ({"score": 1.0}, "a list of one number per sample"),
        ({1.0, 2.0, 3.0}, "a list of one number per sample"),
        (None, r"\(.*test_function_provider.py, line \d+\) returned None; a list of one number .* Does it lack a `return`\?"),
        ([1.0, np.zeros(2), 3.0], r"returned array\(\[0., 0.\]\) for item 1"),
        ([1.0, "2", 3.0], "returned '2' for item 1; a number or None"),
        ([1.0, [2.0], 3.0], r"returned \[2.0\] for item 1"),
        ([1.0, float("inf"), 3.0], "infinite score for 1 of 3"),
    ],
)
def test_anything_else_is_an_error(answer: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        provider(lambda samples: answer).score(SAMPLES)


def test_a_function_of_neither_form_is_refused() -> None:
    def two(first: Any, second: Any) -> list[float]:
        return []

    with pytest.raises(
        SpecError, match=r"'two' \(.*, line \d+\) takes \(first, second\)\. A reward function takes either one argument"
    ):
        provider(two)
    with pytest.raises(SpecError, match="A reward function takes either one argument"):
        provider(lambda: [])


def test_the_label_is_the_functions_name() -> None:
    assert provider(lengths).label == "lengths"
    assert provider(Judge()).label == "Judge"


MODULE = """
import rm_plugins

def length(samples):
    return [len(sample.completion) for sample in samples]

class Rewards:
    @staticmethod
    def none(samples):
        return [None] * len(samples)

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of rewards in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_mine.py").write_text(MODULE)
    (tmp_path / "rewards_broken.py").write_text("raise OSError('no disk')")
    return tmp_path


@pytest.mark.usefixtures("module")
class TestByName:
    @pytest.mark.parametrize("spec", ["rewards_of_mine:length", {"provider": "function", "function": "rewards_of_mine:length"}])
    def test_a_function_is_imported(self, spec: str | Mapping[str, Any]) -> None:
        assert rm.load(spec).score(SAMPLES).values.tolist() == [1, 2, 3]

    def test_an_attribute_of_a_class_is_found(self) -> None:
        assert rm.load("rewards_of_mine:Rewards.none").score(SAMPLES).abstained.all()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("rewards_of_mine:lenght", "'rewards_of_mine:lenght' cannot be imported: AttributeError"),
            ("rewards_of_yours:length", "cannot be imported: ModuleNotFoundError"),
            ("rewards_broken:length", "cannot be imported: OSError: no disk"),
            ("rewards_of_mine:number", "'rewards_of_mine:number' is int, not a function"),
        ],
    )
    def test_what_cannot_be_imported_is_named(self, name: str, message: str) -> None:
        with pytest.raises(SpecError, match=message):
            rm.load(name)

    def test_the_form_is_checked(self) -> None:
        with pytest.raises(SpecError, match="'length' must have the form module:function"):
            rm.load({"provider": "function", "function": "length"})

    def test_a_loaded_provider_can_be_pickled(self) -> None:
        copy = pickle.loads(pickle.dumps(rm.load("rewards_of_mine:length", on_error="abstain")))
        assert copy.score(SAMPLES).values.tolist() == [1, 2, 3]
        assert copy.on_error == "abstain"


def test_the_working_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert rm.load("rewards_of_here:length").score(SAMPLES).values.tolist() == [1, 2, 3]


class TestMistakes:
    def test_a_function_of_one_sample_is_told_that_it_gets_a_list(self) -> None:
        def short(sample: Any) -> float:
            return -len(sample.completion_text)

        with pytest.raises(
            ScoringError, match=r"'short' \(.*py, line \d+\) gets the list of all samples, and reads `completion_text`"
        ):
            provider(short).score(SAMPLES)

    def test_what_a_function_raises_is_told_with_its_line(self) -> None:
        def broken(samples: Any) -> list[float]:
            raise KeyError("gone")

        line = broken.__code__.co_firstlineno + 1
        with pytest.raises(
            ScoringError, match=rf"'broken' failed: KeyError: 'gone' \(.*test_function_provider.py, line {line}\)"
        ):
            provider(broken).score(SAMPLES)

    @pytest.mark.parametrize("text", ["myrules.py:short", "rules/myrules.py:short", "./rules/myrules.py"])
    def test_a_python_file_is_told_to_be_named_as_a_module(self, text: str) -> None:
        meant = {"myrules.py:short": "myrules:short", "rules/myrules.py:short": "rules.myrules:short"}
        with pytest.raises(SpecError, match=meant.get(text, "rules.myrules:FUNCTION")):
            rm.load(text)
        with pytest.raises(SpecError, match=meant.get(text, "rules.myrules:FUNCTION")):
            rm.load({"provider": "function", "function": text})

    def test_names_in_the_singular_are_told_to_be_plural(self) -> None:
        with pytest.raises(SpecError, match="The names are plural, as each is a list"):
            provider(lambda prompt, completion: [])

    @pytest.mark.parametrize("given", [SAMPLES[0], "text", {"prompt": "p"}, (sample for sample in SAMPLES)])
    def test_what_is_no_list_of_samples_is_told_to_be_one(self, given: Any) -> None:
        with pytest.raises(DataError, match=r"score\(\) takes a list of"):
            provider(lengths).score(given)


CONVERSATIONS = [rm.Sample([{"role": "user", "content": "Q"}], "x" * length) for length in range(1, 7)]


def by_messages(samples: Sequence[rm.Sample]) -> list[int]:
    return [len(sample.completion) for sample in samples]


def by_text(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text) > 100) for sample in samples]


def helped(samples: Sequence[rm.Sample]) -> list[float]:
    return by_text(samples)


def of_turns(completions: list[Any]) -> list[float]:
    return [float("please" in completion) for completion in completions]


def of_contents(completions: list[Any]) -> list[float]:
    return [float("please" in completion[0]["content"]) for completion in completions]


class TestMessagesTakenForText:
    @pytest.mark.parametrize("function", [by_messages, of_turns, lambda samples: [1.0 for sample in samples]])
    def test_it_is_warned_of_once(self, function: Any) -> None:
        scorer = provider(function)
        with pytest.warns(
            UserWarning, match=r"gave \d to all 6 completions of a batch, which differ\. .* `sample.completion_text`"
        ):
            scorer.score(CONVERSATIONS)
        scorer.score(CONVERSATIONS)

    @pytest.mark.parametrize("function", [by_text, helped, of_contents, partial(by_text)])
    def test_a_rule_that_nobody_meets_is_not_warned_of(self, function: Any) -> None:
        provider(function).score(CONVERSATIONS)

    @pytest.mark.parametrize(
        "samples", [SAMPLES * 2, CONVERSATIONS[:3], CONVERSATIONS[:1] * 8, [*CONVERSATIONS, SAMPLES[0]]], ids=len
    )
    def test_nor_is_a_batch_that_says_nothing(self, samples: list[rm.Sample]) -> None:
        provider(lambda samples: [1.0 for sample in samples]).score(samples)

    def test_it_makes_no_other_reward(self) -> None:
        scorer = provider(by_text)
        before = fingerprint(scorer)
        scorer.score([rm.Sample("Q", "a"), rm.Sample("Q", "b" * 200)])
        assert fingerprint(scorer) == before
