"""A reward for completions that are JSON of a wanted structure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from rm_plugins.errors import MissingDependencyError, SpecError
from rm_plugins.provider import LocalPath
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample
from rm_plugins.written_settings import read_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from referencing import Resource

_FENCED = re.compile(r"^ {0,3}```json[ \t]*\r?\n(.*?)^ {0,3}```[ \t]*(?=\r?$)", re.DOTALL | re.IGNORECASE | re.MULTILINE)


class JsonSchema(RowProvider):
    """1 for a completion that is JSON and valid under a schema, `partial` for other JSON, 0 for what is no JSON.

    Args:
        schema: A JSON Schema (of the draft that its ``$schema`` names, else 2020-12), or a JSON file with one; without it,
            any JSON is valid. Its references must lead inside it.
        extract: What is read: the ``whole`` completion, the first ``fenced`` block of it that is marked as ``json``, or
            ``auto``: such a block if there is one, else the whole.
        partial: The score of JSON that is not valid.

    Raises:
        SpecError: The schema is none, or cannot be read.
        MissingDependencyError: There is a schema, and jsonschema is not installed.
    """

    name: ClassVar[str] = "json-schema"

    def __init__(
        self,
        *,
        schema: Mapping[str, Any] | Annotated[str, LocalPath] | None = None,
        extract: Literal["auto", "fenced", "whole"] = "auto",
        partial: float = 0.0,
    ) -> None:
        if not np.isfinite(partial):
            raise SpecError(f"must be a finite number; got {partial}.", key="partial")
        self._schema = _read(schema) if isinstance(schema, str) else schema
        self._validator = None if self._schema is None else _validator(self._schema)
        self.extract = extract
        self.partial = partial

    def score_sample(self, sample: Sample) -> float:
        """Parse and validate the completion."""
        text = sample.completion_text
        if self.extract != "whole":
            block = _FENCED.search(text)
            if block is None and self.extract == "fenced":
                return 0.0
            text = block[1] if block else text
        try:
            document = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):  # a ValueError, too, is a number of too many digits
            return 0.0
        if self._validator is None:
            return 1.0
        try:
            return 1.0 if self._validator.is_valid(document) else self.partial
        except (OverflowError, RecursionError):  # JSON, but too large or too deep to be what the schema asks for
            return self.partial

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_validator": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._validator = None if self._schema is None else _validator(self._schema)


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
