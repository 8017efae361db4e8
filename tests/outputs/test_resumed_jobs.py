"""An interrupted job that is run again ends as if it had not been interrupted, or says why it cannot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import DataError, OutputError
from rm_plugins.jobs.interruption import JobInterrupted
from rm_plugins.jobs.kept_rows import KeptRows, UnfinishedFile
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.scored_rows import RowScoring, RowSource, ScoringJob

Run = Callable[..., Result]

LEARNS = "running.yaml"
SPECS = {
    "plain.yaml": "{provider: function, function: 'rules:length'}",
    LEARNS: "{provider: function, function: 'rules:length', transform: {name: zscore, running: true, warmup: 3}}",
    "chained.yaml": (
        "{provider: sum, transform: [{name: zscore, running: true}, {name: clip, low: -2}], members: ["
        "{provider: function, function: 'rules:length', transform: {name: zscore, running: true}}, {provider: constant, value: 1}]}"
    ),
    "ranked.yaml": "{provider: function, function: 'rules:length', transform: rank-in-group}",
}
ROWS: list[dict[str, Any]] = [
    {"prompt": f"Q{number // 5}", "completion": "yes" * (number * 7 % 11 + 1), "n": number} for number in range(23)
]


@pytest.fixture
def job(run: Run) -> Run:
    for name, spec in SPECS.items():
        Path(name).write_text(spec)
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return run


class Killed(BaseException):
    """Stands for a process that is no more."""


def kill_after(monkeypatch: pytest.MonkeyPatch, appends: int) -> None:
    """Have nothing happen any more after so many batches were kept."""
    append = KeptRows.append
    left = appends

    def counted(self: KeptRows, *arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        append(self, *arguments)

    monkeypatch.setattr(KeptRows, "append", counted)


def killed(monkeypatch: pytest.MonkeyPatch, run: Run, *arguments: str, appends: int) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, appends)
        patched.setattr(KeptRows, "close", lambda self: self._lock.release(force=True))  # as the system does
        with pytest.raises(Killed):
            run(*arguments)


# --- Scores that depend on those before them ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("command", ["score", "rank"])
@pytest.mark.parametrize("appends", [1, 3])
def test_what_learns_while_scoring_goes_on_from_what_it_had_learned(
    job: Run, monkeypatch: pytest.MonkeyPatch, spec: str, command: str, appends: int
) -> None:
    arguments = (command, spec, "in.jsonl", "--batch-size", "4", "-o")
    assert job(*arguments, "whole.jsonl").exit_code == 0
    killed(monkeypatch, job, *arguments, "out.jsonl", appends=appends)
    told = job(*arguments, "out.jsonl")
    assert told.exit_code == 0, told.output
    assert f"Resuming after {(5 if spec == 'ranked.yaml' else 4) * appends} rows" in told.output
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [name for name in os.listdir() if ".part" in name] == []


@pytest.mark.parametrize("spec", SPECS)
def test_an_evaluation_goes_on_from_what_was_learned(job: Run, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    pairs = [{"prompt": f"Q{n}", "chosen": "yes" * (n % 7 + 1), "rejected": "no" * (n % 3 + 1)} for n in range(20)]
    Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs))
    arguments = ("evaluate", spec, "in.jsonl", "--batch-size", "8", "-o")
    assert job(*arguments, "whole.json").exit_code == 0
    killed(monkeypatch, job, *arguments, "out.json", appends=2)
    told = job(*arguments, "out.json")
    assert told.exit_code == 0, told.output
    assert "Resuming after 8 rows" in told.output
    ours, whole = (json.loads(Path(name).read_text()) for name in ("out.json", "whole.json"))
    assert ours["rewards"] == whole["rewards"]


@pytest.mark.parametrize("spec", [LEARNS, "ranked.yaml"])
def test_other_batches_are_no_continuation_where_scores_depend_on_them(
    job: Run, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    arguments = ("score", spec, "in.jsonl", "-o", "out.jsonl", "--batch-size")
    killed(monkeypatch, job, *arguments, "4", appends=2)
    told = job(*arguments, "5")
    assert told.exit_code == 1
    assert "the batch size was 4 and is 5. Start again with --overwrite" in told.output
    assert job(*arguments, "4").exit_code == 0


def test_other_batches_are_welcome_where_scores_do_not(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("score", "plain.yaml", "in.jsonl", "--batch-size")
    assert job(*arguments, "4", "-o", "whole.jsonl").exit_code == 0
    killed(monkeypatch, job, *arguments, "4", "-o", "out.jsonl", appends=2)
    assert job(*arguments, "5", "-o", "out.jsonl").exit_code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_completions_of_a_prompt_are_ranked_together_whatever_the_batch(job: Run, size: int) -> None:
    assert job("score", "ranked.yaml", "in.jsonl", "-o", "out.jsonl", "--batch-size", str(size)).exit_code == 0
    scores = [json.loads(line)["score"] for line in Path("out.jsonl").read_text().splitlines()]
    assert scores == rm.load("ranked.yaml").score([rm.Sample(row["prompt"], row["completion"]) for row in ROWS]).values.tolist()


# --- What is left of an append --------------------------------------------------------------------------------------------


def scoring(part: Path, spec: str) -> RowScoring:
    return RowScoring(rm.load(spec), RowSource.of("in.jsonl", "train"), part, {"spec": spec})


class StopAfter(JobProgress):
    """Interrupts a job after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def advance(self, count: int, throughput: str = "") -> None:
        self.batches -= 1
        if not self.batches:
            raise Killed


