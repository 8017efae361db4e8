"""Rules for tool use: what each says of the calls in a completion, and where there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError
from rm_plugins.providers.rules.tool_calls import tool_calls_of
from rm_plugins.samples import Message
from rm_plugins.testing import check_provider
from tests.rules.conftest import load, refused

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "clock"}}]


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}, **more}


def asks(*calls: Mapping[str, Any]) -> Message:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(name: str, content: Any, **more: Any) -> Message:
    return {"role": "tool", "name": name, "content": content, **more}


ANSWER: Message = {"role": "assistant", "content": "It is sunny."}
NO_CALLS: list[Message] = [ANSWER]
GOOD: list[Message] = [asks(call("weather", {"city": "Oslo"})), result("weather", "{'sky': 'clear'}"), ANSWER]
MIXED: list[Message] = [
    asks(call("weather", {"city": "Oslo"}), call("clock"), call("radar", {"city": "Oslo"})),
    result("weather", "sunny"),
    result("clock", "{'error': 'no battery'}"),
    result("radar", '{"error": "unknown tool radar"}'),
    asks(call("weather", '{"days": 3}')),  # cut off before its result; JSON, as in OpenAI's API
]


def scored(rule: rm.Provider, *completions: Sequence[Message] | str, **columns: Any) -> list[float]:
    samples = [rm.Sample([{"role": "user", "content": "Q"}], completion, columns) for completion in completions]
    return [float(value) for value in rule.score(samples).values]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"provider": "tool-called"}, [0, 1, 1]),
        ({"provider": "tool-called", "required": ["weather"]}, [0, 1, 1]),
        ({"provider": "tool-called", "required": ["weather", "clock"]}, [0, 0.5, 1]),
        ({"provider": "tool-called", "forbidden": ["radar"]}, [1, 1, 0]),
        ({"provider": "tool-called", "required": ["weather"], "forbidden": ["radar"]}, [0, 1, 0]),
        ({"provider": "tool-count", "low": 1}, [0, 1, 1]),
        ({"provider": "tool-count", "high": 0}, [1, 0, 0]),
        ({"provider": "tool-count", "low": 1, "high": 2, "soft": 4}, [0.75, 1, 0.5]),
        ({"provider": "tool-count", "low": 2, "high": 2, "tool": "weather"}, [0, 0, 1]),
        ({"provider": "tool-success"}, [np.nan, 1, 0.25]),
        ({"provider": "tool-success", "no_calls": 0.5}, [0.5, 1, 0.25]),
        ({"provider": "tool-success", "failures": ["sun"]}, [np.nan, 1, 0]),
        ({"provider": "tool-arguments", "tools": TOOLS}, [np.nan, 1, 0.5]),
        ({"provider": "tool-arguments", "tools": TOOLS, "no_calls": 0.0}, [0, 1, 0.5]),
    ],
    ids=str,
)
def test_scores(spec: Mapping[str, Any], expected: list[float]) -> None:
    rule = load(spec)
    np.testing.assert_array_equal(scored(rule, NO_CALLS, GOOD, MIXED), expected)
    samples = [rm.Sample([], completion) for completion in (NO_CALLS, GOOD, MIXED)]
    check_provider(rule, samples)
    rule.close()


RULES: list[dict[str, Any]] = [
    {"provider": "tool-called"},
    {"provider": "tool-count", "low": 1},
    {"provider": "tool-success"},
    {"provider": "tool-arguments", "tools": TOOLS},
]


@pytest.mark.parametrize("spec", RULES, ids=lambda spec: spec["provider"])
def test_text_is_an_error_as_it_does_not_say_what_is_a_call(spec: Mapping[str, Any]) -> None:
    rule = load(spec)
    with pytest.raises(
        DataError, match=f"'{spec['provider']}' looks at the tool calls in messages, and this completion is text"
    ):
        rule.score([rm.Sample("Q", '<tool_call>{"name": "weather"}</tool_call>')])
    scores = rule.score([rm.Sample("Q", "text"), rm.Sample([], GOOD)], on_error="abstain")
    assert scores.abstained.tolist() == [True, False]
    rule.close()


class TestResults:
    def test_of_parallel_calls_belong_by_id_then_by_name_then_by_order(self) -> None:
        completion = [
            asks(call("a", id="1"), call("a", id="2"), call("b"), call("c")),
            result("a", "second", tool_call_id="2"),
            result("b", "of b"),
            result("a", "first", tool_call_id="1"),
            {"role": "tool", "content": "of c"},
            result("d", "of nobody"),
        ]
        found = tool_calls_of(rm.Sample([], completion), "a rule")
        assert [one.result and one.result["content"] for one in found] == ["first", "second", "of b", "of c"]

    def test_with_an_id_belong_to_no_call_of_another_id(self) -> None:
        late = [
            asks(call("a", id="1")),
            asks(call("a", id="2")),
            result("a", "one", tool_call_id="1"),
            result("a", "x", tool_call_id="9"),
        ]
        assert [one.result and one.result["content"] for one in tool_calls_of(rm.Sample([], late), "a rule")] == ["one", None]
        repeated = [asks(call("a", id="0")), result("a", "one", tool_call_id="0")] * 2
        assert len([one for one in tool_calls_of(rm.Sample([], repeated), "a rule") if one.result]) == 2
        no_id = [asks(call("a")), result("a", "one", tool_call_id="1")]
        assert tool_calls_of(rm.Sample([], no_id), "a rule")[0].result is not None

    def test_of_a_later_message_do_not_belong_to_earlier_calls(self) -> None:
        completion = [asks(call("a")), asks(call("a")), result("a", "late")]
        assert [one.result is None for one in tool_calls_of(rm.Sample([], completion), "a rule")] == [True, False]

    @pytest.mark.parametrize(
        ("content", "succeeded"),
        [
            ("{'error': 'it broke'}", False),
            ('{"error": null, "result": 4}', True),
            ("{'result': 4, 'error': False}", True),
            ("{'error': ''}", False),
            ("{'errors': 0}", True),
            ("{[1]: 'error'}", True),
            ("{{}: 1, 'error': 2}", True),
            ("{'error': 'it broke', 'at': datetime.date(2026, 1, 1)}", False),
            ('{"error": "it was cut', False),
            ("{'error': " + "[" * 5_000, False),
            ("an error is not unusual", True),
            ("{'error'", True),
            ("{" * 5_000 + "'error'", True),
            ([{"type": "image", "image": "x"}], True),
            ("", True),
        ],
    )
    def test_are_errors_where_they_say_so(self, content: Any, succeeded: bool) -> None:
        assert scored(load("tool-success"), [asks(call("a")), result("a", content)]) == [succeeded]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=6), st.randoms())
    def test_do_not_depend_on_their_order_where_they_have_ids(self, calls: list[tuple[str, bool]], random: Any) -> None:
        results = [
            result(name, "fine" if good else "{'error': 1}", tool_call_id=str(n)) for n, (name, good) in enumerate(calls)
        ]
        random.shuffle(results)
        completion = [asks(*(call(name, id=str(n)) for n, (name, _) in enumerate(calls))), *results]
        found = tool_calls_of(rm.Sample([], completion), "a rule")
        assert [one.has_succeeded() for one in found] == [good for _, good in calls]


@pytest.mark.parametrize("calls", [7, {"a": 1}, [None, 7], [{}], [{"function": "weather"}], [{"function": {"name": 3}}]])
def test_malformed_calls_are_calls_of_no_tool(calls: Any) -> None:
    completion = [{"role": "assistant", "content": "", "tool_calls": calls}]
    count = len(calls) if isinstance(calls, list) else 0
    assert [one.name for one in tool_calls_of(rm.Sample([], completion), "a rule")] == [""] * count
    rule = load("tool-arguments", tools=TOOLS, no_calls=0.0)
    assert scored(rule, completion) == [0]
    rule.close()


class TestArguments:
    def test_tools_of_the_rows_column(self) -> None:
        rule = load("tool-arguments")
        assert scored(rule, GOOD, tools=TOOLS) == scored(rule, GOOD, tools=json.dumps(TOOLS)) == [1]
        nulls = {"type": "function", "function": {"name": "weather", "parameters": {**PARAMETERS, "items": None}}}
        assert scored(rule, GOOD, tools=[nulls]) == [1]
        empty = {**PARAMETERS, "properties": {"city": {"type": "string", "const": None}, "default": None}}
        table = [{"type": "function", "function": {"name": "weather", "parameters": empty}}]
        assert scored(rule, GOOD, tools=table) == scored(rule, GOOD, tools=np.array(table)) == [1]
        only_null = [{"name": "weather", "input_schema": {"properties": {"city": {"const": None}}}}]
        assert scored(rule, GOOD, tools=json.dumps(only_null)) == scored(load("tool-arguments", tools=only_null), GOOD) == [0]
        wrong = [[{"name": "weather", "parameters": parameters}] for parameters in ([1], True, {"type": "x"})]
        samples = [rm.Sample([], GOOD, {"tools": tools}) for tools in [*wrong, TOOLS]]
        assert rule.score(samples, on_error="abstain").failed.tolist() == [True, True, True, False]
        assert np.isnan(scored(rule, NO_CALLS)).all()
        with pytest.raises(
            DataError, match=r"knows no tools of item 0, whose completion calls some: the column 'tools' is missing"
        ):
            scored(rule, GOOD)
        with pytest.raises(DataError, match="item 0 has wrong tools in the column 'tools': a list of tools was expected"):
            scored(rule, GOOD, tools={"name": "weather"})
        rule.close()

    def test_tools_as_functions(self) -> None:
        def weather(city: str, days: int = 1) -> str:
            """The weather.

            Args:
                city: Where.
                days: How many days.
            """
            return city

        rule = load({"provider": "tool-arguments", "tools": [weather]})
        wrong = [asks(call("weather", {"city": 3}))]
        assert scored(rule, GOOD, wrong) == [1, 0]
        rule.close()

    def test_tools_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
        (tmp_path / "reward.yaml").write_text("{provider: tool-arguments, tools: ./tools.json}")
        rule = load(tmp_path / "reward.yaml")
        assert scored(rule, GOOD) == [1]
        rule.close()

    def test_an_endless_validation_is_an_error_of_its_row(self) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^(a+)+$"}}}
        tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}]
        rule = load("tool-arguments", tools=tools, timeout=1.0, on_error="abstain")
        attack = [asks(call("weather", {"city": "a" * 40 + "!"}))]
        found = scored(rule, GOOD[:1], attack, NO_CALLS)
        assert np.isnan(found).tolist() == [False, True, True]
        assert rule.counts["timeouts"] == 1
        rule.close()

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"tools": []}, r"members\[1\]\.tools: there are no tools"),
            ({"tools": [{"type": "function"}]}, r"members\[1\]\.tools: tool 0 has no name"),
            ({"tools": [{"name": "a", "parameters": {"type": "x"}}]}, r"the parameters of the tool 'a' are not a JSON Schema"),
            ({"tools": [WEATHER, {"name": "weather"}]}, r"two tools with different parameters are called 'weather'"),
            ({"tools": [len]}, r"members\[1\]\.tools: the function 'len' cannot be described as a tool"),
            ({"timeout": 0.0}, r"members\[1\]\.timeout: must be a positive number of seconds"),
        ],
    )
    def test_wrong_keys(self, keys: Mapping[str, Any], message: str) -> None:
        assert re.search(message, refused({"provider": "tool-arguments", **keys}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"provider": "tool-called", "required": [" "]}, r"members\[1\]\.required\[0\]: the name of a tool must not be empty"),
        ({"provider": "tool-called", "required": ["a"], "forbidden": ["a"]}, r"\.forbidden: a tool cannot be both .*: a\."),
        ({"provider": "tool-count"}, r"tool-count needs `low`, `high`, or both"),
        ({"provider": "tool-count", "low": 3, "high": 2}, r"\.low: must not be above high, which is 2; got 3"),
        ({"provider": "tool-count", "low": -1}, r"\.low: a number of calls must not be negative; got -1"),
        ({"provider": "tool-count", "low": 1, "tool": " "}, r"\.tool: the name of a tool must not be empty; got ' '"),
        ({"provider": "tool-success", "failures": [""]}, r"\.failures\[0\]: an empty beginning"),
    ],
    ids=str,
)
def test_keys_that_make_no_sense_are_refused(spec: Mapping[str, Any], message: str) -> None:
    assert re.search(message, refused(spec))


class TestTurns:
    COMPLETION: Sequence[Message] = (
        {"role": "assistant", "content": "let me see 1", "tool_calls": [call("weather", {"city": "Oslo"})]},
        result("weather", "secret 2"),
        {"role": "assistant", "content": "done 3"},
    )

    @pytest.mark.parametrize(
        ("turns", "expected"),
        [
            (None, [1, 0, 1]),
            ("assistant", [1, 0, 1]),
            ("last", [0, 0, 1]),
            ("all", [1, 1, 1]),
        ],
    )
    def test_are_a_choice_of_every_rule_on_text(self, turns: str | None, expected: list[float]) -> None:
        chosen = {} if turns is None else {"completion": turns}
        sample = [rm.Sample([], self.COMPLETION, {"solution": "3"})]
        assert [
            load("phrases", required=[word], **chosen).score(sample).values[0] for word in ("see", "secret", "done")
        ] == expected
        length = len(sample[0].text_of_turns(turns or "assistant"))  # type: ignore[arg-type]
        assert load("length-window", low=length, high=length, **chosen).score(sample).values[0] == 1
        for spec in ({"provider": "format", "pattern": "(?s).*3"}, {"provider": "math-verify"}, {"provider": "repetition"}):
            rule = load({**spec, **chosen})
            assert rule.score(sample).values[0] == (0 if spec["provider"] == "repetition" else 1)
            rule.close()

    def test_of_another_kind_is_refused(self) -> None:
        assert re.search(
            r"members\[1\]\.completion: .*'assistant', 'last' or 'all'",
            refused({"provider": "repetition", "completion": "first"}),
        )
