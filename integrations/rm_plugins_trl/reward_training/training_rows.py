"""Datasets as rows of token ids, and batches of them: what `RewardTrainer` trains on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value

from rm_plugins.data.answers import answers
from rm_plugins.data.equal_pairs import equal_pairs
from rm_plugins.data.judged_values import numbers_of
from rm_plugins.data.judgements import Judgement, attribute_names, judgement, weight_of
from rm_plugins.data.presets import ignored_verdicts, warning_of_ignored
from rm_plugins.data.repeated_prompts import RepeatedPrompts
from rm_plugins.data.row_files import json_line
from rm_plugins.errors import DataError, ModelError, SpecError
from rm_plugins.losses import Need
from rm_plugins.losses.loss import Item
from rm_plugins.losses.needs import BATCH_NEEDS, DATA_NEEDS
from rm_plugins.models.manifest import SampleFormat, common_format
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.token_types import has_types, ids_and_types
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins_trl.reward_training.global_batch import items_of

_STRUCTURE = {
    "number": Value("int64"),
    "chosen_ids": List(Value("int32")),
    "rejected_ids": List(Value("int32")),
    "rows": List(List(Value("int32"))),
    "length": Value("int32"),
    "longest": Value("int32"),
    "completion_starts": List(Value("int32")),
    "equal_pairs": Value("int32"),
    "characters": List(Value("int32")),
    "section": Value("string"),
}
_OF_BATCHES = ("sections", "items")  # further names in a batch


def features(own: Sequence[Need] = ()) -> Features:
    """The columns of a tokenized dataset; an empty list means that a row has none.

    ``chosen_ids`` and ``rejected_ids`` are those of TRL's trainer, of preference rows, and ``rows`` has the texts of all others.
    ``length`` is of all texts of a row together, ``longest`` of its longest one before truncation, both in tokens; ``equal_pairs``
    the number of its pairs with equal token ids. ``characters`` are those of the answers, as evaluations count them, and 0 in what
    is tokenized already.

    Args:
        own: The needs that a loss declares.

    Raises:
        SpecError: A need has the name of another column.
    """
    columns: dict[str, Any] = dict(_STRUCTURE)
    for need in (*DATA_NEEDS, *(need for need in own if need.from_data)):
        if need.column in columns or need.column in _OF_BATCHES:
            raise SpecError(
                f"The loss needs {need.name!r}, which is the name of another column of a tokenized dataset. Rename it."
            )
        feature: Any = Value(need.dtype)
        for _ in range(need.depth):
            feature = List(feature)
        columns[need.column] = feature
    return Features(columns)


COLUMNS = tuple(features())
ROW_JSON = "row_json"
_LOOKED_AT = 1_000
_RATED = {"score", "scores", "label", "labels"}
_WEIGHED = (
    "The loss weighs each row by its column {!r}. RewardConfig(weight_column=...) names another column, or None for no weights."
)


def is_tokenized(columns: Iterable[str]) -> bool:
    """Whether we have already tokenized a dataset."""
    return set(COLUMNS) <= set(columns)


def is_tokenized_by_trl(columns: Iterable[str]) -> bool:
    """Whether a dataset is already tokenized as TRL's trainer does."""
    return {"chosen_ids", "rejected_ids"} <= set(columns)


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a dataset's row is a preference pair as TRL's trainer takes it."""
    judged = _row(row)
    return is_tokenized_by_trl(row) or (judged.get("chosen") is not None and judged.get("rejected") is not None)


def texts_of(example: Mapping[str, Any]) -> list[Any]:
    """The token ids of each text of a tokenized row."""
    return list(example["rows"]) or [example["chosen_ids"], example["rejected_ids"]]


def stored_rows(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Rows as a dataset of one column, their JSON.

    With a column for each key, all rows would get the keys and the types of the first ones.
    """
    return Dataset.from_dict({ROW_JSON: [json_line(row) for row in rows]}, features=Features({ROW_JSON: Value("large_string")}))


def stored_stream(rows: Callable[[], Iterator[Mapping[str, Any]]]) -> IterableDataset:
    """`stored_rows` for rows that are read when needed."""
    return IterableDataset.from_generator(
        lambda: ({ROW_JSON: json_line(row)} for row in rows()), features=Features({ROW_JSON: Value("large_string")})
    )