@given(
    cut=st.integers(0, 4000),
    behind=st.sampled_from([b"", b"\0" * 512, b'{"row": "', b"\n", b"7\n", b"\xff\xfe\n"]),
    data=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_end_of_the_file_is_gone_on_with_to_the_same_scores(job: Run, cut: int, behind: bytes, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(sorted(SPECS)))
    part = Path(f"part-{spec}")
    whole = scoring(Path("undisturbed"), spec)
    expected = [row.scores for row in whole.run(4)]
    whole.discard()
    first = scoring(part, spec)
    with pytest.raises(Killed):
        first.run(4, StopAfter(4))
    first.close()
    content = part.read_bytes()
    part.write_bytes(content[: min(cut, len(content))] + behind)
    again = scoring(part, spec)
    assert [row.scores for row in again.run(4)] == expected
    again.discard()


@given(where=st.integers(0, 3000), length=st.integers(1, 600))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_zeros_in_the_file_after_a_power_cut_cost_what_lies_behind_them(job: Run, where: int, length: int) -> None:
    part = Path("part")
    first = scoring(part, LEARNS)
    expected = [row.scores for row in first.run(4)]
    first.close()
    content = part.read_bytes()
    where = min(where, len(content) - 1)
    part.write_bytes((content[:where] + bytes(length) + content[where + length :])[: len(content)])
    again = scoring(part, LEARNS)
    assert [row.scores for row in again.run(4)] == expected
    again.discard()


@pytest.mark.parametrize("note", ["", '{"spec": "plain', "\0\0\0\0", "[1]", None])
def test_a_broken_note_is_written_anew(job: Run, note: str | None) -> None:
    first = scoring(Path("part"), LEARNS)
    with pytest.raises(Killed):
        first.run(4, StopAfter(2))
    first.close()
    Path("part.json").unlink() if note is None else Path("part.json").write_text(note)
    again = scoring(Path("part"), LEARNS)
    assert len(list(again.run(4))) == len(ROWS)
    assert json.loads(Path("part.json").read_text())["spec"] == LEARNS
    again.discard()
    assert [name for name in os.listdir() if "part" in name] == []


def test_rows_without_a_note_that_say_nothing_themselves_are_refused_with_what_to_do(tmp_path: Path) -> None:
    kept = UnfinishedFile(tmp_path / "out.jsonl", {"model": "a"})
    kept.resume()
    kept.append([{"prompt": "Q"}])
    kept.close()
    (tmp_path / "out.jsonl.part.json").unlink()
    with pytest.raises(DataError, match=r"its note out\.jsonl\.part\.json is missing or broken.* Start again with --overwrite"):
        UnfinishedFile(tmp_path / "out.jsonl", {"model": "a"}).resume()


def test_the_note_of_another_reward_with_nothing_kept_is_in_nobodys_way(tmp_path: Path) -> None:
    for name in "ab":
        kept = KeptRows(tmp_path / "part", {"spec": name})
        assert kept.resume() == 0
        kept.close()


# --- Killed between steps at the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("command", ["score", "rank", "rank --n", "rank --gold", "evaluate"])
def test_a_job_that_is_killed_when_it_deletes_what_it_kept_ends_the_same(
    job: Run, monkeypatch: pytest.MonkeyPatch, command: str, step: int
) -> None:
    out = "out.json" if command == "evaluate" else "out.jsonl"
    if command == "evaluate":
        rows = [{"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"prompt": "R", "chosen": "y", "rejected": "no"}]
        Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"rank --n": ["--n", "2"], "rank --gold": ["--gold", "plain.yaml"]}.get(command, [])
    arguments = [command.split()[0], LEARNS, "in.jsonl", "-o", out, *options]
    unlink, left = Path.unlink, step

    def counted(self: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if Path(out).exists() and self.exists() and ".rm-plugins" not in self.name:
            if left == 0:
                raise Killed
            left -= 1
        unlink(self, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", counted)
        with suppress(Killed):
            job(*arguments)
    before = Path(out).read_text()
    told = job(*arguments)
    assert told.exit_code == 0 or "exists already" in told.output
    if command != "evaluate":
        assert Path(out).read_text() == before
    names = {
        name for name in os.listdir() if name not in {out, "in.jsonl", "rules.py", "journal", "cache", "__pycache__", *SPECS}
    }
    assert names == set()
    assert [path for path in Path("cache").rglob("*") if path.is_file()] == []


# --- What the rows hold, and what the reward is -----------------------------------------------------------------------------


def test_a_column_with_nan_is_the_same_column_again(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        json.dumps(row)[:-1] + f', "x": {value}, "deep": {{"y": [{value}]}}}}\n'
        for row, value in zip(ROWS, islice(cycle(["NaN", "1.0"]), len(ROWS)), strict=True)
    ]
    Path("in.jsonl").write_text("".join(rows))
    for command in ("score", "rank"):
        arguments = (command, LEARNS, "in.jsonl", "--batch-size", "4", "-o")
        assert job(*arguments, f"{command}.jsonl").exit_code == 0
        killed(monkeypatch, job, *arguments, "out.jsonl", appends=2)
        told = job(*arguments, "out.jsonl")
        assert told.exit_code == 0, told.output
        assert Path("out.jsonl").read_bytes() == Path(f"{command}.jsonl").read_bytes()
        Path("out.jsonl").unlink()


def test_a_function_that_was_edited_is_another_one(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", "--batch-size", "4")
    killed(monkeypatch, job, *arguments, appends=2)
    before = Path("rules.py").read_text()
    Path("rules.py").write_text(before.replace("float(len", "2 * float(len"))
    sys.modules.pop("rules")
    told = job(*arguments)
    assert told.exit_code == 1
    assert (
        "out.jsonl.part cannot be resumed: the reward changed: its settings, its weights, a file that it names, or the"
        in told.output
    )
    Path("rules.py").write_text(before)
    sys.modules.pop("rules")
    assert job(*arguments).exit_code == 0


def test_a_helper_that_was_edited_makes_another_reward(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rules.py").write_text("from cleaning import clean\n\ndef length(samples):\n    return [clean(s) for s in samples]\n")
    Path("cleaning.py").write_text("def clean(sample):\n    return float(len(sample.completion_text))\n")
    for name in ("cleaning", "rules"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    arguments = ("score", "plain.yaml", "in.jsonl", "-o", "out.jsonl", "--batch-size", "4")
    killed(monkeypatch, job, *arguments, appends=2)
    Path("cleaning.py").write_text("def clean(sample):\n    return 2.0 * len(sample.completion_text)\n")
    for name in ("cleaning", "rules"):
        del sys.modules[name]
    assert "the code of a function" in job(*arguments).output
    assert job(*arguments, "--overwrite").exit_code == 0
    for name in ("cleaning", "rules"):
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("score", "rules:length", "in.jsonl"), "the spec was plain.yaml and is rules:length. Start"),
        (("score", "plain.yaml", "other.jsonl"), "the data was in.jsonl and is other.jsonl. Start"),
    ],
)
def test_what_differs_is_said_in_words(
    job: Run, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...], message: str
) -> None:
    Path("other.jsonl").write_text(Path("in.jsonl").read_text())
    settings = ("-o", "out.jsonl", "--batch-size", "4")
    killed(monkeypatch, job, "score", "plain.yaml", "in.jsonl", *settings, appends=2)
    told = job(*changed, *settings)
    assert message in told.output
    assert "{" not in told.output
    assert not list(Path().glob(".*.lock"))


@pytest.mark.parametrize("data", ["in.jsnl", "wrong.jsonl"])
def test_a_mistyped_input_leaves_nothing_behind(job: Run, data: str) -> None:
    Path("wrong.jsonl").write_text('{"promt": "Q"}\n')
    before = sorted(path.name for path in Path().iterdir())
    assert job("score", "plain.yaml", data, "-o", "out.jsonl").exit_code == 1
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == before
    assert job("score", LEARNS, "in.jsonl", "-o", "out.jsonl").exit_code == 0


class Impatient(JobProgress):
    """Presses Ctrl-C after some batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def advance(self, count: int, throughput: str = "") -> None:
        self.batches -= 1
        if not self.batches:
            raise KeyboardInterrupt

    def begin(self, work: str, done: int, total: Callable[[], int | None]) -> None:
        if not self.batches:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("job")
def test_an_interruption_says_how_to_resume() -> None:
    def begun() -> ScoringJob:
        return ScoringJob("plain.yaml", "in.jsonl", "train", Path("out.jsonl"), False)

    with pytest.raises(
        JobInterrupted, match=r"while scoring\. 8 rows are kept in out\.jsonl\.part; run the same command again to resume"
    ):
        begun().write(4, Impatient(2))
    assert begun().write(4) == len(ROWS)
    Path("out.jsonl").unlink()
    with pytest.raises(KeyboardInterrupt, match="Nothing is kept; run the same command again to start from the beginning"):
        begun().write(4, Impatient(0))
    assert not list(Path().glob("*.part*"))


# --- What is in the way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl.part", "out.jsonl.part.json", ".out.jsonl.part.lock"])
@pytest.mark.parametrize("command", ["score", "rank"])
def test_what_is_in_the_way_is_named_and_a_planted_link_is_not_followed(job: Run, name: str, command: str) -> None:
    Path("precious").write_text("somebody's")
    plants: list[Callable[[], object]] = [
        lambda: os.symlink("precious", name),
        lambda: os.symlink("nowhere", name),
        lambda: os.link("precious", name),
        lambda: os.mkdir(name),
    ]
    for plant in plants:
        plant()
        told = job(command, "plain.yaml", "in.jsonl", "-o", "out.jsonl")
        assert isinstance(told.exception, SystemExit) and told.exit_code == 1, told.exc_info
        assert f"{name} is a" in told.output and "Move it away" in told.output
        os.rmdir(name) if os.path.isdir(name) else os.unlink(name)
    assert Path("precious").read_text() == "somebody's"
    assert not Path("nowhere").exists()
    assert job(command, "plain.yaml", "in.jsonl", "-o", "out.jsonl").exit_code == 0


def test_a_file_that_was_exchanged_for_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    kept = KeptRows(tmp_path / "part", {})
    kept.resume()
    (tmp_path / "precious").write_text("somebody's")
    (tmp_path / "part").unlink()
    (tmp_path / "part").symlink_to("precious")
    with pytest.raises(OutputError):
        kept.append([{"a": 1}])
    kept.close()
    assert (tmp_path / "precious").read_text() == "somebody's"


def test_standard_input_leaves_nothing_behind_even_if_killed(job: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (scratch / ".standard-input.abcdefgh.rm-plugins.jsonl").write_text("of a process that was killed")
    told = CliRunner().invoke(main, ["score", "plain.yaml", "-", "-o", "out.jsonl"], input=Path("in.jsonl").read_text())
    assert told.exit_code == 0, told.output
    assert len(list(scratch.iterdir())) <= 1  # this process's own, until it ends
