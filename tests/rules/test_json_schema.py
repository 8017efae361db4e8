"""Rewards for JSON of a wanted structure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import MissingDependencyError
from rm_plugins.providers.rules.json_schema import JsonSchema
from rm_plugins.testing import check_provider
from tests.rules.conftest import load, refused, values

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
            ({"$ref": "#/$def/a"}, "the reference '#/$def/a' does not exist inside the schema"),
            ({"items": {"$ref": "https://example.com/a.json"}}, "the reference 'https://example.com/a.json' does not exist"),
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
