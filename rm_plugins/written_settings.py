"""Reads YAML, JSON and text files that users wrote, within size limits, so that no file can exhaust memory or time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rm_plugins.errors import SpecError
from rm_plugins.missing_path import not_there, other_kind

MOST_BYTES = 2**20
"""The largest YAML or text file that is read."""
MOST_JSON_BYTES = 16 * 2**20
"""The largest JSON file that is read; JSON parses faster than YAML, and the file may be a schema."""
MOST_ENTRIES = 50_000
"""The most values in a spec, counting each repetition by an alias."""
MOST_LEVELS = 100
"""The deepest nesting of mappings and lists."""
MOST_DIGITS = 1_000
"""The most characters of a number."""

_NUMBER_LIKE = re.compile(r"[-+.:_0-9a-fA-FoxX]*")


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text in a regular file.

    Args:
        path: The file.
        most: The largest size in bytes that is read.

    Raises:
        SpecError: It is not a regular file, is too large, or cannot be read as UTF-8.
    """
    if kind := other_kind(path):
        raise SpecError(f"{path} is {kind}, not a file. Name a file.")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise SpecError(f"{path} is too large: it has more than {most:,} bytes, the limit for such a file.")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise SpecError(f"There is no file {str(path)!r}{not_there(path)}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise SpecError(f"{path} cannot be read: {reason}") from error


def read_settings(path: Path) -> Any:
    """The contents of a YAML or JSON file.

    Raises:
        SpecError: It cannot be read, or exceeds a limit.
    """
    if path.suffix == ".json":
        return read_json(path)
    return parsed_yaml(read_text(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """The contents of a YAML or JSON file that must hold a mapping with text keys.

    Raises:
        SpecError: It holds something else, or as `read_settings`.
    """
    content = read_settings(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SpecError(f"{path} must hold a mapping with text keys, such as `provider: ...`; it holds {content!r:.80}.")
    return content


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        SpecError: It cannot be read.
    """
    try:
        return json.loads(read_text(path, MOST_JSON_BYTES))
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SpecError(f"{path} cannot be read: {reason}") from error


def parsed_yaml(text: str, where: str) -> Any:
    """The contents of a YAML text.

    Args:
        text: The text.
        where: The name of the text in error messages.

    Raises:
        SpecError: It is not valid YAML, or exceeds a limit.
    """
    if len(text) > MOST_BYTES:
        raise SpecError(f"{where:.200} is too large: it has {len(text):,} characters; the limit is {MOST_BYTES:,}.")
    try:
        _check_yaml(text, where)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError is about a value, such as an impossible date
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{where:.200} cannot be read: {error}") from error


def _check_yaml(text: str, where: str) -> None:
    """Check the limits on the parsed events, before any value is built."""
    sizes: dict[str | None, int] = {}  # entries below each anchor
    open_parts: list[tuple[str | None, int]] = []
    entries = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        entries_before = entries
        if isinstance(event, yaml.AliasEvent):
            entries += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            entries += 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((event.anchor, entries_before))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, entries_before = open_parts.pop()
            if anchor is not None:
                sizes[anchor] = entries - entries_before
        problem = ""
        if entries > MOST_ENTRIES:
            problem = f"more than {MOST_ENTRIES:,} entries (counting repetitions by aliases)"
        elif len(open_parts) > MOST_LEVELS:
            problem = f"more than {MOST_LEVELS} levels of nesting"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MOST_DIGITS:
            problem = f"a number of {len(event.value):,} digits" if _NUMBER_LIKE.fullmatch(event.value) else ""
        if problem:
            place = "" if event.start_mark is None else f", at line {event.start_mark.line + 1}"
            raise SpecError(f"{where:.200} has {problem}{place}. This exceeds the limit for such a file.")


def beyond_bounds(value: object) -> tuple[list[Any], str] | None:
    """The first path at which a nested value exceeds a limit of specs, and how; None if no limit is exceeded.

    >>> beyond_bounds({"members": [{"n": 10**40}]})
    (['members', 0, 'n'], 'must be a number of at most 64 bits; got one of 133 bits')
    """
    for entries, (path, part) in enumerate(_walked(value)):
        if entries > MOST_ENTRIES:
            return [], f"has more than {MOST_ENTRIES:,} entries (counting repetitions)"
        if len(path) > MOST_LEVELS:
            return path, f"is nested more than {MOST_LEVELS} levels deep"
        if isinstance(part, int) and part.bit_length() > 63:
            return path, f"must be a number of at most 64 bits; got one of {part.bit_length():,} bits"
    return None


def _walked(value: object) -> Iterator[tuple[list[Any], object]]:
    """A value and everything inside it, each with its path; a value that contains itself is entered once."""
    pending: list[tuple[list[Any], object, frozenset[int]]] = [([], value, frozenset())]
    while pending:
        path, part, within = pending.pop()
        yield path, part
        inside: Any = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, (list, tuple)) else ()
        if id(part) not in within:
            around = within | {id(part)}
            pending += [([*path, key], item, around) for key, item in inside]
