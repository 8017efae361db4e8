"""Which parts of a reward become reward columns, and where each is in its scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import rm_plugins as rm
from rm_plugins.errors import SpecError, did_you_mean


def chosen_columns(provider: rm.Provider, columns: Sequence[str] | None) -> dict[str, str]:
    """The columns by name, each with the path of its part: ``helpful``, or ``0/helpful`` for a part of a part.

    Args:
        provider: The reward.
        columns: The parts: their names in `Scores.parts`, or the labels of the providers that score them. All parts if None.

    Raises:
        SpecError: The reward has no parts, or none of this name; a name is given twice; or all are asked for where only a batch shows
            which there are.
    """
    if isinstance(columns, str):
        raise SpecError(f"columns must be a list of names, such as [{columns!r}], not one name.", key="columns")
    if isinstance(columns, Set):
        raise SpecError("columns must be a list of names; the order of a set differs between processes.", key="columns")
    columns = None if columns is None else list(columns)
    if wrong := [column for column in columns or () if not isinstance(column, str)]:
        raise SpecError(f"the name of a part must be text, such as '0'; got {wrong[0]!r}.", key="columns")
    labels = _labels(provider)
    if columns is None:
        columns = _all(provider, labels)
    elif not columns:
        raise SpecError("there are none. Name the parts of the reward, or leave `columns` out for all of them.", key="columns")
    paths = {column: _path(provider, labels, column) for column in columns}
    for column in columns:
        twice = [other for other in columns if paths[other] == paths[column]]
        if len(twice) > 1:
            raise SpecError(f"a part is named twice: {', '.join(map(repr, twice))}.", key="columns")
    return paths


def part_at(scores: rm.Scores, path: str) -> rm.Scores | None:
    """The part at a path, with its scores [N]; None if the batch has none.

    A server sends parts as details. There, the name may leave out the kind, as in ``helpful`` for ``head/helpful``.
    """
    if path in scores.parts:
        return scores.parts[path]
    first, _, rest = path.partition("/")
    if rest and first in scores.parts and (inner := part_at(scores.parts[first], rest)) is not None:
        return inner
    columns = scores.columns
    alike = [name for name in columns if is_named(path, [name])]
    return rm.Scores(columns[alike[0]]) if len(alike) == 1 else None


def is_named(path: str, columns: Iterable[str]) -> bool:
    """Whether a path is among the names of `Scores.columns`, with or without its kind.

    >>> is_named("helpful", ["head/helpful", "std"]), is_named("help", ["head/helpful"])
    (True, False)
    """
    return any(path in (name, name.partition("/")[2]) for name in columns)


def missing_part(seen: Sequence[str], name: str, path: str) -> SpecError:
    """The error where no batch so far has a part."""
    short = [name.partition("/")[2] or name for name in seen]
    known = short if len({*short}) == len(short) else seen
    return SpecError(
        f"The reward {name!r} has no part {path!r} in any batch so far. {did_you_mean(path, known)}",
        key="columns",
    )


def _labels(provider: rm.Provider) -> dict[str, str]:
    """The names of parts by the label of the provider that scores each; empty if two have the same label."""
    labels = {child.label: part for part, child in provider.part_providers.items()}
    return labels if len(labels) == len(provider.part_providers) else {}


def _all(provider: rm.Provider, labels: dict[str, str]) -> Sequence[str]:
    if provider.part_names is None:
        raise SpecError(
            f"which parts the scores of {provider.called} have is only known after it has scored. Name those that you need: "
            'reward_funcs(SPEC, columns=["NAME", ...]).',
            key="columns",
        )
    if not provider.part_names:
        raise SpecError(
            f"the scores of {provider.called} have no parts. Use reward_func(SPEC) for its one reward.", key="columns"
        )
    return list(labels) if all(part.isdecimal() for part in provider.part_names) and labels else list(provider.part_names)


def _path(provider: rm.Provider, labels: dict[str, str], column: str) -> str:
    names = provider.part_names
    if names is None or column in names:
        return column
    if column in labels:
        return labels[column]
    first, _, rest = column.partition("/")
    part = labels.get(first, first)
    if rest and part in provider.part_providers:
        inner = provider.part_providers[part]
        return f"{part}/{_path(inner, _labels(inner), rest)}"
    raise SpecError(
        f"the reward {provider.called} has no part {column!r}. {did_you_mean(column, [*names, *labels])}", key="columns"
    )
