"""No text takes a rule more than its limits: what is beyond them is one row's failure, or a wrong answer, and the rest has its scores."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError
from rm_plugins.providers.rules.format import Format
from rm_plugins.providers.rules.json_schema import JsonSchema
from rm_plugins.providers.rules.limited_process import LimitedProcess, LimitExceededError
from rm_plugins.providers.rules.math_comparison import _last_answer, _last_boxes, _presented
from rm_plugins.providers.rules.phrases import Phrases
from rm_plugins.providers.rules.repetition import Repetition
from tests.rules.conftest import load, refused
from tests.time_growth import grows

MEGABYTE = 1_000_000
EVIL = "a" * 60 + "!"


def answers(setting: Any) -> Callable[[Any], Any]:
    """What a process of these tests computes."""

    def answer(request: Any) -> Any:
        match request:
            case "sleep":
                time.sleep(60)
            case "die":
                os._exit(3)
            case "memory":
                bytearray(64 * 2**30)
            case "deep":
                return answer(request)
            case "pid":
                return os.getpid()
            case "print":
                print("not an answer")
        return [setting, request]

    return answer


@pytest.fixture
def process() -> Any:
    made = LimitedProcess(f"{__name__}:answers", "s", 1.0)
    yield made
    made.close()


class TestLimitedProcess:
    def test_what_is_beyond_a_limit_is_one_answer_of_many(self, process: LimitedProcess) -> None:
        found = process([1, "sleep", 2, "memory", 3, "deep", 4, "die", "print", "\ud800", 5])
        said = [answer if isinstance(answer, list) else f"{type(answer).__name__}: {answer}" for answer in found]
        assert said == [
            ["s", 1],
            "LimitExceededError: took more than 1 seconds",
            ["s", 2],
            "LimitExceededError: took more than 4 GiB of memory",
            ["s", 3],
            "LimitExceededError: is nested too deep",
            ["s", 4],
            "ChildProcessError: the process that computes ended with 3",
            ["s", "print"],
            ["s", "\ud800"],
            ["s", 5],
        ]

    def test_every_request_has_its_own_time_and_the_process_stays(self, process: LimitedProcess) -> None:
        first = process(["pid"])
        assert process([*range(5_000), "x" * MEGABYTE, "pid"])[-1:] == first
        assert process._child.value is not None and process._child.value.process.pid == first[0]

    def test_it_starts_with_the_first_request_and_ends_when_it_is_closed(self, process: LimitedProcess) -> None:
        assert process._child.value is None
        process([])
        assert process._child.value is None
        process(["pid"])
        child: Any = process._child.value
        process.close()
        assert child.process.poll() is not None
        assert process(["pid"]) != [child.process.pid]

    def test_threads_share_it(self, process: LimitedProcess) -> None:
        found: dict[int, Any] = {}
        threads = [threading.Thread(target=lambda n=n: found.update({n: process([n, "sleep", n])})) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for n, (first, exceeded, last) in found.items():
            assert first == last == ["s", n]
            assert isinstance(exceeded, LimitExceededError)
        assert len(found) == 4

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork_while_another_thread_asks_has_its_own(self, process: LimitedProcess) -> None:
        process([1])
        asking = threading.Thread(target=lambda: process(["sleep"]))
        asking.start()
        time.sleep(0.2)
        if (forked := os.fork()) == 0:
            right = process([7]) == [["s", 7]]
            process.close()
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
        asking.join()
        assert process([8]) == [["s", 8]]

    def test_it_can_be_pickled(self, process: LimitedProcess) -> None:
        process([1])
        other = pickle.loads(pickle.dumps(process))
        assert other([2]) == [["s", 2]]
        other.close()


EXPONENTIAL: dict[str, dict[str, Any]] = {
    "format": {"provider": "format", "pattern": "(a+)+b"},
    "a schema's pattern": {"provider": "json-schema", "schema": {"pattern": "^(a+)+$"}},
    "names' pattern": {"provider": "json-schema", "schema": {"patternProperties": {"^(a+)+$": {}}}},
    "a schema of itself": {
        "provider": "json-schema",
        "schema": {"anyOf": [{"items": {"$ref": "#"}, "type": "array", "minItems": 1}] * 2 + [{"const": 1}]},
    },
}
BEYOND = {
    "format": EVIL,
    "a schema's pattern": f'"{EVIL}"',
    "names' pattern": f'{{"{EVIL}": 1}}',
    "a schema of itself": "[" * 25 + "2" + "]" * 25,
}


@pytest.mark.parametrize("rule", EXPONENTIAL)
def test_a_text_beyond_the_time_fails_alone(rule: str) -> None:
    reward = load({**EXPONENTIAL[rule], "timeout": 1, "on_error": "abstain", "label": "form"})
    samples = [rm.Sample("Q", text) for text in ("[]", BEYOND[rule], "[]")]
    started = time.monotonic()
    scores = reward.score(samples)
    assert time.monotonic() - started < 15
    assert scores.abstained.tolist() == [False, True, False]
    assert "'form' has no score for item 1: took more than 1 seconds" in str(scores.errors[1])
    assert reward.counts["timeouts"] == 1
    with pytest.raises(ScoringError) as caught:
        load({**EXPONENTIAL[rule], "timeout": 1}).score(samples)
    assert caught.value.rows == frozenset({1})
    reward.close()


@pytest.mark.parametrize(
    "spec", [{"provider": "format", "pattern": "a"}, {"provider": "json-schema"}, {"provider": "math-verify"}]
)
def test_a_text_beyond_the_size_fails_alone(spec: dict[str, Any]) -> None:
    reward = load({**spec, "max_characters": 5, "on_error": "abstain"})
    scores = reward.score([rm.Sample("Q", text, {"solution": "1"}) for text in ("12345", "123456")])
    assert list(scores.errors) == [1]
    assert "has 6 characters, and at most 5 are allowed" in str(scores.errors[1])
    reward.close()


def test_a_gold_answer_beyond_the_size_is_an_error() -> None:
    with pytest.raises(DataError, match="gold answers of at most 5 characters"):
        load("math-verify", max_characters=5).score([rm.Sample("Q", "1", {"solution": "123456"})])


def test_limits_are_positive() -> None:
    for spec in ({"provider": "format", "pattern": "a"}, {"provider": "json-schema"}, {"provider": "math-verify"}):
        assert refused({**spec, "timeout": 0}).startswith("members[1].timeout: ")
        assert refused({**spec, "max_characters": 0}).startswith("members[1].max_characters: ")
    assert refused({"provider": "repetition", "n": 101}).startswith("members[1].n: ")


def test_formulas_beyond_the_memory_or_the_time_are_wrong_answers() -> None:
    reward = load("math-verify", timeout=1)
    bombs = [r"\boxed{9^{9^{9^9}}}", r"\boxed{(10^{9})!}", "(" * 200_000, "<answer>" * 120_000]
    samples = [rm.Sample("Q", text, {"solution": "4"}) for text in ("4", *bombs, "4")]
    started = time.monotonic()
    assert reward.score(samples).values.tolist() == [1, *[0] * len(bombs), 1]
    assert time.monotonic() - started < 5 * len(bombs)
    reward.close()


# --- What takes time in proportion to the text ----------------------------------------------------------------------------

PIECES = [
    *(
        "```json\n",
        "```",
        "```\n",
        "```json ",
        "   ```json\n[\n",
        "\n",
        " ",
        "{",
        "[",
        '{"a":',
        '"',
        "\\",
        "1",
        "9",
        "0.",
        "-",
        "[1,",
    ),
    *(
        "<answer>",
        "</answer>",
        "<a",
        "<",
        r"\boxed{1} ",
        r"\boxed",
        "}",
        "} ",
        "$",
        r"\text{",
        r"\text a",
        "####",
        "`",
        "**",
        "_ ",
    ),
    *("in short ", "in  ", "art", "a b ", "\t", "\r\n", "1e", "\u00e9", '{"a":1,"a":', "null,", "```JSON\n```\n"),
]
LINEAR: dict[str, Callable[[str], Any]] = {
    "json": lambda text: JsonSchema().answers([text]),
    "fenced": lambda text: JsonSchema(extract="fenced").answers([text]),
    "phrases": lambda text: Phrases(required=["in short", "a b a b"], forbidden=["z z"]).score_sample(rm.Sample("", text)),
    "repetition": lambda text: Repetition(n=5).score_sample(rm.Sample("", text)),
    "boxes": _last_boxes,
    "answer": _last_answer,
    "presented": _presented,
}


@pytest.mark.parametrize("rule", LINEAR)
@pytest.mark.parametrize("end", ["", "!", "\n```"])
def test_twice_the_text_takes_twice_the_time(rule: str, end: str) -> None:
    for piece in PIECES:
        for beginning in ("", "```json\n", r"\boxed{1}"):
            said = grows(LINEAR[rule], piece, characters=MEGABYTE // 8, beginning=beginning, end=end, seconds=0.03)
            assert said is None, said


def test_format_of_ordinary_patterns_is_what_re_says() -> None:
    rule = Format(pattern=r"<think>.*</think>\s*<answer>.*</answer>", dotall=True)
    texts = [f"<think>{n}</think><answer>{n}</answer>{'x' * (n % 2)}" for n in range(300)]
    assert rule.score([rm.Sample("Q", text) for text in texts]).values.tolist() == [1.0, 0.0] * 150
    rule.close()
