"""Jobs are used without a command line: they report to a callback and can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.evaluation import evaluate
from rm_plugins.jobs.evaluation import evaluated
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


def test_what_is_kept_of_a_row_is_a_digest_which_a_changed_row_does_not_match(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "p", "completion": "a secret text"}, {"prompt": "p", "completion": "another"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def job() -> RowScoring:
        provider = rm.load(lambda samples: [len(s.completion) for s in samples])
        return RowScoring(provider, RowSource.of(str(data), "train"), tmp_path / "part", {"by": "length"})

    first = job()
    scored = list(first.run(1))
    first.close()
    assert [one.row for one in scored] == rows
    kept = [json.loads(line) for line in (tmp_path / "part").read_text().splitlines()]
    assert [(entry["scores"], len(entry["row"])) for entry in kept] == [([13.0], 64), ([7.0], 64)]
    assert "secret" not in (tmp_path / "part").read_text()

    again = job()
    assert list(again.run(1)) == scored
    again.close()
    data.write_text(data.read_text().replace("another", "changed"))
    with pytest.raises(DataError, match=r"row 2 of .* has changed since it was scored"):
        list(job().run(1))


def test_rewards_are_evaluated_without_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lengths.py").write_text("def length(samples):\n    return [len(s.completion) for s in samples]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Q{n}", "chosen": "x" * (n % 3 + 1), "rejected": "yy"} for n in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = Recorded()
    with evaluated(["lengths:length"], str(data), batch_size=8, resamples=20, progress=told) as found:
        pass
    expected = evaluate(rm.load("lengths:length"), rows, resamples=20)
    assert found.rewards[0].figures == expected.rewards[0].figures
    assert told.told == [("begin", "scoring", 0, 9), ("advance", 4), ("advance", 4), ("advance", 1), ("end",)]
