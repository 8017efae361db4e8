"""What somebody has written into a file, as YAML, JSON or text: read within bounds, so that no file can take the memory or the time."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rm_plugins.errors import SpecError

MOST_BYTES = 2**20
"""Of a YAML file or of a text."""
MOST_JSON_BYTES = 16 * 2**20
"""Of a JSON file, which takes less time and may be a schema."""
MOST_ENTRIES = 50_000
"""Values in a spec, each as often as an alias repeats it."""
MOST_LEVELS = 100
"""Mappings and lists inside each other."""
MOST_DIGITS = 1_000
"""Characters of a number."""

_NUMBER_LIKE = re.compile(r"[-+.:_0-9a-fA-FoxX]*")
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def other_kind(path: Path) -> str | None:
    """What is at a path, if that is something else than a regular file; None where there is such a file, or nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing, or no name that a file can have
        return None
    return next((kind for is_kind, kind in _KINDS.items() if is_kind(mode)), None)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text in a regular file.

    Args:
        path: The file.
        most: The most bytes that are read.

    Raises:
        SpecError: It is something else than a file, is too large, or cannot be read as UTF-8.
    """
    if kind := other_kind(path):
        raise SpecError(f"{path} is {kind} and not a file that could be read.")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise SpecError(f"{path} has more than {most:,} bytes, which is the most that is read of such a file.")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise SpecError(f"{path} cannot be read: {reason}") from error


def read_settings(path: Path) -> Any:
    """What a YAML or JSON file holds.

    Raises:
        SpecError: It cannot be read, or is beyond the bounds.
    """
    if path.suffix == ".json":
        return read_json(path)
    return parsed_yaml(read_text(path), str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        SpecError: It cannot be read.
    """
    try:
        return json.loads(read_text(path, MOST_JSON_BYTES))
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise SpecError(f"{path} cannot be read: {reason}") from error


def parsed_yaml(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        text: The text.
        where: What messages call it.

    Raises:
        SpecError: It is no YAML, or is beyond the bounds.
    """
    if len(text) > MOST_BYTES:
        raise SpecError(f"{where:.200} has {len(text):,} characters; {MOST_BYTES:,} are the most that are read.")
    try:
        _check_yaml(text, where)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError is of a value, such as a date that is none
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{where:.200} cannot be read: {error}") from error


def _check_yaml(text: str, where: str) -> None:
    """Refuse what would become too much, before anything is made of it."""
    sizes: dict[str | None, int] = {}  # of what has an anchor, in entries
    open_parts: list[tuple[str | None, int]] = []
    entries = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        begun = entries
        if isinstance(event, yaml.AliasEvent):
            entries += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            entries += 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((event.anchor, begun))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, begun = open_parts.pop()
            if anchor is not None:
                sizes[anchor] = entries - begun
        problem = ""
        if entries > MOST_ENTRIES:
            problem = f"more than {MOST_ENTRIES:,} entries, aliases written out"
        elif len(open_parts) > MOST_LEVELS:
            problem = f"more than {MOST_LEVELS} levels inside each other"
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MOST_DIGITS:
            problem = f"a number of {len(event.value):,} digits" if _NUMBER_LIKE.fullmatch(event.value) else ""
        if problem:
            place = "" if event.start_mark is None else f", at line {event.start_mark.line + 1}"
            raise SpecError(f"{where:.200} has {problem}{place}. That is more than is read.")


def beyond_bounds(value: object) -> tuple[list[Any], str] | None:
    """Where a nested value is larger than a spec is, and how; None where it is nowhere.

    >>> beyond_bounds({"members": [{"n": 10**40}]})
    (['members', 0, 'n'], 'must be a number of at most 64 bits; got one of 133 bits')
    """
    for entries, (path, part) in enumerate(_walked(value)):
        if entries > MOST_ENTRIES:
            return [], f"there are more than {MOST_ENTRIES:,} entries in it, each as often as it is repeated"
        if len(path) > MOST_LEVELS:
            return path, f"it is nested more than {MOST_LEVELS} levels deep"
        if isinstance(part, int) and part.bit_length() > 63:
            return path, f"must be a number of at most 64 bits; got one of {part.bit_length():,} bits"
    return None


def _walked(value: object) -> Iterator[tuple[list[Any], object]]:
    """A value and all that is in it, each with its path; what holds itself is not entered twice."""
    pending: list[tuple[list[Any], object, frozenset[int]]] = [([], value, frozenset())]
    while pending:
        path, part, within = pending.pop()
        yield path, part
        inside: Any = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, (list, tuple)) else ()
        if id(part) not in within:
            around = within | {id(part)}
            pending += [([*path, key], item, around) for key, item in inside]
