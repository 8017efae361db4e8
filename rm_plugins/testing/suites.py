"""The contract check of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_plugins.data.judgements import judgement
from rm_plugins.scores import FloatArray
from rm_plugins.suites import Suite, SuiteItem, SuiteResult

if TYPE_CHECKING:
    pass


def check_suite(suite: Suite, raw: Sequence[Mapping[str, Any]]) -> SuiteResult:
    """Check that a benchmark fulfils its contract: rows with right and wrong samples, and a score that is higher for better rewards.

    Args:
        suite: The benchmark.
        raw: Rows in the format of its dataset, with rows of every section that counts towards the score.

    Returns:
        The result of a reward that ranks everything correctly.

    Raises:
        AssertionError: The benchmark breaks the contract; the message says how.
    """
    rows = list(suite.checked_rows(iter(raw)))
    assert rows, "the suite made no rows from the raw ones"
    assert all("section" in row for row in rows), "a row has no `section`"
    labels = [_right_and_wrong(row) for row in rows]
    assert all(len(set(row_labels.tolist())) == 2 for row_labels in labels), "a row has no right sample or no wrong sample"

    def result(score: Callable[[FloatArray], FloatArray]) -> SuiteResult:
        return suite.result(
            [
                SuiteItem(str(row.get("id", "")), str(row["section"]), score(right), right, tuple(row.get("compared") or ()))
                for row, right in zip(rows, labels, strict=True)
            ]
        )

    perfect, worst = result(lambda right: right), result(lambda right: -right)
    assert math.isfinite(perfect.score), f"a reward that is always right has the score {perfect.score}, which is not finite"
    assert perfect.score > worst.score, (
        f"a reward that is always wrong has the score {worst.score}, and one that is always right {perfect.score}"
    )
    weights = math.fsum(section.weight for section in perfect.sections)
    assert abs(weights - 1) < 1e-6, f"the weights of the sections add up to {weights}, not to 1"
    nothing = result(lambda right: np.full(len(right), np.nan))
    assert nothing.abstained == len(rows), (
        f"a reward that abstains on all {len(rows)} rows is counted as abstaining on {nothing.abstained}"
    )
    assert nothing.score == worst.score, (
        f"a reward that always abstains has the score {nothing.score}; it must equal the score of one that is always wrong, {worst.score}"
    )
    return perfect


def _right_and_wrong(row: Mapping[str, Any]) -> FloatArray:
    """1 for each right sample of a benchmark's row and 0 for each wrong one."""
    judged = judgement(row)
    assert judged.format in ("preference", "labelled"), f"a row's format is {judged.format}; it must be preference or labelled"
    if judged.labels is None:
        return np.array([1.0, 0.0])
    return np.array([label for (label,) in judged.labels], dtype=np.float64)
