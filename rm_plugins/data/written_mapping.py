"""The ways to write a mapping: a preset, ``OLD=NEW``, YAML, or a file of YAML beside the data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rm_plugins.constructor_schema import validator_of
from rm_plugins.data.mapping import RowMapping
from rm_plugins.data.presets import PRESETS
from rm_plugins.errors import DataError, SpecError, did_you_mean
from rm_plugins.written_settings import parsed_yaml, read_text

logger = logging.getLogger(__name__)


def mapping_of(texts: Iterable[str]) -> RowMapping | None:
    """The mapping that a user has written; None if nothing was.

    Args:
        texts: Each is the name of a preset, ``OLD=NEW``, a YAML file, or YAML in braces; a later one adds to earlier ones.

    Raises:
        SpecError: A text has none of these forms.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if text in PRESETS:
            given = PRESETS[text].settings
        elif text.lstrip().startswith("{"):
            given = _from_yaml(text, text)
        elif text.endswith((".yaml", ".yml")):
            given = _from_file(Path(text))
        elif old and equals and new:
            given = {"rename": {old: new}}
        else:
            raise SpecError(
                f"--map {text!r} is neither OLD=NEW (as is_correct=labels), a YAML file nor a preset. {did_you_mean(text, PRESETS)}"
            )
        for name, value in _checked(given).items():
            settings[name] = {**settings.get(name, {}), **value} if isinstance(value, Mapping) and name != "winner" else value
    return RowMapping(**settings) if settings else None


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a mapping, each of the right type."""
    if isinstance(settings.get("verdicts"), dict):  # YAML makes numbers and true of some
        settings["verdicts"] = {str(value): verdict for value, verdict in settings["verdicts"].items()}
    try:
        checked: dict[str, Any] = validator_of(RowMapping).validate_python(settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise SpecError(f"The mapping's `{problem['loc'][0]}` is {problem['input']!r:.80}: {problem['msg'].lower()}.") from None
    return checked


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return _from_yaml(read_text(path), str(path))
    except SpecError as error:
        raise SpecError(f"The mapping {str(path)!r} cannot be used: {error}") from error


def _from_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        given = parsed_yaml(text, where)
    except SpecError as error:
        raise SpecError(f"The mapping {where:.200} is not readable YAML: {error}") from error
    known = {field.name: field for field in dataclasses.fields(RowMapping)}
    if not isinstance(given, dict):
        raise SpecError(f"The mapping {where} must be a mapping of {', '.join(known)}, not {given!r:.80}.")
    preset = given.pop("preset", None)
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise SpecError(f"The mapping {where} names the preset {preset!r}. {did_you_mean(str(preset), PRESETS)}")
    for name in given:
        if name not in known:
            raise SpecError(f"The mapping {where} has {name!r}. {did_you_mean(str(name), known)}")
    return {**({} if preset is None else PRESETS[preset].settings), **given}


def mapping_beside(source: str) -> RowMapping | None:
    """The mapping in ``NAME.map.yaml`` next to a file ``NAME.jsonl`` or a folder ``NAME``; None if there is none.

    Raises:
        DataError: `source` is empty, or contains a character that paths cannot have.
        SpecError: The file is not a mapping.
    """
    path = _beside(source)
    return None if path is None else _noted(path, path.stat().st_mtime_ns)


@lru_cache
def tell_of_unread_mapping(source: str) -> None:
    """Log that the mapping next to the data is not read, because another mapping was given."""
    if (path := _beside(source)) is not None:
        logger.warning("%s is not read, because another mapping was given.", path)


def _beside(source: str) -> Path | None:
    if source == "-":
        return None
    check_path(source)
    for place in dict.fromkeys((Path(source), Path(source).resolve())):  # a link, then the file that it leads to
        if not place.name:  # such as "." and "/"
            continue
        file = place.with_suffix("") if place.suffix.lower() in (".gz", ".zst") else place
        beside = (
            file.with_suffix(".map.yaml") if not place.is_dir() and file.name else place.with_name(f"{place.name}.map.yaml")
        )
        if beside.is_file():
            return beside
    return None


def check_path(source: str) -> None:
    """Refuse an empty path, which would be the current folder, and one that no system has.

    Raises:
        DataError: It is one of these.
    """
    if not source.strip():
        raise DataError("The path of the data is empty. Name a file, a folder or a dataset, or - for standard input.")
    if "\0" in source:
        raise DataError(f"{source!r} is not a path of data: it contains a null character. Check the path.")


@lru_cache
def _noted(path: Path, _: int) -> RowMapping | None:
    logger.warning("Rows are mapped with %s.", path)
    return mapping_of([str(path)])
