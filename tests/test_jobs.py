"""Jobs are used without a command line: they report to a callback and can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import rm_plugins as rm
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import RowScoring, RowSource


class Recorded(JobProgress):
    """Writes down what it is told; fails after `most` batches, as an interrupt would."""

    def __init__(self, most: int = 100) -> None:
        self.told: list[tuple[object, ...]] = []
        self.most = most

    def resume(self, work: str, done: int) -> None:
        self.told.append(("resume", work, done))

    def begin(self, work: str, done: int, total: Callable[[], int | None]) -> None:
        self.told.append(("begin", work, done, total()))

    def advance(self, count: int, throughput: str = "") -> None:
        self.told.append(("advance", count))
        self.most -= 1
        if not self.most:
            raise KeyboardInterrupt

    def end(self) -> None:
        self.told.append(("end",))


def test_a_job_is_interrupted_and_resumed_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": "p", "completion": "x" * n}) + "\n" for n in range(1, 6)))

    def job() -> RowScoring:
        source = RowSource.of(str(data), "train")
        return RowScoring(
            rm.load(lambda samples: [len(s.completion) for s in samples]), source, tmp_path / "part", {"by": "length"}
        )

    first = Recorded(most=1)
    begun = job()
    with pytest.raises(KeyboardInterrupt):
        begun.run(2, first)
    begun.close()
    assert first.told == [("begin", "scoring", 0, 5), ("advance", 2), ("end",)]

    second = Recorded()
    resumed = job()
    assert [scored.scores for scored in resumed.run(2, second)] == [[1.0], [2.0], [3.0], [4.0], [5.0]]
    resumed.discard()
    assert second.told == [("resume", "scoring", 2), ("begin", "scoring", 2, 5), ("advance", 2), ("advance", 1), ("end",)]
    assert capfd.readouterr() == ("", "")
