"""A reward for completions that are JSON and valid under a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from rm_plugins.component import LocalPath
from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.providers.rules.limited_process import LimitedProcess
from rm_plugins.providers.rules.limited_rule import MOST_CHARACTERS, SECONDS, LimitedRule
from rm_plugins.samples import Turns
from rm_plugins.written_settings import read_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from referencing import Resource

_OPENING = re.compile(r"^ {0,3}```json[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE)
_CLOSING = re.compile(r"^ {0,3}```[ \t]*(?=\r?$)", re.MULTILINE)


class JsonSchema(LimitedRule):
    """1 for a completion that is JSON and valid under a schema, `partial` for other JSON, 0 for anything else.

    Args:
        schema: A JSON Schema (of the draft that its ``$schema`` names, else 2020-12), or a JSON file with one; without it,
            any JSON is valid. Its references must stay inside it.
        extract: What is read: the ``whole`` completion, its first ``fenced`` block that is marked as ``json``, or ``auto``: such a
            block if there is one, else the whole.
        partial: The score of JSON that does not match the schema.
        timeout: Seconds that one completion may take. On some texts, validating never ends.
        max_characters: How long a completion may be.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: The schema is not a JSON Schema or cannot be read, or a limit is not positive.
        MissingDependencyError: There is a schema, and jsonschema is not installed.
    """

    name: ClassVar[str] = "json-schema"

    def __init__(
        self,
        *,
        schema: Mapping[str, Any] | Annotated[str, LocalPath] | None = None,
        extract: Literal["auto", "fenced", "whole"] = "auto",
        partial: float = 0.0,
        timeout: float = SECONDS,
        max_characters: int = MOST_CHARACTERS,
        completion: Turns = "assistant",
    ) -> None:
        super().__init__(timeout, max_characters, completion)
        if not np.isfinite(partial):
            raise SpecError(f"must be a finite number; got {partial}.", key="partial")
        schema = _read(schema) if isinstance(schema, str) else schema
        self._setting = {"schema": schema, "extract": extract, "partial": partial}
        self._process: LimitedProcess | None = None
        if schema is not None:
            schema_validator(schema)
            self._process = LimitedProcess(f"{__name__}:validating", self._setting, timeout)

    def answers(self, texts: Sequence[str]) -> list[Any]:
        """Parse and validate every completion."""
        if self._process is not None:
            return self._process(texts)
        validated = validating(self._setting)  # it only parses, in time proportional to the text
        return [validated(text) for text in texts]

    def close(self) -> None:
        """End the process that validates."""
        if self._process is not None:
            self._process.close()


def validating(setting: Mapping[str, Any]) -> Callable[[str], float]:
    """Makes the function that scores a text by the schema, if there is one."""
    validator = None if setting["schema"] is None else schema_validator(setting["schema"])

    def validated(text: str) -> float:
        source = text if setting["extract"] == "whole" else _fenced(text)
        if source is None:
            if setting["extract"] == "fenced":
                return 0.0
            source = text
        try:
            document = json.loads(source, parse_constant=_refuse)
        except (ValueError, RecursionError):  # a number of too many digits is a ValueError, too
            return 0.0
        try:
            return 1.0 if validator is None or validator.is_valid(document) else float(setting["partial"])
        except (OverflowError, RecursionError):  # it is JSON, but too large or too deep for the schema
            return float(setting["partial"])

    return validated


def _fenced(text: str) -> str | None:
    """The contents of the first block that is fenced as JSON; None where there is none, or where its fence is never closed."""
    opening = _OPENING.search(text)
    closing = None if opening is None else _CLOSING.search(text, opening.end())
    return None if opening is None or closing is None else text[opening.end() : closing.start()]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # Python's parser would accept NaN and Infinity


def _read(path: str) -> Mapping[str, Any]:
    try:
        schema = read_json(Path(path))
    except SpecError as error:
        raise SpecError(f"{path!r} cannot be read as a JSON file: {error}", key="schema") from error
    if not isinstance(schema, Mapping):
        raise SpecError(
            f"{path!r} holds {type(schema).__name__}; a JSON Schema, which is a mapping, was expected.", key="schema"
        )
    return schema


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """The validator of a JSON Schema that refers to nothing outside it.

    Raises:
        SpecError: It is not a JSON Schema, or it refers to something else.
        MissingDependencyError: jsonschema is not installed.
    """
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
        from referencing import Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012
    except ImportError as error:
        raise MissingDependencyError("JSON Schemas need the package jsonschema: pip install 'rm-plugins[rules]'.") from error
    if not isinstance(schema, Mapping):
        raise SpecError(f"not a JSON Schema: a mapping was expected, not {schema!r:.80}.", key="schema")
    cls = validator_for(schema, default=Draft202012Validator)
    try:
        cls.check_schema(dict(schema))
    except SchemaError as error:
        raise SpecError(f"not a JSON Schema: at {error.json_path}, {error.message}.", key="schema") from error
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    for reference, resolver in _references(resource, REGISTRY.resolver_with_root(resource)):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise SpecError(
                f"the reference {reference!r} does not exist inside the schema, and nothing is fetched from elsewhere.",
                key="schema",
            ) from error
    return cls(schema, registry=REGISTRY)


def _references(resource: Resource[Any], resolver: Any) -> Iterator[tuple[str, Any]]:
    """Every reference in a schema, with its resolver."""
    for key in ("$ref", "$dynamicRef"):
        if isinstance(resource.contents, Mapping) and key in resource.contents:
            yield resource.contents[key], resolver
    for inner in resource.subresources():
        yield from _references(inner, resolver.in_subresource(inner))
