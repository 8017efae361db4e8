"""Your own preference data in place of the generated world; its true reward is unknown."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

from rm_plugins.data.row_files import read_rows
from rm_plugins.data.rows import preference_samples
from rm_plugins.errors import DataError
from rm_plugins_trl.demo.world import Row, World

LONGEST_PROMPT = 2_000
"""In characters of JSON; sampling for longer prompts takes too long for a demonstration."""
HELD_OUT_SHARE = 0.1


def read_world(source: str, *, pairs: int, seed: int = 0) -> World:
    """A world of preference pairs: their prompts, and both answers of each pair as demonstrations.

    A tenth of the prompts, chosen by the seed, is held out with its pairs. The first `pairs` of a JSON Lines or Parquet file are read,
    or of the split ``train`` of a dataset.

    Raises:
        DataError: A row is not a preference pair, lacks a prompt, or there are fewer than two usable prompts.
    """
    by_prompt: dict[str, list[Row]] = {}
    for number, row in enumerate(islice(read_rows(source), pairs), start=1):
        try:
            pair = _plain_row(row)
        except DataError as error:
            raise DataError(f"{source}, row {number}: {error}") from error
        key = json.dumps(pair["prompt"])
        if len(key) <= LONGEST_PROMPT:
            by_prompt.setdefault(key, []).append(pair)
    if len(by_prompt) < 2:
        raise DataError(
            f"{source} has {len(by_prompt)} different prompts of at most {LONGEST_PROMPT:,} characters; at least 2 are needed, "
            "one for training and one for measuring."
        )
    groups = list(by_prompt.values())
    random.Random(seed).shuffle(groups)
    count = max(1, round(HELD_OUT_SHARE * len(groups)))
    train, held_out = ([row for group in part for row in group] for part in (groups[count:], groups[:count]))
    prompts, held_out_prompts = (
        [{"prompt": group[0]["prompt"]} for group in part] for part in (groups[count:], groups[:count])
    )
    answers = [{"prompt": row["prompt"], "completion": row[side]} for row in train for side in ("chosen", "rejected")]
    return World(train, held_out, answers, prompts, held_out_prompts, has_gold=False)


def _plain_row(row: Row) -> Row:
    chosen, rejected = preference_samples(row)
    if not chosen.prompt:
        raise DataError("there is no prompt, which training a policy needs.")
    return {"prompt": _plain(chosen.prompt), "chosen": _plain(chosen.completion), "rejected": _plain(rejected.completion)}


def _plain(part: Any) -> Any:
    return part if isinstance(part, str) else [{"role": turn["role"], "content": turn["content"]} for turn in part]
