"""Files that are scored block by block: what workers keep, in any order and any number of times, becomes what one process writes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import rm_plugins as rm
from rm_plugins.data.row_files import write_rows
from rm_plugins.data.scored_rows import ALONE
from rm_plugins.errors import DataError, OutputError
from rm_plugins.groups import RowGroups
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.file_blocks import FileBlock, FileScoring
from rm_plugins.jobs.job_engine import ScoringRequest
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import ScoringJob


def length(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


SPEC = f"{__name__}:length"
REWARD = rm.load(length)


def rows(count: int, prompt: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{number // prompt}", "completion": "a" * (number % 7)} for number in range(count)]


def begun(
    source: Path, out: Path, *, key: str = "one", groups: RowGroups = ALONE, block_rows: int = 4, overwrite: bool = False
) -> FileScoring:
    return FileScoring(ScoringRequest(SPEC, str(source), "train", out, overwrite), key, groups, block_rows)


def planned(job: FileScoring) -> list[FileBlock]:
    divided = [job.blocks.divide(number) for number in range(len(job.files))]
    for scored in job.plan(divided, [job.blocks.group_digests(blocks) for blocks in divided]):
        job.blocks.check(scored)
    return [block for blocks in job.of_files for block in blocks]


def finished(job: FileScoring) -> int:
    planned(job)
    for block in job.missing:
        job.add(job.blocks.score(REWARD, block))
    count = job.join()
    job.close()
    return count


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_rows(rows(30), tmp_path / "in.jsonl")
    return tmp_path / "in.jsonl"


def test_any_order_and_repetition_give_the_file_of_one_process(source: Path, tmp_path: Path) -> None:
    job = begun(source, tmp_path / "out.jsonl")
    blocks = planned(job)
    for block in random.Random(3).choices(blocks, k=6):  # some twice, some not at all
        job.blocks.score(REWARD, block)
    job.close()
    job = begun(source, tmp_path / "out.jsonl")
    assert 0 < sum(block.rows for block in planned(job) if block.kept) == job.done < 30
    assert finished(job) == 30
    ScoringJob(SPEC, str(source), "train", tmp_path / "here.jsonl", False).write(512)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.jsonl", "in.jsonl", "out.jsonl"]


class Stopped(Exception):
    """Ends a job early."""


class StopsAfter(JobProgress):
    """Ends a job after so many rows, and keeps how many an earlier run had scored."""

    def __init__(self, rows: int) -> None:
        self.left = rows
        self.resumed = 0

    def resume(self, work: str, done: int) -> None:
        self.resumed = done

    def advance(self, count: int, throughput: str = "") -> None:
        self.left -= count
        if self.left <= 0:
            raise Stopped


@pytest.mark.parametrize("groups", [ALONE, RowGroups((None,))], ids=["alone", "groups"])
@pytest.mark.parametrize("seed", range(2))
def test_a_run_continues_with_an_engine_and_without_one(
    seed: int, groups: RowGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes of blocks are, and whoever was interrupted."""
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    Path("in").mkdir()
    for name, count in (("a.jsonl", 50), ("b.parquet", 9), ("c.json", 41)):
        write_rows([{**row, "prompt": f"{name} {row['prompt']}"} for row in rows(count, prompt=3)], Path("in") / name)
    spec = {"provider": "function", "function": SPEC, **({"transform": "rank-in-group"} if groups else {})}
    Path("spec.yaml").write_text(json.dumps(spec))
    request = ScoringRequest("spec.yaml", "in", "train", Path("out.jsonl"), batch_size=4)

    def without(out: Path, most: int) -> int:
        job = ScoringJob(request.spec, request.source, request.split, out, False)
        progress = StopsAfter(most)
        with suppress(Stopped):
            job.write(4 if groups else chance.randrange(1, 9), progress)
        return progress.resumed

    def with_engine(most: int) -> int:
        reward = rm.load(request.spec)
        with closing(FileScoring(request, fingerprint(reward), groups, chance.randrange(1, 9))) as job:
            planned(job)
            resumed = job.done
            for block in chance.sample(job.missing, len(job.missing)):
                if most <= 0:
                    return resumed
                job.add(job.blocks.score(reward, block))
                most -= block.rows
            job.join()
        return resumed

    without(Path("whole.jsonl"), 10**9)
    resumed = [0]
    while not request.out.exists():
        most = chance.randrange(1, 40)
        resumed.append(with_engine(most) if len(resumed) % 2 else without(request.out, most))
    assert request.out.read_bytes() == Path("whole.jsonl").read_bytes()
    assert len(resumed) > 3 and min(resumed[2:]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.jsonl", "spec.yaml", "whole.jsonl"]


def test_rows_of_a_prompt_are_in_one_block_however_many(tmp_path: Path) -> None:
    write_rows(rows(40, prompt=10), tmp_path / "in.jsonl")
    job = begun(tmp_path / "in.jsonl", tmp_path / "out.jsonl", groups=RowGroups((None,)))
    assert [block.rows for block in planned(job)] == [10] * 4
    job.close()


class TestRefusals:
    def test_an_interrupted_run_of_another_reward(self, source: Path, tmp_path: Path) -> None:
        self.interrupted(source, tmp_path)
        with pytest.raises(DataError, match="cannot be resumed: the reward changed"):
            begun(source, tmp_path / "out.jsonl", key="another")
        begun(source, tmp_path / "out.jsonl", key="another", overwrite=True).close()
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]

    def test_other_rows(self, source: Path, tmp_path: Path) -> None:
        self.interrupted(source, tmp_path)
        write_rows([{**row, "completion": "b"} for row in rows(30)], source)
        job = begun(source, tmp_path / "out.jsonl")
        with pytest.raises(DataError, match=r"row 1 of .*in.jsonl has changed since it was scored"):
            planned(job)
        job.close()

    @pytest.mark.parametrize("engine", [True, False])
    def test_a_refused_run_loses_nothing(self, source: Path, tmp_path: Path, engine: bool) -> None:
        """All rows are in blocks, and none in the file."""
        self.interrupted(source, tmp_path)
        moved = source.rename(tmp_path / "moved.jsonl")
        with pytest.raises(DataError, match=r"the data was .*in.jsonl and is .*moved.jsonl"):
            if engine:
                begun(moved, tmp_path / "out.jsonl")
            else:
                ScoringJob(SPEC, str(moved), "train", tmp_path / "out.jsonl", False).write(512)
        moved.rename(source)
        job = begun(source, tmp_path / "out.jsonl")
        planned(job)
        assert job.done == 4
        job.close()

    def test_rows_that_change_while_they_are_scored(self, source: Path, tmp_path: Path) -> None:
        job = begun(source, tmp_path / "out.jsonl")
        for block in planned(job):
            job.blocks.score(REWARD, block)
        text = source.read_text()
        source.write_text(text.replace("aaa", "bbb"))
        with pytest.raises(DataError, match="has changed since it was scored"):
            job.join()
        job.close()
        assert not (tmp_path / "out.jsonl").exists()

    def test_a_missing_block(self, source: Path, tmp_path: Path) -> None:
        job = begun(source, tmp_path / "out.jsonl")
        for block in planned(job)[1:]:
            job.blocks.score(REWARD, block)
        with pytest.raises(DataError, match=r"from row 1 on are missing. Run the same command again"):
            job.join()
        job.close()

    def test_two_runs_with_one_output(self, source: Path, tmp_path: Path) -> None:
        with FileLock(tmp_path / ".out.jsonl.part.lock"), pytest.raises(DataError, match="is being written by another run"):
            begun(source, tmp_path / "out.jsonl")

    def test_an_output_that_is_there(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out.jsonl").write_text("")
        with pytest.raises(DataError, match="exists already"):
            begun(source, tmp_path / "out.jsonl")

    def test_an_output_folder_of_another_run(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        write_rows(rows(5), tmp_path / "in" / "a.jsonl")
        (tmp_path / "out").mkdir()
        with pytest.raises(DataError, match=r"out exists already"):
            begun(tmp_path / "in", tmp_path / "out")

    @pytest.mark.parametrize("name", ["out.jsonl", "out", "x/out.jsonl"])
    def test_an_output_in_the_folder_that_is_read(self, tmp_path: Path, name: str) -> None:
        """After a kill, what is kept beside it would be read as rows."""
        (tmp_path / "in").mkdir()
        write_rows(rows(3), tmp_path / "in" / "a.jsonl")
        with pytest.raises(OutputError, match=r"is inside of .*Name an output outside"):
            begun(tmp_path / "in", tmp_path / "in" / name)
        with pytest.raises(OutputError, match=r"is inside of .*Name an output outside"):
            ScoringJob(SPEC, str(tmp_path / "in"), "train", tmp_path / "in" / "out.jsonl", False)
        ScoringJob(SPEC, str(tmp_path / "in"), "train", tmp_path / "in" / "a.scored.jsonl", False).write(2)
        assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.jsonl", "a.scored.jsonl"]

    def test_a_folder_for_a_file(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a file, so the output must be a file too"):
            begun(source, tmp_path / "out")

    @pytest.mark.parametrize("name", ["-", "someone/dataset"])
    def test_what_is_not_made_of_files(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match="is not a file or a folder of files"):
            FileScoring(ScoringRequest(SPEC, name, "train", tmp_path / "out.jsonl"), "key", ALONE, 4)

    def test_a_prompt_in_two_files(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for name in "ab":
            write_rows([{"prompt": "Q", "completion": name}], tmp_path / "in" / f"{name}.jsonl")
        write_rows(rows(4), tmp_path / "in" / "ab.jsonl")
        job = begun(tmp_path / "in", tmp_path / "out.jsonl", groups=RowGroups((None,)))
        with pytest.raises(DataError, match=r"/a.jsonl and .*/b.jsonl have rows of one group"):
            planned(job)
        job.close()

    def test_a_prompt_in_two_blocks(self, tmp_path: Path) -> None:
        """Its completions would be compared in each block by themselves."""
        write_rows([*rows(9), *rows(1)], tmp_path / "in.jsonl")
        job = begun(tmp_path / "in.jsonl", tmp_path / "out.jsonl", groups=RowGroups((None,)))
        with pytest.raises(DataError, match=r"in.jsonl: row 10 has the same prompt as row 1, .* Sort the rows"):
            planned(job)
        job.close()

    def test_a_worker_of_a_run_that_has_ended(self, source: Path, tmp_path: Path) -> None:
        """It leaves nothing."""
        job = begun(source, tmp_path / "out.jsonl")
        block = planned(job)[0]
        finished(job)
        with pytest.raises(OutputError):
            job.blocks.score(REWARD, block)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]

    def test_a_worker_of_the_run_before(self, source: Path, tmp_path: Path) -> None:
        """What it writes after --overwrite does not count."""
        old = begun(source, tmp_path / "out.jsonl")
        block = planned(old)[0]
        old.blocks.score(REWARD, block)
        old.close()
        job = begun(source, tmp_path / "out.jsonl", overwrite=True)
        planned(job)
        old.blocks.score(REWARD, block)
        assert job.blocks.kept.read(1) is None
        assert finished(job) == 30

    @staticmethod
    def interrupted(source: Path, folder: Path) -> None:
        job = begun(source, folder / "out.jsonl")
        job.blocks.score(REWARD, planned(job)[0])
        job.close()


def test_the_mapping_beside_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_rows([{"question": "Q", "completion": "a" * number} for number in range(9)], tmp_path / "in" / "a.jsonl")
    (tmp_path / "in.map.yaml").write_text("rename: {question: prompt}\n")
    assert finished(begun(tmp_path / "in", tmp_path / "out.jsonl")) == 9
    ScoringJob(SPEC, str(tmp_path / "in"), "train", tmp_path / "here.jsonl", False).write(512)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jsonl", "b.parquet", "c.json"):
        write_rows(rows(6), tmp_path / "in" / name)
    job = begun(tmp_path / "in", tmp_path / "out")
    for block in planned(job):
        job.blocks.score(REWARD, block)
    assert [job.blocks.finish(blocks, number) for number, blocks in enumerate(job.finishing())] == [6, 6, 6]
    assert not (tmp_path / "out").exists()
    job.join()
    job.close()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jsonl", "b.parquet", "c.json.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_failures_keep_their_reason_in_the_row(tmp_path: Path) -> None:
    write_rows(rows(5), tmp_path / "in.jsonl")
    job = begun(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    failing = rm.load({"provider": "function", "function": fails_once, "on_error": "abstain"})
    for block in planned(job):
        job.blocks.score(failing, block)
    job.join()
    job.close()
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("score/error") for row in written] == [None, None, None, "three", None]
    assert written[3]["score"] is None


def fails_once(samples: Sequence[rm.Sample]) -> list[float]:
    if bad := [place for place, sample in enumerate(samples) if sample.completion_text == "aaa"]:
        raise rm.errors.ScoringError("three", rows=bad)
    return [1.0 for _ in samples]
