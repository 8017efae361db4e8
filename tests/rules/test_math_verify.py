"""Rewards for the right final answer."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, MissingDependencyError, ScoringError
from rm_plugins.providers.rules.math_verify import MathVerify
from tests.rules.conftest import load, refused, values


@pytest.fixture(scope="module")
def math() -> Any:
    """One process for all comparisons; the gold answer is in the column ``solution``."""
    rule = load("math-verify")
    yield rule
    rule.close()


class TestMathVerify:
    @pytest.mark.parametrize(
        ("gold", "completion", "expected"),
        [
            (r"\frac{1}{2}", r"so \boxed{0.5}", 1),
            ("1/2", r"\boxed{\frac{2}{4}} of 10", 1),
            (r"We get $x=2$, so \boxed{4}.", "The answer is 4.", 1),
            ("She has 9 * 2 = 18.\n#### 1,018", "1018", 1),
            ("18", "The answer to each is 5, so\n#### 18\n", 1),
            (r"2\sqrt{3}", r"2\sqrt{3}", 1),
            (r"2\sqrt{3}", r"\boxed{2}", 0),
            ("(1, 2)", r"\boxed{2}", 0),
            ("A: 18", "18", 1),
            ("B", r"\boxed{B}", 1),
            (42, "x = 42", 1),
            (0.5, "$1/2$", 1),
            ("3", r"First \boxed{4}. Then I checked and got \boxed{3}.", 1),
            ("4", r"First \boxed{4}. Then I checked and got \boxed{3}.", 0),
            (r"\{1, 2\}", r"They are $\boxed{1}$ and $\boxed{2}$.", 1),
            ("5", "<think>2 + 3</think><answer>5</answer>", 1),
            ("-5", "<answer>-5</answer>", 1),
            (r"\frac12", r"<answer>\frac12</answer>", 1),
            ("(1, 2)", "<answer>(1,2)</answer>", 1),
            ("5", "**5**", 1),
            ("5", "#### **5**", 1),
            ("5", "Final answer: `5`", 1),
            (1e-5, "0.00001", 1),
            (1e16, "10000000000000000", 1),
            ("", "", None),
            ("42", "", 0),
            ("42", "I do not know.", 0),
            ("Paris", "Paris ", 1),
            ("Paris", "London", None),
            ("", "42", None),
            (None, "42", None),
        ],
    )
    def test_the_final_answer_is_compared(self, math: rm.Provider, gold: Any, completion: str, expected: float | None) -> None:
        np.testing.assert_array_equal(values(math, completion, solution=gold), [np.nan if expected is None else expected])

    def test_it_agrees_with_people(self, math: rm.Provider, data_folder: Path) -> None:
        with gzip.open(data_folder / "gsm8k_solutions_labelled.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(next(file)) for _ in range(50)]
        samples = [
            rm.Sample(row["prompt"], found, {"solution": row["reference"]}) for row in rows for found in row["completions"]
        ]
        assert math.score(samples).values.tolist() == [float(label) for row in rows for label in row["is_correct"]]

    def test_any_thread_may_ask_and_no_answer_holds_it_up(self) -> None:
        rule = MathVerify(timeout=1)
        samples = [rm.Sample("Q", found, {"solution": "4"}) for found in ("4", r"\boxed{9^{9^{9^9}}}", "$2+2$")]
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(rule.score(samples).values.tolist())) for _ in range(2)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[1, 0, 1]] * 2
        assert rule.counts["timeouts"] == 2
        assert time.monotonic() - started < 30
        rule.close()

    @pytest.mark.parametrize("answer", [r"\pi" * 500 + " is not it", "#" * 20_000, r"\text{a b}" * 500 + " no"])
    def test_reading_an_answer_takes_no_time(self, math: rm.Provider, answer: str) -> None:
        assert values(math, answer, solution="4") == [0]
        assert not math.counts["timeouts"]

    def test_it_waits_rather_than_computes(self) -> None:
        assert MathVerify().concurrent

    def test_a_process_that_dies_is_an_error_of_its_rows(self) -> None:
        rule = MathVerify()
        samples = [rm.Sample("Q", "4", {"solution": "4"})] * 2
        rule.score(samples)
        child: Any = rule._comparison._child.value.process  # type: ignore[union-attr]
        child.kill()
        child.wait()
        with pytest.raises(ScoringError, match=r"'math-verify' could not compare 1 of 2 answers \(first: item 0\)") as caught:
            rule.score(samples)
        assert caught.value.rows == frozenset({0})
        assert rule.score(samples).values.tolist() == [1, 1]
        rule.close()

    def test_a_process_that_does_not_start_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "math_verify.py").write_text("raise OSError('no disk')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ScoringError, match="ended with 1 at its start"):
            MathVerify().score([rm.Sample("Q", "4", {"solution": "4"})])

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts itself with a POSIX timer")
    def test_an_interrupted_verdict_is_not_the_next_ones(self) -> None:
        class Interrupted(BaseException):
            pass

        def interrupt(*_: object) -> None:
            raise Interrupted

        rule = MathVerify(timeout=20)
        sample = rm.Sample("Q", "4", {"solution": "4"})
        rule.score([sample])
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                rule.score([rm.Sample("Q", r"\boxed{9^{9^{9^9}}}", {"solution": "5"})])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert rule.score([sample, rm.Sample("Q", "3", {"solution": "4"})]).values.tolist() == [1, 0]
        rule.close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork_has_a_process_of_its_own(self, math: Any) -> None:
        sample = rm.Sample("Q", "4", {"solution": "4"})
        math.score([sample])
        parents = math._comparison._child.value.process.pid
        if (forked := os.fork()) == 0:
            right = math.score([sample]).values.tolist() == [1] and math._comparison._child.value.process.pid != parents
            math.close()
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
        assert math.score([sample]).values.tolist() == [1]
        assert math._comparison._child.value.process.pid == parents

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({}, r"needs the gold answer in the column 'solution', which item 0 does not have\. Its columns: none"),
            ({"answer": "4", "id": 3}, r"Its columns: 'answer', 'id'\. Name the right one with the key 'column'"),
            ({"solution": ["4"]}, r"item 0 has list in the column 'solution': \['4'\]"),
        ],
    )
    def test_a_row_without_a_gold_answer_is_an_error(self, math: rm.Provider, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            math.score([rm.Sample("Q", "4", columns)])

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
    def test_no_time_is_refused(self, timeout: float) -> None:
        assert refused({"provider": "math-verify", "timeout": timeout}).startswith("members[1].timeout: ")

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "math_verify", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'rm-plugins\[rules\]'"):
            MathVerify()
