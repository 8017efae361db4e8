"""``rm_plugins_ray.score``: a Ray data set with a column of scores, for pipelines that run on Ray already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rm_plugins as rm
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.row_files import read_errors
from rm_plugins.data.row_formats import rows_of_table
from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import ERROR, ScoredRow, scored_batches, unscored_samples
from rm_plugins.errors import DataError, SpecError, UnsupportedError
from rm_plugins.groups import group_keys
from rm_plugins.provider import OnError
from rm_plugins_ray.carried_reward import CarriedReward
from rm_plugins_ray.connection import installed_ray

_KEY = "rm_plugins prompt"
"""A column that the data set has only between its grouping and its scoring."""


def score(
    dataset: Any,
    spec: str | Path | Mapping[str, Any] | rm.Provider | Callable[..., Any],
    *,
    column: str = "score",
    mapping: RowMapping | None = None,
    batch_size: int = 512,
    on_error: OnError | None = None,
    workers: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Any:
    """A data set of the same rows with their scores, through `ray.data.Dataset.map_batches` with a pool of actors.

    It is lazy: nothing is scored until the result is read or written. Ray Data then streams the rows, and reads no faster than the actors
    score. Each actor loads the reward once and checks that it is the driver's.

    The new columns are those of ``rm-plugins score``: ``score``, ``scores``, or ``chosen_score`` and ``rejected_score``; details such as
    ``score/std``; and ``score/error``, the reason where a sample failed, else null. An abstention is null.

    A reward that compares the completions of a prompt needs all of them at a time. A row with ``completions``, or with ``chosen`` and
    ``rejected``, has them. Rows with one ``completion`` each are grouped by their prompt, or the reward's column ``group``, first
    (`ray.data.grouped_data.GroupedData.map_groups`): Ray then reads everything before the first score, and the order of the rows changes.
    Otherwise each block of rows keeps its order; set ``DataContext.execution_options.preserve_order`` to keep that of the blocks as well.

    Args:
        dataset: A `ray.data.Dataset` whose rows have the columns that ``rm-plugins score`` reads.
        spec: The reward, as for `rm_plugins.load`. Its files must be under the same path on every node.
        column: What the new columns are called.
        mapping: Makes rows of our formats of those of the data set, which are then what the result has.
        batch_size: Rows that an actor scores at a time.
        on_error: What a failure becomes: ``raise`` ends the reading with a `ray.exceptions.RayTaskError` that quotes the error; ``abstain``
            keeps the row with the reason. By default what the spec says.
        workers: The number of actors, or the smallest and the largest; by default from one to all that fit.
        num_cpus: The CPUs that an actor reserves; 1 without `num_gpus`.
        num_gpus: The GPUs that an actor reserves.

    Returns:
        A `ray.data.Dataset`.

    Raises:
        MissingDependencyError: Ray is not installed.
        SpecError: The spec or another argument is wrong.
        UnsupportedError: The reward learns while it scores, or cannot be sent to the cluster.
        DataError: `dataset` is not a Ray data set. While the result is read: a row has no samples, or has a column that its score would
            replace.
    """
    ray_data = installed_ray("rm_plugins_ray.score", "ray.data")

    _check_dataset(dataset, ray_data.Dataset)
    _check_settings(
        column=column, mapping=mapping, batch_size=batch_size, on_error=on_error, num_cpus=num_cpus, num_gpus=num_gpus
    )
    low, high = _least_and_most(workers)
    reward = CarriedReward.load(spec)
    reserved = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    options: dict[str, Any] = {
        "fn_constructor_args": (reward, column, mapping, batch_size, on_error),
        "compute": ray_data.ActorPoolStrategy(min_size=low, max_size=high),
        "batch_format": "pyarrow",
        **{name: amount for name, amount in reserved.items() if amount is not None},
    }
    if reward.groups:
        by = {"mapping": mapping, "group": _only_grouping(reward)}
        keyed = dataset.map_batches(_with_keys, fn_kwargs=by, batch_format="pyarrow", batch_size=batch_size)
        return keyed.groupby(_KEY).map_groups(BatchActor, **options)
    return dataset.map_batches(BatchActor, batch_size=batch_size, **options)


def _check_dataset(dataset: object, kind: type[Any]) -> None:
    if not isinstance(dataset, kind):
        raise DataError(
            f"rm_plugins_ray.score takes a ray.data.Dataset, not {type(dataset).__name__}. Make one of rows with ray.data.from_items, or "
            "of files with ray.data.read_json or ray.data.read_parquet."
        )


def _check_settings(
    *, column: object, mapping: object, batch_size: object, on_error: object, num_cpus: object, num_gpus: object
) -> None:
    if not isinstance(column, str) or not column:
        raise SpecError(f"must be the name of a column, not {column!r:.80}.", key="column")
    if not isinstance(mapping, RowMapping | None):
        raise SpecError(f"must be a rm_plugins.data.mapping.RowMapping, not {mapping!r:.80}.", key="mapping")
    if not _is_count(batch_size):
        raise SpecError(f"must be a positive number of rows, not {batch_size!r:.80}.", key="batch_size")
    if on_error not in (None, "raise", "abstain"):
        raise SpecError(f"must be 'raise' or 'abstain', not {on_error!r:.80}.", key="on_error")
    for key, amount in {"num_cpus": num_cpus, "num_gpus": num_gpus}.items():
        if amount is not None and not (isinstance(amount, int | float) and 0 <= amount < math.inf):
            raise SpecError(f"must be a number of at least 0, not {amount!r:.80}.", key=key)


def _least_and_most(workers: Any) -> tuple[int, int | None]:
    """The smallest and the largest number of actors; None if all that fit may be used."""
    if workers is None:
        return 1, None
    low, high = workers if isinstance(workers, Sequence) and len(workers) == 2 else (workers, workers)
    if not _is_count(low) or not _is_count(high) or low > high:
        raise SpecError(
            f"must be a positive number of actors, or the smallest and the largest number, such as (1, 8), not {workers!r:.80}.",
            key="workers",
        )
    return low, high


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class BatchActor:
    """Scores batches of rows with a reward that it loads once.

    Args:
        reward: The driver's reward.
        column: What the new columns are called.
        mapping: Makes rows of our formats.
        batch_size: Samples scored at a time at least; a row has one or several.
        on_error: What a failure becomes; None for what the reward's spec says.
    """

    def __init__(
        self, reward: CarriedReward, column: str, mapping: RowMapping | None, batch_size: int, on_error: OnError | None
    ) -> None:
        self._carried = reward
        self._reward: rm.Provider | None = None
        self._column = column
        self._mapping = mapping
        self._batch_size = batch_size
        self._on_error = on_error

    def __call__(self, batch: Any) -> Any:
        """The table of a batch with the new columns."""
        if self._reward is None:  # not when it is made, where Ray would start the actor again and again
            self._reward = self._carried.unpacked()
            if self._on_error is not None:
                self._reward.on_error = self._on_error
        if _KEY in batch.column_names:
            batch = batch.drop_columns([_KEY])
        rows = _rows(batch, self._mapping)
        scored: list[ScoredRow] = []
        batches = scored_batches(
            self._reward,
            rows,
            self._samples,
            self._batch_size,
            unit="samples",
            groups=self._carried.groups,
            named=lambda rows: f"{rows} of a batch",
        )
        for part, _ in batches:
            scored += part
        return _table(batch if self._mapping is None else None, scored, self._column)

    def _samples(self, row: Mapping[str, Any], where: str) -> tuple[rm.Sample, ...]:
        return unscored_samples(row, f"{where} of a batch", self._column).samples


def _rows(batch: Any, mapping: RowMapping | None) -> list[dict[str, Any]]:
    with read_errors("A batch of the data set"):
        rows = rows_of_table(batch)
    return rows if mapping is None else [mapping(row) for row in rows]


def _only_grouping(reward: CarriedReward) -> str | None:
    """By what rows are grouped: None for the prompt, or a column."""
    if len(reward.groups.by) > 1:
        by = ", ".join("the prompt" if column is None else repr(column) for column in reward.groups.by)
        raise UnsupportedError(
            f"The parts of the reward {reward.label!r} group samples by different things ({by}), and Ray groups rows by one. Give its "
            "parts the same `group`, or score with `rm-plugins score`."
        )
    return reward.groups.by[0]


def _with_keys(batch: Any, mapping: RowMapping | None, group: str | None) -> Any:
    """A batch with a column that is the same for all rows of a group, and differs between rows that are alone."""
    import uuid

    import pyarrow as arrow

    if _KEY in batch.column_names:
        raise UnsupportedError(f"The data set has a column {_KEY!r} already. Rename it.")
    keys = []
    for number, row in enumerate(_rows(batch, mapping), start=1):
        samples = row_samples(row, f"row {number} of a batch").samples
        key = group_keys(samples[:1], group)[0] if samples else None
        keys.append(key or uuid.uuid4().hex)  # a row that lacks the column fails when it is scored
    return batch.append_column(_KEY, arrow.array(keys, arrow.string()))


def _table(batch: Any | None, scored: Sequence[ScoredRow], column: str) -> Any:
    """The rows with their scores: the batch with more columns, or a new table where the rows are not those of a batch.

    The types of the new columns do not depend on the batch: a column of nulls is one of numbers, or of texts.
    """
    import pyarrow as arrow

    added: list[dict[str, Any]] = []
    types: dict[str, Any] = {}
    for one in scored:
        samples = row_samples(one.row)
        columns = one.columns(samples, column)
        is_list = samples.names == ("{}s",)
        for name in samples.columns([None] * len(samples.names), column):
            columns.setdefault(f"{name}/{ERROR}", None)
        for name in columns:
            kind = arrow.string() if name.endswith(f"/{ERROR}") else arrow.float64()
            types[name] = arrow.list_(kind) if is_list else kind
        added.append(columns)
    table = batch
    if table is None:
        names = dict.fromkeys(name for one in scored for name in one.row)  # not of the first row alone, as pyarrow takes them
        table = arrow.Table.from_pylist([{name: one.row.get(name) for name in names} for one in scored])
    for name, kind in types.items():
        table = table.append_column(name, arrow.array([columns.get(name) for columns in added], kind))
    return table