def _row(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    row: Mapping[str, Any] = json.loads(columns[ROW_JSON]) if ROW_JSON in columns else columns
    return row


def looked_at(dataset: Any, weight: str | None = "weight") -> tuple[tuple[str, ...], list[str]]:
    """The attributes on which the rows of a training dataset are rated, and warnings about its columns and prompts.

    `weight` is the column with the weight of a row in the loss.

    Only the first row of a stream is read. Repeated prompts are looked for in the first rows.

    Raises:
        DataError: There is no row, or one is in none of the formats.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise DataError("The train dataset has no rows. Check the file, its split and its filters.")
    if is_tokenized(first):
        return (), []
    weighed = weight is not None and _row(first).get(weight) is not None
    warnings = [_WEIGHED.format(weight)] if weighed else []
    if is_tokenized_by_trl(first):
        return (), warnings
    attributes: dict[str, None] = {}
    ignored: dict[str, None] = {}
    repeated = RepeatedPrompts()
    for columns in islice(dataset, _LOOKED_AT) if isinstance(dataset, Dataset) else [first]:
        repeated.add(_row(columns))
    all_alike = not isinstance(dataset, Dataset) or not first.keys() & {ROW_JSON, *_RATED}
    for number, columns in enumerate([first] if all_alike else dataset):
        row = _row(columns)
        try:
            attributes |= dict.fromkeys(attribute_names(row))
        except DataError as error:
            raise DataError(f"Row {number} (counted from 0) of the train dataset: {error}") from error
        if row.get("chosen") is not None and row.get("rejected") is not None:
            ignored |= dict.fromkeys(ignored_verdicts(row))
    warnings += [warning_of_ignored([*ignored]) if ignored else "", repeated.warning]
    return tuple(attributes), [warning for warning in warnings if warning]


def sample_format(dataset: Any) -> SampleFormat | None:
    """Whether the samples of a training dataset are text or conversations; None where they are both, or tokenized already.

    The first rows are looked at; of a stream, the first one.
    """
    formats: list[SampleFormat | None] = []
    for columns in islice(dataset, _LOOKED_AT if isinstance(dataset, Dataset) else 1):
        if is_tokenized(columns) or is_tokenized_by_trl(columns):
            return None
        try:
            samples = judgement(_row(columns)).samples
        except DataError:  # tokenizing says what is wrong with it
            return None
        formats += ["conversations" if sample.is_conversational else "text" for sample in samples]
    return common_format(formats)


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Turns dataset rows into the columns of `features`; pickled into the processes of ``Dataset.map``.

    Args:
        renderer: Makes the token ids of samples.
        name: The name of the dataset in errors.
        attributes: The attributes that samples are rated on, in the order of the labels.
        reward: The weight of each attribute in the reward, by which rated samples are compared; None for equal ones.
        section: The column with the section that a row belongs to; None for none.
        truncate: Whether rows longer than the rendering's ``max_length`` are truncated.
        own: The needs that the loss declares.
        rated_once: Whether to refuse a row with further attributes, because these were taken from the first row of a stream.
        weight: The column with the weight of a row in the loss; None for no weights.
        known_tokens: How many token ids, from 0 on, the model has embeddings of.
    """

    renderer: Renderer
    name: str
    attributes: tuple[str, ...] = ()
    reward: Mapping[str, float] | None = None
    section: str | None = None
    truncate: bool = False
    own: tuple[Need, ...] = ()
    rated_once: bool = False
    weight: str | None = "weight"
    known_tokens: float = math.inf

    def __call__(self, columns: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of a batch of rows.

        Raises:
            DataError: A row is in none of the formats; the message names it.
            ModelError: The tokenizer makes a token id that the model does not know.
        """
        has_ids = is_tokenized_by_trl(columns)
        judgements: list[Judgement] = []
        sections: list[str | None] = []
        needs = (*DATA_NEEDS, *(need for need in self.own if need.from_data))
        needed: dict[str, list[Any]] = {need.column: [] for need in needs}
        for place, number in enumerate(numbers):
            row = self._weighed(_row({column: values[place] for column, values in columns.items()}))
            try:
                judged = _tokenized_judgement(row) if has_ids else judgement(row, self.attributes, self.reward)
                if self.rated_once and (others := [name for name in attribute_names(row) if name not in self.attributes]):
                    raise DataError(
                        f"it is rated on {others[0]!r}, unlike the first row of the stream. Name all attributes: "
                        "RewardConfig(attributes=[...])."
                    )
                for need in needs:
                    needed[need.column].append(need.read(row, judged))
            except DataError as error:
                raise DataError(f"Row {number} (counted from 0) of the {self.name} dataset: {error}") from error
            judgements.append(judged)
            section = row.get(self.section) if self.section is not None else None
            sections.append(None if section is None else str(section))
        if has_ids:
            ids = [list(side) for pair in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True) for side in pair]
            samples: list[Sample] = [RenderedSample.of(row) for row in ids]
            starts = [0] * len(ids)
        else:
            samples = [sample for judged in judgements for sample in judged.samples]
            ids = self.renderer.untruncated_ids(samples)
            starts = self.renderer.completion_starts(samples, ids)
        self._refuse_unknown(ids)
        limit = self.renderer.rendering.max_length
        longest = [len(row) for row in ids]
        if self.truncate and limit is not None:
            starts = [max(start - max(len(row) - limit, 0), 0) for row, start in zip(ids, starts, strict=True)]
            ids = [self.renderer.truncated(sample, row, limit) for sample, row in zip(samples, ids, strict=True)]
        bounds = [0, *accumulate(len(judged.samples) for judged in judgements)]
        rows = [ids[start:stop] for start, stop in pairwise(bounds)]
        pairs = [texts if judged.format == "preference" else [[], []] for texts, judged in zip(rows, judgements, strict=True)]
        return {
            "number": list(numbers),
            "chosen_ids": [pair[0] for pair in pairs],
            "rejected_ids": [pair[1] for pair in pairs],
            "rows": [[] if judged.format == "preference" else texts for texts, judged in zip(rows, judgements, strict=True)],
            "length": [sum(map(len, each)) for each in rows],
            "longest": [max(longest[start:stop], default=0) for start, stop in pairwise(bounds)],
            "completion_starts": [starts[start:stop] for start, stop in pairwise(bounds)],
            "equal_pairs": [len(equal_pairs(each, judged.pairs)) for each, judged in zip(rows, judgements, strict=True)],
            "characters": [list(map(len, answers(judged.samples)[1])) for judged in judgements],
            **needed,
            "section": sections,
        }

    def _refuse_unknown(self, rows: Sequence[Sequence[int]]) -> None:
        """Refuse token ids that the model has no embedding of, before they end the training in the middle of a step."""
        highest = max((max(ids_and_types(row)[0] if has_types(row) else row) for row in rows if row), default=0)
        if highest >= self.known_tokens:
            tokenizer = self.renderer.tokenizer
            raise ModelError(
                f"The model has embeddings of {self.known_tokens} tokens, and the tokenizer ({len(tokenizer)} tokens) gives a text of "
                f"the {self.name} dataset the token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}). It is another model's "
                "tokenizer, or has tokens that were added without model.resize_token_embeddings(len(tokenizer)). Use the model's own "
                "tokenizer, or resize the embeddings."
            )

    def _weighed(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its weight in the column that a judgement reads."""
        if self.weight == "weight":
            return row
        return {**row, "weight": None if self.weight is None else row.get(self.weight)}


def _tokenized_judgement(row: Mapping[str, Any]) -> Judgement:
    """The judgement of a preference row that is already tokenized."""
    margin = numbers_of(row, "margin", 1)
    nothing = Sample("", "")
    return Judgement(
        "preference",
        (nothing, nothing),
        pairs=((0, 1),),
        ranks=(0.0, 1.0),
        margins=None if not margin or margin[0] is None else (margin[0],),
        weight=weight_of(row),
    )


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches of tokenized rows, with everything that a loss may need.

    Args:
        item: What the loss is a mean over; ``items`` of a batch is their number.
        own: The needs that the loss declares.
        counts_tokens: Whether a batch has the ``input_ids`` by which transformers counts tokens.
    """

    item: Item
    own: tuple[Need, ...] = ()
    counts_tokens: bool = False

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of G judgements with N rows: tensors, and ``rows``, the token ids as arrays."""
        examples = [{**example, "rows": texts_of(example)} for example in examples]
        sizes = torch.tensor([len(example["rows"]) for example in examples])
        batch: dict[str, Any] = {
            "number": torch.tensor([example["number"] for example in examples]),
            "groups": torch.repeat_interleave(torch.arange(len(sizes)), sizes),
            "rows": [np.asarray(row, dtype=np.int64) for example in examples for row in example["rows"]],
            "completion_starts": [start for example in examples for start in example["completion_starts"]],
            "characters": [count for example in examples for count in example["characters"]],
            "sections": [example["section"] for example in examples],
        }
        for need in (*BATCH_NEEDS.values(), *self.own):
            if (values := need.collate(examples)) is not None:
                batch[need.name] = values
        counts: dict[str, Any] = {name: batch.get(name) for name in ("pairs", "ties", "labels")}
        batch["items"] = torch.tensor(items_of(self.item, judgements=len(sizes), rows=len(batch["rows"]), **counts))
        if self.counts_tokens:
            batch["input_ids"] = torch.from_numpy(np.concatenate(batch["rows"]))
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return batch


def bootstrap_repeats(seed: int, member: int, numbers: Sequence[int]) -> list[int]:
    """How often each dataset row is in a member's sample: Poisson with mean 1, the same in every epoch."""
    return [int(np.random.Generator(np.random.Philox(key=[seed, (member << 40) + number])).poisson()) for number in numbers]
