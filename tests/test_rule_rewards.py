"""Rewards by rule: what each says of a completion, what its keys refuse, and that all keep a provider's contract."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import rm_plugins as rm
from rm_plugins.errors import DataError, MissingDependencyError, ModelError, ScoringError, SpecError
from rm_plugins.providers.rules.format import Format
from rm_plugins.providers.rules.json_schema import JsonSchema
from rm_plugins.providers.rules.length_window import LengthWindow
from rm_plugins.providers.rules.math_verify import MathVerify
from rm_plugins.providers.rules.phrases import Phrases
from rm_plugins.providers.rules.repetition import Repetition
from rm_plugins.samples import Message
from rm_plugins.testing import check_provider

RULES: list[type[rm.Provider]] = [Format, JsonSchema, LengthWindow, MathVerify, Phrases, Repetition]
PAGE = Path(__file__).parents[1] / "docs" / "providers" / "rules.md"


@rm.hookimpl
def rm_register_providers() -> list[type[rm.Provider]]:
    built_in = rm.Registry().all("provider")
    return [rule for rule in RULES if rule.name not in built_in]


REGISTRY = rm.Registry([SimpleNamespace(__name__="rules", rm_register_providers=rm_register_providers)])


def load(spec: Any, **settings: Any) -> rm.Provider:
    return rm.load(spec, registry=REGISTRY, **settings)


def values(rule: rm.Provider, *completions: str, **columns: Any) -> list[float]:
    """The score of each completion, which is the same for text and for messages."""
    text = rule.score([rm.Sample("Q", completion, columns) for completion in completions]).values
    prompt = [{"role": "user", "content": "Q"}]
    np.testing.assert_array_equal(rule.score([rm.Sample(prompt, found, columns) for found in completions]).values, text)
    return [float(value) for value in text]


def refused(spec: Mapping[str, Any], error: type[Exception] = SpecError) -> str:
    """What a rule that is the second member of an ensemble says."""
    with pytest.raises(error) as caught:
        load({"provider": "ensemble", "members": [{"provider": "repetition"}, spec]})
    return str(caught.value)


class TestEvery:
    @pytest.mark.parametrize(
        "spec",
        [
            {"provider": "length-window", "low": 2, "high": 8, "soft": 5},
            {"provider": "repetition", "n": 1},
            {"provider": "format", "pattern": "a.*b", "dotall": True},
            {"provider": "phrases", "required": ["a", "b"]},
            {"provider": "math-verify", "column": "gold"},
            {"provider": "json-schema", "schema": {"type": "object"}, "partial": 0.5},
        ],
        ids=lambda spec: spec["provider"],
    )
    def test_keeps_the_contract(self, spec: Mapping[str, Any]) -> None:
        rule = load(spec)
        completions = ["", "a a a 3", "a\nb", "{}", "[1]"]
        turns: tuple[Message, ...] = ({"role": "assistant", "content": "a"}, {"role": "tool", "content": "{}"})
        samples = [rm.Sample("Q", completion, {"gold": 3}) for completion in completions]
        samples += [
            rm.Sample([], [*turns, {"role": "assistant", "content": "b 3"}], {"gold": 3}),
            rm.Sample([], [], {"gold": 3}),
        ]
        scores = check_provider(rule, samples)
        assert not scores.abstained.any()
        assert len(set(scores.values)) > 1
        assert rule.label == spec["provider"]
        assert load(spec, label="mine").label == "mine"
        rule.close()

    def test_only_what_the_assistant_says_is_looked_at(self) -> None:
        call: Message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
        completion: list[Message] = [call, {"role": "tool", "content": "secret"}, {"role": "assistant", "content": "done"}]
        assert load("phrases", forbidden=["secret"]).score([rm.Sample([], completion)]).values.tolist() == [1]
        assert load("length-window", low=4, high=4).score([rm.Sample([], completion)]).values.tolist() == [1]

    def test_key_is_on_the_page(self) -> None:
        sections = dict(re.findall(r"^## `([a-z-]+)`\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
        assert set(sections) == {rule.name for rule in RULES}
        for rule in RULES:
            keys = re.findall(r"^\| `(\w+)` \|", sections[rule.name], re.MULTILINE)
            assert keys == list(inspect.signature(rule).parameters)

    def test_rule_combines_as_the_page_says(self, tmp_path: Path) -> None:
        (found,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        spec = yaml.safe_load(found)
        spec["members"][0] = {"provider": "phrases", "required": ["good"]}  # in place of a model
        (tmp_path / "reward.yaml").write_text(yaml.safe_dump(spec))
        rewards = load(tmp_path / "reward.yaml")
        completions = ["<think>good\n1</think> 2", "good 2", "<think>3"]
        assert rewards.score([rm.Sample("Q", text, {"answer": "2"}) for text in completions]).values.tolist() == [
            2.5,
            2.25,
            0.25,
        ]
        rewards.close()


class TestLengthWindow:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"low": 2, "high": 4}, [0, 1, 1, 0, 0]),
            ({"low": 2}, [0, 1, 1, 1, 1]),
            ({"high": 0}, [1, 0, 0, 0, 0]),
            ({"low": 2, "high": 4, "soft": 4}, [0.5, 1, 1, 0.75, 0]),
            ({"low": 1, "high": 1, "soft": 2, "unit": "words"}, [0.5, 1, 1, 0.5, 1]),
        ],
    )
    def test_lengths(self, keys: Mapping[str, Any], expected: list[float]) -> None:
        assert values(LengthWindow(**keys), "", "ab", "abcd", "ab cd", "abcdefghi") == expected

    def test_tokens_are_the_tokenizers(self, tiny_tokenizer: Any, tmp_path: Path) -> None:
        tiny_tokenizer.save_pretrained(tmp_path / "policy")
        text = "The sea is salty."
        tokens = len(tiny_tokenizer(text)["input_ids"])
        assert 4 < tokens < len(text)
        spec = {"provider": "length-window", "unit": "tokens", "low": tokens, "high": tokens, "tokenizer": "./policy"}
        (tmp_path / "reward.yaml").write_text(yaml.safe_dump(spec))
        rule = load(tmp_path / "reward.yaml")  # which the tokenizer is relative to
        assert values(rule, text, text[:-1], "") == [1, 0, 0]
        check_provider(rule, [rm.Sample("Q", text), rm.Sample("Q", "")])

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({}, r"members\[1\]: length-window needs `low`, `high`, or both"),
            ({"low": 3, "high": 2}, r"members\[1\]\.low: must not be above high, which is 2; got 3"),
            ({"low": -1}, r"members\[1\]\.low: .* must not be negative; got -1"),
            ({"high": -1}, r"members\[1\]\.high: .* must not be negative"),
            ({"high": 1, "soft": -1}, r"members\[1\]\.soft: .* must not be negative"),
            ({"high": 1, "unit": "tokens"}, r"members\[1\]\.tokenizer: `unit: tokens` needs a tokenizer"),
            ({"high": 1, "tokenizer": "gpt2"}, r"members\[1\]\.tokenizer: only `unit: tokens`"),
            ({"high": 1, "unit": "lines"}, r"members\[1\]\.unit: .*'characters', 'words' or 'tokens'"),
        ],
    )
    def test_a_window_that_makes_no_sense_is_refused(self, keys: Mapping[str, Any], message: str) -> None:
        assert re.search(message, refused({"provider": "length-window", **keys}))

    def test_a_tokenizer_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelError, match=r"No tokenizer could be loaded from .*empty"):
            LengthWindow(high=1, unit="tokens", tokenizer=str(tmp_path / "empty"))


class TestRepetition:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, [0, 0, 0, -0.75, -0.25]),
            ({"n": 1}, [0, -0.5, 0, -5 / 6, -0.5]),
            ({"n": 6, "weight": 2}, [0, 0, 0, 0, 0]),
            ({"n": 2, "weight": 2}, [0, 0, 0, -1.6, -0.8]),
        ],
    )
    def test_the_share_of_repeated_n_grams(self, keys: Mapping[str, Any], expected: list[float]) -> None:
        found = values(Repetition(**keys), "", "no no", "one two three four", "go Go go\ngo go go", "a b c a b c")
        assert found == pytest.approx(expected)
        assert not np.signbit(found[0])  # a log full of -0.0 reads as a penalty

    @pytest.mark.parametrize(("keys", "key"), [({"n": 0}, "n"), ({"weight": -1.0}, "weight"), ({"weight": np.inf}, "weight")])
    def test_a_number_that_makes_no_sense_is_refused(self, keys: Mapping[str, Any], key: str) -> None:
        assert refused({"provider": "repetition", **keys}).startswith(f"members[1].{key}: ")


class TestFormat:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"pattern": "a.b"}, [1, 0, 0, 0]),
            ({"pattern": "a.b", "dotall": True}, [1, 1, 0, 0]),
            ({"pattern": "a.b", "match": "search", "ignore_case": True}, [1, 0, 1, 0]),
            ({"pattern": "^b$", "match": "search", "multiline": True}, [0, 1, 0, 0]),
            ({"pattern": ""}, [0, 0, 0, 1]),
        ],
    )
    def test_a_match_is_one(self, keys: Mapping[str, Any], expected: list[float]) -> None:
        assert values(Format(**keys), "a-b", "a\nb", "say A-B!", "") == expected

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("<think>(.*</think>", r"missing \), unterminated subpattern (character 7, at '(.*</think>')"),
            ("a{3,2}", "min repeat greater than max repeat (character 2"),
            ("a{99999999999999999999}", "is no regular expression"),
        ],
    )
    def test_what_is_wrong_with_a_pattern_is_shown(self, pattern: str, message: str) -> None:
        found = refused({"provider": "format", "pattern": pattern})
        assert found.startswith("members[1].pattern: ")
        assert message.replace("\\", "") in found


class TestPhrases:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({"required": ["in short", "art"]}, [1, 0.5, 0, 0]),
            ({"required": ["in short", "art"], "whole_words": False}, [1, 1, 0.5, 0]),
            ({"required": ["in short"], "ignore_case": False}, [0, 1, 0, 0]),
            ({"forbidden": ["In  short"]}, [0, 0, 1, 1]),
            ({"required": ["art"], "forbidden": ["start"]}, [1, 0, 0, 0]),
            ({"required": ["C++ (?)"]}, [0, 0, 0, 0]),
        ],
    )
    def test_the_share_of_what_is_required(self, keys: Mapping[str, Any], expected: list[float]) -> None:
        assert values(Phrases(**keys), "In short: ART.", "in\nshort, start", "artful", "") == expected

    def test_a_phrase_may_begin_and_end_with_anything(self) -> None:
        assert values(Phrases(required=["C++ (?)"]), "a C++ (?)!", "C++(?)") == [1, 0]

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({}, "members[1]: phrases needs at least one phrase in `required` or `forbidden`"),
            ({"required": [], "forbidden": []}, "members[1]: phrases needs at least one"),
            ({"forbidden": ["a", " "]}, "members[1].forbidden[1]: a phrase must not be empty"),
            ({"required": "please"}, "members[1].required: "),
        ],
    )
    def test_no_phrase_is_refused(self, keys: Mapping[str, Any], message: str) -> None:
        assert refused({"provider": "phrases", **keys}).startswith(message)


NAME = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"$ref": "#/$defs/text"}},
    "$defs": {"text": {"type": "string"}},
}


class TestJsonSchema:
    def test_valid_then_json_then_nothing(self) -> None:
        rule = JsonSchema(schema=NAME, partial=0.25)
        assert values(rule, ' {"name": "x"}\n', '{"name": 1}', "[]", "{name: 1}", "", '{"name": NaN}') == [
            1,
            0.25,
            0.25,
            0,
            0,
            0,
        ]

    def test_without_a_schema_json_is_enough(self) -> None:
        assert values(load("json-schema"), "null", '"a"', "{", "Infinity") == [1, 1, 0, 0]

    @pytest.mark.parametrize(
        ("extract", "expected"), [("auto", [1, 1, 1, 0, 0]), ("fenced", [0, 1, 1, 0, 0]), ("whole", [1, 0, 0, 0, 0])]
    )
    def test_what_is_read(self, extract: Any, expected: list[float]) -> None:
        first = 'Here:\n```json\n{"name": "x"}\n```\nand\n```json\n{\n```\n'
        texts = [
            '{"name": "x"}',
            first,
            'a\n  ```JSON\n{"name": "`"}\n  ```',
            '```\n{"name": "x"}\n```',
            '```json\n{"name": "x"}',
        ]
        assert values(JsonSchema(schema=NAME, extract=extract), *texts) == expected

    def test_no_completion_can_break_it(self) -> None:
        rule = JsonSchema(schema={"items": {"$ref": "#"}, "multipleOf": 0.01}, partial=0.5)
        numbers = [f"1{'0' * 400}", f"1{'0' * 5000}"]
        assert values(rule, *(f"{'[' * deep}{']' * deep}" for deep in (500, 100_000)), *numbers) == [0.5, 0, 0.5, 0]

    def test_a_schema_file_is_relative_to_the_spec(self, tmp_path: Path) -> None:
        (tmp_path / "name.json").write_text(json.dumps(NAME))
        (tmp_path / "reward.yaml").write_text("provider: json-schema\nschema: name.json\n")
        rule = load(tmp_path / "reward.yaml")
        assert values(rule, '{"name": "x"}', "{}") == [1, 0]
        check_provider(rule, [rm.Sample("Q", '{"name": "x"}'), rm.Sample("Q", "{}")])

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"properties": {"a": {"type": "objekt"}}}, "not a JSON Schema: at $.properties.a.type, 'objekt' is not valid"),
            ({"$ref": "#/$def/a"}, "the reference '#/$def/a' leads nowhere inside the schema"),
            ({"items": {"$ref": "https://example.com/a.json"}}, "the reference 'https://example.com/a.json' leads nowhere"),
            ("none.json", "'none.json' cannot be read as a JSON file: "),
            ("broken.json", "cannot be read as a JSON file: "),
            ("list.json", "holds list; a JSON Schema, which is a mapping, was expected"),
            (3, "3"),
        ],
    )
    def test_what_is_no_schema_is_refused(self, schema: Any, message: str, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "broken.json").write_text("{")
        (tmp_path / "list.json").write_text("[]")
        found = refused({"provider": "json-schema", "schema": schema})
        assert found.startswith("members[1].schema: ")
        assert message in found

    def test_the_score_of_what_is_invalid_is_a_number(self) -> None:
        assert refused({"provider": "json-schema", "partial": float("nan")}).startswith("members[1].partial: ")

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "jsonschema", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'rm-plugins\[rules\]'"):
            load({"provider": "json-schema", "schema": {}})
        assert values(load("json-schema"), "1") == [1]


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
        child: Any = rule._comparison._child
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
        parents = math._comparison._child.pid
        if (forked := os.fork()) == 0:
            right = math.score([sample]).values.tolist() == [1] and math._comparison._child.pid != parents
            math.close()
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
        assert math.score([sample]).values.tolist() == [1]
        assert math._comparison._child.pid == parents

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


def test_rules_import_no_torch() -> None:
    import subprocess

    modules: Sequence[str] = [rule.__module__ for rule in RULES]
    code = f"import sys, {', '.join(modules)}; sys.exit(any(m in sys.modules for m in ('torch', 'math_verify', 'jsonschema')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
