"""A row says the same whatever shapes its values have: those of datasets in a format, lists of one value, and text blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.judged_values import numbers_of
from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.data.plain_values import plain_row, plain_value
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import json_line
from rm_plugins.data.rows import row_samples
from tests.judgements.conftest import FOUR, PAIR, USER

FIVE = {"role": "assistant", "content": "5"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"required": ["a"]}}}]

# --- Rows of every format -------------------------------------------------------------------------------------------------

numbers = st.sampled_from([-2, 0, 1, 3, 0.5, 2.25])  # which every floating-point type has
known_or_not = st.one_of(numbers, st.none())
ends = st.lists(st.sampled_from(["4", "5", "four", ""]), min_size=1, max_size=3)
prompts = st.sampled_from(["2+2?", [USER], [{"role": "system", "content": "Add."}, USER]])
others = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.sampled_from([0, 2, 0.5]),
        "tools": st.just(TOOLS),
        "id": st.sampled_from([7, "x"]),
        "topic": st.just(["sums", "two"]),
    },
)


def answers(prompt: Any, texts: list[str]) -> list[Any]:
    return texts if isinstance(prompt, str) else [[{"role": "assistant", "content": text}] for text in texts]


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of any of the formats, in text or in conversations."""
    prompt, texts, columns = draw(prompts), draw(ends), draw(others)
    form = draw(st.sampled_from(["preference", "ranks", "scores", "attributes", "mapping", "best", "labels", "score", "label"]))
    of_each = st.lists(known_or_not, min_size=len(texts), max_size=len(texts))
    flags = st.lists(st.sampled_from([True, False, None, 1, 0]), min_size=len(texts), max_size=len(texts))
    given: dict[str, Any] = {"prompt": prompt, "completions": answers(prompt, texts)}
    match form:
        case "preference":
            chosen, rejected = answers(prompt, [texts[0], f"{texts[0]}!"])
            given = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            given |= draw(st.fixed_dictionaries({}, optional={"margin": numbers, "tie": st.just(False)}))
        case "ranks":
            given["ranks"] = draw(of_each)
        case "scores":
            given["scores"] = draw(of_each)
        case "attributes":
            given["scores"] = [{"good": one, "brief": other} for one, other in zip(draw(of_each), draw(of_each), strict=True)]
        case "mapping":
            given["scores"] = {"good": draw(of_each), "brief": draw(of_each)}
        case "best":
            given["best"] = draw(st.integers(0, len(texts) - 1))
        case "labels":
            given["labels"] = draw(flags)
        case "score" | "label":
            given = {"prompt": prompt, "completion": answers(prompt, texts)[0]}
            given[form] = draw(numbers if form == "score" else st.booleans())
    return {**given, **columns}


# --- Shapes ---------------------------------------------------------------------------------------------------------------


def objects(items: list[Any]) -> Any:
    array = np.empty(len(items), dtype=object)
    for place, item in enumerate(items):
        array[place] = item
    return array


def in_numpy(value: Any, *, zero_dimensional: bool = False) -> Any:
    """As `with_format("numpy")` has it: a row's numbers as scalars, or as arrays without dimensions."""
    match value:
        case bool() | int() | float() if zero_dimensional:
            return np.array(value)
        case bool():
            return np.bool_(value)
        case int():
            return np.int64(value)
        case float():
            return np.float32(value)
        case str():
            return np.str_(value)
        case list() if value and all(type(item) in (int, float) for item in value):
            return np.array(value)
        case list():
            return objects([in_numpy(item, zero_dimensional=zero_dimensional) for item in value])
        case dict():
            return {name: in_numpy(item, zero_dimensional=zero_dimensional) for name, item in value.items()}
    return value


def in_torch(value: Any) -> Any:
    """As `with_format("torch")` has it: lists with null stay lists."""
    match value:
        case bool() | int() | float():
            return torch.tensor(value)
        case list() if value and all(type(item) in (int, float) for item in value):
            return torch.tensor(value)
        case list():
            return [in_torch(item) for item in value]
        case dict():
            return {name: in_torch(item) for name, item in value.items()}
    return value


def nan_for_null(value: Any) -> Any:
    """Lists of numbers as arrays, where null is NaN, as pandas has them."""
    is_numbers = isinstance(value, list) and all(item is None or type(item) in (int, float) for item in value)
    return np.array(value, dtype=np.float64) if is_numbers else value


