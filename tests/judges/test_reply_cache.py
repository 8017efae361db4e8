"""The folder of replies: shared by processes, whole after a kill, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rm_plugins.judges import Question, Reply, ReplyCache
from tests.judges.scripted import ScriptedJudge, text_of

ROOT = Path(__file__).parents[2]


def question(text: str, labels: tuple[str, ...] = ()) -> Question:
    return Question(({"role": "user", "content": text},), labels=labels)


def test_what_is_kept_is_found_by_all_of_it(tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path), "judge")
    reply = Reply("Yes", {"Yes": 0.75, "No": 0.25}, "", 5, 1)
    cache.put(question("a", ("Yes", "No")), reply)
    found = ReplyCache(str(tmp_path), "judge").get(question("a", ("Yes", "No")))
    assert found == Reply("Yes", {"Yes": 0.75, "No": 0.25}, cached=True)
    assert cache.get(question("a")) is None
    assert cache.get(question("b", ("Yes", "No"))) is None
    assert ReplyCache(str(tmp_path), "another judge").get(question("a", ("Yes", "No"))) is None


def test_probabilities_of_any_kind_of_number_are_kept_and_wrong_ones_are_not(tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path), "judge")
    asked = question("a", ("A", "B"))
    cache.put(asked, Reply("A", {"A": float("nan"), "B": 0.5}))
    cache.put(asked, Reply("A", {"A": 1.5, "B": 0.5}))
    assert cache.get(asked) is None
    cache.put(asked, Reply("A", {"A": 1, "B": np.float32(0.0)}))  # type: ignore[dict-item]
    assert cache.get(asked) == Reply("A", {"A": 1.0, "B": 0.0}, cached=True)


def test_an_error_is_asked_again(tmp_path: Path) -> None:
    replies = iter([Reply("", error="cut off"), Reply("A")])
    judge = ScriptedJudge(lambda asked: next(replies), cache=str(tmp_path))
    assert judge.ask([question("a")])[0].error == "cut off"
    assert judge.ask([question("a")])[0].text == "A"
    assert judge.ask([question("a")])[0].cached


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"text": 3}', '{"text": "A", "label_probabilities": {"A": "high"}}', "\0"]
)
def test_a_damaged_file_is_said_once_and_asked_again(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    judge = ScriptedJudge(text_of, cache=str(tmp_path))
    judge.ask([question("a"), question("b")])
    for file in tmp_path.rglob("*.json"):
        file.write_text(content, encoding="utf-8")
    again = ScriptedJudge(text_of, cache=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert [reply.text for reply in again.ask([question("a"), question("b")])] == ["a", "b"]
    assert len(again.asked) == 2
    assert len([record for record in caplog.records if "is asked again" in record.message]) == 1
    assert len(ScriptedJudge(text_of, cache=str(tmp_path)).ask([question("a")])) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_does_not_stop_the_judge(tmp_path: Path) -> None:
    judge = ScriptedJudge(text_of, cache=str(tmp_path / "cache"))
    (tmp_path / "cache").chmod(0o500)
    assert judge.ask([question("a")])[0].text == "a"


def test_a_full_disk_does_not_stop_the_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rm_plugins.judges.reply_cache.write_shared", full)
    judge = ScriptedJudge(text_of, cache=str(tmp_path))
    assert [reply.text for reply in judge.ask([question("a"), question("b")])] == ["a", "b"]
    assert "No space left" in caplog.text


WRITER = """
    import sys
    from rm_plugins.judges import Question, Reply, ReplyCache

    cache = ReplyCache(sys.argv[1], "judge")
    print("ready", flush=True)
    while True:
        for number in range(20):
            cache.put(Question(({"role": "user", "content": str(number)},)), Reply(f"reply {number} " * 2000))
"""


def test_processes_that_write_and_are_killed_leave_whole_replies(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline()
        cache = ReplyCache(str(tmp_path), "judge")
        until = time.monotonic() + 60
        while len(list(tmp_path.rglob("*.json"))) < 20 and time.monotonic() < until:
            time.sleep(0.02)
        for _ in range(20):
            for number in range(20):
                found = cache.get(Question(({"role": "user", "content": str(number)},)))
                assert found is not None and found.text == f"reply {number} " * 2000
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
    for file in tmp_path.rglob("*.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["text"]
    assert len(list(tmp_path.rglob("*.json"))) == 20
