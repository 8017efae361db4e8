"""The data that losses are compared on: fixed parts of real data sets, cut into what is trained on and what is held out."""

from __future__ import annotations

import gzip
import json
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from transformers import AutoTokenizer

__all__ = ["DATA_SETS", "DataSet", "Sizes", "film_sentences", "load"]

Row: TypeAlias = dict[str, Any]
Split: TypeAlias = tuple[list[Row], list[Row]]
"""The rows to train on, and those held out."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of a data set is used and how it is trained on, the same for all losses.

    Args:
        train: Rows to train on.
        held_out: Rows held out.
        batch: Rows of a step.
        epochs: Passes over the rows.
        learning_rate: The highest learning rate.
        max_length: Tokens of the longest text.
    """

    train: int
    held_out: int
    batch: int = 16
    epochs: int = 1
    learning_rate: float = 2e-4
    max_length: int = 128

    def small(self) -> Sizes:
        """A hundredth of it, to see whether all runs."""
        return Sizes(min(self.train, 8), min(self.held_out, 8), 4, 1, self.learning_rate, self.max_length)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set and how it is used.

    Args:
        title: The heading of its table.
        what: What its rows are, as a sentence.
        sizes: How much of it is used.
        decoder: Whether a small decoder is trained on it, and not MiniLM.
    """

    title: str
    what: str
    sizes: Sizes
    decoder: bool = False


DATA_SETS: dict[str, DataSet] = {
    "sentences": DataSet(
        "Pairs: film-review sentences",
        "A positive sentence is preferred to a negative one (`rt_sentence_polarity_pairs`, without its prompt, which is always "
        "the same). Sentences have at most 32 tokens.",
        Sizes(480, 800, max_length=32),
    ),
    "ties": DataSet(
        "Pairs and ties: film-review sentences",
        "As above, but three tenths of the training rows are ties: two sentences of the same polarity, which are in no other "
        "row. The held-out pairs are the same as in the first table.",
        Sizes(480, 800, max_length=32),
    ),
    "labels": DataSet(
        "Labels: film-review sentences",
        "The single sentences of the first table's training pairs; positive ones are labelled good, negative ones bad. The "
        "held-out pairs are the same as in the first table.",
        Sizes(960, 800, batch=32, max_length=32),
    ),
    "arguments": DataSet(
        "Pairs: convincing arguments",
        "Which of two arguments is more convincing (`ukp_convarg_strict`). The held-out pairs come from debates without "
        "training pairs.",
        Sizes(288, 400, max_length=96),
    ),
    "votes": DataSet(
        "Pairs with confidence: answers with the votes of three annotators",
        "Which of two answers to an instruction is better (`pandalm_human`). `confidence` is the share of the three annotators who "
        "preferred the chosen answer: 1 or ⅔. The held-out pairs come from instructions without training pairs.",
        Sizes(320, 200, epochs=2, max_length=160),
    ),
    "length": DataSet(
        "Length against accuracy",
        "The same task with a longer training. Annotators prefer the longer argument in most pairs, and a reward learns this.",
        Sizes(320, 400, epochs=2, max_length=96),
    ),
    "solutions": DataSet(
        "Lists: right and wrong solutions",
        "Four solutions of a problem, each right or wrong (`gsm8k_solutions_labelled`). Problems with only right or only wrong "
        "solutions are left out.",
        Sizes(96, 80, batch=8, max_length=160),
    ),
    "replies": DataSet(
        "Ratings: replies in a conversation",
        "Six replies to one conversation, rated by people (`topical_chat_ratings`). The prompt is the last turn.",
        Sizes(40, 20, batch=2, epochs=4, max_length=96),
    ),
    "margins": DataSet(
        "Pairs with margins: replies in a conversation",
        "Pairs of the same replies. The margin is the difference of their overall ratings.",
        Sizes(200, 200, epochs=2, max_length=96),
    ),
    "decoder": DataSet(
        "A language-model head beside the reward",
        "Pairs of film-review sentences again, with a small Qwen2 with random weights instead of MiniLM.",
        Sizes(3_000, 800, batch=32, epochs=2, learning_rate=1e-3, max_length=48),
        decoder=True,
    ),
}
"""The data sets by name, in the order of the page."""


@lru_cache
def load(name: str, sizes: Sizes, folder: Path, model: Path) -> Split:
    """The rows of a data set, which are the same in every run.

    Args:
        name: One of `DATA_SETS`.
        sizes: How many rows.
        folder: Where the data files are.
        model: The folder of the tokenizer that counts the tokens of texts, of which too long ones are left out.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    match name:
        case "sentences":
            return _sentences(sizes, folder, tokenizer)
        case "ties":
            return _ties(sizes, folder, tokenizer)
        case "labels":
            return _labels(sizes, folder, tokenizer)
        case "arguments" | "length":
            return _arguments(sizes, folder, tokenizer)
        case "votes":
            return _votes(sizes, folder, tokenizer)
        case "solutions":
            return _solutions(sizes, folder, tokenizer)
        case "replies":
            return _replies(sizes, folder)
        case "margins":
            return _margins(sizes, folder)
        case "decoder":
            train, held_out = _sentences(sizes, folder, tokenizer)
            return [{"prompt": "A film review: ", **row} for row in train], [
                {"prompt": "A film review: ", **row} for row in held_out
            ]
    raise SystemExit(f"There is no data set {name!r}.")


def film_sentences(folder: Path) -> list[Row]:
    """All pairs of film-review sentences, in an order of their own."""
    rows = _read(folder, "rt_sentence_polarity_pairs")
    return _shuffled([{side: row[side][0]["content"] for side in ("chosen", "rejected")} for row in rows])