def wrapped(wrap: Callable[[Any], Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda row: {name: wrap(value) for name, value in row.items()}


def in_lists_of_one(row: Mapping[str, Any]) -> dict[str, Any]:
    single = ("margin", "weight", "score", "label", "best", "tie")
    return {name: [value] if name in single else value for name, value in row.items()}


def in_blocks(value: Any) -> Any:
    """Contents of messages as lists of text blocks."""
    if isinstance(value, list):
        return [in_blocks(item) for item in value]
    if isinstance(value, dict) and "role" in value:
        text = value["content"]
        return {**value, "content": [{"type": "text", "text": part} for part in (text[:1], text[1:])]}
    return value


SHAPES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "numpy": wrapped(in_numpy),
    "arrays without dimensions": wrapped(lambda value: in_numpy(value, zero_dimensional=True)),
    "torch": wrapped(in_torch),
    "NaN for null": wrapped(nan_for_null),
    "tuples": wrapped(lambda value: tuple(value) if isinstance(value, list) else value),
    "lists of one": in_lists_of_one,
    "arrays of one": lambda row: wrapped(in_numpy)(in_lists_of_one(row)),
    "blocks": wrapped(in_blocks),
    "blocks in arrays": lambda row: wrapped(in_numpy)(wrapped(in_blocks)(row)),
}


def without_texts(judged: Judgement) -> Judgement:
    return replace(judged, samples=())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@given(row=rows())
def test_the_shapes_of_values_say_nothing(shape: Callable[[Mapping[str, Any]], dict[str, Any]], row: dict[str, Any]) -> None:
    plain, shaped = judgement(row), judgement(shape(row))
    assert repr(without_texts(shaped)) == repr(without_texts(plain))  # NaN is not equal to itself
    assert attribute_names(shape(row)) == attribute_names(row)
    for one, other in zip(plain.samples, shaped.samples, strict=True):
        assert (one.key, one.prompt_key, one.completion_text) == (other.key, other.prompt_key, other.completion_text)
    scored, scored_plain = row_samples(shape(row)), row_samples(row)
    assert scored.names == scored_plain.names
    assert [sample.key for sample in scored.samples] == [sample.key for sample in scored_plain.samples]
    assert RepeatedPrompts().add(shape(row)) == RepeatedPrompts().add(row)


@given(row=rows())
def test_what_is_plain_stays_as_it_is(row: dict[str, Any]) -> None:
    assert plain_row(row) is row
    for shape in (SHAPES["numpy"], SHAPES["torch"], SHAPES["arrays without dimensions"]):
        assert plain_row(shape(row)) == row
        assert json_line(shape(row)).strip() == json_line(plain_row(shape(row))).strip()


FORMATTED: list[dict[str, Any]] = [
    {**PAIR, "margin": 1.5, "weight": 2, "tie": False},
    {**PAIR, "margin": [1.5], "weight": [2.0]},
    {"chosen": [USER, FOUR], "rejected": [USER, FIVE], "tools": TOOLS},
    {"prompt": in_blocks([USER]), "chosen": in_blocks([FOUR]), "rejected": in_blocks([FIVE])},
    {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [1.0, 2.0, None]},
    {"prompt": "Q", "completions": ["a", "b"], "ranks": [1, 2]},
    {"prompt": [USER], "completions": [[FOUR], [FIVE]], "scores": [{"good": 1.0, "brief": None}, {"good": 2.0, "brief": 1.0}]},
    {"prompt": "Q", "completions": ["a", "b"], "scores": {"good": [1.0, 2.0]}},
    {"prompt": "Q", "completions": ["a", "b"], "best": 1},
    {"prompt": "Q", "completions": ["a", "b"], "labels": [True, None]},
    {"messages": [USER, FOUR], "label": True},
    {"completion": "a", "score": 4.0},
]


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas"])
@pytest.mark.parametrize("row", FORMATTED, ids=lambda row: " ".join(row))
def test_rows_of_a_dataset_in_a_format(row: dict[str, Any], kind: str) -> None:
    dataset = Dataset.from_list([row])
    (formatted,) = dataset.with_format(kind)
    assert repr(judgement(formatted)) == repr(judgement(dataset[0]))
    assert row_samples(formatted) == row_samples(dataset[0])


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas"])
@pytest.mark.parametrize("row", FORMATTED, ids=lambda row: " ".join(row))
def test_columns_that_a_dataset_in_a_format_maps(row: dict[str, Any], kind: str) -> None:
    dataset = Dataset.from_list([row])
    judged: list[Judgement] = []

    def look(columns: Mapping[str, Any]) -> dict[str, list[int]]:
        judged.append(judgement({name: values[0] for name, values in columns.items()}))
        return {"seen": [1]}

    dataset.with_format(kind).map(look, batched=True, remove_columns=dataset.column_names, load_from_cache_file=False)
    assert repr(judged[0]) == repr(judgement(dataset[0]))


@pytest.mark.parametrize(
    "value", [np.array([0.5, np.nan]), torch.tensor([0.5, float("nan")]), objects([0.5, None]), (0.5, None)]
)
def test_numbers_of_a_column(value: Any) -> None:
    assert numbers_of({"confidence": value}, "confidence", 2) == [0.5, None]


@pytest.mark.parametrize("value", [0.5, [0.5], np.float32(0.5), np.array(0.5), torch.tensor([0.5])])
def test_the_number_of_a_column(value: Any) -> None:
    assert numbers_of({"confidence": value}, "confidence", 1) == [0.5]


def test_null_of_an_array_is_null() -> None:
    assert judgement({**PAIR, "margin": np.float64("nan"), "weight": torch.tensor(float("nan"))}).margins is None
    assert plain_value(objects([float("nan"), "a"])) == [None, "a"]


def test_what_is_no_array_is_left_alone() -> None:
    other = object()
    assert plain_value(other) is other
    assert plain_value({"a": (1, other)}) == {"a": [1, other]}
    long = np.longdouble("0.5")  # which has no plain form
    assert plain_value(long) is long
    assert judgement({**PAIR, "margin": long}).margins == (0.5,)
