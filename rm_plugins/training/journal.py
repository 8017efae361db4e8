"""The journal of a training: the samples that were scored and each step's figures, as Parquet files in one folder.

Each process writes two series of files, numbered in the order of the steps::

    samples-rank0-00000.parquet    step, reward, prompt, completion, is_conversational, score, details, length, time, rank, members
    figures-rank0-00000.parquet    step, reward, figures, rank

Prompts and completions are text; message lists are JSON, if ``is_conversational`` is true. ``details`` and ``figures`` are
lists of names and values; ``members`` are the names of the details that are scores of members. ``score`` is null where the reward
abstained. A row of figures without a reward has the trainer's own figures of the step, such as its KL divergence. Files are written
whole, so a reader never sees a partial one.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from rm_plugins.errors import DataError
from rm_plugins.files import check_output, in_utf8, replacing
from rm_plugins.missing_path import not_there
from rm_plugins.samples import Message, Sample, text_of
from rm_plugins.scores import MEMBER, FloatArray, Scores, parts_of_columns

_FILE_MB = 16
"""The most text in one file, as it is before compression."""

_FIGURES = arrow.list_(arrow.struct({"name": arrow.string(), "value": arrow.float64()}))  # datasets knows no maps
_SAMPLE_COLUMNS = arrow.schema(
    {
        "step": arrow.int64(),
        "reward": arrow.string(),
        "prompt": arrow.string(),
        "completion": arrow.string(),
        "is_conversational": arrow.bool_(),
        "score": arrow.float64(),
        "details": _FIGURES,
        "length": arrow.int64(),
        "time": arrow.timestamp("us", tz="UTC"),
        "rank": arrow.int32(),
        "members": arrow.list_(arrow.string()),
    }
)
_FIGURE_COLUMNS = arrow.schema({"step": arrow.int64(), "reward": arrow.string(), "figures": _FIGURES, "rank": arrow.int32()})


@dataclass(frozen=True, slots=True)
class JournalSample:
    """A sample of the journal.

    Args:
        step: The step that it was scored in.
        reward: The name of the reward that scored it.
        sample: Prompt and completion, without the other columns of its dataset row.
        score: The reward, NaN where it abstained.
        details: The details of its score and the scores of its members, by name.
        members: Which of the details are the scores of members.
        length: Of the completion, in characters.
        time: When the journal was given it.
        rank: The number of the process.
    """

    step: int
    reward: str
    sample: Sample
    score: float
    details: Mapping[str, float]
    members: Sequence[str]
    length: int
    time: datetime
    rank: int


@dataclass(frozen=True, slots=True)
class JournalStep:
    """What the journal has of one step.

    Args:
        step: The trainer's step, from 1.
        figures: For each reward, the figures of each process.
        trainer: What the trainer itself logged of the step.
        samples: The samples that were kept, for each reward.
    """

    step: int
    figures: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    trainer: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, Sequence[JournalSample]] = field(default_factory=dict)


class Journal:
    """Writes the journal of one process.

    Rows are held until a file is full or `flush` is called. The oldest samples go when there are too many, but for the first
    file, with which the later ones are compared; figures, which are small, all stay.

    Args:
        folder: The folder, which several processes share; it is made if need be.
        max_mb: The most that this process' samples may take on the disk, in MB.
        rank: The number of this process.

    Raises:
        DataError: `max_mb` leaves room for nothing.
    """

    def __init__(self, folder: Path | str, *, max_mb: float = 512, rank: int = 0) -> None:
        if not max_mb > 0:
            raise DataError(f"A journal needs room: max_mb={max_mb}; a number above 0 is allowed.")
        self.folder = Path(folder)
        self.max_mb = max_mb
        self._start(rank)

    def _start(self, rank: int) -> None:
        self.rank = rank
        self._samples = _Series(self.folder, f"samples-rank{rank}", _SAMPLE_COLUMNS, self.max_mb)
        self._figures = _Series(self.folder, f"figures-rank{rank}", _FIGURE_COLUMNS, math.inf)

    def resume(self, step: int, *, rank: int = 0, processes: int = 1) -> None:
        """Begin, or resume after a step: what the folder has of later ones, which will be done again, is deleted.

        Args:
            step: The last step that is done, 0 for none.
            rank: The number of this process.
            processes: The number of processes. The first one also deletes the files of processes that no longer exist.

        Raises:
            DataError: No step is done, and the folder already has a journal.
            OutputError: The folder cannot be written.
        """
        check_output(self.folder, is_folder=True)
        self._start(rank)
        names = {file.stem.rpartition("-")[0] for file in self.folder.glob("*-rank*-*.parquet")} if rank == 0 else set()
        gone = {name for name in names if int(name.rpartition("rank")[2]) >= processes}
        if step == 0 and (self._samples.files() or self._figures.files() or gone):
            raise DataError(
                f"The journal {str(self.folder)!r} has samples of an earlier training. Give another folder, delete this one, or "
                "resume that training: trainer.train(resume_from_checkpoint=True)."
            )
        left = [_Series(self.folder, name, self._samples.schema, self.max_mb) for name in sorted(gone)]
        for series in (self._samples, self._figures, *left):
            series.resume(step)

    def add_samples(self, step: int, reward: str, samples: Sequence[Sample], scores: Scores) -> None:
        """Add scored samples.

        Args:
            step: The trainer's step; it never falls from one call to the next.
            reward: The reward's name.
            samples: The samples, [N].
            scores: Their scores, [N].
        """
        now, columns, members = datetime.now(UTC), scores.columns, list(scores.members)
        for row, sample in enumerate(samples):
            score = float(scores.values[row])
            prompt, completion = _written(sample.prompt), _written(sample.completion)
            self._samples.add(
                {
                    "step": step,
                    "reward": reward,
                    "prompt": prompt,
                    "completion": completion,
                    "is_conversational": sample.is_conversational,
                    "score": None if math.isnan(score) else score,
                    "details": _named({name: float(column[row]) for name, column in columns.items()}),
                    "length": len(text_of(sample.completion)),
                    "time": now,
                    "rank": self.rank,
                    "members": members,
                },
                size=len(prompt) + len(completion),
            )

    def add_figures(self, step: int, reward: str | None, figures: Mapping[str, float]) -> None:
        """Add figures of a step; without a reward, those of the trainer itself."""
        row = {"step": step, "reward": reward, "figures": _named(figures), "rank": self.rank}
        self._figures.add(row, size=16 * len(figures))

    def flush(self) -> None:
        """Write the rows in memory."""
        self._samples.flush()
        self._figures.flush()


class _Series:
    """Numbered files of one schema. The last file is rewritten with new rows until it is full."""

    def __init__(self, folder: Path, name: str, schema: Any, max_mb: float) -> None:
        self.folder = folder
        self.name = name
        self.schema = schema
        self.max_bytes = max_mb * 1e6
        self.file_bytes = min(_FILE_MB * 1e6, self.max_bytes / 4)
        self._number = 0
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self._written = 0

    def files(self) -> list[Path]:
        """The files on the disk, oldest first."""
        return sorted(self.folder.glob(f"{self.name}-*.parquet"))

    def resume(self, step: int) -> None:
        for file in self.files():
            try:
                table = parquet.read_table(file)
            except (OSError, arrow.ArrowInvalid) as error:
                raise DataError(
                    f"The journal's file {str(file)!r} cannot be read: {error}. Delete the file to continue without its rows."
                ) from error
            kept = table.filter(compute.field("step") <= step)
            if kept.num_rows == 0:
                file.unlink()
            elif kept.num_rows < table.num_rows:
                _write(kept, file)
            self._number = int(file.stem.rpartition("-")[2]) + 1

    def add(self, row: dict[str, Any], size: int) -> None:
        self._rows.append(row)
        self._size += size
        if self._size >= self.file_bytes:
            self.flush()
            self._number += 1
            self._rows, self._size, self._written = [], 0, 0

    def flush(self) -> None:
        if len(self._rows) == self._written:
            return
        table = arrow.Table.from_pylist(self._rows, schema=self.schema)
        _write(table, self.folder / f"{self.name}-{self._number:05d}.parquet")
        self._written = len(self._rows)
        self._delete_oldest()

    def _delete_oldest(self) -> None:
        files = self.files()
        sizes = [file.stat().st_size for file in files]
        while sum(sizes) > self.max_bytes and len(files) > 2:
            files.pop(1).unlink()
            sizes.pop(1)


def _write(table: Any, path: Path) -> None:
    with replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def kept_rows(values: FloatArray, most: int, seed: int = 0) -> NDArray[np.intp]:
    """Which samples of a step to keep: all, or else a quarter of `most` from the top, one from the bottom, and random ones.

    Args:
        values: Rewards, float64 [N], NaN where abstained; abstentions are among the random ones only.
        most: How many to keep.
        seed: Of the random choice; the same seed makes the same choice.

    Returns:
        Positions in `values`, ascending, at most `most`.

    >>> kept_rows(np.array([0.3, np.nan, 0.9, 0.1]), 8).tolist()
    [0, 1, 2, 3]
    """
    if len(values) <= most:
        return np.arange(len(values))
    ordered = np.argsort(values)[: int((~np.isnan(values)).sum())]  # NaN comes last
    end = min(most // 4, len(ordered) // 2)
    ends = np.concatenate([ordered[:end], ordered[len(ordered) - end :]])
    others = np.setdiff1d(np.arange(len(values)), ends)
    chosen = np.random.default_rng(seed).choice(others, most - len(ends), replace=False)
    return np.sort(np.concatenate([ends, chosen]))


def read_journal(folder: Path | str, *, rank: int | None = None) -> Iterator[JournalStep]:
    """The steps of a journal, in their order, those of all processes together.

    It may be read while it is written: a file that was deleted meanwhile is left out.

    Args:
        folder: The folder of the journal.
        rank: Read what this process wrote alone.

    Raises:
        DataError: There is no journal, or a file of it cannot be read.
    """
    folder = Path(folder)
    ranks = "*" if rank is None else str(rank)
    files = {kind: sorted(folder.glob(f"{kind}-rank{ranks}-*.parquet")) for kind in ("figures", "samples")}
    if not any(files.values()):
        lacks = ": no file samples-rank*.parquet." if folder.is_dir() else not_there(folder)
        raise DataError(
            f"There is no journal in {str(folder)!r}{lacks} RewardWatch(..., journal=FOLDER) writes one, at checkpoints and at the end of "
            "the training."
        )
    return _steps(files)


def _steps(files: Mapping[str, Sequence[Path]]) -> Iterator[JournalStep]:
    streams = [
        _read(list(series))
        for paths in files.values()
        for _, series in groupby(paths, key=lambda file: file.stem.rpartition("-")[0])
    ]
    for number, rows in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        figures: dict[str, list[Mapping[str, float]]] = {}
        samples: dict[str, list[JournalSample]] = {}
        trainer: dict[str, float] = {}
        for _, reward, row in rows:
            if isinstance(row, JournalSample):
                samples.setdefault(row.reward, []).append(row)
            elif reward is None:
                trainer.update(row)
            else:
                figures.setdefault(reward, []).append(row)
        yield JournalStep(number, figures, trainer, samples)


def _read(files: Sequence[Path]) -> Iterator[tuple[int, str | None, JournalSample | Mapping[str, float]]]:
    """Step and reward of each row, and the sample or the figures in it."""
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=256):
                    for row in batch.to_pylist():
                        yield row["step"], row["reward"], _by_name(row["figures"]) if "figures" in row else _sample(row)
        except FileNotFoundError:
            continue
        except (OSError, arrow.ArrowInvalid, KeyError, ValueError) as error:
            raise DataError(
                f"The journal's file {str(file)!r} cannot be read: {error}. Delete it to read the others."
            ) from error


def _sample(row: Mapping[str, Any]) -> JournalSample:
    prompt, completion = row["prompt"], row["completion"]
    if row["is_conversational"]:
        prompt, completion = json.loads(prompt), json.loads(completion)
    details = _by_name(row["details"])
    members = row.get("members")
    if members is None:  # in journals of before
        _, parts = parts_of_columns({name: np.array([value], dtype=np.float64) for name, value in details.items()})
        members = [f"{MEMBER}/{name}" for name in parts]
    return JournalSample(
        step=row["step"],
        reward=row["reward"],
        sample=Sample(prompt, completion),
        score=math.nan if row["score"] is None else row["score"],
        details=details,
        members=members,
        length=row["length"],
        time=row["time"],
        rank=row["rank"],
    )


def _named(figures: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": in_utf8(name), "value": value} for name, value in figures.items()]


def _by_name(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in figures}


def _written(part: str | Sequence[Message]) -> str:
    return in_utf8(
        part if isinstance(part, str) else json.dumps([dict(message) for message in part], ensure_ascii=False, default=str)
    )