def _short_sentences(sizes: Sizes, folder: Path, tokenizer: Any) -> list[Row]:
    rows = film_sentences(folder)
    longest = _longest(tokenizer, (("", (row["chosen"], row["rejected"])) for row in rows))
    return [row for row, length in zip(rows, longest, strict=True) if length <= sizes.max_length]


def _sentences(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows = _short_sentences(sizes, folder, tokenizer)
    return rows[800 : 800 + sizes.train], rows[: sizes.held_out]


def _ties(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows = _short_sentences(sizes, folder, tokenizer)
    tied = sizes.train * 3 // 10
    train: list[Row] = [{**row, "tie": False} for row in rows[800 : 800 + sizes.train - tied]]
    others = rows[800 + sizes.train :]
    for place in range(tied):
        side = "chosen" if place % 2 else "rejected"
        train.append({"chosen": others[2 * place][side], "rejected": others[2 * place + 1][side], "tie": True})
    return train, rows[: sizes.held_out]


def _labels(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows = _short_sentences(sizes, folder, tokenizer)
    train = [
        {"completion": row[side], "label": side == "chosen"}
        for row in rows[800 : 800 + sizes.train // 2]
        for side in ("chosen", "rejected")
    ]
    return train, [{"completions": [row["chosen"], row["rejected"]], "labels": [True, False]} for row in rows[: sizes.held_out]]


def _arguments(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows = [
        {"debate": row["topic"].partition("_")[0], "prompt": row["prompt"][0]["content"] + "\n"}
        | {side: row[side][0]["content"] for side in ("chosen", "rejected")}
        for row in _read(folder, "ukp_convarg_strict")
    ]
    longest = _longest(tokenizer, ((row["prompt"], (row["chosen"], row["rejected"])) for row in rows))
    rows = [row for row, length in zip(rows, longest, strict=True) if length <= sizes.max_length]
    unseen = set(_shuffled(sorted({row["debate"] for row in rows}))[:6])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in _shuffled(rows):
        sides[row.pop("debate") in unseen].append(row)
    return sides[0][: sizes.train], sides[1][: sizes.held_out]


def _votes(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows: list[Row] = [
        {"prompt": row["prompt"][0]["content"] + "\n", "confidence": row["agreement"]}
        | {side: row[side][0]["content"] for side in ("chosen", "rejected")}
        for row in _read(folder, "pandalm_human")
    ]
    longest = _longest(tokenizer, ((row["prompt"], (row["chosen"], row["rejected"])) for row in rows))
    rows = [row for row, length in zip(rows, longest, strict=True) if length <= sizes.max_length]
    prompts = _shuffled(sorted({row["prompt"] for row in rows}))
    unseen = set(prompts[: len(prompts) // 3])
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in _shuffled(rows):
        sides[row["prompt"] in unseen].append(row)
    return sides[0][: sizes.train], sides[1][: sizes.held_out]


def _solutions(sizes: Sizes, folder: Path, tokenizer: Any) -> Split:
    rows = [
        {"prompt": row["prompt"][0]["content"] + "\n", "completions": row["completions"], "labels": row["is_correct"]}
        for row in _read(folder, "gsm8k_solutions_labelled")
        if len(set(row["is_correct"])) > 1
    ]
    longest = _longest(tokenizer, ((row["prompt"], row["completions"]) for row in rows))
    rows = _shuffled([row for row, length in zip(rows, longest, strict=True) if length <= sizes.max_length])
    return rows[80 : 80 + sizes.train], rows[: sizes.held_out]


def _replies(sizes: Sizes, folder: Path) -> Split:
    rows = []
    for row in _read(folder, "topical_chat_ratings"):
        prompt = row["dialogue"].strip().split("\n")[-1].strip()
        rows.append({"prompt": f"{prompt}\n", "completions": row["completions"], "scores": row["scores"]})
    rows = _shuffled(rows)
    train, held_out = rows[20 : 20 + sizes.train], rows[: sizes.held_out]
    for attribute in rows[0]["scores"][0]:
        ratings = [scores[attribute] for row in train for scores in row["scores"]]
        mean, deviation = statistics.fmean(ratings), statistics.pstdev(ratings)
        for row in (*train, *held_out):
            row["scores"] = [{**scores, attribute: (scores[attribute] - mean) / deviation} for scores in row["scores"]]
    return train, held_out


def _margins(sizes: Sizes, folder: Path) -> Split:
    def pairs(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        found = []
        for row in rows:
            rated = sorted(zip(row["completions"], (scores["overall"] for scores in row["scores"]), strict=True), key=_second)
            for place, (worse, low) in enumerate(rated):
                for better, high in rated[place + 1 :]:
                    if high - low > 1e-6:
                        found.append({"prompt": row["prompt"], "chosen": better, "rejected": worse, "margin": high - low})
        return found

    replies = DATA_SETS["replies"].sizes
    train, held_out = _replies(replies, folder)
    return _shuffled(pairs(train))[: sizes.train], _shuffled(pairs(held_out))[: sizes.held_out]


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _longest(tokenizer: Any, rows: Iterable[tuple[str, Sequence[str]]]) -> list[int]:
    """The tokens of the longest text of each row."""
    listed = [[prompt + completion for completion in completions] for prompt, completions in rows]
    lengths = iter(tokenizer([text for texts in listed for text in texts], verbose=False)["input_ids"])
    return [max(len(next(lengths)) for _ in texts) for texts in listed]


def _shuffled(rows: Sequence[Any]) -> list[Any]:
    found = list(rows)
    random.Random(0).shuffle(found)
    return found


def _read(folder: Path, name: str) -> list[Row]:
    path = folder / f"{name}.jsonl.gz"
    if not path.is_file():
        raise SystemExit(f"There is no {path}: losses are compared on real data. Say with --folder where it is.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
