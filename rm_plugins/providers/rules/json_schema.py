"""A reward for completions that are JSON of a wanted structure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.provider import LocalPath
from rm_plugins.providers.rules.limited_process import LimitedProcess
from rm_plugins.providers.rules.limited_rule import MOST_CHARACTERS, SECONDS, LimitedRule
from rm_plugins.written_settings import read_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from referencing import Resource

_OPENING = re.compile(r"^ {0,3}```json[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE)
_CLOSING = re.compile(r"^ {0,3}```[ \t]*(?=\r?$)", re.MULTILINE)


class JsonSchema(LimitedRule):
    """1 for a completion that is JSON and valid under a schema, `partial` for other JSON, 0 for what is no JSON.

    Args:
        schema: A JSON Schema (of the draft that its ``$schema`` names, else 2020-12), or a JSON file with one; without it,
            any JSON is valid. Its references must lead inside it.
        extract: What is read: the ``whole`` completion, the first ``fenced`` block of it that is marked as ``json``, or
            ``auto``: such a block if there is one, else the whole.
        partial: The score of JSON that is not valid.
        timeout: Seconds that one completion may take. There are texts on which a schema takes for ever.
        max_characters: How long a completion may be.

    Raises:
        SpecError: The schema is none, or cannot be read, or a limit is not positive.
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
    ) -> None:
        super().__init__(timeout, max_characters)
        if not np.isfinite(partial):
            raise SpecError(f"must be a finite number; got {partial}.", key="partial")
        schema = _read(schema) if isinstance(schema, str) else schema
        self._setting = {"schema": schema, "extract": extract, "partial": partial}
        self._process: LimitedProcess | None = None
        if schema is not None:
            _validator(schema)
            self._process = LimitedProcess(f"{__name__}:validating", self._setting, timeout)

    def answers(self, texts: Sequence[str]) -> list[Any]:
        """Parse and validate every completion."""
        if self._process is not None:
            return self._process(texts)
        validated = validating(self._setting)  # which parses alone, in no more time than the text is long
        return [validated(text) for text in texts]

    def close(self) -> None:
        """End the process that validates."""
        if self._process is not None:
            self._process.close()


def validating(setting: Mapping[str, Any]) -> Callable[[str], float]:
    """What scores a text by a schema, if there is one."""
    validator = None if setting["schema"] is None else _validator(setting["schema"])

    def validated(text: str) -> float:
        source = text if setting["extract"] == "whole" else _fenced(text)
        if source is None:
            if setting["extract"] == "fenced":
                return 0.0
            source = text
        try:
            document = json.loads(source, parse_constant=_refuse)
        except (ValueError, RecursionError):  # a ValueError, too, is a number of too many digits
            return 0.0
        try:
            return 1.0 if validator is None or validator.is_valid(document) else float(setting["partial"])
        except (OverflowError, RecursionError):  # JSON, but too large or too deep to be what the schema asks for
            return float(setting["partial"])

    return validated


def _fenced(text: str) -> str | None:
    """What is in the first block that is fenced as JSON. Where the first such fence is never closed, no later one is."""
    opening = _OPENING.search(text)
    closing = None if opening is None else _CLOSING.search(text, opening.end())
    return None if opening is None or closing is None else text[opening.end() : closing.start()]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # Python's parser would take NaN and Infinity


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


def _validator(schema: Mapping[str, Any]) -> Validator:
    try:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
        from referencing import Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012
    except ImportError as error:
        raise MissingDependencyError("json-schema needs the package jsonschema: pip install 'rm-plugins[rules]'.") from error
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
                f"the reference {reference!r} leads nowhere inside the schema, and nothing is fetched from elsewhere.",
                key="schema",
            ) from error
    return cls(schema, registry=REGISTRY)


def _references(resource: Resource[Any], resolver: Any) -> Iterator[tuple[str, Any]]:
    """Every reference in a schema, with what resolves it there."""
    for key in ("$ref", "$dynamicRef"):
        if isinstance(resource.contents, Mapping) and key in resource.contents:
            yield resource.contents[key], resolver
    for inner in resource.subresources():
        yield from _references(inner, resolver.in_subresource(inner))
