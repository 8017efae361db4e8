"""The journal: what is written is read again, in order, within bounds, and after a training that was cut off."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import load_dataset

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.training.journal import Journal, JournalSample, JournalStep, kept_rows, read_journal

TURN = [{"role": "user", "content": "Name a colour."}]


def scored(*values: float, **details: float) -> rm.Scores:
    return rm.Scores(np.array(values), {name: np.full(len(values), value) for name, value in details.items()})


def filled(folder: Path, steps: int, *, rank: int = 0, max_mb: float = 512, size: int = 10) -> Journal:
    """A journal of one sample a step; the text of each is hard to compress."""
    journal = Journal(folder, max_mb=max_mb, rank=rank)
    for step in range(1, steps + 1):
        text = np.random.default_rng(step).bytes(size).hex()
        journal.add_figures(step, "mine", {"samples": 1.0, "reward": float(step)})
        journal.add_samples(step, "mine", [rm.Sample(f"prompt {step}", text)], scored(step))
    return journal


def steps_of(found: list[JournalStep]) -> list[int]:
    return [step.step for step in found]


def rows_of(folder: Path) -> list[JournalSample]:
    return [row for step in read_journal(folder) for row in step.samples["mine"]]


class TestRoundTrip:
    def test_samples_and_figures(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        samples = [rm.Sample("2+2?", "four"), rm.Sample(TURN, "Blue, naïvely: \ud83d."), rm.Sample("", "")]
        journal.add_samples(1, "mine", samples, scored(0.5, -1.0, math.nan, **{"member/0": 0.25, "std": math.nan}))
        journal.add_figures(1, "mine", {"reward": 0.25})
        journal.add_figures(1, None, {"kl": 0.1})
        journal.flush()
        (step,) = read_journal(tmp_path)
        assert (step.step, step.figures, step.trainer) == (1, {"mine": [{"reward": 0.25}]}, {"kl": 0.1})
        found = step.samples["mine"]
        assert [row.sample for row in found] == samples
        assert [row.score for row in found[:2]] == [0.5, -1.0]
        assert math.isnan(found[2].score)
        assert found[0].details["member/0"] == 0.25
        assert math.isnan(found[0].details["std"])
        assert [row.length for row in found] == [4, len("Blue, naïvely: \ud83d."), 0]
        assert found[0].time.tzinfo is not None

    def test_members_are_named(self, tmp_path: Path) -> None:
        """By the scores, whatever their details are called; journals that were written before did not name them."""
        member = rm.Scores(np.ones(1), {"raw": np.ones(1)}, kind="member")
        scores = rm.Scores(np.ones(1), {"member/7": np.ones(1)}, parts={"0": member, "a": rm.Scores(np.ones(1), kind="head")})
        journal = Journal(tmp_path)
        journal.add_samples(1, "mine", [rm.Sample("p", "c")], scores)
        journal.flush()
        assert rows_of(tmp_path)[0].members == ["member/0"]
        (file,) = tmp_path.glob("samples-*.parquet")
        parquet.write_table(parquet.read_table(file).drop_columns("members"), file)
        (row,) = rows_of(tmp_path)
        assert row.members == ["member/0", "member/7"]
        assert list(row.details) == ["member/0", "head/a", "member/7", "member/0/raw"]

    def test_a_journal_of_before_is_continued(self, tmp_path: Path) -> None:
        filled(tmp_path, 3).flush()
        (file,) = tmp_path.glob("samples-*.parquet")
        parquet.write_table(parquet.read_table(file).drop_columns("members"), file)
        journal = Journal(tmp_path)
        journal.resume(2)
        journal.add_samples(3, "mine", [rm.Sample("p", "c")], scored(3.0))
        journal.flush()
        assert [row.score for row in rows_of(tmp_path)] == [1, 2, 3]

    def test_other_programs_read_it(self, tmp_path: Path) -> None:
        filled(tmp_path, 2).flush()
        rows = load_dataset(
            "parquet", data_files=str(tmp_path / "samples-*.parquet"), split="train", cache_dir=str(tmp_path / "c")
        )
        assert rows["prompt"][:] == ["prompt 1", "prompt 2"]
        assert rows["score"][:] == [1.0, 2.0]

    def test_what_is_held_is_written_once_and_whole(self, tmp_path: Path) -> None:
        journal = filled(tmp_path, 2)
        assert list(tmp_path.iterdir()) == []
        journal.flush()
        journal.add_samples(3, "mine", [rm.Sample("p", "c")], scored(3))
        journal.flush()
        assert sorted(file.name for file in tmp_path.iterdir()) == [
            "figures-rank0-00000.parquet",
            "samples-rank0-00000.parquet",
        ]
        assert steps_of(list(read_journal(tmp_path))) == [1, 2, 3]

    def test_processes_come_together(self, tmp_path: Path) -> None:
        for rank in (0, 1, 10):
            filled(tmp_path, 3, rank=rank).flush()
        found = list(read_journal(tmp_path))
        assert steps_of(found) == [1, 2, 3]
        assert [len(step.figures["mine"]) for step in found] == [3, 3, 3]
        assert sorted(row.rank for row in found[2].samples["mine"]) == [0, 1, 10]
        assert {row.rank for step in read_journal(tmp_path, rank=1) for row in step.samples["mine"]} == {1}


class TestBounds:
    def test_the_oldest_go_but_the_first(self, tmp_path: Path) -> None:
        """Twenty samples of 100 KB of text; half a MB of them may stay."""
        filled(tmp_path, 20, max_mb=0.5, size=50_000).flush()
        files = sorted(tmp_path.glob("samples-*.parquet"))
        assert sum(file.stat().st_size for file in files) <= 0.5e6
        kept = [step.step for step in read_journal(tmp_path) if step.samples]
        assert kept[0] == 1 and kept[-1] == 20 and len(kept) < 20
        assert steps_of(list(read_journal(tmp_path))) == list(range(1, 21)), "figures all stay"

    def test_a_file_deleted_while_reading_is_left_out(self, tmp_path: Path) -> None:
        filled(tmp_path, 20, max_mb=8, size=150_000).flush()
        reading = read_journal(tmp_path)
        assert next(reading).step == 1
        second = sorted(tmp_path.glob("samples-*.parquet"))[1]
        lost = parquet.read_table(second)["step"].to_pylist()
        second.unlink()
        assert [step.step for step in reading if not step.samples] == lost

    @pytest.mark.parametrize("values", [np.arange(100.0), np.where(np.arange(100) % 3, np.nan, 1.0), np.full(100, np.nan)])
    def test_kept_rows(self, values: np.ndarray) -> None:
        rows = kept_rows(values, 20, seed=3)
        assert len(set(rows.tolist())) == 20
        assert rows.tolist() == kept_rows(values, 20, seed=3).tolist() != kept_rows(values, 20, seed=4).tolist()
        if not np.isnan(values).any():
            assert {0, 1, 2, 3, 4, 95, 96, 97, 98, 99} <= set(rows.tolist())

    def test_all_are_kept_where_there_is_room(self) -> None:
        assert kept_rows(np.array([2.0, np.nan]), 2).tolist() == [0, 1]


class TestResume:
    def test_later_steps_are_done_again(self, tmp_path: Path) -> None:
        filled(tmp_path, 6, max_mb=1, size=60_000).flush()
        journal = Journal(tmp_path, max_mb=1)
        journal.resume(3)
        assert steps_of(list(read_journal(tmp_path))) == [1, 2, 3]
        journal.add_samples(4, "again", [rm.Sample("p", "c")], scored(4))
        journal.flush()
        found = list(read_journal(tmp_path))
        assert steps_of(found) == [1, 2, 3, 4]
        assert list(found[3].samples) == ["again"]

    def test_another_training_is_not_written_over(self, tmp_path: Path) -> None:
        filled(tmp_path, 1).flush()
        with pytest.raises(DataError, match=r"has samples of an earlier training\. Give another folder"):
            Journal(tmp_path).resume(0)
        Journal(tmp_path).resume(0, rank=1)
        assert steps_of(list(read_journal(tmp_path))) == [1]

    def test_what_processes_wrote_that_are_no_more_is_cut_too(self, tmp_path: Path) -> None:
        for rank in (0, 1):
            journal = Journal(tmp_path)
            journal.resume(0, rank=rank, processes=2)
            for step in range(1, 7):
                journal.add_samples(step, "mine", [rm.Sample("p", "c")], scored(rank))
            journal.flush()
        Journal(tmp_path).resume(3)
        assert steps_of(list(read_journal(tmp_path))) == [1, 2, 3]
        for file in tmp_path.glob("*-rank0-*"):
            file.unlink()
        with pytest.raises(DataError, match="has samples of an earlier training"):
            Journal(tmp_path).resume(0)


class TestErrors:
    def test_no_journal(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no journal in .*RewardWatch\(..., journal=FOLDER\) writes one"):
            read_journal(tmp_path / "absent")

    def test_a_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "samples-rank0-00000.parquet").write_text("no parquet")
        with pytest.raises(DataError, match=r"samples-rank0-00000\.parquet' cannot be read"):
            list(read_journal(tmp_path))

    def test_no_room(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="max_mb=0"):
            Journal(tmp_path, max_mb=0)


def test_a_broken_file_is_named_where_a_training_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_figures(1, "r", {"reward": 1.0})
    journal.flush()
    (file,) = tmp_path.glob("figures-*.parquet")
    file.write_bytes(bytes(file.stat().st_size))  # as a power cut leaves it
    with pytest.raises(DataError, match=r"figures-rank0-00000\.parquet' cannot be read: .* Delete the file to continue"):
        Journal(tmp_path).resume(1)
