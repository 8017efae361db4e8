"""``rm-plugins score --engine ray`` writes what ``rm-plugins score`` writes, also if actors, nodes and the driver are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.errors import ModelError, OutputError, ProcessError, ScoringError
from rm_plugins.jobs.job_engine import ScoringRequest, ScoringSummary
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import ScoringJob
from tests.ray.slow_rewards import kill

GROUPED = "provider: function\nfunction: tests.ray.slow_rewards:vowels\ntransform: rank-in-group\non_error: abstain\n"
SLOW = "tests.ray.slow_rewards:slow_vowels"


class Told(JobProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.resumed = self.advanced = 0

    def resume(self, work: str, done: int) -> None:
        self.resumed = done

    def advance(self, count: int, throughput: str = "") -> None:
        self.advanced += count


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Q{number // 3}", "completion": "ae" * (number % 7) + " bad" * (number % 11 == 4), **more}
        for number in range(count)
    ]


def score(
    spec: str, source: Path, out: Path, progress: JobProgress | None = None, *, overwrite: bool = False
) -> ScoringSummary:
    from rm_plugins_ray.data_engine import RayDataEngine

    request = ScoringRequest(spec, str(source), "train", out, overwrite)
    return RayDataEngine(workers=2, block_rows=10).score(request, progress or JobProgress())


def scored_here(spec: str, source: Path, out: Path) -> bytes:
    ScoringJob(spec, str(source), "train", out, False).write(16)
    return out.read_bytes()


@pytest.fixture
def grouped(tmp_path: Path) -> str:
    (tmp_path / "grouped.yaml").write_text(GROUPED)
    return str(tmp_path / "grouped.yaml")


def test_a_file_is_scored_as_by_one_process(cluster: Any, tmp_path: Path, grouped: str) -> None:
    write_rows(rows(64), tmp_path / "in.jsonl")
    told = Told()
    summary = score(grouped, tmp_path / "in.jsonl", tmp_path / "out.jsonl", told)
    assert (tmp_path / "out.jsonl").read_bytes() == scored_here(grouped, tmp_path / "in.jsonl", tmp_path / "here.jsonl")
    assert '"score/error": "it is bad"' in (tmp_path / "out.jsonl").read_text()
    assert (summary.rows, summary.counts["samples"], told.advanced) == (64, 64, 64)
    assert summary.counts["abstained"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grouped.yaml", "here.jsonl", "in.jsonl", "out.jsonl"]


def test_a_folder_becomes_a_folder_of_the_same_files(cluster: Any, tmp_path: Path, grouped: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number, name in enumerate(("a.parquet", "b.jsonl", "c.parquet")):
        write_rows([{**row, "prompt": f"{name} {row['prompt']}"} for row in rows(20 + number)], source / name)
    assert score(grouped, source, tmp_path / "out").rows == 63
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "b.jsonl", "c.parquet"]
    together = [row for name in ("a.parquet", "b.jsonl", "c.parquet") for row in read_rows(str(tmp_path / "out" / name))]
    scored_here(grouped, source, tmp_path / "here.jsonl")
    # Every row of a Parquet file has all of its columns.
    plain = [{name: value for name, value in row.items() if value is not None} for row in together]
    assert plain == [
        {name: value for name, value in row.items() if value is not None} for row in read_rows(str(tmp_path / "here.jsonl"))
    ]


class TestKilled:
    COUNT = 160

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "pids").mkdir()
        write_rows(rows(self.COUNT, pids=str(tmp_path / "pids")), tmp_path / "in.jsonl")
        return tmp_path / "in.jsonl"

    @pytest.fixture
    def driver(self, cluster: Any, tmp_path: Path, source: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A process that scores on the cluster."""
        script = (
            "import sys; from pathlib import Path; from rm_plugins.jobs.job_engine import ScoringRequest; "
            "from rm_plugins.jobs.progress import JobProgress; from rm_plugins_ray.data_engine import RayDataEngine; "
            "RayDataEngine(sys.argv[1], 3, block_rows=10).score("
            "ScoringRequest(sys.argv[2], sys.argv[3], 'train', Path(sys.argv[4])), JobProgress())"
        )
        command = [sys.executable, "-c", script, cluster.address, SLOW, str(source), str(tmp_path / "out.jsonl")]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield running
        running.kill()
        running.wait()

    def test_actors_a_node_and_the_driver(
        self, cluster: Any, tmp_path: Path, source: Path, driver: subprocess.Popen[bytes]
    ) -> None:
        moments = random.Random(5)
        node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        try:
            seen = until_scoring(tmp_path / "pids", set())
            kill(moments.choice(sorted(seen)))
            until_scoring(tmp_path / "pids", seen)
        finally:
            cluster.remove_node(node)
        time.sleep(moments.uniform(0, 0.5))
        driver.kill()
        driver.wait()
        told = Told()
        summary = score_again(source, tmp_path / "out.jsonl", told)
        assert (tmp_path / "out.jsonl").read_bytes() == scored_here(SLOW, source, tmp_path / "here.jsonl")
        assert summary.rows == self.COUNT and told.resumed + told.advanced == self.COUNT
        assert told.resumed > 0

    def test_a_run_continues_on_ray_and_in_processes(
        self, cluster: Any, tmp_path: Path, source: Path, driver: subprocess.Popen[bytes]
    ) -> None:
        """Each is killed while it scores: a driver on Ray, one process, two processes; Ray has the rest."""
        out = tmp_path / "out.jsonl"
        until_kept(out, 0)
        end(driver)
        program = [sys.executable, "-m", "rm_plugins", "score", SLOW, str(source), "-o", str(out), "--batch-size", "7"]
        for options in ([], ["--processes", "2"]):
            before = kept_rows(out)
            running = subprocess.Popen([*program, *options], stderr=subprocess.PIPE, text=True)
            until_kept(out, before)
            assert f"Resuming after {before} rows" in end(running)
        told = Told()
        summary = score_again(source, out, told)
        assert out.read_bytes() == scored_here(SLOW, source, tmp_path / "here.jsonl")
        assert summary.rows == self.COUNT and told.resumed + told.advanced == self.COUNT
        assert told.resumed > 0
        assert not [path.name for path in tmp_path.iterdir() if "part" in path.name]


