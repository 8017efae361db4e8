"""Blocks of rows: every process divides rows into the same ones, and no file of a block is half-written."""

from __future__ import annotations

import errno
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.rows import row_samples
from rm_plugins.data.scored_rows import Block, planned_blocks
from rm_plugins.errors import DataError, OutputError
from rm_plugins.groups import RowGroups
from rm_plugins.jobs.blocks import KeptBlocks

PROMPTS = st.lists(st.sampled_from("abc"), max_size=30)


def rows_of(prompts: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": "yes", "n": number} for number, prompt in enumerate(prompts)]


def divided(
    rows: list[dict[str, Any]], size: int, whole: bool, known: dict[int, int] | None = None, first: int = 1
) -> list[Block]:
    samples = lambda row, where: row_samples(row, where).samples  # noqa: E731
    return list(
        planned_blocks(
            rows[first - 1 :], samples, size, unit="samples", first=first, groups=RowGroups((None,) * whole), known=known
        )
    )


@given(PROMPTS, st.integers(1, 7), st.booleans(), st.data())
def test_blocks_are_the_same_whichever_of_them_are_known(
    prompts: list[str], size: int, whole: bool, data: st.DataObject
) -> None:
    rows = rows_of(sorted(prompts) if whole else prompts)
    blocks = divided(rows, size, whole)
    assert [row for block in blocks for row in block.rows] == rows
    joined = data.draw(st.integers(0, len(blocks)))
    known = {block.first: len(block.rows) for block in blocks[joined:] if data.draw(st.booleans())}
    again = divided(rows, size, whole, known, first=blocks[joined - 1].last + 1 if joined else 1)
    assert [(block.first, block.rows) for block in again] == [(block.first, block.rows) for block in blocks[joined:]]
    assert [block.first for block in again if block.samples is None] == [*known]
    if whole:
        assert all(before.rows[-1]["prompt"] != after.rows[0]["prompt"] for before, after in pairwise(blocks))


@given(PROMPTS, st.integers(1, 7), st.integers(1, 7), st.data())
def test_other_blocks_fill_the_gaps_between_known_ones(prompts: list[str], before: int, now: int, data: st.DataObject) -> None:
    rows = rows_of(prompts)
    known = {block.first: len(block.rows) for block in divided(rows, before, False) if data.draw(st.booleans())}
    again = divided(rows, now, False, known)
    assert [row for block in again for row in block.rows] == rows
    assert {block.first: len(block.rows) for block in again if block.samples is None} == known
    assert all(len(block.rows) <= now for block in again if block.samples is not None)


# --- The folder -----------------------------------------------------------------------------------------------------------


def test_any_process_writes_and_the_owner_reads_in_order(tmp_path: Path) -> None:
    owner = KeptBlocks.begin(tmp_path / "blocks", {"spec": "a"})
    other = KeptBlocks(tmp_path / "blocks", owner.key)
    other.write(3, [{"row": "c", "text": "\ud83d \u2028\r"}])
    owner.write(1, [{"row": "a"}, {"row": "b"}])
    other.write(1, [{"row": "a"}, {"row": "b"}])
    assert owner.known() == {1: 2, 3: 1}
    assert [row["row"] for row in KeptBlocks.begin(tmp_path / "blocks", {"spec": "a"}).rows()] == ["a", "b", "c"]
    owner.remove(1)
    with pytest.raises(DataError, match="the scores of rows 1 to 2 are missing"):
        list(owner.rows())
    owner.discard()
    assert not (tmp_path / "blocks").exists()
    with pytest.raises(OutputError, match="cannot be written"):
        other.write(4, [{"row": "d"}])


def test_blocks_of_another_reward_are_refused_and_those_of_another_run_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "out.part.blocks"
    first = KeptBlocks.begin(folder, {"spec": "a", "batch_size": 4})
    first.write(1, [{"row": "a"}])
    with pytest.raises(
        DataError, match=r"cannot be resumed: the spec was a and is b; the batch size was 4 and is 5\. Start again with"
    ):
        KeptBlocks.begin(folder, {"spec": "b", "batch_size": 5})
    first.discard()
    second = KeptBlocks.begin(folder, {"spec": "a", "batch_size": 4})
    first.write(1, [{"row": "of a process that its user started over"}])
    assert second.known() == {}
    (folder / "run.json").unlink()
    with pytest.raises(DataError, match=r"its note run\.json is missing or broken"):
        KeptBlocks.begin(folder, {"spec": "a", "batch_size": 4})


@given(st.data())
def test_a_damaged_block_does_not_count(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    kept = KeptBlocks.begin(folder, {})
    rows: list[dict[str, Any]] = [{"row": "a", "scores": [1.5]}, {"row": "b", "scores": [None]}]
    kept.write(1, rows)
    (file,) = folder.glob("0*.jsonl")
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    behind = data.draw(st.sampled_from([b"", bytes(len(content) - cut), b"\n", b"7\n"]))
    file.write_bytes(content[:cut] + behind)
    assert kept.read(1) is None or content[:cut] + behind == content
    kept.write(1, rows)
    assert kept.known() == {1: 2}
    assert json.loads(content.splitlines()[1]) == rows[0]


def test_of_blocks_that_overlap_the_first_counts(tmp_path: Path) -> None:
    kept = KeptBlocks.begin(tmp_path / "blocks", {})
    kept.write(1, [{"row": str(number)} for number in range(4)])
    kept.write(3, [{"row": "2"}, {"row": "3"}])
    kept.write(5, [{"row": "4"}])
    assert kept.known() == {1: 4, 5: 1}
    assert kept.known(after=2) == {3: 2, 5: 1}


def test_a_full_disk_says_that_earlier_blocks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = KeptBlocks.begin(tmp_path / "blocks", {"spec": "a"})
    blocks.write(1, [{"scores": [1.0]}])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OutputError, match=r"000000000002.jsonl cannot be written: No space left on device\. .* run the same command again"
    ):
        blocks.write(2, [{"scores": [1.0]}])
    assert blocks.known() == {1: 1}


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_text("mine")
    with pytest.raises(OutputError, match="is not a folder, but the name is needed"):
        KeptBlocks.begin(tmp_path / "blocks", {})
