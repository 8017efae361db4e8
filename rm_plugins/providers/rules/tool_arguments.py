"""A reward for tool calls whose arguments are valid under the tool's JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import FiniteFloat

from rm_plugins.canonical_json import listed
from rm_plugins.component import LocalPath
from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.rules.json_schema import schema_validator
from rm_plugins.providers.rules.limited_process import LimitedProcess, LimitExceededError
from rm_plugins.providers.rules.limited_rule import SECONDS, check_limits
from rm_plugins.providers.rules.tool_calls import ToolCall, tool_calls_of
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.written_settings import read_json

_ANYTHING: Mapping[str, Any] = {"type": "object"}
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
"""What the schema of the arguments is called: in chat templates, in Anthropic's API, and in MCP."""


class ToolArguments(Provider):
    """The share of a completion's tool calls whose tool exists and whose arguments are valid under its JSON Schema.

    Arguments are a mapping, or JSON that is one. The tools are those of the key `tools` or, without it, those of the row's column. A
    completion without calls abstains unless `no_calls` is set. A completion that is text is an error, because text does not say what is
    a call; a row without tools is one if its completion has calls.

    Args:
        tools: The tools: their descriptions as chat templates take them (``{"type": "function", "function": {"name": ..., "parameters":
            SCHEMA}}``), a JSON file with a list of those, or in Python functions, as TRL's trainers take them.
        column: The column with the descriptions, a list or JSON, where `tools` is unset.
        no_calls: The score of a completion without calls; None abstains.
        timeout: Seconds that the validation of one call may take.

    Raises:
        SpecError: There are no tools in `tools`, a description is wrong, the file cannot be read, or `timeout` is not positive.
        MissingDependencyError: jsonschema is not installed.
    """

    name: ClassVar[str] = "tool-arguments"
    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"timeout"})

    def __init__(
        self,
        *,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | Annotated[str, LocalPath] | None = None,
        column: str = "tools",
        no_calls: FiniteFloat | None = None,
        timeout: float = SECONDS,
    ) -> None:
        check_limits(timeout, 1)
        self.column = column
        self.no_calls = no_calls
        self._schemas: dict[str, Mapping[str, Any]] | None = None
        if tools is not None:
            try:
                self._schemas = _schemas_of(_without_nulls(_read(tools) if isinstance(tools, str) else tools, {"const"}))
            except (SpecError, DataError) as error:
                raise SpecError(str(error), key="tools") from error
            if not self._schemas:
                raise SpecError(
                    "there are no tools. Give at least one, or leave the key out to read the row's column.", key="tools"
                )
        schema_validator(_ANYTHING)  # which says what is not installed
        self._process = LimitedProcess(f"{__name__}:validating_calls", None, timeout)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Validate the arguments of every call."""
        values = np.full(len(samples), np.nan)
        errors: dict[int, RmPluginsError] = {}
        requests: list[
            tuple[int, Any]
        ] = []  # for each call its row, and the request to the process; None if it is known to be wrong
        for row, sample in enumerate(samples):
            try:
                calls = tool_calls_of(sample, self.called)
                schemas = self._schemas_for(row, sample) if calls else {}
            except DataError as error:
                errors[row] = error
                continue
            if not calls:
                values[row] = np.nan if self.no_calls is None else self.no_calls
            requests += [(row, _request(call, schemas)) for call in calls]
        answers = iter(self._process([request for _, request in requests if request is not None]))
        valid: dict[int, list[bool]] = {}
        for row, request in requests:
            answer = False if request is None else next(answers)
            if isinstance(answer, Exception):
                self._counted("timeouts", isinstance(answer, LimitExceededError))
                message = f"{self.called} has no score for item {row}: {answer} (the arguments of a call)."
                errors.setdefault(row, ScoringError(message, rows=[row]).caused_by(answer))
            else:
                valid.setdefault(row, []).append(bool(answer))
        values[list(valid)] = [np.mean(of_row) for of_row in valid.values()]
        return Scores(values, errors=errors)

    @property
    def identity(self) -> list[Any]:
        """Its settings, with the schemas of the tools instead of the path of their file."""
        settings, *others = super().identity
        return [{**settings, "tools": self._schemas}, *others]

    def close(self) -> None:
        """End the process that validates."""
        self._process.close()

    def _schemas_for(self, row: int, sample: Sample) -> Mapping[str, Mapping[str, Any]]:
        if self._schemas is not None:
            return self._schemas
        tools = listed(sample.columns.get(self.column))
        try:
            schemas = _schemas_of(json.loads(tools) if isinstance(tools, str) else _without_nulls(tools or ()))
        except (ValueError, SpecError, DataError) as error:
            raise DataError(
                f"{self.called}: item {row} has wrong tools in the column {self.column!r}: {error}", rows=[row]
            ) from error
        if not schemas:
            raise DataError(
                f"{self.called} knows no tools of item {row}, whose completion calls some: the column {self.column!r} is missing or empty. "
                "Give the tools in the spec, with the key 'tools', or name another column.",
                rows=[row],
            )
        return schemas


def validating_calls(setting: None) -> Callable[[Sequence[Any]], bool]:
    """Makes the function that validates arguments, given a schema in JSON and the arguments; it runs in its own process."""
    validator = cache(lambda schema: schema_validator(json.loads(schema)))

    def is_valid(request: Sequence[Any]) -> bool:
        schema, arguments = request
        try:
            return bool(validator(schema).is_valid(arguments))
        except (OverflowError, RecursionError):  # too large or too deep for the schema
            return False

    return is_valid


def _request(call: ToolCall, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[str, Any] | None:
    """A schema in JSON and the arguments to validate; None where no tool has the name, or the arguments are not a mapping."""
    arguments = call.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    arguments = {} if arguments is None else arguments
    if call.name not in schemas or not isinstance(arguments, Mapping):
        return None
    try:
        json.dumps(arguments)
    except (TypeError, ValueError, RecursionError):  # made in Python, of what JSON does not have
        return None
    return json.dumps(schemas[call.name]), arguments


def _schemas_of(tools: Any) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments by the tool's name, checked."""
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise DataError(f"a list of tools was expected, not {tools!r:.80}.")
    schemas: dict[str, Mapping[str, Any]] = {}
    for place, tool in enumerate(tools):
        described = _described(tool) if callable(tool) else tool
        function = described.get("function", described) if isinstance(described, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f"tool {place} has no name; {{'type': 'function', 'function': {{'name': ...}}}} was expected, not {tool!r:.200}."
            )
        schema = next((function[key] for key in _SCHEMA_KEYS if function.get(key)), _ANYTHING)
        try:
            schema_validator(schema)
        except SpecError as error:
            raise DataError(f"the parameters of the tool {function['name']!r} are {error.message}") from error
        if schemas.setdefault(function["name"], schema) != schema:
            raise DataError(f"two tools with different parameters are called {function['name']!r}.")
    return schemas


def _without_nulls(tools: Any, kept: Set[str] = frozenset()) -> Any:
    """Tools without the keys that are null: a table gives every tool, and every parameter, the keys of all of them.

    There, a ``const`` that is null nearly always is such a key. In JSON and in a spec it allows null only.
    """
    if isinstance(tools, Mapping):
        return {key: _without_nulls(value, kept) for key, value in tools.items() if value is not None or key in kept}
    return [_without_nulls(item, kept) for item in tools] if isinstance(tools, (list, tuple)) else tools


def _described(tool: Callable[..., Any]) -> Any:
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:  # the docstring or a type hint is missing
        raise DataError(f"the function {getattr(tool, '__name__', tool)!r} cannot be described as a tool: {error}") from error


def _read(path: str) -> Any:
    try:
        return read_json(Path(path))
    except SpecError as error:
        raise DataError(f"{path!r} cannot be read as a JSON file: {error}") from error