def kept_rows(out: Path) -> int:
    """How many rows are kept beside an output."""
    part, blocks = out.with_name(f"{out.name}.part"), out.parent.glob(f"{out.name}.part.blocks/[0-9]*.jsonl")
    in_file = part.read_bytes().count(b"\n") if part.exists() else 0
    # The first line of a block is its head. Rows that the file has already may still be in a block, too.
    return in_file + sum(path.read_bytes().count(b"\n") - 1 for path in blocks if int(path.stem) > in_file)


def until_kept(out: Path, before: int) -> None:
    """Wait until more rows are kept than before."""
    deadline = time.monotonic() + 60
    while kept_rows(out) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen[Any]) -> str:
    """Kill a process; returns what it has said."""
    process.kill()
    return str(process.communicate()[1])


def score_again(source: Path, out: Path, told: JobProgress) -> ScoringSummary:
    deadline = time.monotonic() + 20
    while True:
        try:
            return score(SLOW, source, out, told)
        except ProcessError:  # the node that is being removed is still in the list
            assert time.monotonic() < deadline
            time.sleep(0.5)


def until_scoring(folder: Path, before: set[int]) -> set[int]:
    """The processes that have scored, when there is one more than before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (seen := {int(path.name) for path in folder.iterdir()}) - before:
            return seen
        time.sleep(0.02)
    raise AssertionError("no process scores")


def test_a_module_that_only_the_driver_has_is_named(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_on_the_driver")
    exec("def length(samples):\n    return [1.0 for _ in samples]", vars(module))
    monkeypatch.setitem(sys.modules, "only_on_the_driver", module)
    write_rows(rows(5), tmp_path / "in.jsonl")
    with pytest.raises(ModelError, match=r"cannot be loaded on the node .*only_on_the_driver"):
        score("only_on_the_driver:length", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_nodes_with_another_version_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rm_plugins_ray import connection

    connection.check_nodes()
    monkeypatch.setattr(connection, "__version__", "9.9.9")
    with pytest.raises(ProcessError, match=r"The node .* needs rm-plugins 9\.9\.9, .*but \d.* is installed there"):
        connection.check_nodes()


def test_a_full_object_store_says_what_to_do() -> None:
    from ray.exceptions import ObjectStoreFullError

    from rm_plugins_ray.data_engine import ray_errors

    with pytest.raises(OutputError, match=r"object store is full.*--object-store-memory.*resume"), ray_errors():
        raise ObjectStoreFullError("The local object store is full of objects.")


class TestFailures:
    """What failed, and in which rows."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        written = [{"prompt": f"Q{number}", "completion": "bad" if number == 13 else "ae"} for number in range(1, 31)]
        (tmp_path / "in").mkdir()
        write_rows(written, tmp_path / "in" / "b.jsonl")
        write_rows(written[:9], tmp_path / "in" / "a.jsonl")
        return tmp_path / "in"

    @pytest.mark.parametrize(
        ("function", "rows_of_batch", "message"),
        [
            ("slow_rewards:vowels", False, "it is bad"),
            ("rewards:raises_its_own", False, r"sample \d of 10 is bad"),
            ("rewards:infinite", False, "The provider 'infinite' returned an infinite score for 1 of 10 samples"),
            ("rewards:too_few", True, r"The function 'too_few' .* returned 9 rewards for 10 samples"),
        ],
    )
    def test_the_row_is_named_as_by_one_process(
        self, cluster: Any, tmp_path: Path, source: Path, function: str, rows_of_batch: bool, message: str
    ) -> None:
        spec = f"tests.ray.{function}"
        with pytest.raises(ScoringError, match=f"^{'rows 21 to 30' if rows_of_batch else 'row 22'}: {message}"):
            ScoringJob(spec, str(source), "train", tmp_path / "here.jsonl", False).write(10)
        of_file = "rows 11 to 20" if rows_of_batch else "row 13"
        with pytest.raises(ScoringError, match=f"^{source / 'b.jsonl'}, {of_file}: {message}"):
            score(spec, source, tmp_path / "out.jsonl")

    @pytest.mark.parametrize(
        ("spec", "kind", "message"),
        [
            ("tests.ray.rewards:leaves", ScoringError, "b.jsonl, rows 11 to 20: Unexpected error, .*SystemExit: 3"),
            ("tests.ray.rewards:ends", ProcessError, "4 actors in a row have ended while they scored .*b.jsonl, rows 11 to 20"),
            (
                "tests.ray.reward_that_ends_workers:nothing",
                ProcessError,
                "4 actors in a row have ended while they loaded the reward 'nothing'",
            ),
        ],
    )
    def test_what_ends_its_actor_is_not_tried_without_end(
        self, cluster: Any, tmp_path: Path, source: Path, spec: str, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            score(spec, source, tmp_path / "out.jsonl")
