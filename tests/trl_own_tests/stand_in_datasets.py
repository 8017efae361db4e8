"""Datasets of the names, columns and sizes that TRL's tests load, with texts of ours."""

from __future__ import annotations

import json
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

hub_load_dataset = datasets.load_dataset

COLOURS = {
    "The sky at noon": "blue",
    "Fresh snow": "white",
    "A ripe lemon": "yellow",
    "Grass after rain": "green",
    "A robin's breast": "red",
    "The sea at night": "black",
    "An old brick": "brown",
    "A flamingo": "pink",
    "The inside of a carrot": "orange",
    "A plum": "purple",
    "A rainy day": "grey",
    "An emerald": "green",
    "A fire engine in London": "red",
    "Coal": "black",
    "Milk": "white",
    "A field of lavender": "violet",
    "Straw": "golden",
    "A sapphire": "deep blue",
    "A clean spoon": "silver",
}
PAIRS = [(f"{thing} is", f" {colour}.", f" {len(thing)} years old, I think.") for thing, colour in COLOURS.items()]
CITIES = ("Oslo", "Lima", "Nairobi", "Hanoi", "Quito", "Tallinn", "Perth", "Accra")


def load_dataset(
    path: str, name: str | None = None, *, split: str | None = None, streaming: bool = False, **settings: Any
) -> Any:
    """`datasets.load_dataset`, with a stand-in where there is one."""
    rows = {"trl-internal-testing/zen": _zen, "trl-internal-testing/toolcall": _toolcall}.get(path)
    if rows is None:
        return hub_load_dataset(path, name, split=split, streaming=streaming, **settings)
    splits = Dataset.from_list(rows(str(name))).train_test_split(test_size=0.1, shuffle=False)
    if streaming:
        splits = datasets.IterableDatasetDict({key: data.to_iterable_dataset() for key, data in splits.items()})
    return DatasetDict(splits) if split is None and not streaming else splits if split is None else splits[split]


def _zen(config: str) -> list[dict[str, Any]]:
    form, _, kind = config.partition("_")
    said = {"standard": _text, "conversational": _messages}[form]
    return [{column: said(*parts) for column, parts in _columns(kind, *pair).items()} for pair in PAIRS]


def _columns(kind: str, prompt: str, chosen: str, rejected: str) -> dict[str, tuple[str | None, str | None]]:
    """What each column says: a prompt, a completion, or both."""
    columns: dict[str, dict[str, tuple[str | None, str | None]]] = {
        "prompt_only": {"prompt": (prompt, None)},
        "preference": {"prompt": (prompt, None), "chosen": (None, chosen), "rejected": (None, rejected)},
        "implicit_prompt_preference": {"chosen": (prompt, chosen), "rejected": (prompt, rejected)},
    }
    return columns[kind]


def _text(prompt: str | None, completion: str | None) -> str:
    return (prompt or "") + (completion or "")


def _messages(prompt: str | None, completion: str | None) -> list[dict[str, str]]:
    said = [("user", prompt), ("assistant", completion)]
    return [{"role": role, "content": content} for role, content in said if content is not None]


def _toolcall(config: str) -> list[dict[str, Any]]:
    if config != "preference":
        raise ValueError(f"There is no stand-in for the configuration {config!r} of trl-internal-testing/toolcall.")
    return [_tool_row(number, city) for number, city in enumerate(CITIES)]


def _tool_row(number: int, city: str) -> dict[str, Any]:
    # Tools differ in their arguments, for which Arrow stores nulls.
    tool, arguments = ("local_time", {"city": city}) if number % 2 else ("distance", {"start": city, "unit": "km"})
    properties = {key: {"type": "string", "description": f"The {key}."} for key in arguments}
    schema = {"name": tool, "description": f"Gives the {tool}.", "parameters": {"type": "object", "properties": properties}}
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": tool, "arguments": arguments}}]}
    answer = {"role": "tool", "name": tool, "content": str(number)}
    return {
        "prompt": [{"role": "user", "content": f"Tell me the {tool} of {city}."}],
        "chosen": [call, answer, {"role": "assistant", "content": f"For {city} it is {number}."}],
        "rejected": [{"role": "assistant", "content": f"I do not know {city}."}],
        "tools": json.dumps([{"type": "function", "function": schema}]),
    }
