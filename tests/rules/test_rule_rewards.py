"""Rewards by rule: what each says of a completion, what its keys refuse, and that all keep a provider's contract."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rm_plugins as rm
from rm_plugins.errors import ModelError
from rm_plugins.providers.rules.format import Format
from rm_plugins.providers.rules.length_window import LengthWindow
from rm_plugins.providers.rules.phrases import Phrases
from rm_plugins.providers.rules.repetition import Repetition
from rm_plugins.samples import Message
from rm_plugins.testing import check_provider
from tests.rules.conftest import RULES, load, refused, values

PAGE = Path(__file__).parents[2] / "docs" / "providers" / "rules.md"


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
        found, *_ = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
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
        with pytest.raises(ModelError, match=r"No tokenizer could be loaded for length-window"):
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
            ("a{99999999999999999999}", "is not a regular expression"),
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


def test_rules_import_no_torch() -> None:
    import subprocess

    modules: Sequence[str] = [rule.__module__ for rule in RULES]
    code = f"import sys, {', '.join(modules)}; sys.exit(any(m in sys.modules for m in ('torch', 'math_verify', 'jsonschema')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
