"""Real data: a small model that is trained to compare two answers, beside one that is trained to score one, on the same judgements."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset

import rm_plugins as rm
from rm_plugins.samples import text_of
from tests.benchmarks.losses_runs import minilm

TEMPLATE = "{first}\n\n[SEP]\n\n{second}"
MAX_LENGTH = 256

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to one prompt, and which of two people or labels prefer.

    Args:
        samples: The answers.
        judged: Pairs of positions: the better answer, the worse one.
    """

    samples: list[rm.Sample]
    judged: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, in groups.

    Args:
        title: What the table calls it.
        file: The name of its file.
        train: Judged pairs to train on.
        groups: Groups held out, whose prompts are not trained on.
        answers: The most answers of a group.
    """

    title: str
    file: str
    train: int
    groups: int
    answers: int


DATA_SETS = (
    DataSet("arguments, debates unseen (UKP)", "ukp_convarg_strict", 400, 6, 12),
    DataSet("solutions, right or wrong (GSM8K)", "gsm8k_solutions_labelled", 400, 60, 4),
    DataSet("instruction following (LLMBar)", "llmbar", 400, 150, 2),
)
SETTINGS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("`knock-out`", {"schedule": "knock-out"}),
    ("`swiss`", {"schedule": "swiss"}),
    ("`all-pairs`", {}),
    ("`all-pairs`, average", {"contradictions": "average"}),
)


def load(data: DataSet, folder: Path) -> tuple[list[Row], list[Group]]:
    """Judged pairs to train on, and groups of other prompts."""
    with gzip.open(folder / f"{data.file}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        pairs = [row] if "chosen" in row else list(_pairs_of_labels(row))
        by_prompt.setdefault(text_of(row["prompt"]), []).extend(pairs)
    prompts = [prompt for prompt, pairs in by_prompt.items() if pairs]
    held_out, others = prompts[: data.groups], prompts[data.groups :]
    train = [pair for prompt in others for pair in by_prompt[prompt]]
    random.Random(1).shuffle(train)
    return train[: data.train], [_group(prompt, by_prompt[prompt], data.answers) for prompt in held_out]


def _pairs_of_labels(row: Row) -> Iterator[Row]:
    right, wrong = (
        [text for text, is_right in zip(row["completions"], row["is_correct"], strict=True) if is_right is good]
        for good in (True, False)
    )
    yield from ({"prompt": row["prompt"], "chosen": one, "rejected": other} for one in right for other in wrong)


def _group(prompt: str, pairs: Sequence[Row], most: int) -> Group:
    texts = list(dict.fromkeys(text_of(pair[side]) for pair in pairs for side in ("chosen", "rejected")))[:most]
    texts.sort()  # which is better must not show in the order
    places = {text: place for place, text in enumerate(texts)}
    judged = [(text_of(pair["chosen"]), text_of(pair["rejected"])) for pair in pairs]
    return Group(
        [rm.Sample(prompt, text) for text in texts],
        [(places[one], places[other]) for one, other in judged if one in places and other in places],
    )


def train(rows: Sequence[Row], loss: str, out: Path) -> rm.Provider:
    """Train MiniLM on rows of text."""
    from rm_plugins_trl import RewardConfig, RewardTrainer

    arguments = RewardConfig(
        str(out),
        loss=loss,
        learning_rate=2e-4,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        max_length=MAX_LENGTH,
        overlong="truncate",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    RewardTrainer(str(minilm()), arguments, train_dataset=Dataset.from_list(list(rows))).train()
    return rm.load(str(out))


def trained(data: DataSet, folder: Path) -> tuple[rm.Provider, rm.Provider, list[Group]]:
    """A model that scores a text with both answers, one that scores an answer, and the groups that are held out."""
    pairs, held_out = load(data, folder)
    texts = [(text_of(pair["prompt"]), text_of(pair["chosen"]), text_of(pair["rejected"])) for pair in pairs]
    both = [
        {"prompt": prompt, "completion": TEMPLATE.replace("{first}", one).replace("{second}", other), "label": is_better}
        for prompt, better, worse in texts
        for one, other, is_better in ((better, worse, True), (worse, better, False))
    ]
    single = [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt, better, worse in texts]
    with tempfile.TemporaryDirectory() as scratch:
        return train(both, "binary", Path(scratch) / "pair"), train(single, "bradley-terry", Path(scratch) / "one"), held_out


def known_verdict(first: rm.Sample, second: rm.Sample, *, known: Mapping[tuple[str, str], float]) -> float:
    """A verdict that the pair model gave before."""
    return known[first.completion_text, second.completion_text]


def measured(data: DataSet, folder: Path) -> list[Row]:
    """The agreement of each setting with the judgements of the groups that are held out, the pointwise model first."""
    pair_model, single_model, held_out = trained(data, folder)
    scores = [single_model.score(group.samples).values for group in held_out]
    results: list[Row] = [
        {
            "setting": "one answer at a time",
            "calls": data_mean(len(g.samples) for g in held_out),
            **_agreement(held_out, scores),
        }
    ]
    comparer: dict[str, Any] = {"name": "text-pair", "reward": pair_model, "score": "logit", "template": TEMPLATE}
    for title, keys in SETTINGS:
        rewards = rm.load({"provider": "comparison", "comparer": comparer, **keys})
        scored = [rewards.score(group.samples) for group in held_out]
        results.append(
            {
                "setting": title,
                "calls": data_mean(one.metadata["calls"] for one in scored),
                "position": data_mean(one.metadata["position_bias"] for one in scored),
                "cyclic": data_mean(one.metadata["intransitive"] for one in scored),
                **_agreement(held_out, [one.values for one in scored]),
            }
        )
    return results


def data_mean(values: Any) -> float:
    """The mean of the numbers that are known."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _agreement(groups: Sequence[Group], scores: Sequence[Any]) -> Row:
    """The share of judged pairs whose better answer has the higher score; a tie is a half, and a pair without scores is left out."""
    outcomes = []
    missing = 0
    for group, values in zip(groups, scores, strict=True):
        for better, worse in group.judged:
            gap = values[better] - values[worse]
            missing += bool(np.isnan(gap))
            if not np.isnan(gap):
                outcomes.append(0.5 if gap == 0 else float(gap > 0))
    return {"agreement": float(np.mean(outcomes)), "pairs": len(outcomes), "missing": missing}
