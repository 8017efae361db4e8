"""Counts pairs that are equal to the model."""

from __future__ import annotations

import logging

import numpy as np
from datasets import Dataset

from rm_plugins.data.equal_pairs import CAUSE

logger = logging.getLogger(__name__)

_SHOWN = 5


def count_equal_pairs(tokenized: Dataset, name: str, *, reports: bool) -> int:
    """The number of pairs whose winner and loser have equal token ids, which is logged with the first rows if `reports`.

    They stay in the data: their loss has no gradient, but the mean includes it.

    Args:
        tokenized: The columns of `rm_plugins_trl.reward_training.training_rows.features`.
        name: What the dataset is called.
        reports: Whether this process logs.
    """
    counts = np.asarray(tokenized["equal_pairs"])
    equal, rows = int(counts.sum()), np.asarray(tokenized["number"])[counts > 0]
    if equal and reports:
        first = ", ".join(map(str, rows[:_SHOWN].tolist())) + (", ..." if len(rows) > _SHOWN else "")
        logger.warning(
            "%d pairs of the %s dataset have a winner and a loser with equal token ids (row%s %s). Their texts are equal, or differ only "
            "in parts that are not rendered, %s, or leave these rows out. These pairs stay in the data, but have no effect on training, "
            "and no model can tell them apart.",
            *(equal, name, "s" if len(rows) > 1 else "", first, CAUSE),
        )
    return equal
